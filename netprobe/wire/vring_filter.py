"""What the BPF programs at vrings pass, from the sessions: entries of their map. Pure.

The same as a packet ring's filter passes (`bpf_rules`, whose rectangles of ports these are), but found with one look-up
by the two addresses. Layouts: netprobe/observe/bpf/vring.bpf.c. Used by netprobe.observe.vring.
"""

import struct
from collections.abc import Iterable, Sequence

from netprobe.model.probes import ProbeSession
from netprobe.wire.bpf_rules import TCP, UDP, Rectangle, rules_of

RECTANGLES = 8
KEY = struct.Struct("=BB6x16s16s")
ANYWHERE = bytes(16)
ICMP = {4: 1, 6: 58}


def filter_entries(sessions: Sequence[ProbeSession]) -> list[tuple[bytes, bytes]]:
    """Keys (family, protocol, addresses) and what may pass between those addresses.

    More than eight rectangles of ports between two addresses become one that covers them all; the decoder tells what is
    a tenant's.
    """
    rules = rules_of(sessions, 2)
    found: dict[bytes, bytes] = {}
    has_magic = int(rules.is_translated)
    for (family, transport), flows in rules.flows.items():
        for pair, rectangles in flows.by_pair.items():
            assert pair is not None, "rules have pairs at their highest level of detail"
            found[_key(family, transport, *pair)] = _value(_few(rectangles), has_magic if transport == UDP else 0)
    assert rules.pairs is not None
    for family, pairs in rules.pairs.items():
        for pair in pairs:
            if rules.has_icmp:
                found[_key(family, ICMP[family], *pair)] = _value((), 1)
            for transport in (TCP, UDP):  # later fragments with the class mark
                found.setdefault(_key(family, transport, *pair), _value((), 0))
    for family, sources in rules.sources.items():
        for source in sources or ():
            found[_key(family, ICMP[family], ANYWHERE, source)] = _value((), 0)
    return list(found.items())


def class_marks(sessions: Iterable[ProbeSession]) -> int:
    """Bit n is set where DSCP n is the class mark of a session."""
    return sum(1 << dscp for dscp in {s.type_p.dscp for s in sessions if s.type_p.dscp})


def _key(family: int, protocol: int, source: bytes, target: bytes) -> bytes:
    return KEY.pack(family, protocol, source, target)


def _value(rectangles: Sequence[Rectangle], has_magic: int) -> bytes:
    packed = b"".join(struct.pack("=4H", *rectangle) for rectangle in rectangles)
    return struct.pack("=II", len(rectangles), has_magic) + packed.ljust(8 * RECTANGLES, b"\0")


def _few(rectangles: Iterable[Rectangle]) -> Sequence[Rectangle]:
    wanted = sorted(rectangles)
    if len(wanted) <= RECTANGLES:
        return wanted
    low, high, target_low, target_high = zip(*wanted, strict=True)
    return [(min(low), max(high), min(target_low), max(target_high))]
