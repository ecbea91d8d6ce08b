"""From what a run saw to what it says: settles each session and puts the result together. No I/O of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netprobe.collect.ledger import Fate
from netprobe.collect.results import leg_result
from netprobe.collect.session import SessionInput, SessionOutcome, settle_session
from netprobe.judge.reason import Reason
from netprobe.model.points import Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.model.results import SessionResult
from netprobe.plan.plans import RunPlan
from netprobe.service.injecting import Sent
from netprobe.service.prepare import Prepared, type_p_json
from netprobe.service.watching import Watch

VANTAGE_NOTES = {
    Vantage.GUEST: (),
    Vantage.BYPASS: (
        "from the bypass NIC: proves the fabric, the destination and a copy of the source's groups",
        "not proved from here: the source guest's own port",
    ),
    Vantage.VSWITCH: (
        "by packet-out: worked off by the switch's slow path, so it proves tables and conntrack",
        "not proved from here: megaflows already cached, anything before the vswitch; answers reach the source guest",
    ),
}
"""What each vantage does not prove (design §5)."""

PROTOCOL_NOTES = {
    Protocol.RAW_UDP: ("raw UDP is not answered: delivery is stated at the destination's backend",),
    Protocol.ICMP: ("arrival in the guest is inferred from its answers; a probe without one is unobserved there",),
    Protocol.TCP: ("arrival in the guest is inferred from its answers; a probe without one is unobserved there",),
    Protocol.UDP: (),
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the sessions of a run have in common.

    Attributes:
        sent: by session number.
        ended_ns: CLOCK_REALTIME when looking ended.
        agent_shed: frames that guests' agents shed.
        port_dropped: frames that the switches' ports on the way dropped meanwhile, tenants' among them.
    """

    plan: RunPlan
    watch: Watch
    sent: dict[int, Sent]
    ended_ns: int
    agent_shed: int
    port_dropped: int


def settle_run(prepared: Sequence[Prepared], facts: RunFacts) -> list[SessionOutcome]:
    """Settle every session of a run."""
    hops, watch = facts.watch.hops(), facts.watch
    return [
        settle_session(
            SessionInput(
                session=one.probe.session,
                path=one.path,
                point_index=watch.point_index,
                sent_ns=facts.sent[one.probe.session].times_ns,
                sender_ns=facts.sent[one.probe.session].stamps_ns,
                tmax_ns=facts.plan.tmax_ns,
                now_ns=facts.ended_ns,
                hops=hops.where(hops.session == np.uint32(one.probe.session)),
                answers=watch.answers(one.probe.session),
                windows=watch.windows,
                unwatched=frozenset(watch.unwatched),
                is_numbered=one.probe.type_p.flow is Flow.SAME,
            )
        )
        for one in prepared
    ]


def _counters(facts: RunFacts) -> dict[str, int]:
    tallies = [d.tally for _, d in facts.watch.decodings]
    return {
        "ring_dropped": sum(t.dropped for t in tallies),
        "agent_shed": facts.agent_shed,
        "port_dropped": facts.port_dropped,
        "unknown_session": sum(t.unknown_session for t in tallies),
        "foreign": sum(t.foreign for t in tallies),
        "merged": sum(t.merged for t in tallies),
        "without_tag": sum(t.weak for t in tallies),
        "unstamped": sum(t.unstamped for t in tallies),
        "icmp_errors": sum(t.icmp_errors for t in tallies),
        "clock_steps": facts.watch.steps.steps,
    }


def _notes(one: Prepared, outcome: SessionOutcome, facts: RunFacts) -> tuple[str, ...]:
    sent = facts.sent[one.probe.session]
    on_path = {s.point.id for s in (*one.path.forward, *one.path.returned)}
    notes = [*VANTAGE_NOTES[one.plan.vantage], *PROTOCOL_NOTES[one.plan.protocol]]
    unseen = {**facts.watch.unwatched, **facts.watch.unwatched_since}
    notes += [f"{point} is unobserved: {why}" for point, why in unseen.items() if point in on_path]
    if outcome.clock_doubts:
        notes.append(f"{outcome.clock_doubts} answers carry times of a clock that is not ours: not used")
    if facts.port_dropped:
        notes.append(f"the switch's ports on the way dropped {facts.port_dropped} frames meanwhile, ours or others'")
    unanswered = outcome.forward.ledger.count(Fate.UNOBSERVED)
    if unanswered and one.plan.protocol is Protocol.UDP:
        notes.append(
            f"{unanswered} were not answered: lost in the last stretch, or their answers in the first one back"
        )
    if sent.failure:
        notes.append(f"sending ended early: {sent.failure}")
    if sent.doubtful:
        notes.append(f"{sent.doubtful} send times of the source's clock do not fit ours: not used")
    if facts.watch.steps.steps:
        notes.append("the wall clock was stepped during the run: delays, lost and late across the step are doubtful")
    return tuple(notes)


def _remarked_at(one: Prepared, facts: RunFacts) -> str | None:
    """The first point in travel order where probes did not carry the class mark that was sent."""
    changed = {point for point, d in facts.watch.decodings if d.tally.remarked.get(one.probe.session)}
    return next((s.point.id for s in one.path.forward if s.point.id in changed), None)


def session_result(
    one: Prepared, outcome: SessionOutcome, facts: RunFacts, reason: Reason | None, undone: dict[str, int]
) -> SessionResult:
    """Everything that a run says of one session; `undone` are counters of what was tidied up."""
    counters = {**_counters(facts), "clock_doubts": outcome.clock_doubts, **undone}
    sent = facts.sent[one.probe.session]
    plan = one.plan
    return SessionResult(
        name=plan.name,
        src=one.source.name,
        dst=one.target.name,
        vantage=plan.vantage.value,
        type_p=type_p_json(one.probe),
        seed=facts.plan.seed,
        tmax_ms=facts.plan.tmax_ns / 1e6,
        schedule=plan.schedule.value,
        rate_pps=plan.rate_pps,
        pacing=sent.pacing,
        forward=leg_result(outcome.forward),
        returned=leg_result(outcome.returned, is_return=True) if outcome.returned else None,
        forged=outcome.forged + sum(d.tally.forged for _, d in facts.watch.decodings),
        remarked_at=_remarked_at(one, facts),
        reason=None if reason is None else reason.to_json(),
        overflow=bool(counters["ring_dropped"] or counters["agent_shed"]),
        counters=counters,
        notes=_notes(one, outcome, facts),
    )
