"""Plans: what to send, as a user writes it (TOML) or asks for it on the command line. Pure.

plan.mesh turns meshes and flows into single sessions; plan.paths and service.run turn a SessionPlan into a path and
frames. docs/plans.md describes the file.
"""

import tomllib
from dataclasses import dataclass, replace
from enum import Enum

from netprobe.errors import UsageError
from netprobe.model.load import DEFAULT_LIMITS, LoadLimits
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.plan.fields import Fields
from netprobe.plan.influx import InfluxPlan, influx_table
from netprobe.plan.load_limits import governor_table

PLAN_SCHEMA = 1
MAX_COUNT = 10_000_000
MAX_RATE_PPS = 1_000_000
MAX_TMAX_NS = 60_000_000_000
DEFAULT_DSCP = 3  # RFC 2474 §6: pool 3 (xxxx11) is for local use; precedence 0 keeps the default queue
NO_CLASS_MARK = "none"
STAMP_PORT = 862  # RFC 8762 §4.1
MAX_FLOWS = 256
MAX_FACTOR = 1_000.0
MIN_WINDOW_NS, MAX_WINDOW_NS = 100_000_000, 3_600_000_000_000


class Schedule(Enum):
    """When probes go: evenly, or as a Poisson stream (RFC 2330 §11.1)."""

    PERIODIC = "periodic"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One session as planned; names are not resolved yet.

    Attributes:
        family: 4 or 6.
        size_bytes: Ethernet frame without FCS; None for the smallest that can carry the mark.
        dscp: the class mark, None to turn it off.
        src_port: None to take one from the block that netprobe owns.
        dst_port: None where the protocol has a default (STAMP) or none (ICMP).
        flow: None for the protocol's own: new per probe for TCP, else the same.
        flows: into how many sessions with a source port each plan.mesh splits this one; 1 for none.
        stretch: probes go this many times further apart than rate_pps says: a mean below one a second.
        start_ns: when the first probe is due, from the start of the run: not all paths fire together.
        probe_mtu: the size is tried out on purpose: only the sender's own NIC must take it.
    """

    name: str
    src: str
    dst: str
    vantage: Vantage = Vantage.GUEST
    protocol: Protocol = Protocol.UDP
    family: int = 4
    count: int = 100
    rate_pps: int = 100
    schedule: Schedule = Schedule.PERIODIC
    size_bytes: int | None = None
    dscp: int | None = DEFAULT_DSCP
    src_port: int | None = None
    dst_port: int | None = None
    flow: Flow | None = None
    ttl: int = 64
    flows: int = 1
    stretch: int = 1
    start_ns: int = 0
    probe_mtu: bool = False

    @property
    def mean_pps(self) -> float:
        """Probes a second that are really sent, in the mean."""
        return self.rate_pps / self.stretch

    @property
    def duration_ns(self) -> int:
        """From the start of the run until the last probe, in the mean."""
        return self.start_ns + self.count * self.stretch * 1_000_000_000 // self.rate_pps


@dataclass(frozen=True, slots=True)
class Selection:
    """Guests by what they have in common. Shell patterns; one of each list must fit, an empty list restricts nothing.

    Attributes:
        guests: names.
        groups: security groups that a guest is in.
        hosts: hypervisors.
        networks: logical switches.
    """

    guests: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """All paths from some guests to others; plan.mesh makes sessions of it.

    Attributes:
        session: what each path gets; its name, src and dst are empty.
        budget_pps: probes a second that a host sends and receives for this mesh at most, None without a bound.
        prune: whether one path stands for all those that are alike.
    """

    name: str
    sources: Selection
    targets: Selection
    session: SessionPlan
    budget_pps: int | None = None
    prune: bool = True


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """How a plan is watched, window after window.

    Attributes:
        max_loss: share of lost probes that is still fine, None where loss has no threshold.
        max_p99_ns: delay that 99 % of the probes may not exceed, None where delay has no threshold.
        factor: `factor` times the threshold is surely too much; the tests tell one from the other.
        alpha: probability of a false alarm, of each test.
        beta: probability that a test takes what is surely too much for fine.
    """

    window_ns: int = 10_000_000_000
    max_loss: float | None = None
    max_p99_ns: int | None = None
    factor: float = 2.0
    alpha: float = 0.001
    beta: float = 0.001


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Sessions that run at the same time; before plan.mesh also meshes, how they are watched, where readings go."""

    name: str
    sessions: tuple[SessionPlan, ...]
    seed: int = 1
    tmax_ns: int = 1_000_000_000
    meshes: tuple[MeshPlan, ...] = ()
    watch: WatchPlan = WatchPlan()
    influx: InfluxPlan | None = None
    governor: LoadLimits = DEFAULT_LIMITS


