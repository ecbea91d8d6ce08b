"""Probes seen: receive rings with in-kernel filters, decoded a block at a time. I/O."""
