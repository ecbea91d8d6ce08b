"""The in-kernel filter of a packet ring: a classic BPF program that passes probes, their answers, and little else.

What passes: the class mark; our magic where a payload of ours has it; the flow tuples of the sessions, both legs; ICMP
errors toward a session's source. Behind up to two VLAN tags in band (a frame on its way out keeps its tag there, one on
its way in has it in the metadata), over IPv4 with options or IPv6. It only spares the decoder work: `decode` decides
what is ours. Attached by observe's rings.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netprobe.model.probes import ProbeSession, Protocol
from netprobe.wire import mark

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h

_OPCODES = {
    "ld": 0x40,  # A = word at X + k; a load beyond the frame ends the program with 0
    "ldh": 0x48,
    "ldb": 0x50,
    "ldx_imm": 0x01,
    "tax": 0x07,
    "txa": 0x87,
    "add": 0x04,
    "add_x": 0x0C,
    "and": 0x54,
    "lsh": 0x64,
    "rsh": 0x74,
    "st": 0x02,
    "ld_mem": 0x60,
    "ja": 0x05,
    "jeq": 0x15,
    "jgt": 0x25,
    "jge": 0x35,
    "jset": 0x45,
    "ret": 0x06,
}
_SRC, _DST, _PROTOCOL, _SRC_PORT, _DST_PORT = range(5)  # scratch memory
_SYN_OR_RST = 0x06

Rectangle = tuple[int, int, int, int]
"""Source ports from, to, destination ports from, to."""


@dataclass(slots=True)
class _Assembler:
    """Instructions with labels; conditional jumps reach 255 instructions, `ja` any."""

    lines: list[tuple[str, int, str, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def op(self, name: str, k: int = 0) -> None:
        self.lines.append((name, k, "", ""))

    def branch(self, name: str, k: int, yes: str = "", no: str = "") -> None:
        """A conditional jump; the empty label is the next instruction."""
        self.lines.append((name, k, yes, no))

    def jump(self, label: str) -> None:
        self.lines.append(("ja", 0, label, ""))

    def new_label(self) -> str:
        """A name to be placed later."""
        name = f"L{len(self.labels)}"
        self.labels[name] = -1
        return name

    def place(self, label: str) -> None:
        self.labels[label] = len(self.lines)

    def accept_if(self, name: str, k: int, snap_bytes: int) -> None:
        """Pass the frame on a condition, by a return of its own: no jump is ever too long."""
        skip = self.new_label()
        self.branch(name, k, "", skip)
        self.op("ret", snap_bytes)
        self.place(skip)

    def assemble(self) -> bytes:
        """The program as an array of struct sock_filter (linux/filter.h), native byte order."""
        out = []
        for at, (name, k, yes, no) in enumerate(self.lines):
            jt = self.labels[yes] - at - 1 if yes else 0
            jf = self.labels[no] - at - 1 if no else 0
            if name == "ja":
                out.append(struct.pack("HBBI", _OPCODES[name], 0, 0, jt))
                continue
            assert 0 <= jt < 256 and 0 <= jf < 256, f"jump out of reach at {at}: {name} {k} {jt} {jf}"  # noqa: PT018  one fact
            out.append(struct.pack("HBBI", _OPCODES[name], jt, jf, k & 0xFFFFFFFF))
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class _Flows:
    """What to pass of one family and transport: rectangles of ports, by directed address pair; None is any pair."""

    by_pair: dict[tuple[bytes, bytes] | None, set[Rectangle]]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What one program passes beyond magic.

    Attributes:
        dscps: class marks.
        flows: by (family, protocol number).
        sources: by family, addresses toward which ICMP errors pass; None is any.
    """

    dscps: tuple[int, ...]
    flows: dict[tuple[int, int], _Flows]
    sources: dict[int, tuple[bytes, ...] | None]


def probe_filter(sessions: Sequence[ProbeSession], *, snap_bytes: int = 0x40000) -> bytes:
    """The filter for these sessions.

    Where so many tuples do not fit into 4096 instructions (some 150 IPv4 or 80 IPv6 pairs of hosts), addresses are no
    longer looked at, only ports; where not even those fit, one range of ports for each protocol, and all ICMP errors
    pass. More of the tenants' frames then reach the decoder, which still tells them apart.

    Args:
        sessions: whose probes and answers shall pass. A DSCP of None or 0 is no class mark.
        snap_bytes: how much of a frame to keep.

    Returns:
        An array of struct sock_filter, for SO_ATTACH_FILTER.

    Raises:
        UsageError: a session does not fit the wire.
    """
    for session in sessions:
        mark.check_session(session)
    program = b""
    for detail in (2, 1, 0):
        program = _program(_rules(sessions, detail), snap_bytes).assemble()
        if len(program) // 8 <= MAX_INSTRUCTIONS:
            break
    return program


