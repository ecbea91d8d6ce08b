"""Probes into the network: pacing, a probe NIC, packet-out. I/O."""