def _dscp(fields: Fields, where: str) -> int | None:
    value = fields.any("class_mark")
    if value is None:
        return DEFAULT_DSCP
    if value == NO_CLASS_MARK:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 64:
        raise UsageError(f"{where}.class_mark", f"got {value!r}", allowed=f'a DSCP from 1 to 63, or "{NO_CLASS_MARK}"')
    return value


def checked(plan: SessionPlan, where: str) -> SessionPlan:
    """The plan with the defaults of its protocol filled in.

    Raises:
        UsageError: a port is missing or has no meaning for the protocol, or the flow cannot be had.
    """
    if plan.flows > 1:
        _check_flows(plan, where)
    if plan.protocol is Protocol.TCP:
        return _checked_tcp(plan, where)
    plan = replace(plan, flow=plan.flow or Flow.SAME)
    if plan.protocol is Protocol.ICMP:
        if plan.src_port is not None or plan.dst_port is not None:
            raise UsageError(where, "ICMP echo has no ports", advice="leave sport and dport out")
        return plan
    if plan.protocol is Protocol.UDP:
        return replace(plan, dst_port=plan.dst_port or STAMP_PORT)
    return _with_port(plan, where)


def _check_flows(plan: SessionPlan, where: str) -> None:
    """Several flows differ by their source ports."""
    if plan.protocol is Protocol.ICMP:
        raise UsageError(where, "ICMP echo has no ports to vary", advice="use flows with udp, raw-udp or tcp")
    if plan.src_port is not None or (plan.flow is Flow.NEW_PER_PROBE and plan.protocol is not Protocol.TCP):
        raise UsageError(
            where, f"{plan.flows} flows need a source port each, and keep it", advice="leave sport and flow out"
        )


def _with_port(plan: SessionPlan, where: str) -> SessionPlan:
    if plan.dst_port is None:
        raise UsageError(where, f"{plan.protocol.value} needs a destination port", advice="give dport (--dport)")
    return plan


def _checked_tcp(plan: SessionPlan, where: str) -> SessionPlan:
    if plan.src_port is not None or plan.flow is Flow.SAME:
        raise UsageError(
            where,
            "a TCP SYN takes a source port of its own for each probe",
            advice="leave sport and flow out: a second SYN on one tuple would meet the first one's conntrack entry",
        )
    return replace(_with_port(plan, where), flow=Flow.NEW_PER_PROBE)


def _session(fields: Fields, where: str, named: tuple[str, str, str], schedule: Schedule) -> SessionPlan:
    """What [[session]] and [[mesh]] have in common; `named` is name, src and dst."""
    plan = SessionPlan(
        *named,
        vantage=fields.choice("vantage", Vantage, Vantage.GUEST),
        protocol=fields.choice("proto", Protocol, Protocol.UDP),
        family=fields.integer("family", 4, 4, 6),
        count=fields.integer("count", 100, 1, MAX_COUNT),
        rate_pps=fields.integer("rate", 100, 1, MAX_RATE_PPS),
        schedule=fields.choice("schedule", Schedule, schedule),
        size_bytes=fields.optional_integer("size", 1, 65_549),
        dscp=_dscp(fields, where),
        src_port=fields.optional_integer("sport", 1, 65_535),
        dst_port=fields.optional_integer("dport", 1, 65_535),
        flow=fields.choice("flow", Flow, None),
        ttl=fields.integer("ttl", 64, 1, 255),
        flows=fields.integer("flows", 1, 1, MAX_FLOWS),
    )
    fields.finish()
    if plan.family == 5:
        raise UsageError(f"{where}.family", "got 5", allowed="4 or 6")
    return checked(plan, where)


