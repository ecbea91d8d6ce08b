"""What truth tests share: a run, what its hop records really say, and a fault's log held against them."""

from collections import Counter
from functools import partial

import numpy as np
import trio

from netprobe.lab import truth
from netprobe.model.load import LoadLimits
from netprobe.model.points import Leg
from netprobe.model.records import HopBatch
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.discovery import read_topology
from netprobe.service.run import run_plan

COUNT = 1_000
RATE = 1_000
US = 1_000
MS = 1_000_000


def run(*sessions, tmax_ns=500 * MS, seed=7, progress=lambda _: None, **wishes):
    """Run sessions together and return the outcome; all that is planned is sent, however busy the machine is."""
    plan = RunPlan("truth", sessions, seed=seed, tmax_ns=tmax_ns, governor=LoadLimits(is_on=False))
    return trio.run(partial(run_plan, plan, read_topology(), progress, **wishes))


def probe(**changes):
    """vm1 -> vm2 by STAMP from the guest."""
    given = {"name": "s", "src": "vm1", "dst": "vm2", "count": COUNT, "rate_pps": RATE} | changes
    return SessionPlan(**given)


def first_arrivals(outcome, point, leg=Leg.FORWARD):
    """(time, arrival order) of the first copy of each probe at a point, by seq, straight from the hop records."""
    hops: HopBatch = outcome.hops
    here = (hops.point == outcome.points.index(point)) & (hops.leg == leg)
    times, order = {}, {}
    for i in np.flatnonzero(here):
        seq = int(hops.seq[i])
        if seq not in times:
            times[seq] = int(hops.t_ns[i])
            order[seq] = i
    return times, order


def copies(outcome, point):
    """How often each probe was seen at a point."""
    hops = outcome.hops
    here = (hops.point == outcome.points.index(point)) & (hops.leg == Leg.FORWARD)
    return Counter(hops.seq[here].tolist())


def reordered(first_order, second_order):
    """RFC 4737 §3.3 by its own words: a packet that arrives behind one that was sent after it."""
    rank = {seq: i for i, seq in enumerate(sorted(first_order, key=first_order.get))}
    found, next_expected = set(), -1
    for seq in sorted((s for s in second_order if s in rank), key=second_order.get):
        if rank[seq] < next_expected:
            found.add(seq)
        else:
            next_expected = rank[seq]
    return found


def log_of(result, outcome, rows_wanted):
    """The relay's rows about this run's probes."""
    path = result.faults[0]["log"]
    rows = truth.wait_rows(path, rows_wanted)
    return rows[rows["session"] == outcome.sessions[0]]


def check_fault(outcome, rows, relay, fault, *, median_ns=10 * US, p99_ns=100 * US):
    """What the log says happened in segment `relay` is what the result says, there, and nobody else is blamed.

    Args:
        outcome: of a run of one session.
        rows: the relay's log of it.
        relay: id of the segment that the relay is.
        fault: its settings, to see that each kind was really there.
        median_ns: how far from the log probes' delays may be at the median.
        p99_ns: the same for 99 of 100.
    """
    (result,) = outcome.results
    before, behind = relay.split("..")
    by_id = {s.id: s for s in result.forward.segments}
    leg = result.forward
    assert leg.planned == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending
    assert (leg.unsent, leg.pending, result.forged, result.overflow) == (0, 0, 0, False), result.counters

    # Loss: the same probes, in this segment, and in no other.
    dropped = {int(r["seq"]) for r in rows if r["fate"] == truth.FATE_DROPPED}
    seen_before, order_before = first_arrivals(outcome, before)
    seen_behind, order_behind = first_arrivals(outcome, behind)
    assert set(seen_before) - set(seen_behind) == dropped
    assert by_id[relay].lost == len(dropped)
    assert {s.id: s.lost for s in leg.segments if s.lost} == ({relay: len(dropped)} if dropped else {})
    assert leg.lost == len(dropped)
    assert bool(dropped) == ("loss" in fault)

    # Duplicates: the same probes, counted here alone, on this leg alone.
    twice = {int(r["seq"]) for r in rows if r["fate"] == truth.FATE_DUPLICATE}
    assert {seq for seq, n in copies(outcome, behind).items() if n > 1} == twice
    assert {s.id: s.duplicated for s in leg.segments if s.duplicated} == ({relay: len(twice)} if twice else {})
    assert bool(twice) == ("duplicate" in fault)

    # Reordering: the set that the log's own times give.
    out = [r for r in rows if r["fate"] == truth.FATE_FORWARDED]
    true_in = {int(r["seq"]): int(r["t_in_ns"]) for r in rows}
    true_out = {int(r["seq"]): int(r["t_out_ns"]) for r in out}
    overtaken = reordered(true_in, true_out)
    assert reordered(order_before, order_behind) == overtaken
    assert {s.id: s.reordered for s in leg.segments if s.reordered} == ({relay: len(overtaken)} if overtaken else {})
    assert bool(overtaken) == ("reorder" in fault)

    # Delay: probe by probe against the log.
    error = np.array([abs((seen_behind[s] - seen_before[s]) - (true_out[s] - true_in[s])) for s in true_out])
    assert np.median(error) <= median_ns
    assert np.quantile(error, 0.99) <= p99_ns
