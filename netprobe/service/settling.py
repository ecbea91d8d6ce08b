"""From what a run saw to what it says: settles each session and puts the result together. No I/O of its own."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from netprobe.collect.domains import ClockMap
from netprobe.collect.epochs import Epoch, epoch_bounds, epoch_input
from netprobe.collect.ledger import Fate
from netprobe.collect.results import leg_result
from netprobe.collect.session import BlindWindow, SessionInput, SessionOutcome, settle_session
from netprobe.judge.reason import Reason
from netprobe.model.observations import FOR_EVER_NS, Tally
from netprobe.model.points import Direction, Leg, Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.model.records import NO_TIME, HopBatch
from netprobe.model.results import Json, SessionResult
from netprobe.plan.plans import RunPlan
from netprobe.service.collected import PartRecord, Sending
from netprobe.service.collection import Collection
from netprobe.service.held_back import governor_json, governor_notes
from netprobe.service.prepare import Prepared, type_p_json

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

REFLECTOR_NOTE = (
    "{0} is a virtual machine: T3 is read by a program in it before its answers are sent, so what the machine takes to "
    "send is in the first segment back, and in no other"
)
"""User-space stamping in a slow guest is no network time; all other stamps of a machine are its kernel's."""

MAX_CONTEXTS = 32
"""Different surroundings that are told of one stop: neither spoofing guests nor lying agents may fill a result."""


FOLLOWED_WITHIN_NS = 2_000_000_000
"""A change of a path is noticed within this time of when it took effect."""

LEADS_APART_NS = 300_000_000
"""By how much a host's clock may be further ahead than PartRecord.lead_ns says: reports are on their way."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the sessions of a run have in common.

    Attributes:
        ended_ns: when looking ended, by the clock that epochs are noted by.
        clocks: whose clock stamps where, by session; None: one clock stamps everywhere.
        leads_ns: by how much a host's clock is ahead of the one that epochs are noted by, by the host's name.
        stale: sources of the topology that cannot be read at present, and why.
    """

    plan: RunPlan
    collection: Collection
    ended_ns: int
    clocks: Mapping[int, ClockMap] | None = None
    leads_ns: Mapping[str, int] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """One session, or one epoch of it, and its outcome.

    Attributes:
        number: of the epoch, from 0.
        first, end: the probes that belong to it.
        hops: its records.
    """

    prepared: Prepared
    epoch: Epoch
    number: int
    epochs: int
    first: int
    end: int
    hops: HopBatch
    outcome: SessionOutcome


def settle_run(prepared: Sequence[Prepared], epochs: Mapping[int, Sequence[Epoch]], facts: RunFacts) -> list[Settled]:
    """Settle every session of a run, and of a session whose path changed every epoch by itself."""
    hops = facts.collection.hops_by_session()
    windows: dict[int, list[BlindWindow]] = {}
    for window in facts.collection.windows():
        windows.setdefault(window.point, []).append(window)
    found = []
    for one in prepared:
        number = one.probe.session
        found += _settle(one, epochs[number], facts, hops.get(number, HopBatch.empty()), windows)
    return found


def _settle(
    one: Prepared,
    epochs: Sequence[Epoch],
    facts: RunFacts,
    hops: HopBatch,
    windows: Mapping[int, Sequence[BlindWindow]],
) -> list[Settled]:
    collection, number = facts.collection, one.probe.session
    sending = collection.sendings[number]
    clocks = facts.clocks[number] if facts.clocks is not None else None
    places = {s.point.place for epoch in epochs for s in (*epoch.path.forward, *epoch.path.returned)}
    given = SessionInput(
        session=number,
        path=one.path,
        point_index={},
        sent_ns=_sent_ns(one, sending, clocks),
        sender_ns=sending.stamps_ns,
        tmax_ns=facts.plan.tmax_ns,
        now_ns=facts.ended_ns + facts.leads_ns.get(one.sender.host if clocks is None else clocks.reference, 0),
        hops=hops,
        answers=collection.answers(number, with_points=clocks is not None),
        windows=_windows(places, facts, windows, clocks),
        is_numbered=one.probe.type_p.flow is Flow.SAME,
        untold=None if sending.told.all() else ~sending.told,
        clocks=clocks,
    )
    left_ns = _left_ns(one, facts, hops) if len(epochs) > 1 else np.zeros(len(sending.times_ns), np.int64)
    found = []
    for i, (epoch, bounds) in enumerate(zip(epochs, epoch_bounds(epochs, left_ns), strict=True)):
        points = {s.point for s in (*epoch.path.forward, *epoch.path.returned)}
        index = {point.id: collection.index[point.place] for point in points}
        blind = frozenset(name for name, at in index.items() if at in collection.unwatched)
        mine = replace(
            epoch_input(given, epoch.path, bounds),
            point_index=index,
            unwatched=blind,
            windows=[*given.windows, *_changing(epochs, i, facts)],
        )
        mine = replace(mine, hops=_without_other_paths(mine.hops, epochs, i, collection))
        found.append(Settled(one, epoch, i, len(epochs), *bounds, mine.hops, settle_session(mine)))
    return found


