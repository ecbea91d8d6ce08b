"""The kernel's verdict on crafted frames, on both ends of a veth pair: frames on their way in and on their way out.

Two namespaces of the test's own. After each frame a sentinel that always passes is sent, so nobody waits for a frame
that the filter dropped.
"""

import ctypes
import os
import socket
import struct
import subprocess

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.wire_frames import all_sessions, answers, make_session, probe, stamp_reply, with_tags

from netprobe.host.netns import in_netns
from netprobe.model.probes import Protocol
from netprobe.wire.bpf import probe_filter

pytestmark = pytest.mark.system

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SENTINEL = b"\x02\x00\x00\x00\x00\x99" + b"\x02\x00\x00\x00\x00\x98" + b"\x88\xb5" + bytes(46)
SENTINEL_TYPE = 0x88B5  # IEEE 802 local experimental
HELLO = SENTINEL[:12] + b"\x88\xb6" + bytes(46)  # the other experimental type; no filter here passes it

MARKED = all_sessions()
UNMARKED = all_sessions(dscp=None)
SYN4 = UNMARKED[6]
E4 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2")
E6 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IPv6(src="fd00::1", dst="fd00::2")
BACK4 = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst="10.0.0.1")


def with_options(frame):
    inner = Ether(frame)
    options = [IPOption(b"\x94\x04\x00\x00")]
    ip = IP(src=inner[IP].src, dst=inner[IP].dst, tos=inner[IP].tos, options=options)
    return bytes(Ether(src=inner.src, dst=inner.dst) / ip / inner[IP].payload)


def cases():
    """(name, frame, whether the filter for UNMARKED passes it, whether that for MARKED does)."""
    for session in UNMARKED:
        name = f"{session.type_p.protocol.value}{session.type_p.family}"
        yield f"{name} probe", probe(session, 5), True, True
        yield f"{name} vlan", with_tags(probe(session, 5), (0x8100, 9)), True, True
        yield f"{name} qinq", with_tags(probe(session, 5), (0x88A8, 8), (0x8100, 9)), True, True
        for answer, frame in answers(session, 5).items():
            yield f"{name} {answer}", frame, True, True
        if session.type_p.family == 4:
            yield f"{name} options", with_options(probe(session, 5)), True, True
    marked = make_session(dst_port=5555)
    yield "marked only", probe(make_session(Protocol.TCP, dst_port=5555), 5), False, True
    yield "marked options", with_options(probe(marked, 5)), True, True
    bare = stamp_reply(probe(UNMARKED[0], 5), t2=1, t3=1, reflector_seq=1, keep_tlvs=False)
    yield "reply without TLV", bare, True, True
    yield "tenant udp", bytes(E4 / UDP(sport=5000, dport=53) / Raw(bytes(100))), False, False
    yield (
        "tenant udp vlan",
        with_tags(bytes(E4 / UDP(sport=5000, dport=53) / Raw(bytes(100))), (0x8100, 9)),
        False,
        False,
    )
    yield "tenant udp v6", bytes(E6 / UDP(sport=5000, dport=53) / Raw(bytes(100))), False, False
    yield "tenant syn, other port", bytes(E4 / TCP(sport=SYN4.src_ports[5], dport=80, flags="S")), False, False
    yield "tenant syn, other source port", bytes(E4 / TCP(sport=40000, dport=443, flags="S")), False, False
    yield "tenant syn-ack", bytes(BACK4 / TCP(sport=443, dport=40000, flags="SA")), False, False
    yield (
        "tenant data on a probe's tuple",
        bytes(E4 / TCP(sport=SYN4.src_ports[5], dport=443, flags="PA")),
        False,
        False,
    )
    yield "rst on a probe's tuple", bytes(BACK4 / TCP(sport=443, dport=SYN4.src_ports[5], flags="RA")), True, True
    yield "tenant ping", bytes(E4 / ICMP(id=1) / Raw(bytes(56))), False, False
    yield "error to the source", bytes(BACK4 / ICMP(type=11) / Raw(bytes(28))), True, True
    yield "error to the destination", bytes(E4 / ICMP(type=11) / Raw(bytes(28))), False, False
    yield "error v6 to the destination", bytes(E6 / ICMPv6DestUnreach() / Raw(bytes(60))), False, False
    yield "arp", Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0806).build() + bytes(46), False, False
    yield "short udp", bytes(E4 / UDP(sport=1, dport=2)), False, False


def passing_sentinels(program):
    """`program`, preceded by: EtherType of the sentinel -> pass."""
    head = struct.pack("HBBI", 0x28, 0, 0, 12) + struct.pack("HBBI", 0x15, 0, 1, SENTINEL_TYPE)
    return head + struct.pack("HBBI", 0x06, 0, 0, 0xFFFF) + program


def open_ring_like_socket(device, program):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    buffer = ctypes.create_string_buffer(program)
    count = len(program) // 8
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", count, ctypes.addressof(buffer)))
    sock.bind((device, ETH_P_ALL))
    sock.settimeout(10)
    return sock


def wait_for_link(sender_netns, receiver_netns):
    """A device that was just set up drops frames until the kernel has noticed its carrier."""
    sender = in_netns(sender_netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    receiver = in_netns(receiver_netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with sender, receiver:
        sender.bind(("v", 0))
        receiver.bind(("v", 0x88B6))
        receiver.settimeout(0.05)
        for _ in range(200):
            try:
                sender.send(HELLO)
                receiver.recv(100)
            except OSError:  # nothing came yet, or the device is not up yet
                continue
            return
    pytest.fail("no frame crossed the veth pair in 10 s")


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def pair():
    """Two namespaces, a device `v` in each; frames sent into the first one's come out of the second one's."""
    names = [f"wt-{os.getpid()}-{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "v", "netns", names[0], "type", "veth", "peer", "name", "v", "netns", names[1])
        for name in names:
            ip("-n", name, "link", "set", "v", "up")
        wait_for_link(*names)
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.fixture(params=["in", "out"])
def looker(request, pair):
    """A function that sends a frame and tells whether a filter at the receiving or at the sending device passed it."""
    where = pair[1] if request.param == "in" else pair[0]
    sender = in_netns(pair[0], lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    sender.bind(("v", 0))
    sockets = {}

    def look(program, frame):
        if program not in sockets:
            sockets[program] = in_netns(where, lambda: open_ring_like_socket("v", passing_sentinels(program)))
        sender.send(frame)
        sender.send(SENTINEL)
        has_passed = False
        while (seen := sockets[program].recv(65536)) != SENTINEL:
            has_passed = True
            assert len(seen) >= 14
        return has_passed

    yield look
    sender.close()
    for sock in sockets.values():
        sock.close()


@pytest.mark.parametrize(("which", "sessions"), [(2, UNMARKED), (3, MARKED)], ids=["no class mark", "class mark"])
def test_the_kernel_gives_the_verdict_that_the_cases_say(looker, which, sessions):
    program = probe_filter(sessions)
    wrong = [case[0] for case in cases() if looker(program, case[1]) != case[which]]
    assert wrong == []


def test_the_interpreter_of_the_property_tests_agrees_with_the_kernel(looker):
    program = probe_filter(UNMARKED)
    for name, frame, *_ in cases():
        assert looker(program, frame) == bool(run(program, frame)), name


def test_frames_cut_at_every_length_get_the_interpreters_verdict(looker):
    program = probe_filter(UNMARKED)
    for session in UNMARKED[::2]:
        frame = probe(session, 5)
        for size in range(14, len(frame)):
            assert looker(program, frame[:size]) == bool(run(program, frame[:size])), size
