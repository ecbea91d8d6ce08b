"""The kernel's verdict on crafted frames, on both ends of a veth pair: frames on their way in and on their way out.

Two namespaces of the test's own. After each frame a sentinel that always passes is sent, so nobody waits for a frame
that the filter dropped.
"""

import ctypes
import os
import socket
import struct
import subprocess
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.wire_frames import (
    all_sessions,
    answers,
    in_geneve,
    in_vxlan,
    make_session,
    probe,
    rows,
    stamp_reply,
    translated,
    with_tags,
    wraps,
)

from netprobe.host.netns import in_netns
from netprobe.model.contexts import HopContext, Tunnel
from netprobe.model.probes import Protocol
from netprobe.wire.bpf import probe_filter
from netprobe.wire.decode import Decoder

pytestmark = pytest.mark.system

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 1 << 4  # linux/if_packet.h
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
    yield "marked only", probe(make_session(Protocol.TCP, dst_port=5555), 5), False, False
    later = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2", tos=3 << 2)
    later[IP].frag, later[IP].proto = 100, 17
    yield "marked later fragment", bytes(later / Raw(bytes(64))), False, True
    yield "marked options, other port", with_options(probe(marked, 5)), False, False
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
    yield from tunnelled_cases()


def tunnelled_cases():
    """Likewise, of frames inside tunnels: every wrap, with tags outside and inside."""
    tenant4 = bytes(E4 / UDP(sport=5000, dport=53) / Raw(bytes(100)))
    tenant6 = bytes(E6 / TCP(sport=5000, dport=80, flags="S"))
    marked = probe(make_session(Protocol.TCP, dst_port=5555), 5)
    for name, wrap in wraps().items():
        for session in UNMARKED:
            kind = f"{session.type_p.protocol.value}{session.type_p.family} in {name}"
            for what, frame in {"probe": probe(session, 5), **answers(session, 5)}.items():
                yield f"{kind} {what}", wrap(frame), True, True
        inner = with_tags(probe(SYN4, 5), (0x88A8, 8), (0x8100, 9))
        yield f"tags around and in {name}", with_tags(wrap(inner), (0x8100, 9)), True, True
        yield f"two tags around {name}", with_tags(wrap(probe(SYN4, 5)), (0x88A8, 8), (0x8100, 9)), True, True
        yield f"marked only in {name}", wrap(marked), False, False
        for tenant in (tenant4, tenant6, with_tags(tenant4, (0x8100, 9))):
            yield f"tenant in {name}", wrap(tenant), False, False
            yield f"tenant in marked {name}", wrap(tenant, tos=3 << 2), False, False
            yield f"tenant in tagged {name}", with_tags(wrap(tenant), (0x8100, 9)), False, False
    bare = probe(SYN4, 5)[14:]
    yield "syn in geneve, without an Ethernet header", in_geneve(bare, proto=0x0800), True, True
    yield "tenant in geneve, without an Ethernet header", in_geneve(tenant4[14:], proto=0x0800), False, False
    for refused in ({"version": 1}, {"oam": 1}):
        yield f"geneve with {refused}", in_geneve(probe(SYN4, 5), flags=refused), False, False
    yield "vxlan without a VNI", in_vxlan(probe(SYN4, 5), flags=0), False, False
    yield "geneve cut short", in_geneve(probe(SYN4, 5))[:80], False, False
    for port in (6081, 4789, 8472):
        yield f"a tenant's datagram to {port}", bytes(E4 / UDP(sport=5000, dport=port) / Raw(bytes(40))), False, False


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


def test_a_filter_for_a_tunnels_own_port_and_for_nat_gets_the_verdicts_of_the_interpreter(looker):
    """The way in that looks at plain probes to a tunnel's port too: the kernel takes the program, and agrees."""
    session = make_session(dst_port=6081, dscp=None, extra=150, count=1 << 16)
    known, far = translated(make_session(session=9, dscp=None, src_port=4789, extra=150), src="203.0.113.1")
    program = probe_filter([session, known])
    bare = stamp_reply(probe(known, 5), t2=1, t3=1, reflector_seq=0x0800_0000, keep_tlvs=False)
    for frame in (probe(session, 5), probe(session, 0x6558), probe(known, 5), probe(far, 5), bare, in_geneve(bare)):
        assert run(program, frame)
        assert looker(program, frame)
    for frame in (in_geneve(probe(SYN4, 5)), in_vxlan(bytes(E4 / UDP(sport=1, dport=2) / Raw(bytes(100))))):
        assert not run(program, frame)
        assert not looker(program, frame)


