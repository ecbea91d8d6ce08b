"""OVN: from the OpenFlow rule that decided back to the logical flow behind it, and to the ACL or route that made it.

A rule's cookie is the first 32 bits of its logical flow's UUID, and that flow's `stage-hint` those of the northbound
row it came from (ovn-northd). Pure and total: rows come in as OVSDB's JSON, a row that says nothing known is left out.
host.ovn_flows, above, fetches them; judge.reason turns the decision into a reason.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from netprobe.judge.ofproto_trace import Trace, TraceStep

INGRESS, EGRESS = "ingress", "egress"
FIRST_TABLES = {INGRESS: 8, EGRESS: 42}
"""OpenFlow tables in which the logical pipelines begin (OVN 23.03, controller/lflow.h); other versions moved them."""

LAST_LOGICAL_TABLE = 32
"""The largest table_id that every southbound schema takes."""

PHYSICAL_TABLES = {
    0: "physical to logical: no logical port owns the port that it came in by",
    37: "output, large packets",
    38: "output, large packets",
    39: "remote output",
    40: "local output: the destination's port is not on this chassis, and no tunnel leads to it",
    41: "loopback check: it would go back out of the port that it came from",
    64: "loopback",
    65: "logical to physical: the destination's port has no device here",
}
"""Tables of ovn-controller itself, with no logical flow behind their rules (OVN 23.03, ovn-architecture(7))."""

ACL_PRIORITY = 1000
"""What ovn-northd adds to an ACL's priority (OVN_ACL_PRI_OFFSET)."""


@dataclass(frozen=True, slots=True)
class LogicalFlow:
    """A row of the southbound Logical_Flow table. `hint` is the start of a northbound row's UUID, "" without one."""

    uuid: str
    pipeline: str
    table: int
    priority: int
    match: str
    actions: str
    stage: str
    hint: str

    @property
    def is_acl(self) -> bool:
        """Whether ACLs are enforced in its stage: `ls_in_acl`, `ls_out_acl`, `ls_in_acl_after_lb`, `…_eval`."""
        return re.fullmatch(r"ls_(in|out)_acl(_after_lb)?(_eval|_action|_sample)?", self.stage) is not None

    @property
    def asks_for_address(self) -> bool:
        """Whether it sends an ARP request or a neighbour solicitation in the packet's stead."""
        return re.search(r"\b(arp|nd_ns) \{", self.actions) is not None


@dataclass(frozen=True, slots=True)
class NorthRow:
    """What the cloud's operator wrote: an ACL, a routing policy, a static route or a QoS rule.

    Attributes:
        table: its northbound table.
        name: "" where it has none.
        text: what it says, in OVN's words: match and action.
        owner: whose it is: "port group web", "switch net1".
        label: of an ACL, what its connections carry in conntrack; 0 without one.
        neutron_rule: Neutron's rule that it was made of, "" where none is known.
    """

    table: str
    uuid: str
    text: str
    name: str = ""
    direction: str = ""
    priority: int | None = None
    action: str = ""
    owner: str = ""
    label: int = 0
    neutron_rule: str = ""

    @property
    def title(self) -> str:
        """For people, in one line."""
        kind = {"ACL": "ACL", "QoS": "QoS rule", "Logical_Router_Policy": "routing policy"}.get(self.table, "route")
        name = f' "{self.name}"' if self.name else f" of {self.owner}" if self.owner else ""
        priority = f"priority {self.priority}" if self.priority is not None else ""
        parts = (f"{kind}{name} (uuid {self.uuid[:8]}…)", self.direction, priority, self.action)
        return ", ".join(part for part in parts if part)


class OvnKind(Enum):
    """What stopped a packet in OVN's pipeline."""

    ACL = "acl"
    PORT_SECURITY = "port-security"
    ROUTER = "router"
    CONNTRACK_INVALID = "conntrack-invalid"
    NO_DESTINATION = "no-destination"
    QOS = "qos"
    STAGE = "stage"  # another stage of a logical switch
    PHYSICAL = "physical"  # a table of ovn-controller itself