def _single(table: dict[str, object], where: str, number: int) -> SessionPlan:
    fields = Fields(table, where)
    named = (fields.text("name", f"session{number}"), fields.text("src"), fields.text("dst"))
    return _session(fields, where, named, Schedule.PERIODIC)


def _selection(fields: Fields | None) -> Selection:
    if fields is None:
        return Selection()
    chosen = Selection(*(fields.texts(key) for key in Selection.__slots__))
    fields.finish()
    return chosen


def _mesh(table: dict[str, object], where: str, number: int) -> MeshPlan:
    fields = Fields(table, where)
    sources = _selection(fields.table("from"))
    to = fields.table("to")
    return MeshPlan(
        name=fields.text("name", f"mesh{number}"),
        sources=sources,
        targets=sources if to is None else _selection(to),
        budget_pps=fields.optional_integer("budget_pps", 1, MAX_RATE_PPS),
        prune=fields.boolean("prune", default=True),
        session=_session(fields, where, ("", "", ""), Schedule.POISSON),
    )


def _watch(fields: Fields | None, where: str) -> WatchPlan:
    if fields is None:
        return WatchPlan()
    default = WatchPlan()
    plan = WatchPlan(
        window_ns=window_of(fields.duration_ns("window", "10s"), f"{where}.watch.window"),
        max_loss=fields.optional_ratio("max_loss"),
        max_p99_ns=fields.optional_duration_ns("max_p99"),
        factor=fields.number("factor", default.factor, 1, MAX_FACTOR),
        alpha=fields.number("alpha", default.alpha, 0, 0.5),
        beta=fields.number("beta", default.beta, 0, 0.5),
    )
    fields.finish()
    if plan.max_loss is not None and plan.max_loss >= 1:
        raise UsageError(f"{where}.watch.max_loss", f"got {plan.max_loss:g}", allowed="less than 100%")
    return plan


def window_of(window_ns: int, where: str) -> int:
    """The length of a watch's window.

    Raises:
        UsageError: too short for a run, or too long for a change to be told in time.
    """
    if not MIN_WINDOW_NS <= window_ns <= MAX_WINDOW_NS:
        allowed = f"{MIN_WINDOW_NS / 1e6:g} ms to {MAX_WINDOW_NS / 1e9:g} s"
        raise UsageError(where, f"got {window_ns / 1e9:g} s", allowed=allowed)
    return window_ns


def parse_plan(text: str, where: str) -> RunPlan:
    """A plan file's text as a RunPlan.

    Args:
        text: TOML.
        where: the file's name, for errors.

    Raises:
        UsageError: not TOML, an unknown key, a value out of bounds, two sessions of one name, nothing to send.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number too long, tables too deep
        raise UsageError(where, f"is no TOML: {error}", advice="see docs/plans.md") from error
    fields = Fields(table, where)
    fields.integer("schema", PLAN_SCHEMA, PLAN_SCHEMA, PLAN_SCHEMA)
    sessions = tuple(_single(t, w, i) for i, (w, t) in enumerate(fields.tables("session")))
    plan = RunPlan(
        name=fields.text("name", "run"),
        sessions=sessions,
        seed=fields.integer("seed", 1, 0, 2**32 - 1),
        tmax_ns=fields.duration_ns("tmax", "1s"),
        meshes=tuple(_mesh(t, w, i) for i, (w, t) in enumerate(fields.tables("mesh"))),
        watch=_watch(fields.table("watch"), where),
        influx=influx_table(fields.table("influx"), where, has_token=False),
        governor=governor_table(fields.table("governor"), where),
    )
    fields.finish()
    if not sessions and not plan.meshes:
        raise UsageError(where, "plans no session", advice="add a [[session]] with src and dst, or a [[mesh]]")
    names = [*(s.name for s in sessions), *(m.name for m in plan.meshes)]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise UsageError(where, f"two sessions are called {min(twice)!r}", advice="give each a name of its own")
    if not 0 < plan.tmax_ns <= MAX_TMAX_NS:
        raise UsageError(f"{where}.tmax", f"got {plan.tmax_ns} ns", allowed=f"more than 0, up to {MAX_TMAX_NS} ns")
    return plan
