"""`netprobe trace SRC DST`: a plan of one session, of its flows (--flows), or of many sizes (--mtu)."""

import argparse
from enum import Enum
from typing import TypeVar

from netprobe.cli.mtu import sweep
from netprobe.cli.running import execute, governed
from netprobe.errors import UsageError, unknown_name
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.plan.fields import parse_duration_ns
from netprobe.plan.plans import (
    MAX_COUNT,
    MAX_FLOWS,
    MAX_RATE_PPS,
    MAX_TMAX_NS,
    NO_CLASS_MARK,
    RunPlan,
    Schedule,
    SessionPlan,
    checked,
)

E = TypeVar("E", bound=Enum)

COUNT, COUNT_A_FLOW, COUNT_A_SIZE = 100, 20, 4
"""Probes unless the user says otherwise: of a session, of each of many flows, of each size in a run of a sweep."""


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


def _count(args: argparse.Namespace) -> int:
    if args.count is not None:
        return _within("--count", args.count, 1, MAX_COUNT)
    if args.mtu:
        return COUNT_A_SIZE
    return COUNT if args.flows is None else COUNT_A_FLOW


def _check_mtu(args: argparse.Namespace) -> None:
    """A sweep chooses sizes and ports itself, and has no result that the last one could be compared with."""
    for option in ("size", "sport", "flows", "max_loss", "influx"):
        if getattr(args, option) is not None:
            name = option.replace("_", "-")
            raise UsageError("--mtu", f"with --{name}", advice=f"leave --{name} out: --mtu tries many sizes itself")
    if args.compare:
        raise UsageError("--mtu", "with --compare", advice="compare two results by hand: their `mtu` says it all")
    if args.proto == Protocol.TCP.value:
        raise UsageError("--mtu", "a SYN has no payload, so it has one size", advice="use --proto udp, raw-udp or icmp")


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
        count=_count(args),
        rate_pps=_within("--rate", args.rate, 1, MAX_RATE_PPS),
        schedule=_choice("--schedule", args.schedule, Schedule),
        size_bytes=None if args.size is None else _within("--size", args.size, 1, 65_549),
        dscp=_dscp(args.class_mark),
        src_port=_port("--sport", args.sport),
        dst_port=_port("--dport", args.dport),
        flow=None if args.flow is None else _choice("--flow", args.flow, Flow),
        ttl=_within("--ttl", args.ttl, 1, 255),
        flows=1 if args.flows is None else _within("--flows", args.flows, 2, MAX_FLOWS),
    )
    tmax_ns = _within("--tmax (ns)", parse_duration_ns(args.tmax, "--tmax"), 1, MAX_TMAX_NS)
    seed = _within("--seed", args.seed, 0, 2**32 - 1)
    return RunPlan(name="trace", sessions=(checked(session, "netprobe trace"),), seed=seed, tmax_ns=tmax_ns)


def run(args: argparse.Namespace) -> int:
    """Trace one path."""
    if not args.mtu:
        return execute(args, plan_of(args))
    _check_mtu(args)
    return sweep(args, governed(plan_of(args), args.governor))