def _rules(sessions: Iterable[ProbeSession], detail: int) -> _Rules:
    """What to pass, at one of three levels of detail: 2 tuples, 1 ports, 0 one range of ports."""
    dscps, flows = set(), {key: _Flows({}) for key in ((4, 6), (4, 17), (6, 6), (6, 17))}
    sources: dict[int, set[bytes]] = {4: set(), 6: set()}
    for session in sessions:
        type_p = session.type_p
        dscps.add(type_p.dscp or 0)
        sources[type_p.family].add(session.src_ip.packed)
        if type_p.protocol is Protocol.ICMP:
            continue
        ports = session.src_ports if mark.has_own_ports(type_p) else (type_p.src_port,)
        low, high, dst = min(ports, default=0), max(ports, default=0), type_p.dst_port
        by_pair = flows[type_p.family, 6 if type_p.protocol is Protocol.TCP else 17].by_pair
        pair = (session.src_ip.packed, session.dst_ip.packed) if detail == 2 else None
        by_pair.setdefault(pair, set()).add((low, high, dst, dst))
        by_pair.setdefault(pair and (pair[1], pair[0]), set()).add((dst, dst, low, high))
    if not detail:
        for wide in flows.values():
            wide.by_pair.update({pair: _covering(found) for pair, found in wide.by_pair.items()})
    return _Rules(
        tuple(sorted(dscps - {0})),
        flows,
        {family: tuple(sorted(found)) if detail else None for family, found in sources.items()},
    )


def _covering(rectangles: set[Rectangle]) -> set[Rectangle]:
    """The session's side of all rectangles as one range of ports, on either side; the other side is any port."""
    blocks = [(r[0], r[1]) if r[2] == r[3] else (r[2], r[3]) for r in rectangles]
    low, high = min(low for low, _ in blocks), max(high for _, high in blocks)
    return {(low, high, 0, 0xFFFF), (0, 0xFFFF, low, high)}


def _program(rules: _Rules, snap_bytes: int) -> _Assembler:
    asm = _Assembler()
    asm.op("ldx_imm", 0)  # X: octets of VLAN tags, and later also of an IPv4 header
    untagged = asm.new_label()
    for _ in range(2):
        tagged = asm.new_label()
        asm.op("ldh", 12)
        asm.branch("jeq", 0x8100, tagged)
        asm.branch("jeq", 0x88A8, tagged, untagged)
        asm.place(tagged)
        asm.op("txa")
        asm.op("add", 4)
        asm.op("tax")
    asm.place(untagged)
    ipv4, ipv6 = asm.new_label(), asm.new_label()
    not_ipv4, none = asm.new_label(), asm.new_label()
    asm.op("ldh", 12)
    asm.branch("jeq", 0x0800, ipv4, not_ipv4)
    asm.place(not_ipv4)
    asm.branch("jeq", 0x86DD, "", none)
    asm.jump(ipv6)
    asm.place(none)
    asm.op("ret", 0)
    asm.place(ipv4)
    _ipv4(asm, rules, snap_bytes)
    asm.place(ipv6)
    _ipv6(asm, rules, snap_bytes)
    return asm


def _ipv4(asm: _Assembler, rules: _Rules, snap_bytes: int) -> None:
    """From the network header at X + 14 on; keeps addresses in memory and lets X grow by the header's length."""
    asm.op("ldb", 15)
    asm.op("and", 0xFC)
    for dscp in rules.dscps:
        asm.accept_if("jeq", dscp << 2, snap_bytes)
    asm.op("ldh", 20)
    asm.op("and", 0x1FFF)
    first = asm.new_label()
    asm.branch("jeq", 0, first)
    asm.op("ret", 0)  # a later fragment has no transport header
    asm.place(first)
    for offset, slot in ((26, _SRC), (30, _DST)):
        asm.op("ld", offset)
        asm.op("st", slot)
    asm.op("ldb", 23)
    asm.op("st", _PROTOCOL)
    asm.op("ldb", 14)
    asm.op("and", 0xF)
    asm.op("lsh", 2)
    asm.op("add_x")
    asm.op("tax")
    _transport(asm, rules, 4, snap_bytes)


def _ipv6(asm: _Assembler, rules: _Rules, snap_bytes: int) -> None:
    """From the network header at X + 14 on; X stays."""
    asm.op("ldh", 14)
    asm.op("rsh", 4)
    asm.op("and", 0xFC)
    for dscp in rules.dscps:
        asm.accept_if("jeq", dscp << 2, snap_bytes)
    asm.op("ldb", 20)
    asm.op("st", _PROTOCOL)
    _transport(asm, rules, 6, snap_bytes)


