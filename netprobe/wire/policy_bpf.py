"""In-kernel filters of a verify run, classic BPF: what to absorb before a guest sees it, and what may be a refusal.

For cls_bpf on a tap's clsact egress (`tc_bytecode`) and for packet sockets: both count offsets from the Ethernet
header. The VLAN tag may be in the frame or in the metadata. A tenant's frame never matches: it would need the class
mark, the run's secret number, and wherever ours have a payload the magic with the run's session. `policy_decode` proves
what passes.
"""

import struct

from netprobe.model.packets import RST, SYN
from netprobe.model.policy import ICMP, ICMPV6, TCP
from netprobe.wire import encapsulation, mark
from netprobe.wire.bpf_asm import Assembler
from netprobe.wire.policy_layout import (
    ARP_IDENTITY_AT,
    ERRORS_V4,
    FIRST_BYTES,
    FRAGMENT_HEADER,
    ICMP_IDENTITY_AT,
    IDENTITY_AT,
    MIN_INFORMATIONAL_V6,
    ND_IDENTITY_AT,
    PORT_BLOCK,
    PolicyMark,
)

_PROTOCOL, _BYTES = range(2)  # scratch memory: protocol number, octets after the IP header
_ALL = 0xFFFFFFFF  # a socket keeps the whole frame; cls_bpf takes -1 for a match without a class of its own
_SIMPLE_IPV4 = 0x45  # version 4, no options: so are our frames
_L3 = 14


def absorb_program(policy_mark: PolicyMark) -> bytes:
    """The filter that matches exactly the frames of one run.

    Returns:
        An array of struct sock_filter; the program returns 2^32 - 1 for ours and 0 for all else.
    """
    asm = Assembler()
    arp, ipv4, ipv6 = (asm.new_label() for _ in range(3))
    _find_network(asm, arp, ipv4, ipv6)
    asm.place(arp)
    _accept_identity(asm, policy_mark, _L3 + ARP_IDENTITY_AT)
    transport = {4: asm.new_label(), 6: asm.new_label()}
    asm.place(ipv4)
    _ipv4(asm, policy_mark, transport[4])
    asm.place(ipv6)
    _ipv6(asm, policy_mark, transport[6])
    for family in (4, 6):
        asm.place(transport[family])
        _transport(asm, policy_mark, family)
    return asm.assemble()


def reject_program(policy_mark: PolicyMark) -> bytes:
    """The filter for a ring that looks for refusals: TCP resets to or from netprobe's ports, and quotes of our frames.

    The quotes are in ICMP and ICMPv6 "unreachable" messages. Our own resets and errors pass too; `policy_decode` tells
    them apart.
    """
    asm = Assembler()
    none, ipv4, ipv6 = (asm.new_label() for _ in range(3))
    _find_network(asm, none, ipv4, ipv6)
    asm.place(none)
    asm.op("ret", 0)
    asm.place(ipv4)
    _refused_ipv4(asm, policy_mark)
    asm.place(ipv6)
    _refused_ipv6(asm, policy_mark)
    return asm.assemble()


def tc_bytecode(program: bytes) -> str:
    """The program as `tc filter ... bpf bytecode` takes it: `N,op jt jf k,...`."""
    code = [" ".join(str(number) for number in step) for step in struct.iter_unpack("HBBI", program)]
    return ",".join([str(len(code)), *code])


def _find_network(asm: Assembler, arp: str, ipv4: str, ipv6: str) -> None:
    """Let X grow by up to two VLAN tags, and go where the EtherType says; what is none of these ends here."""
    network = asm.new_label()
    asm.op("ldx_imm", 0)
    for _ in range(2):
        tagged = asm.new_label()
        asm.op("ldh", 12)
        asm.branch("jeq", encapsulation.VLAN_TYPES[0], tagged)
        asm.branch("jeq", encapsulation.VLAN_TYPES[1], tagged, network)
        asm.place(tagged)
        _advance(asm, 4)
    asm.place(network)
    asm.op("ldh", 12)
    asm.branch("jeq", 0x0806, arp)
    asm.branch("jeq", 0x0800, ipv4)
    asm.branch("jeq", 0x86DD, ipv6)
    asm.op("ret", 0)


def _advance(asm: Assembler, count: int) -> None:
    """X grows."""
    asm.op("txa")
    asm.op("add", count)
    asm.op("tax")


