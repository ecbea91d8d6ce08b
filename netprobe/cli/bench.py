"""`netprobe bench harm`: what probing does to tenants on this machine."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.cli.running import FINE, INTERRUPTED, NO, NO_ANSWER, telling
from netprobe.errors import UsageError, unknown_name
from netprobe.judge.harm import Verdict
from netprobe.model.load import LoadLimits
from netprobe.model.points import Vantage
from netprobe.plan.fields import parse_duration_ns, parse_ratio
from netprobe.plan.plans import MAX_RATE_PPS, SessionPlan, checked
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.harm import HarmOrder, measure_harm
from netprobe.show.harm import print_harm
from netprobe.show.tables import console

LAB = "single"
DEFAULT_GUESTS = ("vm1", "vm3")
"""Of the lab `single`: members of one group who trust each other fully, so that tenants' TCP passes."""

CODES = {Verdict.WITHIN: FINE, Verdict.BEYOND: NO, Verdict.OPEN: NO_ANSWER}
MIN_ROUNDS, MAX_ROUNDS = 2, 1000
MIN_SLICE_S, MAX_SLICE_S = 0.1, 60.0


def _cpus(text: str) -> frozenset[int]:
    """Processors, as in "0,2"; none for any."""
    words = text.split(",") if text else []
    here = range(os.cpu_count() or 1)
    if not all(word.isdecimal() and int(word) in here for word in words):
        raise UsageError("--tenant-cpus", f"got {text!r}", allowed="some of " + ",".join(map(str, here)))
    return frozenset(map(int, words))


def order_of(args: argparse.Namespace) -> HarmOrder:
    """What the arguments ask for. Raises UsageError."""
    if (args.src is None) != (args.dst is None):
        raise UsageError("netprobe bench harm", "SRC without DST", advice="give both, or none")
    ends = (args.src or DEFAULT_GUESTS[0], args.dst or DEFAULT_GUESTS[1])
    slice_s = parse_duration_ns(args.slice, "--slice") / 1e9
    for option, value, low, high in (
        ("--rate", args.rate, 1, MAX_RATE_PPS),
        ("--slices", args.slices, MIN_ROUNDS, MAX_ROUNDS),
        ("--slice (s)", slice_s, MIN_SLICE_S, MAX_SLICE_S),
        ("--port", args.port, 1, 65_535),
    ):
        if not low <= value <= high:
            raise UsageError(option, f"got {value:g}", allowed=f"{low:g} to {high:g}")
    try:
        vantage = Vantage(args.vantage)
    except ValueError:
        raise unknown_name("--vantage", args.vantage, (v.value for v in Vantage), kind="value") from None
    session = SessionPlan("bench harm", *ends, vantage=vantage, rate_pps=args.rate)
    return HarmOrder(
        session=checked(session, "netprobe bench harm"),
        tenants=ends,
        port=args.port,
        rounds=args.slices,
        slice_s=slice_s,
        limit=parse_ratio(args.limit, "--limit"),
        seed=args.seed,
        limits=LoadLimits(is_on=args.governor == "on"),
        tenant_cpus=_cpus(args.tenant_cpus),
    )


@contextlib.contextmanager
def _lab() -> Iterator[Path]:
    """The cloud that is there, else a lab for the time being."""
    if state_path().exists():
        yield state_path()
        return
    from netprobe.lab import control  # noqa: PLC0415  heavy, and often not needed

    say(f"no cloud is known here: bringing the lab `{LAB}` up for the time being")
    try:
        control.up(LAB)
        yield state_path()
    finally:
        control.down()


def harm(args: argparse.Namespace) -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    order = order_of(args)
    with _lab() as state_file:
        topology = read_topology(state_file)
        result = trio.run(partial(measure_harm, order, topology, telling()))
    document = result.to_json()
    with to_stdout():
        if args.json:
            print_json(document)
        else:
            print_harm(console(), document)
    if result.stopped:
        say(f"netprobe: {result.stopped}: the result is what was known by then.")
        return INTERRUPTED
    return CODES[result.verdict]
