"""Bytes to model and back: marks, STAMP, frames, filters, OpenFlow messages. Pure."""
