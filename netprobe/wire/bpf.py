"""The in-kernel filter of a packet ring: a classic BPF program that passes probes, their answers, and little else.

What passes, between the addresses of a session: its flow tuples, both legs, also behind NAT; our magic where ports
cannot tell (echoes, NAT); later fragments with the class mark. And ICMP errors toward a session's source. So marked
garbage of a guest reaches user space only on a tuple of a session of its own. Behind up to two VLAN tags in band (a
frame on its way out keeps its tag there, one on its way in has it in the metadata), over IPv4 with options or IPv6, and
inside tunnels: `bpf_tunnels`.
It only spares the decoder work: `decode` decides what is ours. Attached by observe's rings.
"""

from collections.abc import Sequence

from netprobe.model.probes import ProbeSession
from netprobe.wire import encapsulation, mark
from netprobe.wire.bpf_asm import MAX_INSTRUCTIONS, Assembler
from netprobe.wire.bpf_rules import TCP, UDP, Flows, Rules, rules_of
from netprobe.wire.bpf_tunnels import Judgement, find_frame

_SRC, _DST, _PROTOCOL, _SRC_PORT, _DST_PORT = range(5)  # scratch memory
_SYN_OR_RST = 0x06


def probe_filter(sessions: Sequence[ProbeSession], *, snap_bytes: int = 0x40000, tunnels: bool = True) -> bytes:
    """The filter for these sessions.

    Where so many tuples do not fit into 4096 instructions (some 90 IPv4 or 45 IPv6 pairs of hosts), addresses are no
    longer looked at, only ports, class mark and magic; where not even those fit, one range of ports for each protocol,
    and all ICMP errors pass. More of the tenants' frames then reach the decoder, which still tells them apart.

    Args:
        sessions: whose probes and answers shall pass. A DSCP of None or 0 is no class mark.
        snap_bytes: how much of a frame to keep.
        tunnels: judge a frame inside Geneve or VXLAN in place of the one around it, by the same rules; the outer
            header's DSCP then says nothing. Without, a tunnel is a datagram like any other.

    Returns:
        An array of struct sock_filter, for SO_ATTACH_FILTER.

    Raises:
        UsageError: a session does not fit the wire.
    """
    for session in sessions:
        mark.check_session(session)
    program = b""
    for detail in (2, 1, 0):
        program = _program(rules_of(sessions, detail), snap_bytes, tunnels=tunnels).assemble()
        if len(program) // 8 <= MAX_INSTRUCTIONS:
            break
    return program


def _program(rules: Rules, snap_bytes: int, *, tunnels: bool) -> Assembler:
    asm = Assembler()
    judgement = Judgement(asm.new_label(), asm.new_label(), {4: asm.new_label(), 6: asm.new_label()})
    if tunnels:
        find_frame(asm, rules, judgement, snap_bytes)
    else:
        asm.op("ldx_imm", 0)
    asm.place(judgement.frame)
    # X, where the frame starts, grows by its VLAN tags, and later also by an IPv4 header.
    for _ in range(2):
        tagged = asm.new_label()
        asm.op("ldh", 12)
        asm.branch("jeq", encapsulation.VLAN_TYPES[0], tagged)
        asm.branch("jeq", encapsulation.VLAN_TYPES[1], tagged, judgement.network)
        asm.place(tagged)
        asm.op("txa")
        asm.op("add", 4)
        asm.op("tax")
    asm.place(judgement.network)
    not_ipv4, none = asm.new_label(), asm.new_label()
    asm.op("ldh", 12)
    asm.branch("jeq", 0x0800, judgement.ip[4], not_ipv4)
    asm.place(not_ipv4)
    asm.branch("jeq", 0x86DD, "", none)
    asm.jump(judgement.ip[6])
    asm.place(none)
    asm.op("ret", 0)
    asm.place(judgement.ip[4])
    _ipv4(asm, rules, snap_bytes)
    asm.place(judgement.ip[6])
    _ipv6(asm, rules, snap_bytes)
    return asm


def _ipv4(asm: Assembler, rules: Rules, snap_bytes: int) -> None:
    """From the network header at X + 14 on; keeps addresses in memory and lets X grow by the header's length."""
    for offset, slot in ((26, _SRC), (30, _DST)):
        asm.op("ld", offset)
        asm.op("st", slot)
    asm.op("ldb", 23)
    asm.op("st", _PROTOCOL)
    _gate(asm, rules, 4)
    first = asm.new_label()
    if rules.pairs is None:
        _class_mark_of_ipv4(asm, rules, snap_bytes)
    asm.op("ldh", 20)
    asm.op("and", 0x1FFF)
    asm.branch("jeq", 0, first)
    if rules.pairs is not None:
        _class_mark_of_ipv4(asm, rules, snap_bytes)
    asm.op("ret", 0)  # a later fragment has no transport header
    asm.place(first)
    asm.op("ldb", 14)
    asm.op("and", 0xF)
    asm.op("lsh", 2)
    asm.op("add_x")
    asm.op("tax")
    _transport(asm, rules, 4, snap_bytes)


