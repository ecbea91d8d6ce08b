"""Plans: what to send, as a user writes it (TOML) or asks for it on the command line. Pure.

plan.paths and service.run turn a SessionPlan into a path and frames; docs/plans.md describes the file.
"""

import tomllib
from dataclasses import dataclass, replace
from enum import Enum

from netprobe.errors import UsageError
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.plan.fields import Fields

PLAN_SCHEMA = 1
MAX_COUNT = 10_000_000
MAX_RATE_PPS = 1_000_000
MAX_TMAX_NS = 60_000_000_000
DEFAULT_DSCP = 3  # RFC 2474 §6: pool 3 (xxxx11) is for local use; precedence 0 keeps the default queue
NO_CLASS_MARK = "none"
STAMP_PORT = 862  # RFC 8762 §4.1


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


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Sessions that run at the same time."""

    name: str
    sessions: tuple[SessionPlan, ...]
    seed: int = 1
    tmax_ns: int = 1_000_000_000


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


def _session(table: dict[str, object], where: str, number: int) -> SessionPlan:
    fields = Fields(table, where)
    plan = SessionPlan(
        name=fields.text("name", f"session{number}"),
        src=fields.text("src"),
        dst=fields.text("dst"),
        vantage=fields.choice("vantage", Vantage, Vantage.GUEST),
        protocol=fields.choice("proto", Protocol, Protocol.UDP),
        family=fields.integer("family", 4, 4, 6),
        count=fields.integer("count", 100, 1, MAX_COUNT),
        rate_pps=fields.integer("rate", 100, 1, MAX_RATE_PPS),
        schedule=fields.choice("schedule", Schedule, Schedule.PERIODIC),
        size_bytes=fields.optional_integer("size", 1, 65_549),
        dscp=_dscp(fields, where),
        src_port=fields.optional_integer("sport", 1, 65_535),
        dst_port=fields.optional_integer("dport", 1, 65_535),
        flow=fields.choice("flow", Flow, None),
        ttl=fields.integer("ttl", 64, 1, 255),
    )
    fields.finish()
    if plan.family == 5:
        raise UsageError(f"{where}.family", "got 5", allowed="4 or 6")
    return checked(plan, where)


def parse_plan(text: str, where: str) -> RunPlan:
    """A plan file's text as a RunPlan.

    Args:
        text: TOML.
        where: the file's name, for errors.

    Raises:
        UsageError: not TOML, an unknown key, a value out of bounds, two sessions of one name, no session.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number too long, tables too deep
        raise UsageError(where, f"is no TOML: {error}", advice="see docs/plans.md") from error
    fields = Fields(table, where)
    fields.integer("schema", PLAN_SCHEMA, PLAN_SCHEMA, PLAN_SCHEMA)
    sessions = tuple(_session(t, w, i) for i, (w, t) in enumerate(fields.tables("session")))
    plan = RunPlan(
        name=fields.text("name", "run"),
        sessions=sessions,
        seed=fields.integer("seed", 1, 0, 2**32 - 1),
        tmax_ns=fields.duration_ns("tmax", "1s"),
    )
    fields.finish()
    if not sessions:
        raise UsageError(where, "plans no session", advice="add a [[session]] with src and dst")
    names = [s.name for s in sessions]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise UsageError(where, f"two sessions are called {min(twice)!r}", advice="give each a name of its own")
    if not 0 < plan.tmax_ns <= MAX_TMAX_NS:
        raise UsageError(f"{where}.tmax", f"got {plan.tmax_ns} ns", allowed=f"more than 0, up to {MAX_TMAX_NS} ns")
    return plan
