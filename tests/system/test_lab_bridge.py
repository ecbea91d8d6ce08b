"""The lab `bridge` for real: iptables decide as the groups say, relays stand anywhere, nothing is left behind."""

import socket
import subprocess

import pytest
from support.lab_traffic import (
    QUIET_S,
    WAIT_S,
    connect,
    drain,
    echo,
    guest,
    listener,
    marked,
    receiver,
    send,
    send_frames,
    udp_frame,
    watching,
)

from netprobe.host import iproute, iptables_restore, netns
from netprobe.lab import control

pytestmark = pytest.mark.system

SEGMENTS = (
    "vm1.guest..vm1.backend",
    "vm1.backend..vm1.bridge",
    "vm1.bridge..vm2.bridge",
    "vm2.bridge..vm2.backend",
    "vm2.backend..vm2.guest",
)


@pytest.fixture(scope="module", autouse=True)
def base(lab_place):
    """The system tests' run directory, and a lab that is gone at the end."""
    return lab_place


@pytest.fixture
def lab(base):
    """A healthy lab without faults."""
    control.up("bridge")
    control.fault_clear()
    status = control.status()
    assert status.is_healthy, status.problems
    return status


def run_in_hv1(*words):
    return subprocess.run(["ip", "netns", "exec", "hv1", *words], check=True, capture_output=True, text=True).stdout


# --- traffic


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("source", ["vm1", "vm3", "byp1"])
def test_echo_passes_between_all(lab, source, family):
    assert echo(source, guest(lab, "vm2")[family])
    assert echo("vm2", guest(lab, "bypass")[family])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_tcp_80_passes_and_8080_is_dropped_by_default(lab, family):
    address = guest(lab, "vm2")[family]
    with listener("vm2", 80), listener("vm2", 8080):
        assert connect("vm1", address, 80, WAIT_S) == "open"
        assert connect("vm1", address, 8080, QUIET_S) == "dropped"


def test_members_of_a_group_reach_each_other_and_others_do_not(lab):
    assert connect("vm1", guest(lab, "vm3")["ipv4"], 8080, WAIT_S) == "refused"
    assert connect("vm2", guest(lab, "vm3")["ipv4"], 8080, QUIET_S) == "dropped"


def test_a_spoofed_address_is_dropped_and_the_ports_own_passes(lab):
    """The honest frame is sent last: when it is there, the spoofed ones would have been."""
    assert echo("vm1", guest(lab, "vm2")["ipv4"])
    mine, other = guest(lab, "vm1"), guest(lab, "vm3")
    frames = [
        udp_frame(mine | {"ipv4": other["ipv4"]}, guest(lab, "vm2"), b"ip"),
        udp_frame(mine | {"mac": other["mac"]}, guest(lab, "vm2"), b"mac"),
        udp_frame(other, guest(lab, "vm2"), b"both"),
        udp_frame(mine, guest(lab, "vm2"), b"honest"),
    ]
    with receiver("vm2", 5000) as sock:
        sock.settimeout(WAIT_S)
        send_frames("vm1", frames)
        assert sock.recv(100) == b"honest"


def test_a_foreign_arp_sender_does_not_get_past_open_vswitch(lab):
    """Where iptables cannot look. Open vSwitch may deliver a batch out of order, so all that comes is looked at."""
    mine, other = guest(lab, "vm1"), guest(lab, "vm3")
    with netns.in_netns("vm2", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))) as sock:
        sock.bind(("eth0", 0x0806))
        sock.settimeout(QUIET_S)
        send_frames("vm1", [arp_request(mine, other["ipv4"], "10.0.0.2"), arp_request(mine, mine["ipv4"], "10.0.0.2")])
        senders = {frame[28:32] for frame in drain(sock)}
    assert socket.inet_aton(mine["ipv4"]) in senders
    assert socket.inet_aton(other["ipv4"]) not in senders


def arp_request(source, sender_ip, target_ip):
    mac = bytes.fromhex(source["mac"].replace(":", ""))
    addresses = [bytes(map(int, ip.split("."))) for ip in (sender_ip, target_ip)]
    return b"\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + addresses[0] + bytes(6) + addresses[1]


# --- what is there, and what is missing