def _sent_ns(one: Prepared, sending: Sending, clocks: ClockMap | None) -> npt.NDArray[np.int64]:
    """When each probe was sent by the sending host's clock; a machine's stamps carried over, where they can be."""
    if clocks is None:
        return sending.times_ns
    point = one.path.forward[0].point
    stamps = np.where(sending.stamps_ns > 0, sending.stamps_ns, NO_TIME)
    ours = clocks.convert(stamps, clocks.domain(point), clocks.keeper(point))
    return np.where((stamps != NO_TIME) & ours.is_known, ours.t_ns, sending.times_ns)


def _windows(
    places: Iterable[str],
    facts: RunFacts,
    windows: Mapping[int, Sequence[BlindWindow]],
    clocks: ClockMap | None,
) -> list[BlindWindow]:
    """When points may have lost sight, by their own clocks; a host tells by its own of its virtual machines too."""
    collection = facts.collection
    found: list[BlindWindow] = []
    for index in (collection.index[place] for place in places):
        point = collection.points[index]
        here = windows.get(index, ())
        if clocks is not None and clocks.domain(point) != clocks.keeper(point):
            here = [BlindWindow(index, 0, FOR_EVER_NS)] if here else ()
        found += here
    return found


def _ring_places(epoch: Epoch, collection: Collection) -> dict[int, str]:
    """The host of each point of a path where a ring looks, by the point's index."""
    stops = (*epoch.path.forward, *epoch.path.returned)
    return {collection.index[s.point.place]: s.point.host for s in stops if s.is_observed_by_ring}


def _changing(epochs: Sequence[Epoch], i: int, facts: RunFacts) -> list[BlindWindow]:
    """When silence at a path's points proves nothing, since the path was just changing.

    A probe may have taken the next path before anybody noticed, so that points of this one alone could not see it; and
    points that this path alone has were not looked at before it began.
    """
    here, leads = _ring_places(epochs[i], facts.collection), facts.leads_ns
    slack_ns = LEADS_APART_NS if leads else 0
    windows = []
    if i + 1 < len(epochs):
        since_ns = epochs[i + 1].noticed_ns - FOLLOWED_WITHIN_NS + facts.plan.tmax_ns  # by when probes are waited for
        for index in here.keys() - _ring_places(epochs[i + 1], facts.collection).keys():
            lead_ns = leads.get(here[index], min(leads.values(), default=0))
            windows.append(BlindWindow(index, since_ns + lead_ns - slack_ns, FOR_EVER_NS))
    if i:
        for index in here.keys() - _ring_places(epochs[i - 1], facts.collection).keys():
            lead_ns = leads.get(here[index], max(leads.values(), default=0))
            windows.append(BlindWindow(index, 0, epochs[i].from_ns + lead_ns + slack_ns))
    return windows


def _without_other_paths(hops: HopBatch, epochs: Sequence[Epoch], i: int, collection: Collection) -> HopBatch:
    """Records at points that only other paths of the session have are no forgeries: the path was just changing."""
    paths = [{collection.index[s.point.place] for s in (*e.path.forward, *e.path.returned)} for e in epochs]
    others = set().union(*paths) - paths[i]
    return hops.where(~np.isin(hops.point, np.array(sorted(others), np.uint16))) if others else hops


def _left_ns(one: Prepared, facts: RunFacts, hops: HopBatch) -> npt.NDArray[np.int64]:
    """When each probe left or was due, roughly, by the clock that epochs are noted by: shape (count,).

    Of a probe that its sender told nothing of: when some point first saw it.
    """
    collection, leads = facts.collection, facts.leads_ns
    told_ns = collection.sendings[one.probe.session].times_ns
    times_ns = np.where(told_ns > 0, told_ns - leads.get(one.sender.host, 0), 0)
    never = np.iinfo(np.int64).max
    earliest = np.full(len(times_ns), never)
    hosts = [point.host for point in collection.points]
    seen = hops.where((hops.leg == Leg.FORWARD) & (hops.t_ns > 0) & (hops.seq < len(times_ns)))
    for index in np.unique(seen.point).tolist():
        if not leads or hosts[index] in leads:
            here = seen.point == index
            np.minimum.at(earliest, seen.seq[here], seen.t_ns[here] - leads.get(hosts[index], 0))
    times_ns = np.where((times_ns <= 0) & (earliest < never), earliest, times_ns)
    return np.where(times_ns > 0, times_ns, _due_ns(one, times_ns))


