"""A policy as OpenFlow flows, in the layout of Neutron's Open vSwitch firewall, each traceable to its rule.

Pure. Tables: 60 port and network into registers, 71 anti-spoofing, 72 egress rules, 73 to a local port or away, 81 and
82 ingress rules, 91 and 92 accepted traffic, 93 drops, 94 forwarding. Register 5 is the port, register 6 the network,
which is the conntrack zone too; conntrack mark 1 is a connection whose permit was revoked. Ports without port security
are guarded by nothing, but their peers are: what they send goes on at table 73.

One zone for all ports of a network, as Neutron has it, is why some answers differ from other backends: what went past
conntrack at one port is known there all the same where the other end's port tracks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from itertools import product

from netprobe.errors import UsageError
from netprobe.lab.config import LabConfig
from netprobe.lab.flow_table import LISTENER_REPORTS, NA, NS, RA, RS, CompiledFlows, FlowTable, neighbour_matches, plain
from netprobe.lab.ports import range_masks
from netprobe.lab.rule_lists import Entry, Match, RuleInfo, entries, is_stateless
from netprobe.lab.topology import Endpoint, bound_policy
from netprobe.model.policy import (
    DENY_PRIORITY,
    GROUP_PRIORITY,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    Action,
    IPNetwork,
    Policy,
    PolicyPort,
    Way,
    protocol_name,
)

_DROP = "resubmit(,93)"
_ZONE = "zone=NXM_NX_REG6[0..15]"
_PROTOCOL_WORDS = {
    None: {4: "ip", 6: "ipv6"},
    TCP: {4: "tcp", 6: "tcp6"},
    UDP: {4: "udp", 6: "udp6"},
    SCTP: {4: "sctp", 6: "sctp6"},
    ICMP: {4: "icmp"},
    ICMPV6: {6: "icmp6"},
}
_WITH_PORT_MATCHES = (TCP, UDP, SCTP)
_ADDRESS_WORDS = {4: ("nw_src", "nw_dst"), 6: ("ipv6_src", "ipv6_dst")}

_ABOVE_GROUPS, _BESIDE_GROUPS = 100, 60
"""Where network ACLs stand in tables 72 and 82: the rules of groups have 70 to 77, the default deny 40."""


class _Compiler(FlowTable):
    """The flows of one lab.

    Attributes:
        answers: where the answers of connections go on after the sender's port. Where a port asks about each packet by
            itself that is its table, otherwise nobody asks any more.
        neighbour_code: what a match of neighbour discovery's fields needs with it. Open vSwitch 3.1 forgets them on the
            way to the kernel's datapath where the ICMP code is not matched too (CVE-2023-5366, as measured on Debian's
            3.1.0-2+deb12u1: the cached flow of one advertisement then decides about all of that port).
    """

    def __init__(self, policy: Policy, zone: int, *, is_kernel: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.zone = zone
        asks_each = any(acl.action is Action.ALLOW_STATELESS for acl in policy.acls)
        asks_each |= any(is_stateless(policy, port) for port in policy.ports)
        self.answers = "resubmit(,73)" if asks_each else "resubmit(,94)"
        self.ranks = _ranks(policy)
        self.neighbour_code = ",icmp_code=0" if is_kernel else ""


@dataclass(frozen=True, slots=True)
class _Port:
    """One port while its flows are made."""

    end: Endpoint
    port: PolicyPort
    is_stateless: bool

    @property
    def reg(self) -> str:
        """The match of its register."""
        return f"reg5={self.end.ofport:#x}"

    def sources(self) -> list[tuple[str, IPNetwork]]:
        """The addresses that it may send from, with the MAC that goes with each."""
        own: list[tuple[str, IPNetwork]] = [(self.end.mac, ip_network(ip)) for ip in self.port.ips]
        pairs = ((pair.mac or self.end.mac, pair.prefix) for pair in self.port.allowed_pairs)
        return list(dict.fromkeys((*own, *pairs)))

    def macs(self) -> list[str]:
        """The MACs that it may use, its own first."""
        return list(dict.fromkeys((self.end.mac, *(mac for mac, _ in self.sources()))))


def compile_flows(config: LabConfig, ends: Sequence[Endpoint], zone: int) -> CompiledFlows:
    """Compile a lab's policy.

    Args:
        config: groups, rules and ACLs.
        ends: every port of the bridge.
        zone: conntrack zone, and the network's number in register 6.

    Raises:
        UsageError: more rules at a port than cookies can tell apart, or something that no OpenFlow match can say.
    """
    policy = bound_policy(config, ends)
    compiler = _Compiler(policy, zone, is_kernel=config.shape.is_kernel)
    _shared(compiler)
    for end in ends:
        port = policy.port(end.name)
        here = _Port(end, port, is_stateless(policy, port))
        if not port.has_port_security:
            _unguarded(compiler, here)
            continue
        _plumbing(compiler, here)
        _anti_spoofing(compiler, here)
        for way in (Way.EGRESS, Way.INGRESS):
            _rules(compiler, here, way)
            _after_rules(compiler, here, way)
    return compiler.compiled()


def _ranks(policy: Policy) -> dict[tuple[int, bool], int]:
    """OpenFlow priorities for ACL priorities, which may be higher than those can be: by rank; drops before equals."""
    keys = {(acl.priority, not acl.action.allows) for acl in policy.acls}
    above = sorted(key for key in keys if key >= (GROUP_PRIORITY, True))
    ranks = {key: _ABOVE_GROUPS + rank for rank, key in enumerate(above)}
    for key in keys - set(above):
        # The rules of groups only allow, so one that allows beside them may stand anywhere below them.
        if key[0] > DENY_PRIORITY:
            ranks[key] = _BESIDE_GROUPS
    return ranks


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


def _unguarded(c: _Compiler, here: _Port) -> None:
    """A port without port security, as Neutron has it: past its own tables, into those of its peers."""
    port = here.end.ofport
    info = RuleInfo(here.end.name, "", "", f"{here.end.name} has no port security", "plumbing")
    cookie = c.cookie(info, port)
    load = f"load:{port:#x}->NXM_NX_REG5[],load:{c.zone:#x}->NXM_NX_REG6[]"
    c.add(cookie, 60, 100, f"in_port={port}", f"{load},resubmit(,73)")
    c.add(cookie, 94, 12, f"reg6={c.zone:#x},dl_dst={here.end.mac}", f"output:{port}")


def _plumbing(c: _Compiler, here: _Port) -> None:
    """From the port into the tables, from the tables to the port."""
    end, port, reg = here.end, here.end.ofport, here.reg
    cookie = c.cookie(RuleInfo(end.name, "", "", f"forwarding of {end.name}", "plumbing"), port)
    load = f"load:{port:#x}->NXM_NX_REG5[]"
    c.add(cookie, 60, 100, f"in_port={port}", f"{load},load:{c.zone:#x}->NXM_NX_REG6[],resubmit(,71)")
    for mac in here.macs():
        c.add(cookie, 73, 100, f"reg6={c.zone:#x},dl_dst={mac}", f"{load},resubmit(,81)")
        c.add(cookie, 94, 12, f"reg6={c.zone:#x},dl_dst={mac}", f"output:{port}")
    c.add(cookie, 81, 100, f"arp,{reg}", f"output:{port}")
    for kind in (RA, NS, NA):
        c.add(cookie, 81, 100, f"icmp6,{reg},icmp_type={kind}", f"output:{port}")
    c.add(cookie, 81, 95, f"udp,{reg},tp_src=67,tp_dst=68", f"output:{port}")
    c.add(cookie, 81, 95, f"udp6,{reg},tp_src=547,tp_dst=546", f"output:{port}")
    for family in ("ip", "ipv6"):
        track = "resubmit(,82)" if here.is_stateless else f"ct(table=82,{_ZONE})"
        c.add(cookie, 81, 90, f"ct_state=-trk,{family},{reg}", track)
    c.add(cookie, 81, 80, f"ct_state=+trk,{reg}", "resubmit(,82)")


def _anti_spoofing(c: _Compiler, here: _Port) -> None:
    """A port may only send with its own addresses and its allowed pairs: Ethernet, IP, ARP, neighbour discovery."""
    end, port = here.end, here.end.ofport
    pairs = "".join(f", {pair.prefix}" for pair in here.port.allowed_pairs)
    own = c.cookie(RuleInfo(end.name, "", "egress", f"addresses of {end.name}{pairs}", "plumbing"), port)
    where = f"{here.reg},in_port={port}"
    mine = f"{where},dl_src={end.mac}"
    for mac, prefix in here.sources():
        _neighbours(c, own, f"{where},dl_src={mac}", mac, prefix)
    c.add(own, 71, 80, f"udp,{mine},tp_src=68,tp_dst=67", "resubmit(,73)")
    c.add(own, 71, 80, f"udp6,{mine},tp_src=546,tp_dst=547", "resubmit(,73)")
    for mac, prefix in here.sources():
        word, field = ("ip", "nw_src") if prefix.version == 4 else ("ipv6", "ipv6_src")
        track = "resubmit(,72)" if here.is_stateless else f"ct(table=72,{_ZONE})"
        c.add(own, 71, 65, f"{word},{where},dl_src={mac},{field}={plain(prefix)}", track)
    quiet = c.cookie(
        RuleInfo(end.name, "", "egress", "listener reports: the bridge floods multicast", "plumbing"), port
    )
    for kind in LISTENER_REPORTS:
        c.add(quiet, 71, 95, f"icmp6,{where},icmp_type={kind}", _DROP)
    text = "egress only with the port's own addresses, and no answers of a DHCP server or router"
    spoof = c.cookie(RuleInfo(end.name, "", "egress", text, "anti-spoofing"), port)
    c.add(spoof, 71, 70, f"udp,{where},tp_src=67,tp_dst=68", _DROP)
    c.add(spoof, 71, 70, f"udp6,{where},tp_src=547,tp_dst=546", _DROP)
    # All neighbour discovery that was not allowed above, since priority 65 would let it through by its source alone.
    for kind in (RS, RA, NS, NA):
        c.add(spoof, 71, 70, f"icmp6,{where},icmp_type={kind}", _DROP)
    c.add(spoof, 71, 10, where, _DROP)


def _neighbours(c: _Compiler, cookie: int, sender: str, mac: str, prefix: IPNetwork) -> None:
    for match in neighbour_matches(sender, mac, prefix):
        c.add(cookie, 71, 95, match + c.neighbour_code if "nd_" in match else match, "resubmit(,94)")


def _rules(c: _Compiler, here: _Port, way: Way) -> None:
    """What is asked at a port in one direction, by priority."""
    line = entries(c.policy, here.port, way)
    asks_each = here.is_stateless or any(entry.action is Action.ALLOW_STATELESS for entry in line)
    for entry in line:
        key = (entry.priority, not entry.action.allows)
        if not entry.group and key not in c.ranks:
            continue  # below the default deny: never asked
        cookie = c.cookie(entry.info(here.end.name), here.end.ofport)
        priority = 70 + entry.says if entry.group else c.ranks[key]
        for match in entry.matches:
            for text in _texts(match, entry):
                _line(c, here, way, cookie, entry=entry, priority=priority, match=text, asks_each=asks_each)
            if entry.action is Action.ALLOW_STATELESS and not here.is_stateless:
                _untracked(c, here, cookie, match=match, entry=entry, way=way)


def _line(
    c: _Compiler, here: _Port, way: Way, cookie: int, *, entry: Entry, priority: int, match: str, asks_each: bool
) -> None:
    """One match of one line: which states of its connection it is asked about, and what becomes of it."""
    table, out = (72, "resubmit(,73)") if way is Way.EGRESS else (82, f"output:{here.end.ofport}")
    commit = f"ct(commit,{_ZONE}),{out},resubmit(,92)"
    rest = f"{match},{here.reg}"
    if here.is_stateless or entry.action is Action.ALLOW_STATELESS:
        if not entry.action.allows:
            c.add(cookie, table, priority, rest, _DROP)
        elif way is Way.EGRESS:
            c.add(cookie, table, priority, rest, out)
        else:  # what the sender's port began to track is a connection there, so it must be known
            c.add(cookie, table, priority, f"ct_state=+new+trk,{rest}", commit)
            c.add(cookie, table, priority, f"ct_state=-new,{rest}", out)
        return
    for state in ("+est-rel-rpl", "+new-est", *(("-trk",) if asks_each else ())):
        is_new = state == "+new-est" and way is Way.INGRESS
        action = _DROP if not entry.action.allows else commit if is_new else out
        c.add(cookie, table, priority, f"ct_state={state},{rest}", action)


def _untracked(c: _Compiler, here: _Port, cookie: int, *, match: Match, entry: Entry, way: Way) -> None:
    """What `allow-stateless` matches goes past conntrack, to be asked about by itself."""
    if way is Way.INGRESS:
        for text in _texts(match, entry):
            c.add(cookie, 81, 91, f"ct_state=-trk,{text},{here.reg}", "resubmit(,82)")
        return
    for mac, prefix in here.sources():
        source = _narrower(prefix, match.source)
        if source is None or prefix.version != match.family:
            continue
        for text in _texts(replace(match, source=source), entry):
            sender = f"{here.reg},in_port={here.end.ofport},dl_src={mac}"
            c.add(cookie, 71, 66, f"{text},{sender}", "resubmit(,72)")


def _narrower(one: IPNetwork, other: IPNetwork | None) -> IPNetwork | None:
    """What two prefixes share, None where that is nothing."""
    if other is None or (other.version == one.version and one.network_address in other):
        return one
    return other if other.version == one.version and other.network_address in one else None


def _texts(match: Match, entry: Entry) -> list[str]:
    """The OpenFlow matches that together are one match: its port masks multiply."""
    words = _PROTOCOL_WORDS.get(match.protocol)
    base = words[match.family] if words else f"{_PROTOCOL_WORDS[None][match.family]},nw_proto={match.protocol}"
    for word, prefix in zip(_ADDRESS_WORDS[match.family], (match.source, match.destination), strict=True):
        if prefix is not None and prefix.prefixlen:
            base += f",{word}={plain(prefix)}"
    if match.icmp_type is not None:
        base += f",icmp_type={match.icmp_type}" + ("" if match.icmp_code is None else f",icmp_code={match.icmp_code}")
    if (match.src_ports or match.dst_ports) and match.protocol not in _WITH_PORT_MATCHES:
        raise UsageError(
            f"rule {entry.id}.port",
            f"Open vSwitch cannot match ports of {protocol_name(match.protocol or 0)}",
            allowed=", ".join(protocol_name(number) for number in _WITH_PORT_MATCHES),
        )
    sides = _masks("tp_src", match.src_ports), _masks("tp_dst", match.dst_ports)
    return [base + source + target for source, target in product(*sides)]


def _masks(word: str, ports: tuple[int, int] | None) -> list[str]:
    if ports is None:
        return [""]
    return [
        f",{word}={value}" if mask == 0xFFFF else f",{word}={value:#x}/{mask:#x}" for value, mask in range_masks(*ports)
    ]


def _after_rules(c: _Compiler, here: _Port, way: Way) -> None:
    """What holds after the rules: answers pass, invalid and revoked are dropped, the rest is denied."""
    end, reg = here.end, here.reg
    table = 72 if way is Way.EGRESS else 82
    accept = c.answers if way is Way.EGRESS else f"output:{end.ofport}"

    def cookie(text: str, kind: str) -> int:
        return c.cookie(RuleInfo(end.name, "", way.value, f"{way.value}: {text}", kind), end.ofport)

    groups, text = ", ".join(end.groups), f"default deny: no {way.value} rule allows it"
    denied = RuleInfo(end.name, groups, way.value, text, "default-deny")
    if here.is_stateless:
        c.add(c.cookie(denied, end.ofport), table, 40, reg, _DROP)
        return
    invalid = cookie("conntrack knows no such connection", "conntrack-invalid")
    c.add(invalid, table, 51, f"ct_state=+inv+trk,{reg}", _DROP)
    revoked = cookie("the connection's permit was revoked", "revoked")
    c.add(revoked, table, 50, f"ct_mark=0x1,{reg}", _DROP)
    answers = cookie("answers of permitted connections", "plumbing")
    known = f"ct_zone={c.zone:#x},ct_mark=0,{reg}"
    c.add(answers, table, 50, f"ct_state=+est-rel+rpl,{known}", accept)
    c.add(answers, table, 50, f"ct_state=-new-est+rel-inv,{known}", accept)
    deny = c.cookie(denied, end.ofport)
    c.add(deny, table, 40, f"ct_state=-est,{reg}", _DROP)
    for family in ("ip", "ipv6"):
        # Allowed once, allowed no more: marked, so that even answers are dropped from now on.
        mark = f"ct(commit,{_ZONE},exec(load:0x1->NXM_NX_CT_MARK[]))"
        c.add(revoked, table, 40, f"ct_state=+est,{family},{reg}", f"{mark},{_DROP}")
