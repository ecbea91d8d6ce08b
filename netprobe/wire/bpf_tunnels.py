"""The in-kernel filter's way into tunnels: where, in a frame of the underlay, the frame stands that is to be judged.

Classic BPF jumps only forward, so there is one judgement (`bpf`), of the frame at X. This prologue runs before it and
sets X: to the inner frame where the packet is a tunnel's, else to the frame as it is. Same tests as `decode_tunnels`.
"""

from dataclasses import dataclass

from netprobe.wire import encapsulation, mark
from netprobe.wire.bpf_asm import Assembler
from netprobe.wire.bpf_rules import ANY_PORT, UDP, Rules

_FRAME_AT = 15  # scratch memory: octets of VLAN tags of the outer frame, which the judgement finds in X
_HEADERS_BYTES = 8 + encapsulation.TUNNEL_HEADER_BYTES  # UDP, and the tunnel without options


@dataclass(frozen=True, slots=True)
class Judgement:
    """Labels of the code that judges, and what X has to be there.

    Attributes:
        frame: an Ethernet header stands at X.
        network: likewise at X less the VLAN tags; the EtherType stands at X + 12.
        ip: likewise, by family; the network header stands at X + 14.
    """

    frame: str
    network: str
    ip: dict[int, str]


def find_frame(asm: Assembler, rules: Rules, judgement: Judgement, snap_bytes: int) -> None:
    """Set X and go to the judgement; drop what is not IP.

    Of an untagged frame that is not UDP, two fields are read, by loads that the kernel has a fast path for: that is
    what most of the tenants' frames cost.
    """
    udp = {4: asm.new_label(), 6: asm.new_label()}
    plain = {4: asm.new_label(), 6: asm.new_label()}
    tunnel = asm.new_label()
    tagged = _untagged(asm, udp, plain)
    _tagged(asm, tagged, udp, plain)
    for family in (4, 6):
        asm.place(udp[family])  # X + 14 is the UDP header
        asm.op("ldh", 16)
        for port in encapsulation.TUNNEL_PORTS:
            asm.branch("jeq", port, tunnel)
        asm.place(plain[family])
        asm.op("ldx_mem", _FRAME_AT)
        asm.jump(judgement.ip[family])
    asm.place(tunnel)
    if rules.on_tunnel_ports:
        _accept_plain(asm, rules, snap_bytes)
    _inside(asm, judgement)


def _untagged(asm: Assembler, udp: dict[int, str], plain: dict[int, str]) -> str:
    """From the first instruction on: the frames without a tag; returns where those with one go."""
    tagged = asm.new_label()
    here = {4: asm.new_label(), 6: asm.new_label()}
    asm.op("ldx_imm", 0)
    asm.op("stx", _FRAME_AT)
    asm.op("ldh_abs", 12)
    asm.branch("jeq", 0x0800, here[4])
    asm.branch("jeq", 0x86DD, here[6], tagged)
    asm.place(here[4])
    asm.op("ldb_abs", 23)
    asm.branch("jeq", UDP, "", plain[4])
    asm.op("ldh_abs", 20)
    asm.branch("jset", 0x1FFF, plain[4])  # a later fragment has no UDP header
    asm.op("ldx_header", 14)
    asm.jump(udp[4])
    asm.place(here[6])
    asm.op("ldb_abs", 20)
    asm.branch("jeq", UDP, "", plain[6])
    asm.op("ldx_imm", 40)
    asm.jump(udp[6])
    return tagged


