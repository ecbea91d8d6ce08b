"""The packet ring on a veth pair of its own (namespace rg-): stamps, directions, overflow, a device that goes down."""

import os
import socket

import numpy as np
import pytest
from support.waiting import until

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import iproute
from netprobe.host.netns import in_netns
from netprobe.model.observations import FOR_EVER_NS, Blind, Unwatched
from netprobe.model.points import Direction, Point, PointKind
from netprobe.observe.observer import Decoding, Observer
from netprobe.observe.ring import BLOCKS, RxRing
from netprobe.wire.decode import Decoder

pytestmark = pytest.mark.system

PASS_ALL = b"\x06\x00\x00\x00\xff\xff\xff\x00"
HEAD = bytes.fromhex("020000000002") + bytes.fromhex("020000000001") + b"\x88\xb5"


@pytest.fixture
def pair():
    name = f"rg-{os.getpid()}"
    iproute.add_namespaces([name])
    try:
        commands = ["link add name rg0 type veth peer name rg1", "link set rg0 up", "link set rg1 up"]
        iproute.batch(commands, netns=name)
        iproute.set_sysctls(name, {"ipv6/conf/all/disable_ipv6": "1"})
        yield name
    finally:
        iproute.delete_namespaces([name])


@pytest.fixture
def sender(pair):
    sock = in_netns(pair, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    sock.bind(("rg0", 0))
    until(lambda: wire_up(pair, sock))
    yield sock
    sock.close()


def wire_up(pair, sock):
    """A new pair drops frames until its carrier is noticed: send until one comes through."""
    probe = in_netns(pair, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)))
    try:
        probe.bind(("rg1", 0x88B5))
        probe.settimeout(0.05)
        sock.send(HEAD + bytes(46))
        return bool(probe.recv(64))
    except TimeoutError:
        return False
    finally:
        probe.close()


def frames_of(ring, wanted, direction):
    """(payload number, stamp) of the frames in one direction, in order of the ring."""
    found, unstamped = [], 0

    def enough():
        nonlocal unstamped
        blocks = ring.blocks()
        for block in blocks:
            unstamped += block.unstamped
            for i in np.flatnonzero(block.direction == direction):
                start = int(block.offsets[i])
                assert bytes(block.buffer[start : start + 14]) == HEAD
                number = int.from_bytes(bytes(block.buffer[start + 14 : start + 18]), "big")
                found.append((number, int(block.t_ns[i]), int(block.lengths[i])))
        ring.release(len(blocks))
        return len(found) >= wanted

    until(enough)
    return found, unstamped


def test_frames_out_and_in_come_in_order_with_kernel_stamps(pair, sender):
    """Mixed sizes; each frame once on either side, stamped by the kernel, in never later on the way out than in."""
    out, into = RxRing(pair, "rg0", PASS_ALL), RxRing(pair, "rg1", PASS_ALL)
    try:
        sizes = [60, 92, 300, 1500] * 50
        for i, size in enumerate(sizes):
            sender.send(HEAD + i.to_bytes(4, "big") + bytes(size - 18))
        left, late_out = frames_of(out, len(sizes), Direction.OUT)
        came, late_in = frames_of(into, len(sizes), Direction.IN)
        assert [n for n, _, _ in left] == [n for n, _, _ in came] == list(range(len(sizes)))
        assert [length for _, _, length in came] == sizes
        assert (late_out, late_in) == (0, 0)
        assert all(a <= b for (_, a, _), (_, b, _) in zip(left, came, strict=True))
        assert (out.drops(), into.drops()) == (0, 0)
    finally:
        out.close()
        into.close()


def rows_of(block):
    """(offset, length, stamp, direction) of frames."""
    return list(zip(*(getattr(block, n).tolist() for n in ("offsets", "lengths", "t_ns", "direction")), strict=True))


def taken(ring, wanted):
    """(number, length, stamp, direction) of frames. Block by block and all at once they are the same."""
    found = []

    def enough():
        whole, blocks = ring.frames(300), ring.blocks()
        if whole is None:
            return False
        own = rows_of(whole)
        assert [row for block in blocks[: whole.blocks] for row in rows_of(block)] == own
        heads = [bytes(whole.buffer[at + 14 : at + 18]) for at, *_ in own]
        found.extend((int.from_bytes(head, "big"), *row[1:]) for head, row in zip(heads, own, strict=True))
        ring.release(whole.blocks)
        return len(found) >= wanted

    until(enough)
    return found