def _transport(asm: _Assembler, rules: _Rules, family: int, snap_bytes: int) -> None:
    l4 = 14 if family == 4 else 54
    for number, section in ((6, _tcp), (17, _udp), (1 if family == 4 else 58, _icmp)):
        here, skip = asm.new_label(), asm.new_label()
        asm.op("ld_mem", _PROTOCOL)
        asm.branch("jeq", number, here)
        asm.jump(skip)
        asm.place(here)
        section(asm, rules, family, l4, snap_bytes)
        asm.place(skip)
    asm.op("ret", 0)


def _tcp(asm: _Assembler, rules: _Rules, family: int, l4: int, snap_bytes: int) -> None:
    """SYN, SYN-ACK, RST: the other segments on a tuple are a tenant's."""
    asm.op("ldb", l4 + 13)
    wanted = asm.new_label()
    asm.branch("jset", _SYN_OR_RST, wanted)
    asm.op("ret", 0)
    asm.place(wanted)
    _flows(asm, rules.flows[family, 6], l4, snap_bytes)
    asm.op("ret", 0)


def _udp(asm: _Assembler, rules: _Rules, family: int, l4: int, snap_bytes: int) -> None:
    """Tuples first: to look for magic beyond the end of a short reply would end the program."""
    _flows(asm, rules.flows[family, 17], l4, snap_bytes)
    for offset in (0, mark.STAMP_IDENTITY_OFFSET):
        asm.op("ld", l4 + 8 + offset)
        asm.accept_if("jeq", mark.MAGIC_WORD, snap_bytes)
    asm.op("ret", 0)


def _icmp(asm: _Assembler, rules: _Rules, family: int, l4: int, snap_bytes: int) -> None:
    echoes, errors = ((8, 0), (3, 4, 11, 12)) if family == 4 else ((128, 129), (1, 2, 3, 4))
    echo, error = asm.new_label(), asm.new_label()
    asm.op("ldb", l4)
    for number in echoes:
        asm.branch("jeq", number, echo)
    for number in errors:
        asm.branch("jeq", number, error)
    asm.op("ret", 0)
    asm.place(echo)
    asm.op("ld", l4 + 8)
    asm.accept_if("jeq", mark.MAGIC_WORD, snap_bytes)
    asm.op("ret", 0)
    asm.place(error)
    sources = rules.sources[family]
    if sources is None:
        asm.op("ret", snap_bytes)
        return
    for address in sources:
        miss = asm.new_label()
        _unless_address(asm, address, source=False, miss=miss)
        asm.op("ret", snap_bytes)
        asm.place(miss)
    asm.op("ret", 0)


def _flows(asm: _Assembler, flows: _Flows, l4: int, snap_bytes: int) -> None:
    """Pass what lies in one of the rectangles; fall through with the rest."""
    for offset, slot in ((0, _SRC_PORT), (2, _DST_PORT)):
        asm.op("ldh", l4 + offset)
        asm.op("st", slot)
    for pair, rectangles in sorted(flows.by_pair.items(), key=lambda item: item[0] or (b"", b"")):
        next_pair = asm.new_label()
        if pair is not None:
            here, miss = asm.new_label(), asm.new_label()
            _unless_address(asm, pair[0], source=True, miss=miss)
            _unless_address(asm, pair[1], source=False, miss=miss)
            asm.jump(here)
            asm.place(miss)
            asm.jump(next_pair)
            asm.place(here)
        for low, high, dst_low, dst_high in sorted(rectangles):
            miss = asm.new_label()
            _unless_port(asm, _SRC_PORT, low, high, miss)
            _unless_port(asm, _DST_PORT, dst_low, dst_high, miss)
            asm.op("ret", snap_bytes)
            asm.place(miss)
        asm.place(next_pair)


def _unless_address(asm: _Assembler, address: bytes, *, source: bool, miss: str) -> None:
    """Jump to `miss` unless the packet's source or destination is `address`."""
    if len(address) == 4:
        asm.op("ld_mem", _SRC if source else _DST)
        asm.branch("jeq", int.from_bytes(address, "big"), "", miss)
        return
    start = 22 if source else 38
    for offset in range(0, 16, 4):
        asm.op("ld", start + offset)
        asm.branch("jeq", int.from_bytes(address[offset : offset + 4], "big"), "", miss)


def _unless_port(asm: _Assembler, slot: int, low: int, high: int, miss: str) -> None:
    """Jump to `miss` unless the port in memory is low..high."""
    if (low, high) == (0, 0xFFFF):
        return
    asm.op("ld_mem", slot)
    if low == high:
        asm.branch("jeq", low, "", miss)
        return
    asm.branch("jge", low, "", miss)
    asm.branch("jgt", high, miss)
