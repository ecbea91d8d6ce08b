"""What ebtables does with an ARP packet that crosses a Linux bridge, where iptables does not look. Pure.

The chains are walked as iptables' are; a chain of the user's own has a policy here.
"""

from collections.abc import Callable
from ipaddress import ip_network

from netprobe.judge.iptables import IptablesVerdict, evaluate
from netprobe.judge.iptables_conditions import Crossing, Dialect, Holds, Passing
from netprobe.judge.iptables_rules import RuleSet, parse_rules
from netprobe.model.packets import ConnState, Kind, Packet

HOOKS = (("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "POSTROUTING"))
_ARP = {"arp", "0x806", "0x0806"}
_FAMILIES = {"ipv4": 4, "0x800": 4, "0x0800": 4, "ipv6": 6, "0x86dd": 6}
_OP_NAMES = {"1": 1, "request": 1, "2": 2, "reply": 2}
_BROADCAST = "ff:ff:ff:ff:ff:ff"


def _ethertype(word: str) -> Holds:
    wanted = word.lower()
    if wanted in _ARP:
        return lambda at: at.packet.kind is Kind.ARP
    family = _FAMILIES[wanted]
    return lambda at: at.packet.kind is not Kind.ARP and at.packet.family == family


def _device(word: str, of: Callable[[Crossing], str]) -> Holds:
    if word.endswith("+"):
        return lambda at: of(at.crossing).startswith(word[:-1])
    return lambda at: of(at.crossing) == word


def _mac(word: str, of: Callable[[Packet], str]) -> Holds:
    wanted, _, mask = word.lower().partition("/")
    if mask not in ("", _BROADCAST):
        raise ValueError(mask)
    full = ":".join(part.zfill(2) for part in wanted.split(":"))
    return lambda at: of(at.packet) == full


def _sender_mac(packet: Packet) -> str:
    body = packet.neighbour
    return body.mac if body is not None and body.mac else packet.src_mac


def _sender_ip(word: str) -> Holds:
    net = ip_network(word, strict=False)

    def holds(at: Passing) -> bool:
        body = at.packet.neighbour
        address = body.ip if body is not None else at.packet.src_ip
        return at.packet.kind is Kind.ARP and address in net

    return holds


def _target_ip(word: str) -> Holds:
    net = ip_network(word, strict=False)

    def holds(at: Passing) -> bool:
        body = at.packet.neighbour
        address = body.target if body is not None and body.target is not None else at.packet.dst_ip
        return at.packet.kind is Kind.ARP and address in net

    return holds


def _op(word: str) -> Holds:
    wanted = _OP_NAMES[word.lower()]
    return lambda at: at.packet.kind is Kind.ARP and (1 if at.packet.dst_mac == _BROADCAST else 2) == wanted


EBTABLES = Dialect(
    {
        "-p": (1, _ethertype),
        "-i": (1, lambda word: _device(word, lambda c: c.physdev_in)),
        "-o": (1, lambda word: _device(word, lambda c: c.physdev_out)),
        "--logical-in": (1, lambda word: _device(word, lambda c: c.bridge)),
        "--logical-out": (1, lambda word: _device(word, lambda c: c.bridge)),
        "-s": (1, lambda word: _mac(word, lambda p: p.src_mac)),
        "-d": (1, lambda word: _mac(word, lambda p: p.dst_mac)),
        "--arp-ip-src": (1, _sender_ip),
        "--arp-ip-dst": (1, _target_ip),
        "--arp-mac-src": (1, lambda word: _mac(word, _sender_mac)),
        "--arp-op": (1, _op),
    }
)


def parse_ebtables(text: str) -> RuleSet:
    """The output of ebtables-save.

    Raises:
        RulesTextError: it is none.
    """
    return parse_rules(text, EBTABLES)


def evaluate_frame(rules: RuleSet, packet: Packet, crossing: Crossing) -> IptablesVerdict:
    """What ebtables does with a frame at one bridge; nat's chains can drop here, too."""
    return evaluate(rules, {}, packet, ConnState.NEW, crossing, hooks=HOOKS)