def _tagged(asm: Assembler, tagged: str, udp: dict[int, str], plain: dict[int, str]) -> None:
    """Frames with one or two tags in band; the EtherType that was no IP's is in A."""
    asm.place(tagged)
    for octets in (4, 8):
        tag, last = asm.new_label(), asm.new_label()
        asm.branch("jeq", encapsulation.VLAN_TYPES[0], tag)
        asm.branch("jeq", encapsulation.VLAN_TYPES[1], tag, last)
        asm.place(tag)
        asm.op("ldx_imm", octets)
        asm.op("ldh", 12)
        asm.place(last)
    asm.op("stx", _FRAME_AT)
    here = {4: asm.new_label(), 6: asm.new_label()}
    asm.branch("jeq", 0x0800, here[4])
    asm.branch("jeq", 0x86DD, here[6])
    asm.op("ret", 0)
    asm.place(here[4])
    asm.op("ldb", 23)
    asm.branch("jeq", UDP, "", plain[4])
    asm.op("ldh", 20)
    asm.branch("jset", 0x1FFF, plain[4])
    asm.op("ldb", 14)
    _advance(asm, mask=0x0F, more=0)
    asm.jump(udp[4])
    asm.place(here[6])
    asm.op("ldb", 20)
    asm.branch("jeq", UDP, "", plain[6])
    asm.op("txa")
    asm.op("add", 40)
    asm.op("tax")
    asm.jump(udp[6])


def _advance(asm: Assembler, *, mask: int, more: int) -> None:
    """Let X grow by the words that the low bits of A count, and by some octets more."""
    asm.op("and", mask)
    asm.op("lsh", 2)
    asm.op("add_x")
    if more:
        asm.op("add", more)
    asm.op("tax")


def _accept_plain(asm: Assembler, rules: Rules, snap_bytes: int) -> None:
    """Pass a session's own probes and answers to a tunnel's port; fall through with the rest.

    Of answers without magic only the ports are looked at: few sessions send from a tunnel's port.
    """
    for src, dst in rules.replies_on_tunnel_ports:
        other = asm.new_label()
        asm.op("ldh", 16)
        asm.branch("jeq", dst, "", other)
        if src != ANY_PORT:
            asm.op("ldh", 14)
            asm.branch("jeq", src, "", other)
        asm.op("ret", snap_bytes)
        asm.place(other)
    short = asm.new_label()
    farthest = 14 + 8 + mark.STAMP_IDENTITY_OFFSET
    asm.op("ld_length")
    asm.op("sub_x")
    asm.branch("jge", farthest + 4, "", short)  # to load beyond the frame would drop what is inside a short one
    asm.op("ld", farthest)
    asm.accept_if("jeq", mark.MAGIC_WORD, snap_bytes)
    asm.place(short)
    asm.op("ld", 14 + 8)
    asm.accept_if("jeq", mark.MAGIC_WORD, snap_bytes)


def _inside(asm: Assembler, judgement: Judgement) -> None:
    """From the UDP header at X + 14 to what the tunnel carries; to the frame as it is, if the header is not sound."""
    geneve, plain = asm.new_label(), asm.new_label()
    inner = {ether_type: asm.new_label() for ether_type in encapsulation.GENEVE_PAYLOADS}
    asm.op("ldh", 16)
    asm.branch("jeq", encapsulation.GENEVE_PORT, geneve)
    asm.op("ldb", 22)
    asm.branch("jset", encapsulation.VXLAN_HAS_VNI, "", plain)
    asm.op("txa")
    asm.op("add", 14 + _HEADERS_BYTES)
    asm.op("tax")
    asm.jump(judgement.frame)
    asm.place(geneve)
    asm.op("ldb", 22)
    asm.branch("jset", encapsulation.GENEVE_VERSION, plain)
    asm.op("ldb", 23)
    asm.branch("jset", encapsulation.GENEVE_CONTROL, plain)
    asm.op("ldh", 24)
    for ether_type, label in inner.items():
        asm.branch("jeq", ether_type, label)
    asm.place(plain)
    asm.op("ldx_mem", _FRAME_AT)
    asm.jump(judgement.network)
    targets = {0x0800: judgement.ip[4], 0x86DD: judgement.ip[6]}
    for ether_type, label in inner.items():
        asm.place(label)
        is_bare = ether_type in targets
        asm.op("ldb", 22)
        # An IP packet without an Ethernet header: X is where that would stand.
        _advance(asm, mask=0x3F, more=_HEADERS_BYTES + (0 if is_bare else 14))
        asm.jump(targets.get(ether_type, judgement.frame))
