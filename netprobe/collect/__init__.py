"""Hop records to a ledger and segment statistics. Pure."""
