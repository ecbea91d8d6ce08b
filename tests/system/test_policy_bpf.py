"""The filters of a verify run in the kernel: cls_bpf on a device's egress takes our frames away, and nobody else's.

Namespaces of the test's own: `tap` is the device toward the guest, what its filter matches goes to `np` instead.
"""

import os
import socket
import subprocess

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.policy_wire import MARK, NAMES, OTHER, PACKETS, frame
from support.wire_frames import all_sessions, probe, with_tags

from netprobe.host.netns import in_netns
from netprobe.wire.policy_bpf import absorb_program, tc_bytecode

pytestmark = pytest.mark.system

ABSORB = absorb_program(MARK)
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23  # linux/if_packet.h
MACS = (b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02")
OURS_LAST = frame("ipv4 tcp flags 0x2", 0xFFFF)
TENANT_LAST = MACS[1] + MACS[0] + b"\x88\xb5" + bytes(46)
E4 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2", tos=12)
E6 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IPv6(src="fd00::1", dst="fd00::2", tc=12)


def do(*words):
    subprocess.run(words, check=True)


def open_socket(netns, device, protocol=ETH_P_ALL):
    sock = in_netns(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.bind((device, protocol))
    sock.settimeout(10)
    return sock


def until(sock, last):
    """Frames between the two MAC addresses of this test, up to the last one; others are the kernels' own."""
    found = []
    while (seen := sock.recv(65536)) != last:
        if seen[6:12] == MACS[0]:
            found.append(seen)
    return found


@pytest.fixture(scope="module")
def split():
    """A function that sends frames out of a device, and gives what was absorbed and what went to the guest."""
    host, guest = (f"pb-{os.getpid()}-{side}" for side in ("host", "guest"))
    made, sockets, cpus = [], [], os.sched_getaffinity(0)
    # A veth's frames wait at the CPU that sends: on one, they stay in order.
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for name in (host, guest):
            do("ip", "netns", "add", name)
            made.append(name)
        for near, far in (("tap", "eth0"), ("np", "np1")):
            do("ip", "link", "add", near, "netns", host, "type", "veth", "peer", "name", far, "netns", guest)
            do("ip", "-n", host, "link", "set", near, "up")
            do("ip", "-n", guest, "link", "set", far, "up")
        tc = ("tc", "-n", host)
        do(*tc, "qdisc", "add", "dev", "tap", "clsact")
        matching = ("bpf", "bytecode", tc_bytecode(ABSORB))
        action = ("action", "mirred", "egress", "redirect", "dev", "np")
        do(*tc, "filter", "add", "dev", "tap", "egress", "protocol", "all", "prio", "9", *matching, *action)
        ends = ((host, "tap", 0), (guest, "np1"), (guest, "eth0"))
        sockets += [open_socket(*end) for end in ends]
        sender, absorbed, passed = sockets
        wait_for_links(sender, absorbed, passed)

        def send(*frames, through=sender):
            for one in (*frames, OURS_LAST, TENANT_LAST):
                through.send(one)
            return until(absorbed, OURS_LAST), until(passed, TENANT_LAST)

        send.host, send.guest = host, guest
        yield send
    finally:
        os.sched_setaffinity(0, cpus)
        for sock in sockets:
            sock.close()
        for name in made:
            do("ip", "netns", "del", name)


def wait_for_links(sender, *receivers):
    """A device that was just set up drops frames until the kernel has noticed its carrier."""
    waiting = dict(zip(receivers, (OURS_LAST, TENANT_LAST), strict=True))
    for _ in range(200):
        for sock, last in list(waiting.items()):
            sock.settimeout(0.05)
            try:
                sender.send(last)
                while sock.recv(65536) != last:
                    pass
            except OSError:  # nothing came yet, or the device is not up yet
                continue
            sock.settimeout(10)
            del waiting[sock]
        if not waiting:
            return
    pytest.fail("no frame crossed the veth pairs in 10 s")


def tenants():
    """Frames between the same addresses with the class mark, and those of another run and of other probes."""
    tenants = [E4 / TCP(sport=61000, dport=443, flags="S"), E4 / UDP(sport=68, dport=67) / Raw(b"nprb" * 9)]
    tenants += [E6 / TCP(sport=61000, dport=443, flags="S"), E6 / ICMPv6EchoRequest() / Raw(b"nprb" * 9)]
    tenants += [E4 / ICMP() / Raw(bytes(40)), Ether(src=E4.src, dst=E4.dst) / ARP(hwsrc=E4.src, psrc="10.0.0.1")]
    others = [frame(name, 1, mark=OTHER) for name in NAMES]
    return [bytes(one) for one in tenants] + others + [probe(session, 1) for session in all_sessions()]


def test_the_kernel_absorbs_our_frames_whole_and_only_ours(split):
    ours = [frame(name, seq) for seq, name in enumerate(NAMES)]
    assert split(*ours) == (ours, [])
    others = tenants()
    assert split(*others) == ([], others)


def test_frames_with_tags_in_band_are_absorbed(split):
    ours = [with_tags(frame(name, seq), (0x88A8, 7), (0x8100, 8)) for seq, name in enumerate(NAMES)]
    inner = [with_tags(frame(name, seq), (0x8100, 8)) for seq, name in enumerate(NAMES)]
    assert split(*ours) == (inner, [])  # the receiving kernel takes the outermost tag off


def test_frames_whose_tag_the_kernel_took_off_are_absorbed(split):
    """As a bridge or a switch sends them on: what comes in at `np` goes out of `tap`, its tag in the metadata."""
    do("tc", "-n", split.host, "qdisc", "add", "dev", "np", "clsact")
    words = "protocol all prio 9 u32 match u32 0 0 action mirred egress redirect dev tap"
    do("tc", "-n", split.host, "filter", "add", "dev", "np", "ingress", *words.split())
    bare = [frame(name, seq) for seq, name in enumerate(NAMES)]
    with open_socket(split.guest, "np1", 0) as through:
        assert split(*(with_tags(one, (0x8100, 5)) for one in bare), through=through) == (bare, [])
        tenant = bytes(E4 / UDP(sport=5000, dport=53) / Raw(bytes(40)))
        assert split(with_tags(tenant, (0x8100, 5)), through=through) == ([], [tenant])


@pytest.mark.parametrize(
    "name", ["ipv4 tcp flags 0x2", "ipv6 protocol 17", "ipv4 error about protocol 17", "arp reply"]
)
def test_the_kernel_and_the_interpreter_of_the_property_tests_agree_on_cut_and_changed_frames(split, name):
    assert name in PACKETS
    whole = frame(name, 3)
    cut = [whole[:size] for size in range(34, len(whole))]
    changed = [whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :] for at in range(12, len(whole))]
    frames = cut + changed
    absorbed, passed = split(*frames)
    assert absorbed == [one for one in frames if run(ABSORB, one)]
    assert passed == [one for one in frames if not run(ABSORB, one)]
    assert absorbed
