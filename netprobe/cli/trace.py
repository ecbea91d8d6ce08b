"""`netprobe trace SRC DST`: a plan of one session."""

import argparse
from enum import Enum
from typing import TypeVar

from netprobe.cli.running import execute
from netprobe.errors import UsageError, unknown_name
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.plan.fields import parse_duration_ns
from netprobe.plan.plans import (
    MAX_COUNT,
    MAX_RATE_PPS,
    MAX_TMAX_NS,
    NO_CLASS_MARK,
    RunPlan,
    Schedule,
    SessionPlan,
    checked,
)

E = TypeVar("E", bound=Enum)


def _choice(option: str, value: str, values: type[E]) -> E:
    try:
        return values(value)
    except ValueError:
        raise unknown_name(option, value, (str(v.value) for v in values), kind="value") from None


def _within(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UsageError(option, f"got {value}", allowed=f"{low} to {high}")
    return value


def _dscp(text: str) -> int | None:
    if text == NO_CLASS_MARK:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 3:  # no DSCP is longer
        raise UsageError("--class-mark", f"got {text!r}", allowed=f"a DSCP from 1 to 63, or {NO_CLASS_MARK}")
    return _within("--class-mark", int(text), 1, 63)


def _port(option: str, value: int | None) -> int | None:
    return None if value is None else _within(option, value, 1, 65_535)


def plan_of(args: argparse.Namespace) -> RunPlan:
    """The plan that the arguments ask for.

    Raises:
        UsageError: a value is out of bounds.
    """
    session = SessionPlan(
        name="trace",
        src=args.src,
        dst=args.dst,
        vantage=_choice("--vantage", args.vantage, Vantage),
        protocol=_choice("--proto", args.proto, Protocol),
        family=args.family,
        count=_within("--count", args.count, 1, MAX_COUNT),
        rate_pps=_within("--rate", args.rate, 1, MAX_RATE_PPS),
        schedule=_choice("--schedule", args.schedule, Schedule),
        size_bytes=None if args.size is None else _within("--size", args.size, 1, 65_549),
        dscp=_dscp(args.class_mark),
        src_port=_port("--sport", args.sport),
        dst_port=_port("--dport", args.dport),
        flow=None if args.flow is None else _choice("--flow", args.flow, Flow),
        ttl=_within("--ttl", args.ttl, 1, 255),
    )
    tmax_ns = _within("--tmax (ns)", parse_duration_ns(args.tmax, "--tmax"), 1, MAX_TMAX_NS)
    seed = _within("--seed", args.seed, 0, 2**32 - 1)
    return RunPlan(name="trace", sessions=(checked(session, "netprobe trace"),), seed=seed, tmax_ns=tmax_ns)


def run(args: argparse.Namespace) -> int:
    """Trace one path."""
    return execute(args, plan_of(args))
