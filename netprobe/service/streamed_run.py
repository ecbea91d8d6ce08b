"""A run of one session that is too long to be one order: raw UDP from a bypass NIC, as a stream (service.streaming).

Permitted, written down and audited like any run; what is different is said in the result's notes: a loss is placed but
not explained by a rule. Windows, and single records when asked, go to the store meanwhile (service.stream_keeping).
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.inject.pacer import BURST_FRAMES
from netprobe.inject.ring_sender import RingSent
from netprobe.model.load import Backoff
from netprobe.model.observations import Tally
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.model.results import Pacing, SessionResult
from netprobe.model.topology import Topology
from netprobe.plan.plans import RunPlan, Schedule, SessionPlan
from netprobe.service.governing import govern_stream, is_ended_by_governor
from netprobe.service.held_back import backoffs_json
from netprobe.service.journal import open_journal
from netprobe.service.permits import SwitchDrops, permit_run, port_source
from netprobe.service.prepare import Prepared, max_order_count, prepare_session, type_p_json
from netprobe.service.settling import PROTOCOL_NOTES, VANTAGE_NOTES
from netprobe.service.stream_keeping import StreamKeep, open_keeper
from netprobe.service.stream_sender import Sending
from netprobe.service.streaming import StreamOrder, StreamOutcome, stream

PERMIT_S = 2.0
"""The schedule is even, so its first seconds stand for all of it when the host is asked whether it is too fast."""

GATHER_NS = 500_000
"""Probes may be late by so much that several go at once: a stream must not take a processor for itself."""

STREAM_NOTES = (
    "streamed: settled window by window, and no rule is named for what was lost",
    "the sender tells when frames were handed over, many at a time: no delay is stated from there to the first ring",
)


def is_stream(plan: RunPlan) -> bool:
    """Whether a run goes as a stream: its only session is too long for one order, and can be one."""
    if len(plan.sessions) != 1:
        return False
    (one,) = plan.sessions
    return can_stream(one) and one.count > max_order_count(one)


def can_stream(one: SessionPlan) -> bool:
    """Whether a session could be a stream: evenly sent raw UDP of one tuple from a bypass NIC."""
    return (
        one.vantage is Vantage.BYPASS
        and one.protocol is Protocol.RAW_UDP
        and one.flow in {None, Flow.SAME}
        and one.schedule is Schedule.PERIODIC
    )


def prepare_stream(plan: RunPlan, topology: Topology) -> Prepared:
    """The session without its frames: they are made while they are sent.

    Raises:
        UsageError: a name, an address family, a size or a port does not fit.
    """
    (session,) = plan.sessions
    few = replace(session, count=max(2, min(session.count, math.ceil(session.mean_pps * PERMIT_S))))
    ports = port_source(topology)
    one = prepare_session(few, topology, seed=plan.seed, session=secrets.randbits(32), port_source=ports)
    return replace(one, plan=session, probe=replace(one.probe, count=session.count))


async def run_stream(
    plan: RunPlan, topology: Topology, stop: StopRequest, keep: StreamKeep | None = None
) -> tuple[Prepared, SessionResult]:
    """Permit, write down, stream, tidy up.

    Args:
        plan: of one session; see `is_stream`.
        topology: where things are.
        stop: once asked, nothing more is sent.
        keep: where windows go meanwhile; None for nowhere.

    Raises:
        UsageError, RefusedError: the plan does not fit the cloud, or the host does not allow it; nothing was sent.
        HostNotReadyError: the bypass NIC or a switch is not there.
    """
    one = prepare_stream(plan, topology)
    allowlists = permit_run([one], topology, realtime_ns())
    assert one.sender.host in allowlists
    order = StreamOrder(
        Sending(
            one.probe,
            one.block.frames[0].tobytes(),
            one.sender.netns,
            one.sender.device,
            one.plan.mean_pps,
            burst_frames=BURST_FRAMES,
            gather_ns=GATHER_NS,
        ),
        one.path.forward,
        plan.tmax_ns,
        unobserved=dict(topology.unobserved),
        keeps_hops=keep is not None and keep.hops,
    )
    names = [s.point.id for s in one.path.forward]
    with open_journal([one], topology) as journal:
        drops = SwitchDrops([one], topology)
        steps: list[Backoff] = []
        async with open_keeper(keep, one.probe.session, names) as keeper, trio.open_nursery() as nursery:
            nursery.start_soon(govern_stream, plan.governor, stop, steps.append)
            outcome = await stream(order, stop, keeper.take)
            nursery.cancel_scope.cancel()
        dropped = drops.since_then()
    undone = {"conntrack_deleted": journal.deleted, "conntrack_kept": journal.kept, "port_dropped": dropped}
    governor = backoffs_json(outcome.result.unsent if is_ended_by_governor(steps) else 0, steps)
    result = _result(plan, one, outcome, {**undone, **keeper.counters})
    return one, replace(result, governor=governor, notes=(*result.notes, *keeper.notes))


def _result(plan: RunPlan, one: Prepared, outcome: StreamOutcome, undone: Mapping[str, int]) -> SessionResult:
    tallies = list(outcome.tallies.values())
    remarked = (s.point.id for s in one.path.forward if _is_remarked(outcome.tallies, s.point.id, one))
    return SessionResult(
        name=one.plan.name,
        src=one.source.name,
        dst=one.target.name,
        vantage=one.plan.vantage.value,
        type_p=type_p_json(one.probe),
        seed=plan.seed,
        tmax_ms=plan.tmax_ns / 1e6,
        schedule=one.plan.schedule.value,
        rate_pps=one.plan.mean_pps,
        pacing=_pacing(outcome.sent),
        forward=outcome.result,
        returned=None,
        forged=sum(tally.forged for tally in tallies) + outcome.counters.get("forged", 0),
        remarked_at=next(remarked, None),
        reason=None,
        overflowed=_overflowed(outcome),
        counters={**_counters(tallies, outcome), **undone},
        notes=_notes(one, outcome),
    )


def _is_remarked(tallies: Mapping[str, Tally], point: str, one: Prepared) -> bool:
    return point in tallies and bool(tallies[point].remarked.get(one.probe.session))


def _pacing(sent: RingSent | None) -> Pacing | None:
    if sent is None or sent.pacing is None:
        return None
    return Pacing(sent.pacing.p50_ns, sent.pacing.p99_ns, sent.pacing.max_ns)


def _overflowed(outcome: StreamOutcome) -> dict[str, str]:
    found = {
        point: f"its ring had no room for {tally.dropped} frames"
        for point, tally in outcome.tallies.items()
        if tally.dropped
    }
    if shed := outcome.counters.get("shed", 0):
        found["collector"] = f"too many probes were under way: {shed} records were shed"
    return found


def _counters(tallies: Sequence[Tally], outcome: StreamOutcome) -> dict[str, int]:
    return {
        "ring_dropped": sum(t.dropped for t in tallies),
        "unknown_session": sum(t.unknown_session for t in tallies),
        "foreign": sum(t.foreign for t in tallies),
        "merged": sum(t.merged for t in tallies),
        "without_tag": sum(t.weak for t in tallies),
        "unstamped": sum(t.unstamped for t in tallies),
        "icmp_errors": sum(t.icmp_errors for t in tallies),
        "contexts_shed": sum(t.contexts_shed for t in tallies),
        **{f"records_{name}": count for name, count in outcome.counters.items()},
    }


def _notes(one: Prepared, outcome: StreamOutcome) -> tuple[str, ...]:
    notes = [*VANTAGE_NOTES[one.plan.vantage], *PROTOCOL_NOTES[one.plan.protocol], *STREAM_NOTES]
    notes += [f"{point} is unobserved: {why}" for point, why in outcome.unwatched.items()]
    if outcome.failure:
        notes.append(f"sending ended early: {outcome.failure}")
    return tuple(notes)
