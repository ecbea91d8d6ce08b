"""A seeded terrible network: real frames through a simulated path, decoded and settled, against what was done to them.

The path is that of a guest's probe and its answer. Each point's observer sees real bytes (the encoder's frames, a real
reflector's answers) at virtual times; the network drops, duplicates, delays and blinds. No clock, no socket, no sleep.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from netprobe_agents.reflector import Reflector, Reply
from support.clouds import topology

from netprobe.collect.answers import Answers, concat, timed
from netprobe.collect.ledger import Fate
from netprobe.collect.session import BlindWindow, SessionInput, settle_session
from netprobe.model.observations import Hops, Sightings
from netprobe.model.records import HopBatch
from netprobe.observe.observer import Decoding
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.prepare import prepare_run
from netprobe.wire.decode import Decoder

MS = 1_000_000
START = 1_700_000_000_000_000_000
TMAX = 200 * MS
UDP = slice(34, 42)


@dataclass
class World:
    """What really happened."""

    seen: dict[tuple[str, int], list] = field(default_factory=dict)  # (point, leg) -> [(t, frame)]
    lost_at: dict[int, int] = field(default_factory=dict)  # seq -> index of the stop behind which it was dropped
    extra: dict[int, int] = field(default_factory=dict)  # seq -> copies added on the way there
    answer_lost: set[int] = field(default_factory=set)


def answered(reflector, frame, t_ns):
    """The answer of a real reflector, as a frame back."""
    payload = bytes(frame[42:])
    src, dst = bytes(frame[26:30]), bytes(frame[30:34])
    sport, dport = int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")
    peer, local = (".".join(map(str, src)), sport), (".".join(map(str, dst)), dport)
    said = reflector.receive_untrusted(payload, peer, local, ttl=64, dscp=3, t2_ns=t_ns, now_ns=t_ns)
    assert isinstance(said, Reply), said
    back = bytearray(frame)
    back[0:12] = bytes(frame[6:12]) + bytes(frame[0:6])
    back[26:34] = dst + src
    back[34:38] = bytes(frame[36:38]) + bytes(frame[34:36])
    back[42:] = reflector.finish(said, t_ns + 20_000)
    return back


def cross(rng, world, prepared, drop, duplicate, jitter_ns):
    """Send every probe through the network; fills `world`."""
    reflector = Reflector()
    stops = [s.point.id for s in prepared.path.forward]
    back = [s.point.id for s in prepared.path.returned]
    arrivals = []
    sent_ns = START + prepared.due_ns
    for seq, frame in enumerate(prepared.block.frames):
        copies = [(int(sent_ns[seq]), bytearray(frame))]
        for i, point in enumerate(stops[1:-1], 1):
            moved = []
            for t_ns, data in copies:
                if rng.random() < drop:
                    continue
                twice = rng.random() < duplicate
                moved += [(t_ns + 10_000 + rng.randrange(jitter_ns + 1), data) for _ in range(1 + twice)]
            if not moved:
                world.lost_at[seq] = i - 1
            copies = moved
            for t_ns, data in copies:
                world.seen.setdefault((point, 0), []).append((t_ns, data))
            if not copies:
                break
        else:
            world.extra[seq] = len(copies) - 1
            arrivals += [(t_ns + 1_000, seq, data) for t_ns, data in copies]
    for t_ns, seq, data in sorted(arrivals, key=lambda a: a[:2]):
        answer, at = answered(reflector, data, t_ns), t_ns + 20_000
        for i, point in enumerate(back[1:], 1):
            if rng.random() < drop:
                world.answer_lost.add((seq, t_ns))
                break
            at += 10_000
            world.seen.setdefault((point, 1), []).append((at, answer))
            assert i < len(back)
    return sent_ns


def observe(prepared, world):
    """Everything through the decoder, point by point in order of time, in blocks of random size."""
    points = [s.point.id for s in prepared.path.forward]
    index = {name: i for i, name in enumerate(points)}
    direction = {
        (s.point.id, leg): int(s.direction)
        for leg, stops in enumerate((prepared.path.forward, prepared.path.returned))
        for s in stops
    }
    decoder = Decoder([prepared.probe])
    batches, answers = [], []
    for point in points:
        decoding = Decoding(index[point], decoder, {prepared.probe.session: 3})
        rows = [(t, f, direction[point, leg]) for leg in (0, 1) for t, f in world.seen.get((point, leg), [])]
        rows.sort(key=lambda row: row[0])
        for start in range(0, len(rows), 37):
            block = rows[start : start + 37]
            lengths = np.array([len(f) for _, f, _ in block], np.int64)
            reports = decoding.feed(
                np.frombuffer(b"".join(bytes(f) for _, f, _ in block), np.uint8),
                np.cumsum(lengths) - lengths,
                lengths,
                np.array([t for t, _, _ in block], np.int64),
                np.array([d for _, _, d in block], np.uint8),
            )
            batches += [r.hops for r in reports if isinstance(r, Hops)]
            answers += [r for r in reports if isinstance(r, Sightings)]
        assert decoding.tally.forged == 0
    parts = [Answers(a.seq, timed(a.t2_ns), timed(a.t3_ns), a.reflector_seq, a.seen_ns) for a in answers]
    return index, HopBatch.concat(batches), concat(parts).unique()


def settle(prepared, world, sent_ns, **changes):
    index, hops, answers = observe(prepared, world)
    given = SessionInput(
        session=prepared.probe.session,
        path=prepared.path,
        point_index=index,
        sent_ns=sent_ns,
        sender_ns=sent_ns,
        tmax_ns=TMAX,
        now_ns=int(sent_ns[-1]) + TMAX + 1,
        hops=hops,
        answers=answers,
        **changes,
    )
    return settle_session(given), index


def one_session(seed, count=300):
    plan = RunPlan("sim", (SessionPlan("s", "vm1", "vm2", count=count, rate_pps=1000),), seed=seed)
    return prepare_run(plan, topology(), lambda *_: [61_000])[0]


@pytest.mark.parametrize("seed", range(16))
def test_the_ledger_is_the_truth(seed):
    """Loss, duplicates and late answers on both legs: every fate is the one that the network decided."""
    rng = random.Random(seed)
    prepared, world = one_session(seed), World()
    sent_ns = cross(rng, world, prepared, rng.choice([0, 0.02, 0.2]), rng.choice([0, 0.1]), rng.choice([0, 3 * MS]))
    outcome, _ = settle(prepared, world, sent_ns)
    ledger = outcome.forward.ledger
    assert sum(ledger.count(f) for f in Fate) == ledger.planned == 300
    assert outcome.forged == 0
    for seq in range(300):
        fate, last = Fate(ledger.fate[seq]), int(ledger.last_stop[seq])
        if seq in world.lost_at:
            assert (fate, last) == (Fate.LOST, world.lost_at[seq])
            assert ledger.first_missing[seq] == last + 1
        else:
            # It reached the guest. That is known if an answer came back; else nobody can tell, and nobody claims to.
            assert fate in {Fate.DELIVERED, Fate.UNOBSERVED}
    delivered = ledger.count(Fate.DELIVERED)
    assert delivered + len(world.lost_at) + ledger.count(Fate.UNOBSERVED) == 300
    silent = {seq for seq, _ in world.answer_lost}
    assert ledger.count(Fate.UNOBSERVED) <= len(silent)
    assert outcome.clock_doubts == 0
    seen = [int(np.count_nonzero(outcome.forward.arrivals.copies[i] > 1)) for i in (1, 2)]
    assert sum(s.duplicated > 0 for s in outcome.forward.segments[:2]) == (seen[0] > 0) + (seen[1] > seen[0])


@pytest.mark.parametrize("seed", range(6))
def test_where_nobody_looked_nothing_is_called_lost(seed):
    """vm2.backend is blind for the first half: what is lost there is stated for the wider span, or unobserved."""
    rng = random.Random(seed)
    prepared, world = one_session(seed), World()
    sent_ns = cross(rng, world, prepared, 0.1, 0, MS)
    half = int(sent_ns[150])
    hidden = [(t, f) for t, f in world.seen[("vm2.backend", 0)] if t > half]
    world.seen[("vm2.backend", 0)] = hidden
    index = [s.point.id for s in prepared.path.forward].index("vm2.backend")
    outcome, _ = settle(prepared, world, sent_ns, windows=[BlindWindow(index, START, half)])
    ledger = outcome.forward.ledger
    assert sum(ledger.count(f) for f in Fate) == 300
    truly_lost = set(world.lost_at)
    called_lost = set(np.flatnonzero(ledger.fate == Fate.LOST).tolist())
    assert called_lost <= truly_lost
    for seq in truly_lost - called_lost:
        assert sent_ns[seq] <= half + TMAX
        assert ledger.fate[seq] == Fate.UNOBSERVED


def test_a_run_that_is_cut_short_leaves_the_rest_pending_or_unsent():
    """Half of the probes are unsent, and the present is before the last deadline."""
    rng = random.Random(1)
    prepared, world = one_session(1), World()
    sent_ns = cross(rng, world, prepared, 0.2, 0, 0)
    sent_ns[200:] = 0
    for key, rows in world.seen.items():
        world.seen[key] = [row for row in rows if row[0] < int(sent_ns[199]) + 50_000]
    index, hops, answers = observe(prepared, world)
    given = SessionInput(
        session=prepared.probe.session,
        path=prepared.path,
        point_index=index,
        sent_ns=sent_ns,
        sender_ns=sent_ns,
        tmax_ns=TMAX,
        now_ns=int(sent_ns[199]) + 50_000,
        hops=hops.where(hops.seq < 200),
        answers=answers,
    )
    ledger = settle_session(given).forward.ledger
    assert ledger.count(Fate.UNSENT) == 100
    assert ledger.count(Fate.PENDING) > 0
    assert sum(ledger.count(f) for f in Fate) == 300
