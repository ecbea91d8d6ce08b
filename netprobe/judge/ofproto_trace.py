"""`ofproto/trace`: the flow to ask about, and the answer as steps, verdict and deciding rule.

Pure and total: lines that say nothing known are counted, never an exception. What the switch makes of the packet on
its way is judge.rewriting's; host.tracing, above, asks the switch; judge.reason says what the answer means for people.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from netprobe.judge.conntrack import (
    ECHO_REQUEST,
    ECHO_REQUEST_V6,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    FiveTuple,
)
from netprobe.model.probes import Flow, ProbeSession, Protocol

# ---------------------------------------------------------------------------------------------------------------------
# The question
# ---------------------------------------------------------------------------------------------------------------------


def source_port(session: ProbeSession, seq: int) -> int:
    """The source port of one probe of a session."""
    if session.type_p.flow is Flow.NEW_PER_PROBE and session.src_ports:
        return session.src_ports[seq]
    return session.type_p.src_port


def five_tuple(session: ProbeSession, seq: int) -> FiveTuple:
    """The originating tuple of one probe, as conntrack names it; an echo's identifier is the session's low 16 bits."""
    kind = session.type_p
    if kind.protocol is Protocol.ICMP:
        is_v4 = kind.family == 4
        protocol, icmp_type = (ICMP, ECHO_REQUEST) if is_v4 else (ICMPV6, ECHO_REQUEST_V6)
        return FiveTuple(protocol, session.src_ip, session.dst_ip, session.session & 0xFFFF, icmp_type=icmp_type)
    protocol = TCP if kind.protocol is Protocol.TCP else UDP
    return FiveTuple(protocol, session.src_ip, session.dst_ip, source_port(session, seq), kind.dst_port)


def probe_flow(session: ProbeSession, seq: int, in_port: int) -> str:
    """One probe as `ofproto/trace` wants it.

    Args:
        session: the session.
        seq: number of the probe.
        in_port: OpenFlow number of the port it comes in at.
    """
    kind = session.type_p
    v6 = kind.family == 6
    proto = {Protocol.ICMP: "icmp", Protocol.TCP: "tcp"}.get(kind.protocol, "udp") + ("6" if v6 else "")
    src, dst = ("ipv6_src", "ipv6_dst") if v6 else ("nw_src", "nw_dst")
    words = [f"in_port={in_port}", proto, f"dl_src={session.src_mac.hex(':')}", f"dl_dst={session.dst_mac.hex(':')}"]
    words += [
        f"{src}={session.src_ip}",
        f"{dst}={session.dst_ip}",
        f"nw_tos={(kind.dscp or 0) << 2}",
        f"nw_ttl={kind.ttl}",
    ]
    if kind.protocol is Protocol.ICMP:
        words += ["icmpv6_type=128,icmpv6_code=0" if v6 else "icmp_type=8,icmp_code=0"]
    else:
        # Not tp_src and tp_dst: parsing an exact flow, OVS 3.1 takes those for TCP alone.
        transport = "tcp" if kind.protocol is Protocol.TCP else "udp"
        words += [f"{transport}_src={source_port(session, seq)}", f"{transport}_dst={kind.dst_port}"]
    if kind.protocol is Protocol.TCP:
        words += ["tcp_flags=syn"]
    return ",".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# The answer
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One table that the packet went through.

    Attributes:
        bridge: where (a patch port leads on into another one).
        table: number of the table.
        match: the rule's match as OVS prints it; empty for an unconditional one.
        priority: None when no rule matched.
        cookie: the rule's; 0 where OVS prints none.
        actions: the rule's actions, and OVS's remarks ("->", ">>") among them.
    """

    bridge: str
    table: int
    match: str
    priority: int | None
    cookie: int
    actions: tuple[str, ...]

    @property
    def is_miss(self) -> bool:
        """No rule of the table matched."""
        return self.priority is None

    @property
    def is_catch_all(self) -> bool:
        """A rule that matches everything: it says where the packet fell to, not why."""
        return self.priority is not None and not self.match


@dataclass(frozen=True, slots=True)
class TracePass:
    """The way up to the next recirculation.

    Attributes:
        ct_state: the state that conntrack was said to give before this pass ("new|trk"); empty in the first.
        zone: conntrack zone of that state, None in the first pass.
        datapath: the datapath actions at its end.
        flow: the packet at its beginning, as OVS prints it; what NAT does before it is in it.
    """

    steps: tuple[TraceStep, ...]
    ct_state: str = ""
    zone: int | None = None
    datapath: str = ""
    flow: str = ""