@dataclass(frozen=True, slots=True)
class OvnDecision:
    """The rule that decided, and what stands behind it.

    Attributes:
        step: the OpenFlow rule.
        flow: its logical flow, None where it has none.
        row: the northbound row behind that, None where it has none.
        datapath: name of the logical switch or router that it belongs to, "" when unknown.
        port: name of the logical port whose port security it is, "" when unknown.
    """

    step: TraceStep
    flow: LogicalFlow | None = None
    row: NorthRow | None = None
    datapath: str = ""
    port: str = ""

    @property
    def kind(self) -> OvnKind:
        """What stopped the packet."""
        if self.flow is None:
            return OvnKind.PHYSICAL
        stage = self.flow.stage
        if stage.startswith("lr_"):
            return OvnKind.ROUTER
        if "port_sec" in stage:
            return OvnKind.PORT_SECURITY
        if self.flow.is_acl:
            return OvnKind.CONNTRACK_INVALID if "+inv" in self.step.match and self.row is None else OvnKind.ACL
        if "_l2_" in stage:
            return OvnKind.NO_DESTINATION
        return OvnKind.QOS if "_qos_" in stage else OvnKind.STAGE

    @property
    def is_end(self) -> bool:
        """Whether the packet's way ended here; else it only went through a meter."""
        return not _has_meter(self.step)

    @property
    def has_counter(self) -> bool:
        """Whether the rule's counter can be tested: its cookie is its own, and bursts would ask nobody for ARP."""
        return self.flow is not None and bool(self.step.cookie) and not self.flow.asks_for_address

    @property
    def title(self) -> str:
        """The rule for people: the ACL, the port security stage or the router stage."""
        if self.flow is None:
            name = PHYSICAL_TABLES.get(self.step.table, "").partition(":")[0]
            return f"OVN's physical table {self.step.table}" + (f" ({name})" if name else "")
        row = self.row.title if self.row is not None else ""
        if row and self.kind is not OvnKind.ROUTER:
            return row
        if self.kind is OvnKind.PORT_SECURITY:
            return f"port security of {self.port or f'a port of {self.datapath}'}, stage {self.flow.stage}"
        what = "router" if self.kind is OvnKind.ROUTER else "switch"
        where = f"{what} {self.datapath}: " if self.datapath else ""
        stage = f"{where}stage {self.flow.stage}, priority {self.flow.priority}"
        return f"{stage}, {row}" if row else stage

    @property
    def detail(self) -> str:
        """What happened, in a sentence without an end."""
        return _detail(self)


ROUTER_STAGES = {
    "lr_in_admission": "the router does not take it: its destination MAC is not that of a router port on this chassis",
    "lr_in_ip_input": "the router does not pass it on: from or to an address of its own, or multicast",
    "lr_in_ip_routing": "the router has no route to its destination",
    "lr_in_ip_routing_ecmp": "the router has no route to its destination",
    "lr_in_policy": "a routing policy of the router drops it",
    "lr_in_policy_ecmp": "a routing policy of the router drops it",
    "lr_in_arp_resolve": "the router cannot resolve the next hop's MAC",
    "lr_in_arp_request": "the router asks for the next hop's MAC, and nobody has answered yet",
    "lr_in_larger_pkts": "it is larger than the MTU of the router's port",
}
"""What it means when the packet ends in a router's stage (ovn-northd(8))."""


def _router_detail(flow: LogicalFlow, row: NorthRow | None) -> str:
    said = ROUTER_STAGES.get(flow.stage, "the router drops it")
    if row is not None:
        return f"{said}: {row.text}" if row.table == "Logical_Router_Policy" else f"a route drops it: {row.text}"
    return "its TTL ends at the router" if "ip.ttl" in flow.match else said


def _port_security_detail(flow: LogicalFlow, port: str) -> str:
    if flow.pipeline == EGRESS:
        return f"port security lets nothing in to {port or 'this port'} that is not for its own addresses"
    return f"port security: {port or 'its port'} may not send with these addresses"


def _acl_detail(flow: LogicalFlow, row: NorthRow | None) -> str:
    if row is None:
        return "no ACL allows it and the default is to drop, or a changed ACL blocked its connection"
    verb = "rejects it: ovn-controller answers instead of the target" if row.action == "reject" else "drops it"
    return f"an ACL{f' of {row.owner}' if row.owner else ''} {verb}: {row.text or flow.match}"