@pytest.mark.parametrize(
    ("sizes", "what"),
    [([92], "alike"), ([60, 92, 300, 146], "mixed"), ([1500, 1400, 60, 1514], "large"), ([200, 600], "spoofed")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_frame_is_found_however_they_lie_in_a_block(pair, sender, sizes, what):
    """Alike, mixed, large, and with octets inside that look like a header's; hundreds in a block, and few."""
    ring = RxRing(pair, "rg1", PASS_ALL)
    rng = np.random.default_rng(1)
    header = np.array(
        [0, 82 | 96 << 16, 0], np.uint32
    ).tobytes()  # tp_mac and tp_net as they are in a raw socket's ring
    try:
        wanted = rng.choice(sizes, 2000).tolist()
        for number, size in enumerate(wanted):
            # 14 + 4 octets are in front: with 6 more all places in a ring that a header could have are tried.
            filler = (header * 100 if what == "spoofed" and number % 7 == 0 else bytes(2000))[: size - 24]
            sender.send(HEAD + number.to_bytes(4, "big") + bytes(6) + filler)
        for number in range(3):
            sender.send(HEAD + (len(wanted) + number).to_bytes(4, "big") + bytes(42))
        found = taken(ring, len(wanted) + 3)
        assert [number for number, *_ in found] == list(range(len(wanted) + 3))
        assert [length for _, length, *_ in found] == [*wanted, 60, 60, 60]
        assert ring.drops() == 0
    finally:
        ring.close()


def test_a_ring_of_another_size_takes_the_memory_that_it_says(pair, sender):
    """And one so small that a stalled reader would lose probes is refused."""
    ring = RxRing(pair, "rg1", PASS_ALL, block_bytes=1 << 13, blocks=64)
    try:
        assert ring.memory_bytes == 1 << 19
        for number in range(200):
            sender.send(HEAD + number.to_bytes(4, "big") + bytes(42))
        assert [number for number, *_ in taken(ring, 200)] == list(range(200))
    finally:
        ring.close()
    with pytest.raises(UsageError, match="at least 25"):
        RxRing(pair, "rg1", PASS_ALL, blocks=24)


def observer_on(pair, device, **size):
    place = Point("p", PointKind.BACKEND, "h", pair, device)
    return Observer(place, PASS_ALL, Decoding(0, Decoder([]), {}), **size)


def test_a_ring_that_overflows_counts_it_and_was_blind_until_it_was_read(pair, sender):
    """Small blocks and nobody reads: drops are counted, and the blind window holds all of them."""
    watcher = observer_on(pair, "rg1", block_bytes=1 << 12, blocks=BLOCKS)
    try:
        frame = HEAD + bytes(1486)
        for _ in range(1_000):
            sender.send(frame)
        (window,) = [r for r in watcher.drain() if isinstance(r, Blind)]
        assert watcher.decoding.tally.dropped > 0
        assert window.start_ns < window.end_ns < FOR_EVER_NS
        assert not [r for r in watcher.drain() if isinstance(r, Blind)]  # nothing more was dropped
    finally:
        watcher.close()


def test_a_device_that_goes_down_makes_its_point_blind_for_good(pair, sender):
    """The kernel says so once; from the last reading on, silence proves nothing."""
    watcher = observer_on(pair, "rg1")
    try:
        watcher.drain()
        iproute.batch(["link set rg1 down"], netns=pair)
        reports = []
        until(lambda: (reports.extend(watcher.drain()), watcher.failure)[1])
        assert [r.end_ns for r in reports if isinstance(r, Blind)] == [FOR_EVER_NS]
        assert [r.point for r in reports if isinstance(r, Unwatched)] == [0]
    finally:
        watcher.close()


def test_a_closed_ring_is_gone_from_the_kernel(pair):
    """Closing gives the memory back: no packet socket stays behind."""
    before = in_netns(pair, sockets)
    ring = RxRing(pair, "rg1", PASS_ALL)
    assert in_netns(pair, sockets) == before + 1
    ring.close()
    ring.close()
    assert in_netns(pair, sockets) == before


def sockets():
    with open("/proc/thread-self/net/packet", encoding="ascii") as file:  # noqa: PTH123
        return len(file.readlines())


def test_a_ring_on_nothing_says_what_is_missing(pair):
    """No such device, no such namespace: exit code 3's error, with the name."""
    with pytest.raises(HostNotReadyError, match="packet ring on nowhere0"):
        RxRing(pair, "nowhere0", PASS_ALL)
    with pytest.raises(HostNotReadyError, match="network namespace rg-none"):
        RxRing("rg-none", "rg0", PASS_ALL)