def _require(asm: Assembler, name: str, k: int) -> None:
    """Go on if the condition holds; else the frame is not ours."""
    fine = asm.new_label()
    asm.branch(name, k, fine)
    asm.op("ret", 0)
    asm.place(fine)


def _refuse(asm: Assembler, name: str, k: int) -> None:
    """Go on unless the condition holds."""
    fine = asm.new_label()
    asm.branch(name, k, "", fine)
    asm.op("ret", 0)
    asm.place(fine)


def _accept_identity(asm: Assembler, policy_mark: PolicyMark, at: int) -> None:
    """The last word: magic and session at X + `at`, or not ours. Beyond the frame a load ends the program with 0."""
    asm.op("ld", at)
    _require(asm, "jeq", mark.MAGIC_WORD)
    asm.op("ld", at + 4)
    _require(asm, "jeq", policy_mark.session)
    asm.op("ret", _ALL)


def _ipv4(asm: Assembler, policy_mark: PolicyMark, transport: str) -> None:
    """Class mark and secret number; fragments have numbers of their own, and show the identity."""
    asm.op("ldb", _L3)
    _require(asm, "jeq", _SIMPLE_IPV4)
    asm.op("ldb", _L3 + 1)
    asm.op("and", 0xFC)
    _require(asm, "jeq", policy_mark.dscp << 2)
    asm.op("ldb", _L3 + 9)
    asm.op("st", _PROTOCOL)
    asm.op("ldh", _L3 + 2)
    asm.op("add", -20)
    asm.op("st", _BYTES)
    later, whole, found = (asm.new_label() for _ in range(3))
    asm.op("ldh", _L3 + 6)
    asm.branch("jset", 0x1FFF, later)
    asm.branch("jset", 0x2000, found, whole)
    asm.place(later)
    asm.op("and", 0x3FFF)
    _require(asm, "jeq", FIRST_BYTES // 8)
    _accept_identity(asm, policy_mark, _L3 + 20)
    asm.place(whole)
    asm.op("ldh", _L3 + 4)
    _require(asm, "jeq", policy_mark.ip_id)
    asm.place(found)
    _advance(asm, _L3 + 20)
    asm.jump(transport)


def _ipv6(asm: Assembler, policy_mark: PolicyMark, transport: str) -> None:
    """Class mark and secret flow label, also in fragments."""
    _class_mark_ipv6(asm, policy_mark, _L3)
    asm.op("ldh", _L3 + 4)
    asm.op("st", _BYTES)
    asm.op("ldb", _L3 + 6)
    asm.op("st", _PROTOCOL)
    _advance(asm, _L3 + 40)
    fragment, whole = asm.new_label(), asm.new_label()
    asm.op("ld_mem", _PROTOCOL)
    asm.branch("jeq", FRAGMENT_HEADER, fragment, whole)
    asm.place(fragment)
    first = asm.new_label()
    asm.op("ldb", 0)
    asm.op("st", _PROTOCOL)
    asm.op("ld_mem", _BYTES)
    asm.op("add", -8)
    asm.op("st", _BYTES)
    asm.op("ldh", 2)
    asm.op("and", 0xFFF8)
    _advance_keeping(asm, 8)
    asm.branch("jeq", 0, first)
    _require(asm, "jeq", FIRST_BYTES)
    _accept_identity(asm, policy_mark, 0)
    asm.place(first)
    asm.place(whole)
    asm.jump(transport)


def _advance_keeping(asm: Assembler, count: int) -> None:
    """X grows, A stays."""
    slot = 2
    asm.op("st", slot)
    _advance(asm, count)
    asm.op("ld_mem", slot)


def _class_mark_ipv6(asm: Assembler, policy_mark: PolicyMark, at: int) -> None:
    """Version, DSCP and flow label of the IPv6 header at X + `at`."""
    asm.op("ld", at)
    asm.op("and", 0xFFCFFFFF)  # all but the two bits of ECN
    _require(asm, "jeq", 6 << 28 | policy_mark.dscp << 22 | policy_mark.flow_label)


def _transport(asm: Assembler, policy_mark: PolicyMark, family: int) -> None:
    """From the transport header at X on."""
    for protocol in (ICMP if family == 4 else ICMPV6, *IDENTITY_AT):
        skip = asm.new_label()
        asm.op("ld_mem", _PROTOCOL)
        asm.branch("jeq", protocol, "", skip)
        if protocol == TCP:
            _tcp(asm, policy_mark)
        elif protocol in IDENTITY_AT:
            _accept_identity(asm, policy_mark, IDENTITY_AT[protocol])
        else:
            _icmp(asm, policy_mark, family)
        asm.place(skip)
    _accept_identity(asm, policy_mark, 0)


def _tcp(asm: Assembler, policy_mark: PolicyMark) -> None:
    """A SYN without payload on a port of netprobe's own, or the identity after a header without options."""
    tagged = asm.new_label()
    asm.op("ldb", 13)
    asm.branch("jset", SYN, "", tagged)
    asm.op("ld_mem", _BYTES)
    asm.branch("jeq", 20, "", tagged)
    _accept_own_port(asm)
    asm.op("ret", 0)
    asm.place(tagged)
    _accept_identity(asm, policy_mark, IDENTITY_AT[TCP])


def _accept_own_port(asm: Assembler) -> None:
    """Pass the frame if either port is in netprobe's block, which ends with the last port."""
    assert PORT_BLOCK[1] == 0xFFFF, PORT_BLOCK
    for at in (0, 2):
        asm.op("ldh", at)
        asm.accept_if("jge", PORT_BLOCK[0], _ALL)


def _icmp(asm: Assembler, policy_mark: PolicyMark, family: int) -> None:
    """By type: in a Nonce, at the end, or after the header."""
    at_end = asm.new_label()
    asm.op("ldb", 0)
    if family == 4:
        for kind in ERRORS_V4:
            asm.branch("jeq", kind, at_end)
    else:
        is_query = asm.new_label()
        asm.branch("jge", MIN_INFORMATIONAL_V6, is_query, at_end)
        asm.place(is_query)
        for kind, at in ND_IDENTITY_AT.items():
            skip = asm.new_label()
            asm.branch("jeq", kind, "", skip)
            _accept_identity(asm, policy_mark, at)
            asm.place(skip)
            asm.op("ldb", 0)
    _accept_identity(asm, policy_mark, ICMP_IDENTITY_AT)
    asm.place(at_end)
    asm.op("ld_mem", _BYTES)
    _refuse(asm, "jgt", 0xFFFF)  # shorter than an IP header says: nothing counts from there
    asm.op("add", -mark.IDENTITY_BYTES)
    _refuse(asm, "jgt", 0xFFFF)
    asm.op("add_x")
    asm.op("tax")
    _accept_identity(asm, policy_mark, 0)


def _refused_ipv4(asm: Assembler, policy_mark: PolicyMark) -> None:
    """A reset, or a quote with our class mark that is a fragment or has our number."""
    icmp = asm.new_label()
    asm.op("ldb", _L3)
    _require(asm, "jeq", _SIMPLE_IPV4)
    asm.op("ldh", _L3 + 6)
    _refuse(asm, "jset", 0x3FFF)
    asm.op("ldb", _L3 + 9)
    _advance_keeping(asm, _L3 + 20)
    asm.branch("jeq", ICMP, icmp)
    _require(asm, "jeq", TCP)
    _reset(asm)
    asm.place(icmp)
    asm.op("ldb", 0)
    _require(asm, "jeq", 3)
    asm.op("ldb", 8 + 1)
    asm.op("and", 0xFC)
    _require(asm, "jeq", policy_mark.dscp << 2)
    asm.op("ldh", 8 + 6)
    asm.accept_if("jset", 0x3FFF, _ALL)
    asm.op("ldh", 8 + 4)
    _require(asm, "jeq", policy_mark.ip_id)
    asm.op("ret", _ALL)


def _refused_ipv6(asm: Assembler, policy_mark: PolicyMark) -> None:
    """A reset, or a quote with our class mark and flow label."""
    icmp = asm.new_label()
    asm.op("ldb", _L3 + 6)
    _advance_keeping(asm, _L3 + 40)
    asm.branch("jeq", ICMPV6, icmp)
    _require(asm, "jeq", TCP)
    _reset(asm)
    asm.place(icmp)
    asm.op("ldb", 0)
    _require(asm, "jeq", 1)
    _class_mark_ipv6(asm, policy_mark, 8)
    asm.op("ret", _ALL)


def _reset(asm: Assembler) -> None:
    """The segment at X passes if it is a reset on a port of netprobe's own."""
    asm.op("ldb", 13)
    _require(asm, "jset", RST)
    _accept_own_port(asm)
    asm.op("ret", 0)
