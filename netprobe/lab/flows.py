"""Security groups as OpenFlow flows, in the layout of Neutron's Open vSwitch firewall, each traceable to its rule.

Pure. Tables: 60 port and network into registers, 71 anti-spoofing, 72 egress rules, 73 to a local port or away, 81 and
82 ingress rules, 91 and 92 accepted traffic, 93 drops, 94 forwarding. Register 5 is the port, register 6 the network,
which is the conntrack zone too; conntrack mark 1 is a connection whose permit was revoked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from netprobe.errors import UsageError
from netprobe.lab.config import LabConfig, Rule
from netprobe.lab.ports import range_masks
from netprobe.lab.topology import Endpoint

COOKIE_PREFIX = 0x1AB0 << 48
"""The lab's own flows; it differs from netprobe's own cookies, because these flows are the cloud's, not netprobe's."""
COOKIE_MASK = 0xFFFF << 48
RULES_MAX = (1 << 12) - 1

_DIRECTION_CODES = {"": 0, "egress": 1, "ingress": 2}
_DROP = "resubmit(,93)"
_ZONE = "zone=NXM_NX_REG6[0..15]"
_IP_WORDS = {4: "ip", 6: "ipv6"}
_PROTOCOL_WORDS = {
    "any": _IP_WORDS,
    "tcp": {4: "tcp", 6: "tcp6"},
    "udp": {4: "udp", 6: "udp6"},
    "icmp": {4: "icmp", 6: "icmp6"},
}
_ADDRESS_WORDS = {
    ("ingress", 4): "nw_src",
    ("egress", 4): "nw_dst",
    ("ingress", 6): "ipv6_src",
    ("egress", 6): "ipv6_dst",
}

_RS, _RA, _NS, _NA = 133, 134, 135, 136  # RFC 4861
_LISTENER_REPORTS = (131, 132, 143)  # RFC 2710, RFC 3810


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """What a cookie stands for.

    Attributes:
        port: endpoint whose port it guards, empty for flows that all share.
        group: security group, empty for what every port has.
        direction: "ingress", "egress" or empty.
        rule: the rule for people.
        kind: "security-group", "default-deny", "anti-spoofing", "conntrack-invalid", "revoked" or "plumbing".
    """

    port: str
    group: str
    direction: str
    rule: str
    kind: str

    def to_json(self) -> dict[str, str]:
        """As in the state file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CompiledFlows:
    """Flows for `ovs-ofctl replace-flows`, and what their cookies mean."""

    flows: tuple[str, ...]
    rules: dict[int, RuleInfo]

    def rules_json(self) -> dict[str, dict[str, str]]:
        """As in the state file: cookies as OVS prints them."""
        return {f"{cookie:#x}": info.to_json() for cookie, info in self.rules.items()}


class _Compiler:
    """Collects flows. A match that is there already keeps its first rule: two flows cannot share one match."""

    def __init__(self, config: LabConfig, ends: Sequence[Endpoint], zone: int) -> None:
        self.config = config
        self.ends = ends
        self.zone = zone
        self.flows: list[str] = []
        self.rules: dict[int, RuleInfo] = {}
        self._matches: set[tuple[int, int, str]] = set()
        self._numbers: dict[tuple[int, int], int] = {}

    def cookie(self, info: RuleInfo, ofport: int = 0) -> int:
        """A cookie of its own for a rule at a port."""
        code = _DIRECTION_CODES[info.direction]
        number = self._numbers.get((ofport, code), 0)
        if number > RULES_MAX:
            raise UsageError(f"port of {info.port}", f"has more than {RULES_MAX} {info.direction} rules")
        self._numbers[ofport, code] = number + 1
        cookie = COOKIE_PREFIX | ofport << 16 | code << 12 | number
        self.rules[cookie] = info
        return cookie

    def add(self, cookie: int, table: int, priority: int, match: str, actions: str) -> None:
        """One flow, unless its match is taken."""
        key = (table, priority, match)
        if key not in self._matches:
            self._matches.add(key)
            where = f"cookie={cookie:#x},table={table},priority={priority}"
            self.flows.append(f"{where},{match},actions={actions}" if match else f"{where},actions={actions}")


def compile_flows(config: LabConfig, ends: Sequence[Endpoint], zone: int) -> CompiledFlows:
    """Compile a lab's security groups.

    Args:
        config: groups and rules.
        ends: every port of the bridge.
        zone: conntrack zone, and the network's number in register 6.

    Raises:
        UsageError: more rules at a port than cookies can tell apart.
    """
    compiler = _Compiler(config, ends, zone)
    _shared(compiler)
    for end in ends:
        _plumbing(compiler, end)
        _anti_spoofing(compiler, end)
        for direction in ("egress", "ingress"):
            _group_rules(compiler, end, direction)
            _stateful(compiler, end, direction)
    return CompiledFlows(tuple(compiler.flows), compiler.rules)


