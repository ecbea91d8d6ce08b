"""Does a switch have the flows that OVN's southbound database wants there? Compared without OVN's own compiler. Pure.

A flow's cookie is the beginning of its logical flow's UUID, or of the port binding's for port security. A logical flow
of the ACL stages without a flow on a chassis that has one of its ports was deleted behind OVN's back, or never made.
One that lacks some of its flows shows by symmetry: each of its ports has the same flows, IPv4 has those of IPv6, each
clause of a conjunction is there, and an ACL has the same flows for packets of connections as for new ones. A rule that
lacks the same flow everywhere stays unnoticed here; probes find it.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from netprobe.judge.ovn_flows import EGRESS, INGRESS, LogicalFlow

PORT_SECURITY_TABLES = (73, 74, 75)
"""Where ovn-controller itself checks port security: addresses in, neighbours in, addresses out (23.03, ovn-sb(5))."""

_SECURITY_FROM, _SECURITY_NAMES = 80, {73: "in", 74: "in, neighbours", 75: "out"}


class Lack(Enum):
    """How a switch differs from the database."""

    MISSING = "missing"  # a whole logical flow, at some ports or at all
    INCOMPLETE = "incomplete"  # some of its flows
    EXTRA = "extra"  # flows that no logical flow wants


@dataclass(frozen=True, slots=True)
class SwitchFlow:
    """One OpenFlow flow.

    Attributes:
        port: key of the logical port that it is about (reg14 or reg15), None for all.
        rest: what else it matches.
        conj_id: of a conjunction's last flow, None in others.
        clauses: conjunctions that it is a clause of: id, number from 1, and of how many.
    """

    table: int
    cookie: int
    priority: int
    metadata: int | None
    port: int | None
    rest: str
    conj_id: int | None = None
    clauses: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A logical port that is on the chassis.

    Attributes:
        uuid: of its port binding.
        datapath: its logical switch's tunnel key.
        key: its own tunnel key.
        security: OVN's port_security, "" where anything may be sent.
    """

    name: str
    uuid: str
    datapath: int
    key: int
    security: str = ""


@dataclass(frozen=True, slots=True)
class WantedFlow:
    """A logical flow, and the logical switches (tunnel keys) that it is for."""

    flow: LogicalFlow
    datapaths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Southbound:
    """What the database says, as far as it is compared.

    Attributes:
        flows: of the ACL and port security stages.
        groups: names of the ports of a port group, by `<datapath key>_<group>`.
        sets: members of address sets.
        switches: names of logical switches by tunnel key.
    """

    flows: tuple[WantedFlow, ...]
    groups: Mapping[str, Collection[str]]
    sets: Mapping[str, Sequence[str]]
    switches: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Inconsistency:
    """Something that a switch lacks, or has too much.

    Attributes:
        flow: the logical flow; None for port security and for what nobody wants.
        switch: name of the logical switch.
        ports: names of the logical ports that it is about.
        detail: for people.
    """

    lack: Lack
    detail: str
    switch: str
    ports: tuple[str, ...] = ()
    flow: LogicalFlow | None = None


# ---------------------------------------------------------------------------------------------------------------------
# The switch's flows
# ---------------------------------------------------------------------------------------------------------------------

DEFAULT_PRIORITY = 32768
_NUMBERS = frozenset({"cookie", "table", "priority", "metadata", "reg14", "reg15", "conj_id"})
_STATISTICS = frozenset({"duration", "n_packets", "n_bytes", "idle_age", "hard_age", "idle_timeout", "hard_timeout"})
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}")
_CLAUSE = re.compile(r"conjunction\((\d{1,10}),(\d{1,3})/(\d{1,3})\)")


def parse_flows(text: str) -> tuple[SwitchFlow, ...]:
    """The answer of `ovs-ofctl dump-flows`, best with --no-stats. Never raises; lines that are no flow are left out."""
    return tuple(flow for flow in map(_flow_of, text.splitlines()) if flow is not None)