def _detail(decision: OvnDecision) -> str:
    flow, kind = decision.flow, decision.kind
    if flow is None:
        said = PHYSICAL_TABLES.get(decision.step.table, "no logical flow stands behind its rule")
        return f"it ends in table {decision.step.table} ({said})"
    if kind is OvnKind.ROUTER:
        said = _router_detail(flow, decision.row)
    elif kind is OvnKind.PORT_SECURITY:
        said = _port_security_detail(flow, decision.port)
    elif kind is OvnKind.ACL:
        said = _acl_detail(flow, decision.row)
    elif kind is OvnKind.CONNTRACK_INVALID:
        said = "conntrack says that it belongs to no connection"
    elif kind is OvnKind.NO_DESTINATION:
        said = "no port has its destination MAC"
    else:
        said = f"this stage of the logical switch drops it: {flow.match}"
    whose = f" of {decision.datapath}" if decision.datapath else ""
    return f"{said} (stage {flow.stage}{whose})"


# ---------------------------------------------------------------------------------------------------------------------
# Which rule decided
# ---------------------------------------------------------------------------------------------------------------------


def ovn_step(trace: Trace, bridge: str) -> TraceStep | None:
    """The rule of OVN's bridge in which a packet's way ended, or the one that passed it through a meter.

    A logical flow says `next;` until one does not, so unlike in other pipelines the last rule is the one that decided,
    if none sent the packet out. Copies that another bridge floods say nothing.

    Returns:
        None where neither is on this bridge.
    """
    steps = [step for step in trace.steps if step.bridge == bridge]
    if any(action.startswith("output") for step in steps for action in step.actions):
        return next((step for step in steps if _has_meter(step)), None)
    return steps[-1] if steps else None


def _has_meter(step: TraceStep) -> bool:
    return any(action.startswith("meter:") for action in step.actions)


def earlier_steps(trace: Trace, step: TraceStep) -> tuple[TraceStep, ...]:
    """The rules before a step, the nearest first: since 23.06 one stage evaluates ACLs and a later one carries out."""
    steps = trace.steps
    at = max((i for i, one in enumerate(steps) if one is step), default=0)
    return tuple(reversed(steps[:at]))


def logical_tables(step: TraceStep) -> tuple[tuple[str, int], ...]:
    """(pipeline, logical table) that an OpenFlow table may stand for."""
    guesses = [(pipeline, step.table - first) for pipeline, first in FIRST_TABLES.items()]
    return tuple((pipeline, table) for pipeline, table in guesses if 0 <= table <= LAST_LOGICAL_TABLE)


_METADATA = re.compile(r"(?:^|,)metadata=(0x[0-9a-fA-F]{1,16}|\d{1,10})(?:,|$)")
_PORT_SET = {
    INGRESS: re.compile(r"set_field:(0x[0-9a-fA-F]{1,8})->reg14"),
    EGRESS: re.compile(r"set_field:(0x[0-9a-fA-F]{1,8})->reg15"),
}
_PORT_MATCH = {
    INGRESS: re.compile(r"(?:^|,)reg14=(0x[0-9a-fA-F]{1,8})(?:,|$)"),
    EGRESS: re.compile(r"(?:^|,)reg15=(0x[0-9a-fA-F]{1,8})(?:,|$)"),
}
"""OVN keeps the logical port that a packet came in by in register 14, the one that it leaves by in 15."""


def datapath_key(step: TraceStep) -> int | None:
    """The logical datapath's tunnel key, which every logical flow matches in the metadata; None where it does not."""
    found = _METADATA.search(step.match)
    return int(found[1], 0) if found else None


def port_key(trace: Trace, step: TraceStep, pipeline: str) -> int | None:
    """The tunnel key of the logical port that a packet is at in a step; None where the trace does not say."""
    for one in (step, *earlier_steps(trace, step)):
        written = [found for action in one.actions if (found := _PORT_SET[pipeline].fullmatch(action))]
        found = written[-1] if written and one is not step else _PORT_MATCH[pipeline].search(one.match)
        if found:
            return int(found[1], 0)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Rows of OVN's databases, as OVSDB's JSON has them (RFC 7047 §5.1)
# ---------------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def row_uuid(row: object) -> str:
    """The UUID of a row, "" where there is none."""
    value = row.get("_uuid") if isinstance(row, dict) else None
    return _text(value[1]) if isinstance(value, list) and len(value) == 2 and value[0] == "uuid" else ""