class Verdict(Enum):
    """What the model does with the packet."""

    FORWARDED = "forwarded"
    DROPPED = "dropped"
    CONTROLLER = "controller"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole answer of `ofproto/trace`. `unread_lines` said nothing that is known here."""

    passes: tuple[TracePass, ...] = ()
    unread_lines: int = 0

    @property
    def steps(self) -> tuple[TraceStep, ...]:
        """The tables of all passes in order."""
        return tuple(step for one in self.passes for step in one.steps)

    @property
    def ports(self) -> tuple[str, ...]:
        """The ports that get the packet, by name when the trace was made with --names, sorted."""
        return tuple(sorted({port for one in self.passes for port in _ports_of(one.datapath)}))

    @property
    def zones(self) -> tuple[int, ...]:
        """The conntrack zone of each recirculation through conntrack, in order."""
        return tuple(one.zone or 0 for one in self.passes if one.ct_state)

    @property
    def verdict(self) -> Verdict:
        """What the model does with the packet."""
        if not self.passes or not all(one.datapath for one in self.passes):
            return Verdict.UNKNOWN
        if self.ports:
            return Verdict.FORWARDED
        is_punted = any("userspace(" in one.datapath for one in self.passes)
        return Verdict.CONTROLLER if is_punted else Verdict.DROPPED

    @property
    def missing_neighbour(self) -> str:
        """What OVS says when a tunnel's next hop is not in its ARP cache; empty when that was not the trouble."""
        remarks = (action for step in self.steps for action in step.actions if "neighbor cache miss" in action)
        return next((remark.lstrip("-> ") for remark in remarks), "")

    @property
    def ends_in_drop(self) -> bool:
        """Whether the last pass sends the packet nowhere; a mirror's copy counts as nowhere."""
        if not self.passes:
            return False
        last = self.passes[-1]
        if not list(_ports_of(last.datapath)):
            return True
        actions = [action for step in last.steps for action in step.actions]
        return not any(action.startswith(_SENDING) for action in actions)

    def deciding(self, decisive: Collection[int] = ()) -> TraceStep | None:
        """The rule that decided: the last one that is no unconditional catch-all.

        A firewall resubmits what it refuses to a common table that drops (Neutron: table 93). That table's rule is the
        same for all; what counts is the rule that sent the packet there.

        Args:
            decisive: cookies of catch-alls that do decide (a default deny).

        Returns:
            None when the trace has no step. A table miss decides too. When catch-alls is all there is, the one before
            the last.
        """
        steps = self.steps
        for step in reversed(steps):
            if not step.is_catch_all or step.cookie in decisive:
                return step
        return steps[-2] if len(steps) > 1 else steps[-1] if steps else None


_STEP = re.compile(r"\s*(\d{1,3})(?:\([^)]*\))?\. (.*)")
_RULE = re.compile(
    r"(?:(?P<match>\S.*?), )?priority (?P<priority>\d{1,5})(?:, cookie (?P<cookie>0x[0-9a-fA-F]{1,16}))?"
)
_BRIDGE = re.compile(r'bridge\("([^"]*)"\)')
_RESUME = re.compile(r"recirc\(0x[0-9a-f]+\) - resume conntrack with (?:default )?ct_state=([\w|]*).*")
_OTHER_RESUME = re.compile(r"recirc\(0x[0-9a-f]+\) - .*")
_ZONE = re.compile(r"(?:^|,)ct_zone=(\d{1,5})(?:,|$)")
_FORKED = re.compile(r".*The forked pipeline will be resumed at table (\d{1,3})\.")
_THAWED = re.compile(r"\s*Resuming from table (\d{1,3})")
_SILENT = re.compile(
    r"\s*|\s*=+|\s*-+|\s*thaw|\s*Resuming from table .*|(?:Final flow|Megaflow): .*"
    r"|Replacing src/dst .*|\s*(?:Initial|Modified) flow:.*"  # a NAT that is simulated: the next Flow has its result
)


@dataclass(frozen=True, slots=True)
class _Line:
    """What a line says by itself, wherever it stands.

    Attributes:
        text: it, without the space around it.
        indent: how deep it stands.
        bridge: the bridge whose tables come next, None where it names none.
        resumed: the state of a recirculation through conntrack, "" of another one, None where it is none.
        thawed: the table that a pass goes on from, "" where it says none.
        forked: the table that another pass will go on from, "" where it says none.
        step: a table and its rule, None where it is none.
        is_silent: it is known, and says nothing.
    """

    text: str
    indent: int
    bridge: str | None = None
    resumed: str | None = None
    thawed: str = ""
    forked: str = ""
    step: TraceStep | None = None
    is_silent: bool = False


@lru_cache(maxsize=1 << 13)
def _read(line: str) -> _Line:
    """A line by itself. Thousands of traces through the same tables consist of the same few lines."""
    text, indent = line.strip(), len(line) - len(line.lstrip())
    found = [pattern.fullmatch(line) for pattern in (_RESUME, _THAWED, _FORKED)]
    resumed, thawed, forked = (one[1] if one is not None else None for one in found)
    if resumed is None and _OTHER_RESUME.fullmatch(line):
        resumed = ""
    bridge, step = _BRIDGE.fullmatch(text), _STEP.fullmatch(line)
    return _Line(
        text,
        indent - (step is not None and len(step[1]) == 1),  # tables are printed two digits wide
        bridge[1] if bridge is not None else None,
        resumed,
        thawed or "",
        forked or "",
        _step(int(step[1]), step[2]) if step is not None else None,
        _SILENT.fullmatch(line) is not None,
    )


