"""A guest that floods with marked garbage spoils what is said of itself, and of nobody else.

Network: the lab pair. vm4 on hv2 sends half a million frames a second that carry the class mark and our magic; vm1 on
hv1 and vm2 on hv2 are probed meanwhile, and vm4 itself.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from support import flood
from support.truth_checks import probe, run

from netprobe.model.probes import Protocol
from netprobe.service.discovery import read_topology

pytestmark = [pytest.mark.system, pytest.mark.alone(reason="a flood takes a processor, and the switch the other")]

PPS = 500_000
SECONDS = 6
OWN_PORT, CLOSED_PORT = 40_000, 9_999


def run_with_flood(sessions, target, ports):
    """Run the sessions; from their first probe on vm4 floods. Says how fast it was."""
    guest = read_topology().guest("vm4", "test")
    ends = [str(guest.ipv4), target, *map(str, ports), str(SECONDS), str(PPS)]
    program = [sys.executable, str(Path(flood.__file__)), "eth0", guest.gateway_mac, *ends]
    flooders = []

    def begin(_):
        argv = ["ip", "netns", "exec", "vm4", *program]
        flooders.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))

    outcome = run(*sessions, tmax_ns=1_000_000_000, progress=begin)
    out, _ = flooders[0].communicate(timeout=30)
    sent, seconds = map(float, out.split())
    print(f"flood: {sent / seconds:.0f} frames/s for {seconds:.1f} s")
    assert sent / seconds > 0.2 * PPS  # this machine is shared
    return outcome


def between_others():
    """Sessions of guests that have nothing to do with it, both ways."""
    return [
        probe(name="there", src="vm1", dst="vm2", count=400, rate_pps=100),
        probe(name="back", src="vm2", dst="vm1", count=400, rate_pps=100),
    ]


def is_exact(leg):
    return leg.planned == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending


def check_others(results):
    """Exact, complete, and nothing of the flood in them."""
    for result in results:
        leg = result.forward
        assert is_exact(leg)
        assert (result.overflowed, result.forged, leg.unobserved, leg.pending, leg.unsent) == ({}, 0, 0, 0, 0)
        assert leg.delivered >= 0.9 * leg.planned  # the vswitch itself may drop next to a flood


def test_garbage_on_a_sessions_own_tuple_overflows_its_own_point_alone(pair_lab):
    """On the very tuple of vm4's session, so that every frame passes the filter: vm4's backend overflows, no other."""
    run(probe(count=20))  # warm
    own = probe(
        name="flooder",
        src="vm4",
        dst="vm2",
        count=400,
        rate_pps=100,
        protocol=Protocol.RAW_UDP,
        src_port=OWN_PORT,
        dst_port=CLOSED_PORT,
    )
    outcome = run_with_flood([*between_others(), own], "10.1.0.2", (OWN_PORT, CLOSED_PORT))
    *others, flooder = outcome.results
    check_others(others)
    assert is_exact(flooder.forward)
    assert set(flooder.overflowed) == {"vm4.backend"}
    assert flooder.forged > 1_000


def test_garbage_that_crosses_the_fabric_reaches_no_observer(pair_lab):
    """To vm3 on the other host, on no session's tuple: the points in between are everybody's; their filter drops it."""
    run(probe(count=20))  # warm
    own = probe(name="flooder", src="vm4", dst="vm3", count=400, rate_pps=100)
    outcome = run_with_flood([*between_others(), own], "10.1.0.3", (0, CLOSED_PORT))
    *others, flooder = outcome.results
    check_others(others)
    assert is_exact(flooder.forward)
    assert set(flooder.overflowed) <= {"vm4.backend"}
