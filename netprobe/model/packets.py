"""Packets as a policy sees them, and scenarios: short conversations between two ports, and what should become of them.

Plain values. plan.covering makes scenarios, wire.policy_frames makes frames of their packets, service.verify sends
them, judge.proof says what was proved. What a field leaves open (`None`) each attempt chooses anew.
"""

from dataclasses import dataclass, replace
from enum import Enum

from netprobe.model.policy import ICMP, ICMPV6, TCP, IPAddress, protocol_name

SYN, ACK, RST, FIN, PSH = 0x02, 0x10, 0x04, 0x01, 0x08  # RFC 9293 §3.1


class ConnState(Enum):
    """What conntrack makes of a packet, at the ports that it passes."""

    NEW = "new"
    ESTABLISHED = "established"  # in the direction of the first packet, after an answer
    REPLY = "reply"
    RELATED = "related"  # an ICMP error about a packet of a known connection
    INVALID = "invalid"


class Fragment(Enum):
    """Which part of a datagram a packet is."""

    NONE = "none"
    FIRST = "first"
    LATER = "later"


class Kind(Enum):
    """What a packet is, below IP and above."""

    IP = "ip"
    ARP = "arp"
    ND = "nd"  # neighbour or router discovery: ICMPv6 with addresses in its body


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The addresses in the body of an ARP or neighbour-discovery packet.

    Attributes:
        mac: ARP's sender hardware address; the link-layer option of neighbour discovery, "" for none.
        ip: ARP's sender protocol address; the target of a solicitation or advertisement.
        target: ARP's target protocol address; None in neighbour discovery.
    """

    mac: str
    ip: IPAddress
    target: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, as a policy sees it.

    Attributes:
        src_mac, dst_mac: lower case with colons.
        src_ip, dst_ip: in ARP those of `neighbour`.
        protocol: IANA number; 0 for ARP.
        src_port, dst_port: None: chosen for each attempt, from netprobe's own block; 0 where the protocol has none.
        icmp_type, icmp_code: 0 where it is not ICMP.
        tcp_flags: 0 where it is not TCP.
        fragment: FIRST carries the transport header and the more-fragments flag, LATER neither.
        quoted: of an ICMP error: the packet that it is about.
    """

    src_mac: str
    dst_mac: str
    src_ip: IPAddress
    dst_ip: IPAddress
    protocol: int
    src_port: int | None = 0
    dst_port: int | None = 0
    icmp_type: int = 0
    icmp_code: int = 0
    tcp_flags: int = 0
    fragment: Fragment = Fragment.NONE
    kind: Kind = Kind.IP
    neighbour: Neighbour | None = None
    quoted: "Packet | None" = None

    @property
    def family(self) -> int:
        """4 or 6; 4 for ARP."""
        return self.src_ip.version

    @property
    def is_icmp(self) -> bool:
        """ICMP or ICMPv6."""
        return self.protocol in (ICMP, ICMPV6)

    def reversed(self) -> "Packet":
        """The answer's addresses and ports; flags and ICMP type are the caller's business."""
        return replace(
            self,
            src_mac=self.dst_mac,
            dst_mac=self.src_mac,
            src_ip=self.dst_ip,
            dst_ip=self.src_ip,
            src_port=self.dst_port,
            dst_port=self.src_port,
        )

    def with_ephemeral(self, port: int) -> "Packet":
        """With this attempt's own port, in itself and in what it quotes."""
        quoted = None if self.quoted is None else self.quoted.with_ephemeral(port)
        src = port if self.src_port is None else self.src_port
        dst = port if self.dst_port is None else self.dst_port
        return replace(self, src_port=src, dst_port=dst, quoted=quoted)

    def text(self) -> str:
        """The packet for people: `tcp syn 10.0.0.1 -> 10.0.0.2:80`."""
        if self.kind is Kind.ARP:
            return f"arp {self.src_ip} ({self.neighbour.mac if self.neighbour else ''}) -> {self.dst_ip}"
        name = "icmp" if self.is_icmp else protocol_name(self.protocol)
        words = [f"{name}{'6' if self.family == 6 and not self.is_icmp else ''}"]
        if self.is_icmp:
            words = [f"{'icmpv6' if self.family == 6 else 'icmp'} type {self.icmp_type} code {self.icmp_code}"]
        if self.protocol == TCP:
            flags = [n for n, bit in (("syn", SYN), ("ack", ACK), ("rst", RST), ("fin", FIN)) if self.tcp_flags & bit]
            words.append("-".join(flags) or "no flags")
        if self.fragment is not Fragment.NONE:
            words.append(f"{self.fragment.value} fragment")
        src = f"[{self.src_ip}]" if self.family == 6 and self.src_port else str(self.src_ip)
        dst = f"[{self.dst_ip}]" if self.family == 6 and self.dst_port else str(self.dst_ip)
        src += f":{self.src_port}" if self.src_port else ""
        dst += f":{self.dst_port}" if self.dst_port else ""
        return f"{' '.join(words)} {src} -> {dst}"