def _step(table: int, said: str) -> TraceStep:
    """A rule, or the remark that there is none; bridge and actions are not known yet."""
    rule = _RULE.fullmatch(said)
    if rule is None:
        return TraceStep("", table, said.strip(), None, 0, ())
    return TraceStep("", table, rule["match"] or "", int(rule["priority"]), int(rule["cookie"] or "0", 16), ())


@dataclass(slots=True)
class _Pass:
    ct_state: str = ""
    zone: int | None = None
    datapath: str = ""
    flow: str = ""
    steps: list[TraceStep] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    actions: list[list[str]] = field(default_factory=list)
    indents: list[int] = field(default_factory=list)
    bridges: list[tuple[int, str]] = field(default_factory=list)

    def freeze(self) -> TracePass:
        steps = tuple(
            TraceStep(bridge, s.table, s.match, s.priority, s.cookie, tuple(a))
            for bridge, s, a in zip(self.names, self.steps, self.actions, strict=True)
        )
        return TracePass(steps, self.ct_state, self.zone, self.datapath, self.flow)

    def take(self, line: _Line) -> bool:
        """Add a step or an action; False when it is neither."""
        if line.step is not None:
            self.steps.append(line.step)
            self.names.append(self._bridge_at(line.indent))
            self.actions.append([])
            self.indents.append(line.indent)
            return True
        if line.indent and self.actions:
            self.actions[self._step_at(line.indent)].append(line.text)
            return True
        return False

    def bridge_of(self, line: _Line) -> str:
        """The bridge of the step that a line belongs to."""
        return self.names[self._step_at(line.indent)]

    def _bridge_at(self, indent: int) -> str:
        """The bridge whose tables are printed at this depth: a bridge behind a tunnel or a patch port stands deeper."""
        while len(self.bridges) > 1 and indent < self.bridges[-1][0]:
            self.bridges.pop()
        return self.bridges[-1][1] if self.bridges else ""

    def _step_at(self, indent: int) -> int:
        """Number of the step that a line of this depth belongs to: the nearest one that stands left of it."""
        return next((i for i in reversed(range(len(self.indents))) if self.indents[i] < indent), 0)


def parse_trace(text: str) -> Trace:
    """An answer of `ofproto/trace` as values. Never raises; an empty answer is a trace without passes."""
    passes: list[_Pass] = []
    forks: dict[str, str] = {}
    unread = 0
    for line in text.splitlines():
        # These say what is each packet's own; all others are known from other packets.
        if line.startswith("Flow: "):
            if not passes or passes[-1].datapath or passes[-1].steps:
                passes.append(_Pass())
            zone = _ZONE.search(line.removeprefix("Flow: "))
            passes[-1].zone = int(zone[1]) if zone else None
            passes[-1].flow = line.removeprefix("Flow: ").strip()
        elif passes and line.startswith("Datapath actions: "):
            passes[-1].datapath = line.removeprefix("Datapath actions: ").strip()
        elif not line.startswith(("Final flow: ", "Megaflow: ")):
            unread += not _take(_read(line), passes, forks)
    return Trace(tuple(one.freeze() for one in passes), unread)


def _take(line: _Line, passes: list[_Pass], forks: dict[str, str]) -> bool:
    """Add a line to what was read before it; False when it is not known."""
    is_known = True
    if passes and line.bridge is not None:
        passes[-1].bridges.append((line.indent, line.bridge))
    elif line.resumed is not None:
        passes.append(_Pass(ct_state=line.resumed))
    elif passes and line.thawed:
        # What is printed above is the bridge that the packet came in by; it goes on in the one that it was in.
        passes[-1].bridges = [(0, forks[line.thawed])] if line.thawed in forks else passes[-1].bridges
    elif not line.is_silent:
        is_known = bool(passes) and passes[-1].take(line)
    if line.forked and passes and passes[-1].steps:
        forks[line.forked] = passes[-1].bridge_of(line)
    return is_known


def split_actions(actions: str) -> Iterator[str]:
    """Datapath actions at the commas that stand in no parentheses."""
    depth = start = 0
    for i, char in enumerate(actions):
        depth += (char == "(") - (char == ")")
        if char == "," and depth <= 0:
            yield actions[start:i]
            start = i + 1
    yield actions[start:]


_SENDING = ("output", "NORMAL", "FLOOD", "ALL", "LOCAL", "IN_PORT", "group", "enqueue", "bundle", "clone", "learn")
"""Beginnings of OpenFlow actions that may send a packet somewhere."""

_OUT_PORT = re.compile(r"out_port\(([^()]+)\)")
NO_PORT = frozenset({"drop", "pop_vlan", "pop_eth", "ct_clear", "pop_nsh"})


MAX_NESTING = 16  # OVS itself stops at 64 resubmits; clones in clones are rare


def _ports_of(actions: str, depth: int = 0) -> Iterator[str]:
    for raw in split_actions(actions):
        action = raw.strip()
        if not action or action in NO_PORT:
            continue
        if "(" not in action:
            yield action
        elif action.startswith("clone(") and depth < MAX_NESTING:
            yield from _ports_of(action[len("clone(") : -1], depth + 1)
        elif action.startswith("tnl_push("):
            yield from _OUT_PORT.findall(action)