def _flow_of(line: str) -> SwitchFlow | None:
    """What is left out is 0: the cookie and the table in a dump without counters."""
    head, is_flow, actions = line.strip().partition(" actions=")
    if not is_flow:
        return None
    numbers: dict[str, int] = {}
    rest: list[str] = []
    for word in re.split(r",\s*", head):
        name, _, value = word.partition("=")
        if name in _NUMBERS and _NUMBER.fullmatch(value):
            numbers[name] = int(value, 0)
        elif word and name not in _STATISTICS:
            rest.append(word)
    clauses = tuple((int(a), int(b), int(c)) for a, b, c in _CLAUSE.findall(actions))
    return SwitchFlow(
        numbers.get("table", 0),
        numbers.get("cookie", 0),
        numbers.get("priority", DEFAULT_PRIORITY),
        numbers.get("metadata"),
        numbers.get("reg14", numbers.get("reg15")),
        ",".join(rest),
        numbers.get("conj_id"),
        clauses,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------------------------------

_PORT_TERM = re.compile(r'(?:inport|outport) == (?:@(\w[\w.$-]*)|"([^"]*)"|\{([^{}]*)\})')
_SET_NAME = re.compile(r"\$(\w[\w.-]*)")
_FAMILY_WORDS = re.compile(r"\b(?:ip4|ip6|icmp4|icmp6|nd|nd_ns|nd_na|nd_rs|nd_ra|mldv1|mldv2|arp)\b")
_RESIDENT = re.compile(r"is_chassis_resident\(")
_V4_WORDS = {"ipv6": "ip", "tcp6": "tcp", "udp6": "udp", "sctp6": "sctp", "icmp6": "icmp"}


def compare_flows(wanted: Southbound, ports: Sequence[LocalPort], flows: Iterable[SwitchFlow]) -> list[Inconsistency]:
    """What one chassis lacks, or has too much.

    Args:
        wanted: what the database says.
        ports: the logical ports that are on the chassis.
        flows: of its integration bridge, whole.
    """
    known = _Known(flows)
    found: list[Inconsistency] = []
    here: dict[int, list[LocalPort]] = {}
    for port in ports:
        here.setdefault(port.datapath, []).append(port)
    present: dict[tuple[object, ...], set[str]] = {}
    for one in wanted.flows:
        for datapath in one.datapaths:
            if known.of(one.flow, datapath):
                present.setdefault((datapath, *_normal(one, wanted)), set()).add(one.flow.uuid)
    for one in wanted.flows:
        for datapath in one.datapaths:
            if datapath in here:
                has_twin = bool(present.get((datapath, *_normal(one, wanted)), set()) - {one.flow.uuid})
                found += _compare_one(one, datapath, here[datapath], wanted, known, has_twin=has_twin)
    told = {one.flow.uuid for one in found if one.flow is not None}
    found += _one_hint(wanted, here, known, told)
    found += _port_security(ports, known, wanted.switches)
    found += _extra(wanted, here, known)
    return found


class _Known:
    """The switch's flows by what they are looked up by."""

    def __init__(self, flows: Iterable[SwitchFlow]) -> None:
        self.all = tuple(flows)
        self._by_cookie: dict[tuple[int, int | None], list[SwitchFlow]] = {}
        self.clauses: dict[int, list[tuple[int, int, SwitchFlow]]] = {}
        for flow in self.all:
            self._by_cookie.setdefault((flow.cookie, flow.metadata), []).append(flow)
            for conj_id, number, count in flow.clauses:
                self.clauses.setdefault(conj_id, []).append((number, count, flow))

    def of(self, flow: LogicalFlow, datapath: int) -> list[SwitchFlow]:
        return self._by_cookie.get((_cookie(flow.uuid), datapath), [])

    def of_port(self, port: LocalPort) -> list[SwitchFlow]:
        there = self._by_cookie.get((_cookie(port.uuid), port.datapath), [])
        return [flow for flow in there if flow.table in PORT_SECURITY_TABLES]


def _cookie(uuid: str) -> int:
    beginning = uuid[:8]
    return int(beginning, 16) if re.fullmatch(r"[0-9a-f]{8}", beginning) else -1


def _normal(one: WantedFlow, wanted: Southbound) -> tuple[object, ...]:
    """What two logical flows have in common whose flows are the same: OVN then installs those of one alone."""
    match = _PORT_TERM.sub("port", one.flow.match)
    match = _SET_NAME.sub(lambda name: "{" + ", ".join(sorted(wanted.sets.get(name[1], ()))) + "}", match)
    return one.flow.pipeline, one.flow.table, one.flow.priority, match


def _compare_one(
    one: WantedFlow, datapath: int, here: Sequence[LocalPort], wanted: Southbound, known: _Known, *, has_twin: bool
) -> Iterator[Inconsistency]:
    flow = one.flow
    sets = _SET_NAME.findall(flow.match)
    if _RESIDENT.search(flow.match) or any(not wanted.sets.get(name) for name in sets):
        return  # it may rightly have no flow
    named = _named_ports(flow.match, datapath, wanted)
    about = [port for port in here if named is None or port.name in named]
    if not about:
        return
    switch = wanted.switches.get(datapath, str(datapath))
    there = known.of(flow, datapath)
    if not there:
        if not has_twin:
            names = tuple(sorted(port.name for port in about)) if named is not None else ()
            detail = f"no flow of stage {flow.stage} of {switch}, priority {flow.priority}: {flow.match}"
            yield Inconsistency(Lack.MISSING, detail, switch, names, flow)
        return
    keys = {port.key: port.name for port in about} if named is not None else {}
    for lacking in _lacking(there, keys, known, is_neutral=not _FAMILY_WORDS.search(flow.match)):
        if not has_twin or lacking.is_certain:
            detail = f"stage {flow.stage} of {switch}, priority {flow.priority}: {lacking.text} ({flow.match})"
            yield Inconsistency(Lack.INCOMPLETE, detail, switch, lacking.ports, flow)


def _named_ports(match: str, datapath: int, wanted: Southbound) -> set[str] | None:
    """The ports that a match names; None where it names none, and so means all."""
    found = _PORT_TERM.findall(match)
    if not found:
        return None
    names: set[str] = set()
    for group, one, several in found:
        names |= set(wanted.groups.get(f"{datapath}_{group}", ())) if group else set()
        names |= {one} if one else set()
        names |= set(re.findall(r'"([^"]*)"', several))
    return names


@dataclass(frozen=True, slots=True)
class _Lacking:
    text: str
    ports: tuple[str, ...] = ()
    is_certain: bool = False


def _lacking(
    there: Sequence[SwitchFlow], keys: Mapping[int, str], known: _Known, *, is_neutral: bool
) -> Iterator[_Lacking]:
    """What a logical flow's flows lack, by their symmetry."""
    conjunctions = [flow for flow in there if flow.conj_id is not None]
    if conjunctions:
        yield from _lacking_clauses(conjunctions, keys, known, is_neutral=is_neutral)
        return
    by_port: dict[int | None, set[str]] = {}
    for flow in there:
        by_port.setdefault(flow.port, set()).add(flow.rest)
    full = set[str]().union(*by_port.values())
    if keys and None not in by_port:
        for key, name in sorted(keys.items()):
            lost = full - by_port.get(key, set())
            if lost:
                yield _Lacking(f"port {name} lacks {_some(lost)}", (name,))
    if is_neutral:
        yield from _one_family(full)


def _one_family(rests: Collection[str]) -> Iterator[_Lacking]:
    """Flows of one address family that the other does not have."""
    v6 = {_as_v4(rest) for rest in rests if _is_v6(rest)}
    v4 = {rest for rest in rests if not _is_v6(rest) and set(rest.split(",")) & set(_V4_WORDS.values())}
    if v4 ^ v6:
        yield _Lacking(f"one address family lacks {_some(v4 ^ v6)}", is_certain=True)


def _lacking_clauses(
    conjunctions: Sequence[SwitchFlow], keys: Mapping[int, str], known: _Known, *, is_neutral: bool
) -> Iterator[_Lacking]:
    shapes: set[frozenset[tuple[int, int | None, str]]] = set()
    for last in conjunctions:
        parts = known.clauses.get(last.conj_id or 0, [])
        count = max((count for _, count, _ in parts), default=0)
        for number in sorted(set(range(1, count + 1)) - {number for number, _, _ in parts}):
            yield _Lacking(f"clause {number} of {count} of conjunction {last.conj_id} has no flow", is_certain=True)
        if not parts:
            yield _Lacking(f"conjunction {last.conj_id} has no clause", is_certain=True)
        ports = {flow.port for _, _, flow in parts if flow.port is not None}
        lost = {name for key, name in keys.items() if ports and key not in ports}
        if lost:
            yield _Lacking(f"conjunction {last.conj_id} lacks port {_some(lost)}", tuple(sorted(lost)), is_certain=True)
        shapes.add(frozenset((number, flow.port, _as_v4(flow.rest)) for number, _, flow in parts))
    if is_neutral and len(shapes) > 1:
        first, *others = sorted(shapes, key=len)
        lost = {rest for other in others for _, _, rest in other ^ first}
        yield _Lacking(f"one address family lacks a clause: {_some(lost)}", is_certain=True)


_HINT = re.compile(r"reg0\[(\d+)\] == 1 && ")
_OTHER_HINT = {7: 8, 8: 7, 9: 10, 10: 9}
"""Bits of reg0 that stage acl_hint sets (ovn-northd(8), 23.03): 7 and 8, new packets and those of connections that an
ACL may allow; 9 and 10, those that one may drop. Of each pair an ACL has a logical flow with the same match."""

_Shape = tuple[int | None, str, tuple[tuple[int, int], ...]]
_Place = tuple[str, int, int]  # pipeline, table, priority


def _one_hint(
    wanted: Southbound, here: Collection[int], known: _Known, told: Collection[str]
) -> Iterator[Inconsistency]:
    """Flows that an ACL has for one of two hints, and nobody has for the other one, whose lack is not told already.

    All logical flows of a stage and priority are taken together, since of equal flows OVN installs one alone.
    """
    hinted: list[tuple[WantedFlow, _Place, int]] = []
    for one in wanted.flows:
        hint = _HINT.match(one.flow.match)
        if hint is not None and int(hint[1]) in _OTHER_HINT:
            hinted.append((one, (one.flow.pipeline, one.flow.table, one.flow.priority), int(hint[1])))
    uuids = {(place, one.flow.match): one.flow.uuid for one, place, _ in hinted}
    made: dict[tuple[int, _Place, int], set[_Shape]] = {}
    for one, place, hint_bit in hinted:
        for datapath in set(one.datapaths) & set(here):
            made.setdefault((datapath, place, hint_bit), set()).update(_shapes(known.of(one.flow, datapath), known))
    for one, place, hint_bit in hinted:
        other = _OTHER_HINT[hint_bit]
        twin = uuids.get((place, _HINT.sub(f"reg0[{other}] == 1 && ", one.flow.match, count=1)))
        if twin is None or twin in told:
            continue
        for datapath in set(one.datapaths) & set(here):
            lost = set(_shapes(known.of(one.flow, datapath), known)) - made.get((datapath, place, other), set())
            if lost:
                text = f"there for reg0[{hint_bit}], not for reg0[{other}]: {_some({rest for _, rest, _ in lost})}"
                switch = wanted.switches.get(datapath, str(datapath))
                detail = f"stage {one.flow.stage} of {switch}, priority {one.flow.priority}: {text} ({one.flow.match})"
                yield Inconsistency(Lack.INCOMPLETE, detail, switch, (), one.flow)


def _shapes(flows: Iterable[SwitchFlow], known: _Known) -> Iterator[_Shape]:
    """Flows of a logical flow, and clauses of its conjunctions, but for the hint and the conjunctions' numbers."""
    for flow in flows:
        yield flow.port, _without_hint(flow.rest), ()
        for number, count, clause in known.clauses.get(flow.conj_id, []) if flow.conj_id is not None else []:
            yield clause.port, _without_hint(clause.rest), ((number, count),)


def _without_hint(rest: str) -> str:
    return ",".join(word for word in rest.split(",") if not word.startswith("reg0="))


def _is_v6(rest: str) -> bool:
    return any(word in _V4_WORDS for word in rest.split(","))


def _as_v4(rest: str) -> str:
    return ",".join(_V4_WORDS.get(word, word) for word in rest.split(","))


def _some(words: Collection[str], most: int = 3) -> str:
    """The first few, and how many more."""
    shown = sorted(words)[:most]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(word or "all packets" for word in shown) + more


_ADDRESS = re.compile(r"(dl_src|dl_dst|nw_src|nw_dst|ipv6_src|ipv6_dst|arp_spa|arp_sha|nd_\w+)=[^,]+")


def _port_security(ports: Sequence[LocalPort], known: _Known, switches: Mapping[int, str]) -> Iterator[Inconsistency]:
    """Ports whose checks of addresses are not there: whole tables of them, or what other ports have."""
    shapes: dict[tuple[bool, bool], dict[str, set[tuple[int, int, str]]]] = {}
    for port in ports:
        if port.security:
            flows = known.of_port(port)
            kind = ("." in port.security, "::" in port.security or port.security.count(":") > 5)
            made = {(flow.table, flow.priority, _ADDRESS.sub(r"\1=*", flow.rest)) for flow in flows}
            shapes.setdefault(kind, {})[port.name] = made
    datapaths = {port.name: port.datapath for port in ports}
    for made_by_port in shapes.values():
        common = set[tuple[int, int, str]]().union(*made_by_port.values())
        for name, made in sorted(made_by_port.items()):
            lost = common - made
            if lost or not made:
                switch = switches.get(datapaths[name], str(datapaths[name]))
                yield _insecure(name, switch, lost, is_all=not made)


def _insecure(name: str, switch: str, lost: Collection[tuple[int, int, str]], *, is_all: bool) -> Inconsistency:
    if is_all:
        return Inconsistency(Lack.MISSING, f"port security of {name} has no flow: it is off", switch, (name,))
    texts = [f"table {table}, priority {priority}, {rest or 'all else'}" for table, priority, rest in lost]
    return Inconsistency(Lack.INCOMPLETE, f"port security of {name} lacks {_some(texts)}", switch, (name,))


def _extra(wanted: Southbound, here: Mapping[int, object], known: _Known) -> Iterator[Inconsistency]:
    """Flows in the tables of ACLs that no logical flow wants."""
    cookies = {_cookie(one.flow.uuid) for one in wanted.flows}
    acls = {_cookie(one.flow.uuid) for one in wanted.flows if one.flow.is_acl}
    tables = {flow.table for flow in known.all if flow.cookie in acls}
    for flow in known.all:
        is_clause = not flow.cookie and flow.clauses
        if flow.table in tables and flow.metadata in here and flow.cookie not in cookies and not is_clause:
            switch = wanted.switches.get(flow.metadata or 0, str(flow.metadata))
            detail = f"table {flow.table} has a flow that no logical flow wants: cookie {flow.cookie:#x}, {flow.rest}"
            yield Inconsistency(Lack.EXTRA, f"{detail}, priority {flow.priority}", switch)


STAGES = {
    INGRESS: (
        "ls_in_acl",
        "ls_in_acl_after_lb",
        "ls_in_acl_eval",
        "ls_in_acl_action",
        "ls_in_acl_hint",
        "ls_in_check_port_sec",
        "ls_in_apply_port_sec",
    ),
    EGRESS: (
        "ls_out_acl",
        "ls_out_acl_eval",
        "ls_out_acl_action",
        "ls_out_acl_hint",
        "ls_out_check_port_sec",
        "ls_out_apply_port_sec",
    ),
}
"""Stages that are compared; ovn-northd names those that its version has."""
