"""Frames to observe, each with its own number, tag and checksums: plain ones, or a mix of tags, tunnels and families.

A sender in a process of its own (`start`), paced by how many frames are due. Not a peer: it loads the observer.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing.connection import Connection

import numpy as np
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from netprobe.inject.templates import build_template
from netprobe.inject.tx_ring import TxRing
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.wire.frames import FrameEncoder

PATTERN = 64  # frames after which the order of kinds begins again; their numbers go on
SLOTS = 4096
SLOT_HEADER_BYTES, VNET_BYTES = 32, 10
COUNT = 1 << 31
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:99"}  # nobody's: what comes in is dropped at once
UNDERLAY = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


@dataclass(frozen=True, slots=True)
class Kind:
    """Frames of one session in one kind of surroundings.

    Attributes:
        outside: what stands in front of the frame (an outer header), or of its EtherType (a tag).
        is_tag: the latter.
    """

    session: ProbeSession
    outside: bytes = b""
    is_tag: bool = False


def session(number: int, protocol: Protocol, size_bytes: int, family: int = 4) -> ProbeSession:
    addresses = {4: ("10.77.0.1", "10.77.0.2"), 6: ("fd77::1", "fd77::2")}[family]
    return ProbeSession(
        session=0x5EED_1000 + number,
        key=bytes(range(16)),
        type_p=TypeP(protocol, family, size_bytes, 3, 61_000, 862 + number, Flow.SAME),
        src_mac=bytes.fromhex("020000000001"),
        dst_mac=bytes.fromhex("020000000099"),
        src_ip=ip_address(addresses[0]),
        dst_ip=ip_address(addresses[1]),
        count=COUNT,
    )


def plain(protocol: Protocol, size_bytes: int) -> list[Kind]:
    """One Type-P."""
    return [Kind(session(0, protocol, size_bytes))]


def mixed() -> list[Kind]:
    """Four sizes, two families, two protocols; plain, behind a tag, in Geneve with an option as OVN's, in VXLAN."""
    sessions = [
        session(1, Protocol.RAW_UDP, 92),
        session(2, Protocol.UDP, 128),
        session(3, Protocol.RAW_UDP, 106, 6),
        session(4, Protocol.UDP, 300, 6),
    ]
    option = GeneveOptions(classid=0x0102, type=0x80, data=b"\0\2\0\3")
    outsides = [
        (b"", False),
        (bytes(Dot1Q(vlan=5, type=0))[:4], True),
        (_underlay(6081, GENEVE(vni=7, proto=0x6558, critical=1, options=[option]), 4), False),
        (_underlay(4789, VXLAN(vni=8), 4), False),
        (_underlay(6081, GENEVE(vni=9, proto=0x6558, critical=1, options=[option]), 6), False),
    ]
    return [Kind(one, *outside) for one in sessions for outside in outsides]


def _underlay(port: int, tunnel: Packet, family: int) -> bytes:
    src, dst = UNDERLAY[family]
    ip = IP(src=src, dst=dst) if family == 4 else IPv6(src=src, dst=dst)
    return bytes(Ether(**MACS) / ip / UDP(sport=40_000, dport=port, chksum=0) / tunnel / Raw())


class Load:
    """A ring full of frames of some kinds in a shuffled order, ready to be sent with ever new numbers."""

    def __init__(self, netns: str, device: str, kinds: Sequence[Kind]) -> None:
        order = np.random.default_rng(1).permutation(np.arange(PATTERN) % len(kinds))
        self._encoders = [FrameEncoder(kind.session, build_template(kind.session)) for kind in kinds]
        self._next = [number << 24 for number in range(len(kinds))]  # no two kinds have one number
        self._order = order.tolist()
        heads = [_head(kind) for kind in kinds]
        sizes = [
            len(head) + kind.session.type_p.size_bytes - 12 * kind.is_tag
            for head, kind in zip(heads, kinds, strict=True)
        ]
        self._ring = TxRing(netns, device, max(sizes), slots=SLOTS)
        # Slots of several lengths, which the ring itself does not offer.
        whole = np.frombuffer(self._ring._memory, np.uint8).reshape(SLOTS, -1)  # noqa: SLF001
        self._parts = []
        for place, number in enumerate(self._order):
            kind, size, rows = kinds[number], sizes[number], whole[place::PATTERN]
            rows[:, 4:8].view(np.uint32)[:, 0] = VNET_BYTES + size
            rows[:, SLOT_HEADER_BYTES + 2 : SLOT_HEADER_BYTES + 4].view(np.uint16)[:, 0] = size  # all is header
            start = SLOT_HEADER_BYTES + VNET_BYTES
            skip = 12 if kind.is_tag else 0
            template = self._encoders[number].template
            rows[:, start : start + size] = np.frombuffer(heads[number] + template[skip:].tobytes(), np.uint8)
            shift = start + len(heads[number]) - skip
            self._parts.append(rows[:, shift : shift + len(template)])

    def send(self, count: int, pps: float, *, renew: bool = True) -> tuple[int, float, float]:
        """`count` frames, to a whole lap of the ring; 0 pps is flat out, without `renew` the same ones again.

        Returns:
            How many, the seconds, and those of the processor.
        """
        laps = max(1, round(count / SLOTS))
        used = time.process_time()
        began = time.perf_counter()
        for lap in range(laps):
            if renew:
                self._renew()
            for piece in range(0, SLOTS, 256):
                due = began + (lap * SLOTS + piece) / pps if pps else 0.0
                while (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                claimed = self._ring.claim(256)
                handed = self._ring.hand_over(claimed.stop - claimed.start)
                assert not handed.failure, handed.failure
        return laps * SLOTS, time.perf_counter() - began, time.process_time() - used

    def _renew(self) -> None:
        """New numbers in all slots. The last lap has been taken: hand_over waits for that."""
        rows = SLOTS // PATTERN
        columns = [
            encoder.columns(first, rows * self._order.count(number))
            for number, (encoder, first) in enumerate(zip(self._encoders, self._next, strict=True))
        ]
        used = [0] * len(columns)
        for number, part in zip(self._order, self._parts, strict=True):
            columns[number].write(part, used[number])
            used[number] += rows
        self._next = [first + len(one) for first, one in zip(self._next, columns, strict=True)]


def _head(kind: Kind) -> bytes:
    """What stands in front of the frame, with lengths; of a tagged one its MAC addresses and the tag."""
    if kind.is_tag:
        return kind.session.dst_mac + kind.session.src_mac + b"\x81\x00" + kind.outside[:2]
    if not kind.outside:
        return b""
    inner = b"\0" * kind.session.type_p.size_bytes
    packet = Ether(kind.outside)
    packet[UDP].len = None
    for name in {"len", "plen", "chksum"} & set(packet.payload.fields):
        packet.payload.delfieldval(name)
    whole = bytes(packet / Raw(inner))
    return whole[: len(whole) - len(inner)]


def start(netns: str, device: str, kinds: Sequence[Kind], cpu: int) -> Connection:
    """A process that sends `(count, pps)` or `(count, pps, renew)` for each such message, and answers as Load.send."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        os.sched_setaffinity(0, {cpu})
        load = Load(netns, device, kinds)
        theirs.send("ready")
        while True:
            count, pps, *renew = theirs.recv()
            theirs.send(load.send(count, pps, renew=all(renew)))

    context.Process(target=serve, daemon=True).start()
    ours.recv()
    return ours