def row_map(row: object, column: str) -> dict[str, str]:
    """A column that maps strings, as far as it can be read."""
    value = row.get(column) if isinstance(row, dict) else None
    if not (isinstance(value, list) and len(value) == 2 and value[0] == "map" and isinstance(value[1], list)):
        return {}
    pairs = [pair for pair in value[1] if isinstance(pair, list) and len(pair) == 2]
    return {_text(key): str(given) for key, given in pairs if _text(key)}


def find_flow(rows: Iterable[object], cookie: int) -> LogicalFlow | None:
    """The logical flow that a cookie names, None where no row has it."""
    for row in rows:
        if isinstance(row, dict) and cookie and row_uuid(row).startswith(f"{cookie:08x}"):
            return logical_flow(row)
    return None


def logical_flow(row: object) -> LogicalFlow | None:
    """A row of the southbound Logical_Flow table, None where it is no row."""
    if not isinstance(row, dict):
        return None
    ids = row_map(row, "external_ids")
    return LogicalFlow(
        uuid=row_uuid(row),
        pipeline=_text(row.get("pipeline")),
        table=_number(row.get("table_id")) or 0,
        priority=_number(row.get("priority")) or 0,
        match=_text(row.get("match")),
        actions=_text(row.get("actions")),
        stage=ids.get("stage-name", ""),
        hint=ids.get("stage-hint", "").lower(),
    )


def north_table(flow: LogicalFlow) -> str:
    """The northbound table that a logical flow's hint points into; "" where people wrote no rule behind it."""
    if not flow.hint:
        return ""
    if flow.is_acl:
        return "ACL"
    if flow.stage.startswith("lr_in_policy"):
        return "Logical_Router_Policy"
    if flow.stage.startswith("lr_in_ip_routing"):
        return "Logical_Router_Static_Route"
    return "QoS" if "_qos_" in flow.stage else ""


def north_conditions(flow: LogicalFlow) -> tuple[tuple[str, str, int | str], ...]:
    """What narrows its rows down before a UUID's beginning is compared: nobody wants a cloud's every ACL."""
    table = north_table(flow)
    if table == "ACL":
        direction = "from-lport" if flow.pipeline == INGRESS else "to-lport"
        return (("priority", "==", flow.priority - ACL_PRIORITY), ("direction", "==", direction))
    return (("priority", "==", flow.priority),) if table in {"QoS", "Logical_Router_Policy"} else ()


def find_north(rows: Iterable[object], flow: LogicalFlow, owner: str = "") -> NorthRow | None:
    """The northbound row that a logical flow's hint names, None where no row has it."""
    for row in rows:
        if isinstance(row, dict) and flow.hint and row_uuid(row).startswith(flow.hint):
            return _north_row(row, north_table(flow), owner)
    return None


def acl_of(row: object) -> NorthRow | None:
    """A row of the northbound ACL table."""
    return _north_row(row, "ACL", "") if isinstance(row, dict) else None


def _north_row(row: dict[object, object], table: str, owner: str) -> NorthRow:
    ids = row_map(row, "external_ids")
    if table == "Logical_Router_Static_Route":
        text, action = f"{_text(row.get('ip_prefix'))} by {_text(row.get('nexthop'))}", _text(row.get("nexthop"))
    elif table == "QoS":
        limits = row_map(row, "bandwidth")
        text = f"{_text(row.get('match'))}, " + ", ".join(f"{key} {value}" for key, value in sorted(limits.items()))
        action = ""
    else:
        text, action = _text(row.get("match")), _text(row.get("action"))
    return NorthRow(
        table,
        row_uuid(row),
        text,
        name=_text(row.get("name")) or ids.get("neutron:security_group_rule_id", ""),
        direction=_text(row.get("direction")),
        priority=_number(row.get("priority")),
        action=action,
        owner=owner,
        label=_number(row.get("label")) or 0,
        neutron_rule=ids.get("neutron:security_group_rule_id", ""),
    )


def owner_of(groups: Sequence[object], switches: Sequence[object]) -> str:
    """Whose an ACL or QoS rule is: the first port group, else the first logical switch, that holds it."""
    for kind, rows in (("port group", groups), ("switch", switches)):
        for row in rows:
            if isinstance(row, dict) and _text(row.get("name")):
                return f"{kind} {_text(row['name'])}"
    return ""