def _shared(c: _Compiler) -> None:
    """Flows that belong to no port."""
    cookie = c.cookie(RuleInfo("", "", "", "tables that all ports share", "plumbing"))
    c.add(cookie, 0, 0, "", "resubmit(,60)")
    for family in ("ip", "ipv6"):
        c.add(cookie, 73, 90, f"ct_state=+new-est,{family}", f"ct(commit,{_ZONE}),resubmit(,91)")
    c.add(cookie, 73, 80, "", "resubmit(,94)")
    c.add(cookie, 91, 1, "", "resubmit(,94)")
    c.add(cookie, 92, 0, "", "drop")
    c.add(cookie, 94, 1, "", "normal")
    unknown = c.cookie(RuleInfo("", "", "", "a port that is no guest's", "plumbing"))
    c.add(unknown, 60, 0, "", _DROP)
    sink = c.cookie(RuleInfo("", "", "", "where all drops end", "plumbing"))
    c.add(sink, 93, 0, "", "drop")


def _plumbing(c: _Compiler, end: Endpoint) -> None:
    """From the port into the tables, from the tables to the port."""
    port = end.ofport
    cookie = c.cookie(RuleInfo(end.name, "", "", f"forwarding of {end.name}", "plumbing"), port)
    load = f"load:{port:#x}->NXM_NX_REG5[]"
    c.add(cookie, 60, 100, f"in_port={port}", f"{load},load:{c.zone:#x}->NXM_NX_REG6[],resubmit(,71)")
    c.add(cookie, 73, 100, f"reg6={c.zone:#x},dl_dst={end.mac}", f"{load},resubmit(,81)")
    c.add(cookie, 94, 12, f"reg6={c.zone:#x},dl_dst={end.mac}", f"output:{port}")
    reg = f"reg5={port:#x}"
    c.add(cookie, 81, 100, f"arp,{reg}", f"output:{port}")
    for kind in (_RA, _NS, _NA):
        c.add(cookie, 81, 100, f"icmp6,{reg},icmp_type={kind}", f"output:{port}")
    c.add(cookie, 81, 95, f"udp,{reg},tp_src=67,tp_dst=68", f"output:{port}")
    c.add(cookie, 81, 95, f"udp6,{reg},tp_src=547,tp_dst=546", f"output:{port}")
    for family in ("ip", "ipv6"):
        c.add(cookie, 81, 90, f"ct_state=-trk,{family},{reg}", f"ct(table=82,{_ZONE})")
    c.add(cookie, 81, 80, f"ct_state=+trk,{reg}", "resubmit(,82)")


def _anti_spoofing(c: _Compiler, end: Endpoint) -> None:
    """A port may only send with its own addresses: Ethernet, IP, ARP, neighbour discovery."""
    port, mac = end.ofport, end.mac
    own = c.cookie(RuleInfo(end.name, "", "egress", f"addresses of {end.name}", "plumbing"), port)
    where = f"reg5={port:#x},in_port={port}"
    mine = f"{where},dl_src={mac}"
    c.add(own, 71, 95, f"arp,{mine},arp_sha={mac},arp_spa={end.ipv4}", "resubmit(,94)")
    for source in (end.ipv6, "::"):
        c.add(own, 71, 95, f"icmp6,{mine},ipv6_src={source},icmp_type={_RS}", "resubmit(,94)")
    c.add(own, 71, 95, f"icmp6,{mine},ipv6_src={end.ipv6},icmp_type={_NS},nd_sll={mac}", "resubmit(,94)")
    # Duplicate address detection (RFC 4862 §5.4.2) asks from the unspecified address, for its own.
    c.add(own, 71, 95, f"icmp6,{mine},ipv6_src=::,icmp_type={_NS},nd_target={end.ipv6}", "resubmit(,94)")
    # The answer to a unicast solicitation may leave the link-layer address out (RFC 4861 §4.4).
    for target_mac in (mac, "00:00:00:00:00:00"):
        advert = f"icmp6,{mine},ipv6_src={end.ipv6},icmp_type={_NA},nd_target={end.ipv6},nd_tll={target_mac}"
        c.add(own, 71, 95, advert, "resubmit(,94)")
    c.add(own, 71, 80, f"udp,{mine},tp_src=68,tp_dst=67", "resubmit(,73)")
    c.add(own, 71, 80, f"udp6,{mine},tp_src=546,tp_dst=547", "resubmit(,73)")
    c.add(own, 71, 65, f"ip,{mine},nw_src={end.ipv4}", f"ct(table=72,{_ZONE})")
    c.add(own, 71, 65, f"ipv6,{mine},ipv6_src={end.ipv6}", f"ct(table=72,{_ZONE})")
    quiet = c.cookie(
        RuleInfo(end.name, "", "egress", "listener reports: the bridge floods multicast", "plumbing"), port
    )
    for kind in _LISTENER_REPORTS:
        c.add(quiet, 71, 95, f"icmp6,{where},icmp_type={kind}", _DROP)
    text = "egress only with the port's own addresses, and no answers of a DHCP server or router"
    spoof = c.cookie(RuleInfo(end.name, "", "egress", text, "anti-spoofing"), port)
    c.add(spoof, 71, 70, f"udp,{where},tp_src=67,tp_dst=68", _DROP)
    c.add(spoof, 71, 70, f"udp6,{where},tp_src=547,tp_dst=546", _DROP)
    # All neighbour discovery that was not allowed above, since priority 65 would let it through by its source alone.
    for kind in (_RS, _RA, _NS, _NA):
        c.add(spoof, 71, 70, f"icmp6,{where},icmp_type={kind}", _DROP)
    c.add(spoof, 71, 10, where, _DROP)


