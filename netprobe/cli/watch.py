"""`netprobe watch PLAN`: a plan that runs for good; changes as lines, or JSON Lines (docs/watch.md)."""

import argparse
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import trio

from netprobe.cli.output import JSON_SCHEMA, say, to_stdout
from netprobe.cli.plan import read_plan
from netprobe.cli.readings import readers_config
from netprobe.cli.running import FINE, INTERRUPTED, NO, NO_ANSWER, head_of, keep_outcome, run_document, telling, worst
from netprobe.errors import UsageError
from netprobe.host.signals import StopRequest, stop_on_signals
from netprobe.judge.reachability import State
from netprobe.model.results import Json
from netprobe.plan.fields import parse_duration_ns
from netprobe.plan.plans import RunPlan, window_of
from netprobe.service.discovery import state_path
from netprobe.service.readers import Readers, ReadersConfig, open_readers
from netprobe.service.run import RunOutcome, run_plan
from netprobe.service.spreading import flow_verdicts
from netprobe.service.telemetry import window_readings
from netprobe.service.viewing import view_topology
from netprobe.service.watch_plan import WindowReport, limits_of, watch_plan
from netprobe.show.watching import change_text, window_text

EXIT = {
    State.REACHABLE: FINE,
    State.DEGRADED: NO,
    State.UNREACHABLE: NO,
    State.UNOBSERVED: NO_ANSWER,
}
Watch = Callable[[], Awaitable[Mapping[str, State]]]
NOBODY_READS = "nobody reads any more"


class Teller:
    """Keeps each window, and tells of it as asked.

    Args:
        args: of the command.
        stop: is asked when nobody reads any more (`| head`): a watch has no other end.
    """

    def __init__(self, args: argparse.Namespace, stop: StopRequest) -> None:
        self._args = args
        self._stop = stop
        self._meshes: list[str] = []
        self.readers: Readers | None = None

    def say(self, text: str) -> None:
        """A line on stdout, at once."""
        with to_stdout():
            try:
                print(text, flush=True)
            except BrokenPipeError:
                self._stop.ask(NOBODY_READS)
                raise

    def line(self, kind: str, document: Mapping[str, object]) -> None:
        """One document of JSON Lines."""
        self.say(json.dumps({"schema": JSON_SCHEMA, "type": kind, **document}))

    def take(self, report: WindowReport) -> None:
        """One window."""
        if self.readers is not None:
            self.readers.put(window_readings(report))
        changes = [change for row in report.rows if (change := row.change_json())]
        kept = _keep(self._args, report, changes)
        window = report.to_json()
        self._tell_meshes(report)
        if self._args.json:
            mesh = [one.to_json() for one in report.compiled.meshes]
            self.line("window", {**window, **kept, "mesh": mesh, "changes": len(changes)})
            for change in changes:
                self.line("change", {"window": report.number, **change})
            return
        for change in changes:
            self.say(change_text(change))
        (say if report.error else telling())(window_text(window))

    def _tell_meshes(self, report: WindowReport) -> None:
        """When they are new, or another topology made others of them."""
        lines = [mesh.line() for mesh in report.compiled.meshes]
        if lines != self._meshes:
            self._meshes = lines
            for line in lines:
                say(line)


def _keep(args: argparse.Namespace, report: WindowReport, changes: Sequence[Json]) -> Json:
    """Store a window as `run` stores its result; what remains to be said of it."""
    if report.outcome is None:
        return {"run": None, "stored": False}
    compiled = report.compiled
    verdicts = flow_verdicts(compiled.flows, compiled.plan.sessions, report.outcome.results)

    def document_of(outcome: RunOutcome, run_id: str) -> Json:
        head = head_of(run_id, outcome.started_ns, outcome.stopped)
        return {**run_document(compiled, outcome, verdicts, head), "watch": report.to_json()}

    states = {row.name: (row.path.state.value, row.path.since_ns) for row in report.rows}
    kept = keep_outcome(args, report.outcome, document_of, states=states, changes=changes)
    return {"run": kept["run"], "stored": kept["stored"], "flow_groups": kept["flow_groups"]}


def plan_of(args: argparse.Namespace) -> RunPlan:
    """The plan that the arguments ask for."""
    plan = read_plan(args.plan)
    if args.windows is not None and args.windows < 1:
        raise UsageError("--windows", f"got {args.windows}", allowed="1 and more")
    if args.window is None:
        return plan
    window_ns = window_of(parse_duration_ns(args.window, "--window"), "--window")
    return replace(plan, watch=replace(plan.watch, window_ns=window_ns))


async def _watch_and_send(config: ReadersConfig, teller: Teller, watch: Watch) -> Mapping[str, State]:
    """Watch, and send readings of each window meanwhile."""
    async with open_readers(config, "watch", lambda text: say(f"netprobe: {text}")) as teller.readers:
        return await watch()


def run(args: argparse.Namespace) -> int:
    """Watch a plan until it is stopped."""
    plan = plan_of(args)
    config = readers_config(args, plan.influx)
    tests = {name: test.to_json() for name, test in limits_of(plan.watch).tests().items()}
    with stop_on_signals() as stop:  # to the last line: a signal must not throw away what was measured
        teller = Teller(args, stop)
        if args.json:
            start = {"plan": plan.name, "seed": plan.seed, "window_ns": plan.watch.window_ns, "tests": tests}
            teller.line("start", start)
        watch = partial(
            watch_plan,
            plan,
            partial(view_topology, plan, state_path()),
            teller.take,
            stop=stop,
            windows=args.windows,
            progress=telling(),
            run=partial(run_plan, state_file=state_path()),
        )
        states = trio.run(_watch_and_send, config, teller, watch)
        if args.json:
            named = {name: state.value for name, state in states.items()}
            teller.line("end", {"stopped": stop.why or None, "states": named})
    if stop.why.startswith("stopped by"):
        return INTERRUPTED
    return worst(EXIT[state] for state in states.values())