def test_without_tunnels_a_wrapped_probe_does_not_pass(looker):
    program = probe_filter(UNMARKED, tunnels=False)
    for name, wrap in wraps().items():
        assert not looker(program, wrap(probe(SYN4, 5))), name


def test_frames_cut_at_every_length_get_the_interpreters_verdict(looker):
    program = probe_filter(UNMARKED)
    for frame in [probe(session, 5) for session in UNMARKED[::2]] + [in_geneve(probe(SYN4, 5))]:
        for size in range(14, len(frame)):
            assert looker(program, frame[:size]) == bool(run(program, frame[:size])), size


def received_with_tag(sock):
    """A frame, and the VLAN tag that the kernel took off it (-1: none); struct tpacket_auxdata, linux/if_packet.h."""
    frame, ancillary, _, _ = sock.recvmsg(65536, 256)
    (data,) = [data for level, kind, data in ancillary if (level, kind) == (SOL_PACKET, PACKET_AUXDATA)]
    status, tci = struct.unpack("I12xH2x", data)
    return frame, tci if status & TP_STATUS_VLAN_VALID else -1


def decoded_at(netns, program, sender, *frames):
    """What the decoder makes of the first frame that passes the filter on `v`, of those that are sent."""
    with in_netns(netns, lambda: open_ring_like_socket("v", program)) as receiver, sender:
        receiver.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        for frame in frames:
            sender.send(frame)
        frame, tag = received_with_tag(receiver)
    buf = np.frombuffer(frame, np.uint8)
    decoded = Decoder(UNMARKED).decode(buf, np.array([0]), np.array([len(frame)]), np.array([tag]))
    return rows(decoded), decoded.contexts, tag


TENANT4 = bytes(E4 / UDP(sport=5000, dport=53) / Raw(bytes(100)))


def sender_on(netns, device):
    sock = in_netns(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    sock.bind((device, 0))
    return sock


def test_the_kernels_own_vxlan_is_seen_through(pair):
    """Linux wraps, not a helper of ours: the tenant's frame stays in the kernel, the probe's context is told."""
    ends = "192.168.0.1", "192.168.0.2"
    for netns, end in zip(pair, ends, strict=True):
        ip("-n", netns, "addr", "add", f"{end}/24", "dev", "v")
    words = ("type", "vxlan", "id", "42", "local", ends[0], "remote", ends[1], "dstport", "4789", "dev", "v")
    ip("-n", pair[0], "link", "add", "vx", *words)
    try:
        ip("-n", pair[0], "link", "set", "vx", "up")
        found = decoded_at(pair[1], probe_filter(UNMARKED), sender_on(pair[0], "vx"), TENANT4, probe(SYN4, 5))
        outer = (ip_address(end) for end in ends)
        wanted = HopContext(SYN4.src_ip, SYN4.dst_ip, (), Tunnel.VXLAN, 42, *outer)
        assert found == ([(0, SYN4.session, 5, 0, 0)], (wanted,), -1)
    finally:
        ip("-n", pair[0], "link", "del", "vx")


@pytest.mark.parametrize("tags", [((0x8100, 7),), ((0x88A8, 8), (0x8100, 9))])
def test_a_tag_that_the_kernel_takes_off_is_told(pair, tags):
    """On the way in the outermost tag is in the metadata: filter and decoder see the frame without it."""
    frames = [with_tags(in_geneve(frame), *tags) for frame in (TENANT4, probe(SYN4, 5))]
    found, (context,), tag = decoded_at(pair[1], probe_filter(UNMARKED), sender_on(pair[0], "v"), *frames)
    assert found == [(0, SYN4.session, 5, 0, 0)]
    assert tag == tags[0][1]
    assert context.vlans == tuple(vid for _, vid in tags)
