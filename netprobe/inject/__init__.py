"""Probes into the network: pacing, transmit rings, packet-out, links into taps. I/O."""