def test_every_rule_has_a_comment_that_the_state_file_explains(lab):
    for family in (4, 6):
        for line in iptables_restore.save("hv1", family).splitlines():
            if line.startswith("["):
                comment = line.split("--comment ")[1].removeprefix('"').split('"')[0] if '"' in line else None
                comment = comment or line.split("--comment ")[1].split(" ")[0]
                assert comment in lab.state["rules"], line
    assert lab.state["rules"]["web[1]"] == {
        "port": "",
        "group": "web",
        "direction": "ingress",
        "rule": "ingress tcp dport 80 from any",
        "kind": "security-group",
        "id": "web[1]",
    }


def test_the_state_file_names_devices_that_exist_and_the_port_on_the_vswitch(lab):
    for point in lab.state["points"]:
        assert point["kind"] == "vswitch" or iproute.link_exists(point["netns"], point["device"])
    vm1 = guest(lab, "vm1")
    assert vm1["port"]["device"] == "qvovm1"
    assert vm1["chain"] == ["vm1.guest", "vm1.backend", "vm1.bridge"]


@pytest.mark.parametrize(
    "breaking",
    [
        ("iptables", "-D", "neutron-openvswi-sg-fallback", "1"),
        ("ip6tables", "-F", "neutron-openvswi-FORWARD"),
        ("iptables", "-t", "raw", "-F"),
        ("ipset", "del", "NIPv4peers", "10.0.0.3"),
    ],
)
def test_a_rule_or_member_that_is_gone_is_noticed_and_up_repairs_it(lab, breaking):
    run_in_hv1(*breaking)
    status = control.status()
    assert not status.is_healthy
    assert "of the iptables rules and ipsets are gone" in status.problems[0]
    assert control.up("bridge").repaired
    assert control.status().is_healthy


def test_rules_that_others_add_are_theirs(lab):
    run_in_hv1("iptables", "-t", "raw", "-I", "PREROUTING", "-p", "icmp", "-j", "TRACE")
    try:
        assert control.status().is_healthy
    finally:
        run_in_hv1("iptables", "-t", "raw", "-D", "PREROUTING", "1")


# --- faults


@pytest.mark.parametrize("segment", SEGMENTS)
def test_a_relay_in_any_segment_drops_there_and_the_rules_stay(lab, segment):
    """Lost in the segment: seen at its first point, and not at its second."""
    points = {point["id"]: point for point in lab.state["points"]}
    first, second = segment.split("..")
    control.fault_set(segment, loss=1.0)
    status = control.status()
    assert status.is_healthy, status.problems
    points = {point["id"]: point for point in status.state["points"]}
    assert echo("vm2", guest(lab, "vm1")["ipv4"], wait_s=QUIET_S) is False  # its answer is lost; neighbours are known
    with receiver("vm2", 5000) as sock, watching([points[first], points[second]]) as seen:
        send("vm1", guest(lab, "vm2")["ipv4"], [marked(seq) for seq in range(3)])
        assert drain(sock) == []
        found = seen()
    assert found[second] == []
    assert "guest" in first or sorted(set(found[first])) == [0, 1, 2]
    control.fault_clear(segment)
    assert control.status().is_healthy
    with listener("vm2", 80), listener("vm2", 8080):
        assert connect("vm1", guest(lab, "vm2")["ipv4"], 80, WAIT_S) == "open"
        assert connect("vm1", guest(lab, "vm2")["ipv4"], 8080, QUIET_S) == "dropped"


def test_a_guest_behind_a_relay_is_guarded_too(lab):
    control.fault_set("vm2.backend..vm2.guest", delay_ns=1_000_000)
    with listener("vm2", 80), listener("vm2", 8080):
        assert connect("vm1", guest(lab, "vm2")["ipv4"], 80, WAIT_S) == "open"
        assert connect("vm1", guest(lab, "vm2")["ipv4"], 8080, QUIET_S) == "dropped"


# --- the end


def test_nothing_is_left(lab):
    control.fault_set(SEGMENTS[1], delay_ns=1_000_000)
    assert control.down().was_up
    assert not [name for name in ("hv1", "vm1", "vm2", "vm3", "byp1") if netns.exists(name)]
    for program in ("iptables-save", "ip6tables-save"):
        assert "neutron-openvswi" not in subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert "NIPv" not in subprocess.run(["ipset", "save"], check=True, capture_output=True, text=True).stdout