class Stage(Enum):
    """Where at a port a policy is enforced."""

    ANTI_SPOOFING = "anti-spoofing"
    EGRESS = "egress"
    INGRESS = "ingress"


@dataclass(frozen=True, slots=True)
class EnforcementPoint:
    """A place where a packet can be stopped: a stage at a port."""

    port: str
    stage: Stage

    def __str__(self) -> str:
        return f"{self.port} {self.stage.value}"


@dataclass(frozen=True, slots=True)
class Check:
    """What one enforcement point says of a packet.

    Attributes:
        rule: id of the rule that decides there, or one of evaluator's words for what every port has ("default deny").
        text: the rule for people.
    """

    point: EnforcementPoint
    is_allowed: bool
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What should become of a packet: every enforcement point on its way, up to the one that stops it.

    Attributes:
        checks: in the order of travel, at least one.
        is_rejected: it is stopped, and its sender is told (TCP RST, ICMP error).
    """

    checks: tuple[Check, ...]
    is_rejected: bool = False

    @property
    def is_allowed(self) -> bool:
        """Whether it arrives."""
        return self.checks[-1].is_allowed

    @property
    def point(self) -> EnforcementPoint:
        """Where it was decided: the stop, or the last point that let it pass."""
        return self.checks[-1].point


@dataclass(frozen=True, slots=True)
class Step:
    """One packet of a scenario.

    Attributes:
        is_forward: sent by the scenario's source; else by its target.
        state: what conntrack shall make of it, given that all steps before arrived.
        expected: what should become of it.
    """

    is_forward: bool
    packet: Packet
    state: ConnState
    expected: Decision


@dataclass(frozen=True, slots=True)
class Scenario:
    """A short conversation between two ports. A step is sent when all before it arrived.

    Attributes:
        number: dense from 0 in its cover.
        key: names it across backends and runs: ports, classes and boundary in words, no addresses of one network.
        src, dst: names of ports; `src` sends the forward steps.
        covers: what it exercises: ids of rules and `id:boundary` ("web[0]:port-1", "web[0]:mask 0x1390/0xfff0").
    """

    number: int
    key: str
    src: str
    dst: str
    steps: tuple[Step, ...]
    covers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Cover:
    """A set of scenarios, and what it leaves open.

    Attributes:
        lower_bound: no set of scenarios with the same claims can be smaller.
        naive: probes of the all-pairs x all-ports way.
        shadowed: rules that can never decide anything: id, and why.
        unproven: what no port can send, one line each: what it would have proved, and why not.
        unreachable: what cannot be told apart from outside, since another enforcement point stops all that would show
            it; it matters only once that one lets more pass.
    """

    scenarios: tuple[Scenario, ...]
    lower_bound: int
    naive: int
    shadowed: tuple[tuple[str, str], ...] = ()
    unproven: tuple[tuple[str, str], ...] = ()
    unreachable: tuple[tuple[str, str], ...] = ()

    @property
    def probes(self) -> int:
        """Packets of one attempt of everything."""
        return sum(len(scenario.steps) for scenario in self.scenarios)