def _ipv6(asm: Assembler, rules: Rules, snap_bytes: int) -> None:
    """From the network header at X + 14 on; X stays."""
    asm.op("ldb", 20)
    asm.op("st", _PROTOCOL)
    _gate(asm, rules, 6)
    if rules.pairs is None:
        asm.op("ldh", 14)
        asm.op("rsh", 4)
        asm.op("and", 0xFC)
        for dscp in rules.dscps:
            asm.accept_if("jeq", dscp << 2, snap_bytes)
    _transport(asm, rules, 6, snap_bytes)


def _class_mark_of_ipv4(asm: Assembler, rules: Rules, snap_bytes: int) -> None:
    asm.op("ldb", 15)
    asm.op("and", 0xFC)
    for dscp in rules.dscps:
        asm.accept_if("jeq", dscp << 2, snap_bytes)


def _gate(asm: Assembler, rules: Rules, family: int) -> None:
    """Only what goes between the addresses of a session goes on; of ICMP all: its errors come from on the way."""
    if rules.pairs is None:
        return
    icmp, through = asm.new_label(), asm.new_label()
    other = asm.new_label()
    asm.op("ld_mem", _PROTOCOL)
    asm.branch("jeq", 1 if family == 4 else 58, icmp, other)
    asm.place(icmp)
    asm.jump(through)
    asm.place(other)
    _unless_between(asm, rules.pairs[family])
    asm.place(through)


def _unless_between(asm: Assembler, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """End the program unless the packet goes from the one to the other of a pair."""
    through = asm.new_label()
    for source, target in pairs:
        miss = asm.new_label()
        _unless_address(asm, source, source=True, miss=miss)
        _unless_address(asm, target, source=False, miss=miss)
        asm.jump(through)
        asm.place(miss)
    asm.op("ret", 0)
    asm.place(through)


def _transport(asm: Assembler, rules: Rules, family: int, snap_bytes: int) -> None:
    l4 = 14 if family == 4 else 54
    for number, section in ((TCP, _tcp), (UDP, _udp), (1 if family == 4 else 58, _icmp)):
        here, skip = asm.new_label(), asm.new_label()
        asm.op("ld_mem", _PROTOCOL)
        asm.branch("jeq", number, here)
        asm.jump(skip)
        asm.place(here)
        section(asm, rules, family, l4, snap_bytes)
        asm.place(skip)
    asm.op("ret", 0)


def _tcp(asm: Assembler, rules: Rules, family: int, l4: int, snap_bytes: int) -> None:
    """SYN, SYN-ACK, RST: the other segments on a tuple are a tenant's."""
    asm.op("ldb", l4 + 13)
    wanted = asm.new_label()
    asm.branch("jset", _SYN_OR_RST, wanted)
    asm.op("ret", 0)
    asm.place(wanted)
    _flows(asm, rules.flows[family, TCP], l4, snap_bytes)
    asm.op("ret", 0)


def _udp(asm: Assembler, rules: Rules, family: int, l4: int, snap_bytes: int) -> None:
    """Tuples first: to look for magic beyond the end of a short reply would end the program."""
    _flows(asm, rules.flows[family, UDP], l4, snap_bytes)
    for offset in (0, mark.STAMP_IDENTITY_OFFSET) if rules.pairs is None or rules.is_translated else ():
        asm.op("ld", l4 + 8 + offset)
        asm.accept_if("jeq", mark.MAGIC_WORD, snap_bytes)
    asm.op("ret", 0)


def _icmp(asm: Assembler, rules: Rules, family: int, l4: int, snap_bytes: int) -> None:
    echoes, errors = ((8, 0), (3, 4, 11, 12)) if family == 4 else ((128, 129), (1, 2, 3, 4))
    echo, error, to_error = asm.new_label(), asm.new_label(), asm.new_label()
    asm.op("ldb", l4)
    for number in echoes:
        asm.branch("jeq", number, echo)
    for number in errors:
        asm.branch("jeq", number, to_error)
    asm.op("ret", 0)
    asm.place(to_error)
    asm.jump(error)  # over the pairs of all echoes
    asm.place(echo)
    if rules.pairs is None or rules.has_icmp:
        if rules.pairs is not None:
            _unless_between(asm, rules.pairs[family])
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


def _flows(asm: Assembler, flows: Flows, l4: int, snap_bytes: int) -> None:
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


def _unless_address(asm: Assembler, address: bytes, *, source: bool, miss: str) -> None:
    """Jump to `miss` unless the packet's source or destination is `address`."""
    if len(address) == 4:
        asm.op("ld_mem", _SRC if source else _DST)
        asm.branch("jeq", int.from_bytes(address, "big"), "", miss)
        return
    start = 22 if source else 38
    for offset in range(0, 16, 4):
        asm.op("ld", start + offset)
        asm.branch("jeq", int.from_bytes(address[offset : offset + 4], "big"), "", miss)


def _unless_port(asm: Assembler, slot: int, low: int, high: int, miss: str) -> None:
    """Jump to `miss` unless the port in memory is low..high."""
    if (low, high) == (0, 0xFFFF):
        return
    asm.op("ld_mem", slot)
    if low == high:
        asm.branch("jeq", low, "", miss)
        return
    asm.branch("jge", low, "", miss)
    asm.branch("jgt", high, miss)
