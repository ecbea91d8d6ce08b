"""The policy of 40 rules comes up in every lab, and real packets fare the same in each."""

import socket
import struct

import pytest
from support.lab_traffic import QUIET_S, WAIT_S, connect, drain, echo, guest, listener, send_frames, udp_frame
from support.policy_texts import forty, forty_file

from netprobe.host import netns
from netprobe.lab import config, control

pytestmark = pytest.mark.system

LABS = ("single", "bridge", "pair")


@pytest.fixture(scope="module", params=LABS)
def lab(request, lab_place, tmp_path_factory):
    """Each lab in turn, with this policy."""
    control.down()
    control.up(request.param, config_path=forty_file(tmp_path_factory.mktemp("policy"), request.param))
    status = control.status()
    assert status.is_healthy, status.problems
    yield status
    control.down()
    assert not [name for name in ("hv1", "hv2", "vm1", "vm5", "byp1", "byp2") if netns.exists(name)]


def address(lab, name, family="ipv4"):
    return guest(lab, name)[family]


def test_there_are_forty_rules_and_every_one_is_in_the_state_file(lab):
    rules = [rule.id for group in config.parse(forty(), where="forty").groups for rule in group.rules]
    assert len(rules) == 40
    ids = {info["id"] for info in lab.state["rules"].values()}
    assert set(rules) <= ids
    assert {"no telnet", "metrics", "metrics only from there", "vm1 asks no mdns"} <= ids


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_echo_passes_to_all_that_are_guarded(lab, family):
    for name in ("vm2", "vm3", "vm4"):
        assert echo("vm1", address(lab, name, family))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("source", "target", "port", "fate"),
    [
        ("vm1", "vm2", 80, "open"),
        ("vm1", "vm2", 999, "dropped"),
        ("vm1", "vm2", 1024, "dropped"),  # the ACL stands above web's 1000-1999
        ("vm1", "vm2", 1025, "open"),
        ("vm1", "vm2", 22, "dropped"),  # vm1 is no admin
        ("vm5", "vm2", 22, "open"),
        ("vm1", "vm2", 3310, "open"),  # a peer
        ("vm5", "vm2", 3310, "dropped"),
        ("vm2", "vm1", 5432, "open"),
        ("vm3", "vm1", 7007, "open"),
        ("vm3", "vm1", 7008, "dropped"),
        ("vm4", "vm2", 1299, "open"),
        ("vm4", "vm2", 1300, "dropped"),  # vm2 takes it, vm4 may not send it
        ("vm4", "vm5", 80, "open"),
        ("vm4", "vm5", 81, "dropped"),
        ("vm1", "vm5", 81, "open"),
    ],
)
def test_tcp_fares_as_the_rules_say(lab, source, target, port, fate, family):
    with listener(target, port):
        wait_s = WAIT_S if fate == "open" else QUIET_S
        assert connect(source, address(lab, target, family), port, wait_s) == fate


def test_a_guest_may_send_from_its_allowed_pair_and_from_no_address_beside_it(lab):
    """Its neighbour's answer is not waited for: the datagrams go to vm5, which takes everything."""
    prefix = address(lab, "vm3").rpartition(".")[0]
    assert echo("vm3", address(lab, "vm5"))
    assert arriving(lab, [f"{prefix}.{last}" for last in (63, 64, 127, 128)] + [address(lab, "vm3")]) == [
        f"{prefix}.64",
        f"{prefix}.127",
        address(lab, "vm3"),
    ]


def arriving(lab, sources):
    """Which of the source addresses get through from vm3 to vm5; in whatever order, since a batch may be reordered."""
    target = guest(lab, "vm5")
    frames = [udp_frame(guest(lab, "vm3") | {"ipv4": source}, target, source.encode()) for source in sources]
    with netns.in_netns("vm5", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))) as sock:
        sock.bind(("eth0", 0x0800))
        sock.settimeout(QUIET_S)
        send_frames("vm3", frames)
        found = {
            socket.inet_ntoa(frame[26:30])
            for frame in drain(sock)
            if frame[23] == socket.IPPROTO_UDP and struct.unpack_from("!H", frame, 36) == (5000,)
        }
    return [source for source in sources if source in found]


@pytest.mark.parametrize(("source", "passes"), [("vm2", True), ("vm3", False)])
def test_a_protocol_without_ports_passes_by_its_number_and_group(lab, source, passes):
    """PIM is for members of web alone: vm2 is one, vm3 is not. VRRP is for all, and shows that what is sent arrives."""
    target = guest(lab, "vm1")
    assert echo(source, target["ipv4"])
    with netns.in_netns("vm1", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))) as sock:
        sock.bind(("eth0", 0x0800))
        sock.settimeout(QUIET_S)
        send_frames(source, [with_protocol(guest(lab, source), target, number) for number in (103, 112)])
        found = {frame[23] for frame in drain(sock)}
    assert 112 in found
    assert (103 in found) is passes


def with_protocol(source, target, number):
    """A frame with another IP protocol: 20 octets of nothing."""
    frame = bytearray(udp_frame(source, target, bytes(20)))
    frame[23] = number
    frame[24:26] = bytes(2)
    words = struct.unpack("!10H", frame[14:34])
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame[24:26] = struct.pack("!H", ~total & 0xFFFF)
    return bytes(frame)