def _group_rules(c: _Compiler, end: Endpoint, direction: str) -> None:
    """The rules of all of a port's groups, in one direction."""
    for name in end.groups:
        for rule in c.config.group(name).rules:
            if rule.direction != direction:
                continue
            cookie = c.cookie(RuleInfo(end.name, name, direction, rule.text(), "security-group"), end.ofport)
            for match in _matches(rule, c.ends):
                _permit(c, end, direction, cookie, priority=_priority(rule), match=match)


def _priority(rule: Rule) -> int:
    """70 to 77: the more a rule says, the higher, so that overlapping rules are attributed the same way each time."""
    remote = bool(rule.remote_group or rule.remote_prefix)
    return 70 + 4 * bool(rule.ports) + 2 * (rule.protocol != "any") + remote


def _permit(c: _Compiler, end: Endpoint, direction: str, cookie: int, *, priority: int, match: str) -> None:
    reg = f"reg5={end.ofport:#x}"
    if direction == "egress":
        for state in ("+est-rel-rpl", "+new-est"):
            c.add(cookie, 72, priority, f"ct_state={state},{match},{reg}", "resubmit(,73)")
        return
    out = f"output:{end.ofport}"
    c.add(cookie, 82, priority, f"ct_state=+est-rel-rpl,{match},{reg}", out)
    c.add(cookie, 82, priority, f"ct_state=+new-est,{match},{reg}", f"ct(commit,{_ZONE}),{out},resubmit(,92)")


def _matches(rule: Rule, ends: Sequence[Endpoint]) -> list[str]:
    """The OpenFlow matches that together are one rule: families x remote addresses x port masks."""
    masks = [""]
    if rule.ports:
        masks = [
            f",tp_dst={value}" if mask == 0xFFFF else f",tp_dst={value:#x}/{mask:#x}"
            for value, mask in range_masks(*rule.ports)
        ]
    found = []
    for family in rule.families:
        base = _PROTOCOL_WORDS[rule.protocol][family]
        word = _ADDRESS_WORDS[rule.direction, family]
        found += [base + remote + mask for remote in _remotes(rule, family, word, ends) for mask in masks]
    return found


def _remotes(rule: Rule, family: int, word: str, ends: Sequence[Endpoint]) -> list[str]:
    if rule.remote_group:
        members = [end for end in ends if rule.remote_group in end.groups]
        return [f",{word}={end.ipv4 if family == 4 else end.ipv6}" for end in members]
    if rule.remote_prefix is None or rule.remote_prefix.prefixlen == 0:
        return [""]
    return [f",{word}={rule.remote_prefix}"]


def _stateful(c: _Compiler, end: Endpoint, direction: str) -> None:
    """What holds after the rules: answers pass, invalid and revoked are dropped, the rest is denied."""
    table = 72 if direction == "egress" else 82
    accept = "resubmit(,94)" if direction == "egress" else f"output:{end.ofport}"
    reg = f"reg5={end.ofport:#x}"

    def cookie(text: str, kind: str) -> int:
        return c.cookie(RuleInfo(end.name, "", direction, f"{direction}: {text}", kind), end.ofport)

    invalid = cookie("conntrack knows no such connection", "conntrack-invalid")
    c.add(invalid, table, 51, f"ct_state=+inv+trk,{reg}", _DROP)
    revoked = cookie("the connection's permit was revoked", "revoked")
    c.add(revoked, table, 50, f"ct_mark=0x1,{reg}", _DROP)
    answers = cookie("answers of permitted connections", "plumbing")
    known = f"ct_zone={c.zone:#x},ct_mark=0,{reg}"
    c.add(answers, table, 50, f"ct_state=+est-rel+rpl,{known}", accept)
    c.add(answers, table, 50, f"ct_state=-new-est+rel-inv,{known}", accept)
    groups, text = ", ".join(end.groups), f"default deny: no {direction} rule allows it"
    deny = c.cookie(RuleInfo(end.name, groups, direction, text, "default-deny"), end.ofport)
    c.add(deny, table, 40, f"ct_state=-est,{reg}", _DROP)
    for family in ("ip", "ipv6"):
        # Allowed once, allowed no more: marked, so that even answers are dropped from now on.
        mark = f"ct(commit,{_ZONE},exec(load:0x1->NXM_NX_CT_MARK[]))"
        c.add(revoked, table, 40, f"ct_state=+est,{family},{reg}", f"{mark},{_DROP}")