def _due_ns(one: Prepared, times_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """When each probe was due, as far as the sending of the others tells when the session began."""
    sent = np.flatnonzero(times_ns > 0)
    if not len(sent):
        return np.zeros(len(times_ns), np.int64)
    begin = int(np.median(times_ns[sent] - one.due_ns[sent]))
    return one.due_ns + begin


def _places(one: Settled, facts: RunFacts) -> list[int]:
    """Indices of the points on a session's way, in travel order."""
    stops = (*one.epoch.path.forward, *one.epoch.path.returned)
    return list(dict.fromkeys(facts.collection.index[s.point.place] for s in stops))


def counted(one: Settled, facts: RunFacts, name: str) -> int:
    """What the parts on a session's way shed, dropped or tidied up, by the name of the counter."""
    return sum(record.done.counters.get(name, 0) for record in _parts(one, facts) if record.done is not None)


def _parts(one: Settled, facts: RunFacts) -> list[PartRecord]:
    """The parts that send a session or look at it."""
    places, number = _places(one, facts), one.prepared.probe.session
    parts = facts.collection.parts.values()
    return [part for part in parts if number in part.sessions or not part.points.isdisjoint(places)]


def _counters(one: Settled, facts: RunFacts) -> dict[str, int]:
    """What the points on a session's way counted; what happens elsewhere is no business of its."""
    tallies = [facts.collection.tallies.get(i, Tally()) for i in _places(one, facts)]
    refused = sum(sum(p.refused.values()) for p in facts.collection.parts.values())
    return {
        "ring_dropped": sum(t.dropped for t in tallies),
        "agent_shed": counted(one, facts, "agent_shed"),
        "port_dropped": counted(one, facts, "port_dropped"),
        "behind_port_dropped": sum(t.behind for t in tallies),
        "unknown_session": sum(t.unknown_session for t in tallies),
        "foreign": sum(t.foreign for t in tallies),
        "merged": sum(t.merged for t in tallies),
        "without_tag": sum(t.weak for t in tallies),
        "unstamped": sum(t.unstamped for t in tallies),
        "icmp_errors": sum(t.icmp_errors for t in tallies),
        "contexts_shed": sum(t.contexts_shed for t in tallies),
        "clock_steps": _steps(one, facts),
        "refused_reports": refused,
    }


def _steps(one: Settled, facts: RunFacts) -> int:
    """How often clocks on a session's way were stepped."""
    return sum(part.steps for part in _parts(one, facts))


def _unobserved(one: Settled, facts: RunFacts) -> list[str]:
    """Where on its way nobody looked, or not to the end, and why."""
    collection = facts.collection
    on_path = {s.point.place for s in (*one.epoch.path.forward, *one.epoch.path.returned)}
    unseen = {**collection.unwatched, **collection.unwatched_since}
    points = [(collection.points[index], why) for index, why in unseen.items()]
    return [f"{point.id} is unobserved: {why}" for point, why in points if point.place in on_path]


def _behind(one: Settled, facts: RunFacts) -> list[str]:
    """Where frames that a ring saw going out were dropped all the same: to leave a tap is not to be delivered."""
    collection = facts.collection
    counts = [(collection.points[i].id, collection.tallies.get(i, Tally()).behind) for i in _places(one, facts)]
    text = "dropped {} frames behind the point, ours or others': what is behind it did not take them (tx_dropped)"
    return [f"the device of {point} {text.format(count)}" for point, count in counts if count]


def _stale(one: Settled, facts: RunFacts) -> list[str]:
    """Why what is known of the way may be old: a host's own source (`<what> of <host>`) bears on that host alone."""
    hosts = {s.point.host for s in (*one.epoch.path.forward, *one.epoch.path.returned)} | one.prepared.hosts
    return [why for source, why in facts.stale.items() if " of " not in source or source.split(" of ")[-1] in hosts]


def _notes(one: Settled, facts: RunFacts) -> tuple[str, ...]:
    plan, outcome, collection = one.prepared.plan, one.outcome, facts.collection
    sending = collection.sendings[one.prepared.probe.session]
    notes = [*VANTAGE_NOTES[plan.vantage], *PROTOCOL_NOTES[plan.protocol]]
    notes += _unobserved(one, facts)
    if outcome.clock_doubts:
        notes.append(f"{outcome.clock_doubts} answers carry times of a clock that is not ours: not used")
    if outcome.imitated:
        notes.append(
            f"{outcome.imitated} probes were answered by somebody else in the guest's name: a rule that rejects?"
        )
    dropped = counted(one, facts, "port_dropped")
    if dropped:
        notes.append(f"the switch's ports on the way dropped {dropped} frames meanwhile, ours or others'")
    notes += _behind(one, facts)
    notes += governor_notes(governor_json(facts.collection, one.prepared.probe.session))
    unanswered = outcome.forward.ledger.count(Fate.UNOBSERVED)
    if unanswered and plan.protocol is Protocol.UDP:
        notes.append(
            f"{unanswered} were not answered: lost in the last stretch, or their answers in the first one back"
        )
    if one.prepared.target.has_own_clock and outcome.returned is not None and plan.protocol is Protocol.UDP:
        notes.append(REFLECTOR_NOTE.format(one.prepared.target.name))
    if sending.failure:
        notes.append(f"sending ended early: {sending.failure}")
    if sending.doubtful:
        notes.append(f"{sending.doubtful} send times of the source's clock do not fit ours: not used")
    if not sending.told.all():
        untold = len(sending.told) - int(np.count_nonzero(sending.told))
        notes.append(f"of {untold} probes nobody knows whether they were sent: the program that sends was lost")
    notes += [f"where things are may have changed since: {why}" for why in _stale(one, facts)]
    if _steps(one, facts):
        notes.append("the wall clock was stepped during the run: delays, lost and late across the step are doubtful")
    return tuple(notes)


def _remarked_at(one: Settled, facts: RunFacts) -> str | None:
    """The first point in travel order where probes did not carry the class mark that was sent."""
    collection, number = facts.collection, one.prepared.probe.session
    changed = {i for i, tally in collection.tallies.items() if tally.remarked.get(number)}
    stops = one.epoch.path.forward
    return next((s.point.id for s in stops if collection.index[s.point.place] in changed), None)


def _contexts(one: Settled, facts: RunFacts) -> tuple[Json, ...]:
    """What was around the probes at each stop, in travel order; the most frequent first, MAX_CONTEXTS of them."""
    legs = ((Leg.FORWARD, one.epoch.path.forward), (Leg.RETURN, one.epoch.path.returned))
    stops = [(int(leg), s.point.place, int(s.direction)) for leg, path in legs for s in path]
    order = {stop: i for i, stop in enumerate(stops)}
    found = facts.collection.contexts_of(one.hops)
    found.sort(key=lambda row: (row[2], order.get((row[2], row[0].place, row[1]), len(order)), -row[4]))
    ranks: Counter[tuple[str, int, int]] = Counter()
    shown = []
    for row in found:
        ranks[row[0].place, row[1], row[2]] += 1
        if ranks[row[0].place, row[1], row[2]] <= MAX_CONTEXTS:
            shown.append(row)
    return tuple(
        {
            "point": point.id,
            "leg": Leg(leg).name.lower(),
            "direction": Direction(direction).name.lower(),
            **context.to_json(),
            "records": count,
        }
        for point, direction, leg, context, count in shown
    )


def _epoch_json(one: Settled) -> Json | None:
    """None for a session that had one path."""
    if one.epochs == 1:
        return None
    epoch = one.epoch
    followed = (epoch.from_ns - epoch.noticed_ns) / 1e6 if epoch.because else None
    return {
        "number": one.number,
        "of": one.epochs,
        "first_seq": one.first,
        "end_seq": one.end,
        "because": epoch.because or None,
        "followed_after_ms": followed,
    }


def session_result(one: Settled, facts: RunFacts, reason: Reason | None, undone: dict[str, int]) -> SessionResult:
    """Everything that a run says of one session, or of an epoch of it; `undone` are counters of what was tidied up."""
    prepared, outcome, collection = one.prepared, one.outcome, facts.collection
    counters = {**_counters(one, facts), "clock_doubts": outcome.clock_doubts, **undone}
    plan = prepared.plan
    return SessionResult(
        name=plan.name,
        src=prepared.source.name,
        dst=prepared.target.name,
        vantage=plan.vantage.value,
        type_p=type_p_json(prepared.probe),
        seed=facts.plan.seed,
        tmax_ms=facts.plan.tmax_ns / 1e6,
        schedule=plan.schedule.value,
        rate_pps=plan.rate_pps if plan.stretch == 1 else plan.mean_pps,
        pacing=collection.sendings[prepared.probe.session].pacing,
        forward=leg_result(outcome.forward),
        returned=leg_result(outcome.returned, is_return=True) if outcome.returned else None,
        forged=outcome.forged + sum(collection.tallies.get(i, Tally()).forged for i in _places(one, facts)),
        remarked_at=_remarked_at(one, facts),
        reason=None if reason is None else reason.to_json(),
        overflowed={
            collection.points[i].id: collection.overflowed[i] for i in _places(one, facts) if i in collection.overflowed
        },
        counters=counters,
        notes=_notes(one, facts),
        contexts=_contexts(one, facts),
        epoch=_epoch_json(one),
        governor=governor_json(collection, prepared.probe.session),
    )
