"""Sweeps and flows across hypervisors: the fabric that takes less than the tunnel needs, and one flow on its underlay.

Network: the lab `pair`; the fault is the MTU of a port of the fabric.
"""

import json
import subprocess
import sys

import pytest

from netprobe.host.iproute import batch

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "netprobe.cli.main", "trace", "vm1", "vm2", "--no-store", "--json"]
GENEVE_BYTES = 14 + 20 + 8 + 8 + 8  # inner Ethernet, outer IPv4 and UDP, Geneve and OVN's option


def traced(*words):
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_fabric_that_takes_too_little_is_named_to_the_byte(pair_lab):
    """Between the fabric's two ports, 58 bytes of tunnel below what they take: not the guests' ports, not the NICs."""
    try:
        batch(["link set port2 mtu 1300"], netns="fabric")
        code, said = traced("--mtu", "--proto", "icmp", "--tmax", "200ms", "--rate", "400")
    finally:
        batch(["link set port2 mtu 1600"], netns="fabric")
    mtu = said["mtu"]
    assert (code, mtu["verdict"], mtu["segment"], mtu["certain"]) == (1, "limited", "fabric.hv1..fabric.hv2", True)
    assert (mtu["passes_up_to_packet"], mtu["exact"]) == (1300 - GENEVE_BYTES, True)


def test_flows_across_hosts_all_pass(pair_lab):
    """Each is a session of its own, over seven segments."""
    code, said = traced("--flows", "4", "--count", "10")
    assert code == 0
    assert said["flow_groups"][0]["passes"] == 4
    assert all(len(s["segments"]) == 7 for s in said["sessions"])
