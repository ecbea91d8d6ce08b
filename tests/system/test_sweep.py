"""`trace --mtu` on a real switch: the byte and the segment, whatever swallows the frames.

Network: the lab; faults are rules of the switch and MTUs of devices, put in by the test.
"""

import json
import subprocess
import sys

import pytest
from support.switch_rules import rules, swallow_longer_than

from netprobe.host.iproute import batch

pytestmark = pytest.mark.system

COMMAND = [
    sys.executable,
    "-m",
    "netprobe.cli.main",
    "trace",
    "vm1",
    "vm2",
    "--mtu",
    "--tmax",
    "500ms",
    "--rate",
    "400",
]


def swept(*words, timeout=120):
    done = subprocess.run([*COMMAND, *words, "--json"], capture_output=True, text=True, timeout=timeout, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def store(tmp_path):
    return ["--store", str(tmp_path / "results.duckdb")]


def test_68_bytes_pass_and_69_vanish(lab, lab_place, store):
    """The plague by its name: packets of 68 bytes pass, 69 are swallowed by the switch. The exact byte, the segment."""
    with rules(lab_place, *swallow_longer_than(82, port=1)):
        code, said = swept("--proto", "icmp", *store)
    assert code == 1
    mtu = said["mtu"]
    assert (mtu["verdict"], mtu["passes_up_to"], mtu["first_failing"], mtu["exact"]) == ("limited", 82, 83, True)
    assert (mtu["passes_up_to_packet"], mtu["first_failing_packet"]) == (68, 69)
    assert (mtu["segment"], mtu["certain"]) == ("vm1.backend..vm2.backend", True)
    assert mtu["failing"] == [[83, 1514]]
    assert (said["src"], said["dst"], said["type_p"]["proto"], said["stored"]) == ("vm1", "vm2", "icmp", True)
    by_size = {row["size"]: row for row in mtu["sizes"]}
    assert by_size[82]["passed"] > 0
    assert by_size[83]["passed"] == 0


def test_a_path_without_a_limit_passes_up_to_the_senders_own_mtu(lab, store):
    """STAMP probes, IPv6: every size that was tried."""
    code, said = swept("--family", "6", *store)
    assert (code, said["mtu"]["verdict"], said["mtu"]["passes_up_to"]) == (0, "all-pass", 1514)
    assert said["mtu"]["smallest"] == 130


def test_a_device_that_takes_less_is_named_by_its_segment(lab, store):
    """The port of vm2 takes packets of 1,300 bytes: the switch cannot hand over what is longer."""
    try:
        batch(["link set tapvm2 mtu 1300"], netns="hv1")
        code, said = swept("--proto", "raw-udp", "--dport", "5000", *store)
    finally:
        batch(["link set tapvm2 mtu 1500"], netns="hv1")
    mtu = said["mtu"]
    assert (code, mtu["verdict"], mtu["segment"]) == (1, "limited", "vm1.backend..vm2.backend")
    assert (mtu["passes_up_to_packet"], mtu["first_failing_packet"], mtu["exact"]) == (1300, 1301, True)
    assert mtu["return"] is None


def test_what_the_guest_itself_does_not_take_is_the_last_stretch(lab, store):
    """vm2's own NIC takes less: nobody sees whether the probe or its answer is lost there, and the answer says so."""
    try:
        batch(["link set eth0 mtu 1300"], netns="vm2")
        code, said = swept("--proto", "icmp", *store)
    finally:
        batch(["link set eth0 mtu 1500"], netns="vm2")
    mtu = said["mtu"]
    assert (code, mtu["verdict"], mtu["segment"]) == (1, "limited", "vm2.backend..vm2.guest"), mtu
    assert (mtu["certain"], mtu["reason"]) == (False, "unanswered")
    assert 1300 <= mtu["passes_up_to_packet"] < mtu["first_failing_packet"] <= 1305  # a veth lets a VLAN tag's room by


def test_a_lossy_path_makes_no_size(lab, store):
    """A relay drops 20 % of everything: never a byte that fails."""
    from netprobe.lab import control  # noqa: PLC0415

    control.fault_set("vm1.backend..vm2.backend", loss=0.2, seed=3)
    code, said = swept("--proto", "icmp", *store)
    assert (code, said["mtu"]["verdict"]) in {(0, "all-pass"), (4, "inconclusive")}
    assert said["mtu"]["first_failing"] is None
    assert said["mtu"]["loss_bound"] > 0.15


def test_a_blocked_path_is_unreachable_and_no_matter_of_size(lab, store):
    """No rule lets UDP 7777 in: two runs, exit code 1, no size."""
    code, said = swept("--proto", "raw-udp", "--dport", "7777", *store)
    mtu = said["mtu"]
    assert (code, mtu["verdict"], mtu["first_failing"], mtu["runs"]) == (1, "unreachable", None, 2)
    assert (mtu["segment"], mtu["reason"]) == ("vm1.backend..vm2.backend", "security-group")
