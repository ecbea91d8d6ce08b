"""What the in-kernel filter passes, from the sessions, at one of three levels of detail: `bpf` writes the program.

Addresses are the sessions' own and those that NAT gives their probes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire import encapsulation, mark

Rectangle = tuple[int, int, int, int]
"""Source ports from, to, destination ports from, to."""

TCP, UDP = 6, 17
ANY_PORT = -1


@dataclass(frozen=True, slots=True)
class Flows:
    """What to pass of one family and transport: rectangles of ports, by directed address pair; None is any pair."""

    by_pair: dict[tuple[bytes, bytes] | None, set[Rectangle]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What one program passes beyond magic.

    Attributes:
        dscps: class marks.
        flows: by (family, protocol number).
        sources: by family, addresses toward which ICMP errors pass; None is any.
        on_tunnel_ports: whether a probe or an answer of these sessions may itself go to a tunnel's port.
        replies_on_tunnel_ports: source and destination ports of those that may lack the magic.
        pairs: by family, the directed address pairs between which anything of ours can be; None where that is not
            looked at.
        has_icmp: whether any session is of echoes.
        is_translated: whether NAT may have changed ports, so that magic has to do.
    """

    dscps: tuple[int, ...]
    flows: dict[tuple[int, int], Flows]
    sources: dict[int, tuple[bytes, ...] | None]
    on_tunnel_ports: bool
    replies_on_tunnel_ports: tuple[tuple[int, int], ...]
    pairs: dict[int, tuple[tuple[bytes, bytes], ...]] | None
    has_icmp: bool
    is_translated: bool


def rules_of(sessions: Iterable[ProbeSession], detail: int) -> Rules:
    """What to pass, at one of three levels of detail: 2 tuples, 1 ports, 0 one range of ports."""
    flows = {(family, transport): Flows({}) for family in (4, 6) for transport in (TCP, UDP)}
    dscps, sources, replies = set(), {4: set[bytes](), 6: set[bytes]()}, set()
    on_tunnel_ports = False
    directed: dict[int, set[tuple[bytes, bytes]]] = {4: set(), 6: set()}
    sessions = list(sessions)
    for session in sessions:
        type_p = session.type_p
        dscps.add(type_p.dscp or 0)
        pairs = [(src.packed, dst.packed) for src, dst in mark.address_pairs(session)]
        sources[type_p.family] |= {src for src, _ in pairs}
        directed[type_p.family] |= {*pairs, *((dst, src) for src, dst in pairs)}
        if type_p.protocol is Protocol.ICMP:
            continue
        transport = TCP if type_p.protocol is Protocol.TCP else UDP
        _add_tuples(flows[type_p.family, transport], session, pairs if detail == 2 else [None])
        own = {(type_p.dst_port, port) for port in _src_ports(session) if port in encapsulation.TUNNEL_PORTS}
        if type_p.protocol is Protocol.UDP:
            replies |= own if detail else {(ANY_PORT, port) for _, port in own}
        # NAT may give a probe any source port, and with it the reply's destination port.
        is_there = type_p.dst_port in encapsulation.TUNNEL_PORTS or bool(own or session.translations)
        on_tunnel_ports |= transport == UDP and is_there
    if not detail:
        for wide in flows.values():
            wide.by_pair.update({pair: _covering(found) for pair, found in wide.by_pair.items()})
    return Rules(
        tuple(sorted(dscps - {0})),
        flows,
        {family: tuple(sorted(found)) if detail else None for family, found in sources.items()},
        on_tunnel_ports,
        tuple(sorted(replies)),
        {family: tuple(sorted(found)) for family, found in directed.items()} if detail == 2 else None,
        any(session.type_p.protocol is Protocol.ICMP for session in sessions),
        any(session.translations for session in sessions),
    )


def _src_ports(session: ProbeSession) -> tuple[int, ...]:
    return session.src_ports if mark.has_own_ports(session.type_p) else (session.type_p.src_port,)


def _add_tuples(flows: Flows, session: ProbeSession, pairs: Sequence[tuple[bytes, bytes] | None]) -> None:
    """Both legs of one session, between these addresses; None is any."""
    ports = _src_ports(session)
    low, high, dst = min(ports, default=0), max(ports, default=0), session.type_p.dst_port
    for pair in pairs:
        flows.by_pair.setdefault(pair, set()).add((low, high, dst, dst))
        flows.by_pair.setdefault(pair and (pair[1], pair[0]), set()).add((dst, dst, low, high))


def _covering(rectangles: set[Rectangle]) -> set[Rectangle]:
    """The session's side of all rectangles as one range of ports, on either side; the other side is any port."""
    blocks = [(r[0], r[1]) if r[2] == r[3] else (r[2], r[3]) for r in rectangles]
    low, high = min(low for low, _ in blocks), max(high for _, high in blocks)
    return {(low, high, 0, 0xFFFF), (0, 0xFFFF, low, high)}
