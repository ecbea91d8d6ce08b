"""A part that lies: whatever it reports, nothing changes that is not its own, nothing breaks, memory stays bounded.

Three hosts. hv1 and hv2 are honest; the liar is either `fabric` (with hv3: in the middle of the way from hv1 to hv2,
and sender of a session of its own) or hv2 itself. The same honest reports are settled with and without the liar's.
"""

import struct
from dataclasses import replace
from ipaddress import IPv4Address

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.clouds import host, pair, routed

from netprobe.collect.epochs import Epoch
from netprobe.errors import WireError
from netprobe.model.contexts import HopContext, Tunnel
from netprobe.model.observations import (
    FOR_EVER_NS,
    Blind,
    Contexts,
    Exchanges,
    Hops,
    PartDone,
    SentReport,
    Sightings,
    Tallies,
    Tally,
    Unwatched,
    Watermark,
)
from netprobe.model.points import Leg, Point, PointKind
from netprobe.model.records import HopBatch, HopRecord
from netprobe.model.results import Pacing
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service import collection as collecting
from netprobe.service.collection import Collection
from netprobe.service.prepare import prepare_run
from netprobe.service.row_pile import RowPile
from netprobe.service.run_clocks import clock_maps
from netprobe.service.settling import RunFacts, session_result, settle_run
from netprobe.wire import blocks
from netprobe.wire.blocks import decode_reports_untrusted, encode_reports

COUNT = 10
BASE_NS = 1_700_000_000_000_000_000
MS, US = 1_000_000, 1_000
OFFSETS_NS = {"hv1": 0, "hv2": 5 * MS, "fabric": 0, "hv3": 0}
HOSTS = {"hv1": "hv1", "hv2": "hv2", "liar": "fabric"}
PAIRS = (("vm1", "vm3"), ("vm2", "vm4"), ("vm1", "vm2"), ("vm7", "vm1"))  # on hv1, on hv2, across, from hv3
SENDERS = ("hv1", "hv2", "hv1", "liar")
NOW_NS = BASE_NS + 3_000 * MS


def cloud():
    base = pair()
    vm7 = replace(routed("vm7", 7, "net1"), host="hv3")
    vm7 = replace(vm7, chain=(vm7.chain[0], replace(vm7.chain[1], host="hv3")))
    points = {**base.vswitches, "hv3": Point("hv3.vswitch", PointKind.VSWITCH, "hv3")}
    return replace(base, hosts=(*base.hosts, host("hv3", 3)), guests=(*base.guests, vm7), vswitches=points)


PLAN = RunPlan("lies", tuple(SessionPlan(f"{a}-{b}", a, b, count=COUNT, rate_pps=100) for a, b in PAIRS), 1, 1_000 * MS)
PREPARED = [
    replace(one, probe=replace(one.probe, session=100 + i))
    for i, one in enumerate(prepare_run(PLAN, cloud(), lambda *_: [61_000]))
]
SESSIONS = [one.probe.session for one in PREPARED]


def owner(point):
    """The part that looks at a point: the one of its host, or of the host that the guest is on."""
    where = point.host
    if point.kind is PointKind.GUEST:
        where = "hv1" if point.host in ("vm1", "vm3") else "hv3" if point.host == "vm7" else "hv2"
    return {"hv1": "hv1", "hv2": "hv2"}.get(where, "liar")


def new_collection():
    collection = Collection(one.probe for one in PREPARED)
    collection.peers, collection.lasts_s = frozenset(HOSTS.values()), 100
    for one in PREPARED:
        collection.add_points(s.point for s in one.stops)
        collection.expect(one.probe.session, one.path)
    for part in HOSTS:
        mine = [i for i, p in enumerate(collection.points) if owner(p) == part]
        collection.add_part(part, mine, [n for n, sender in zip(SESSIONS, SENDERS, strict=True) if sender == part])
    return collection


POINTS = new_collection().points
INDEX = new_collection().index


def column(dtype, *values):
    return np.array(values, dtype)


def honest(lost):
    """What honest parts report, by part: all delivered and answered, at 10 us from stop to stop.

    But for those in `lost`, by place in the plan and seq: how many stops it passed.
    """
    reports = {part: [] for part in HOSTS}
    for number, (one, sender) in enumerate(zip(PREPARED, SENDERS, strict=True)):
        session = one.probe.session
        start = BASE_NS + number * MS + np.arange(COUNT) * 10 * MS
        sent = start + OFFSETS_NS[HOSTS[sender]]
        reports[sender].append(SentReport(session, 0, sent, sent, Pacing(1, 2, 3)))
        for seq in range(COUNT):
            stops = [(Leg.FORWARD, s) for s in one.path.forward] + [(Leg.RETURN, s) for s in one.path.returned]
            for i, (leg, stop) in enumerate(stops[: lost.get((number, seq), len(stops))]):
                if not stop.is_observed_by_ring:
                    continue
                part, point = owner(stop.point), INDEX[stop.point.place]
                t_ns = int(start[seq]) + i * 10 * US + OFFSETS_NS[HOSTS[part]]
                row = HopRecord(t_ns, session, seq, point, int(stop.direction), int(leg))
                reports[part].append(Hops(HopBatch.of([row])))
                if leg is Leg.RETURN:
                    t2 = int(start[seq]) + len(one.path.forward) * 10 * US
                    times = column(np.int64, t2), column(np.int64, t2 + 1), column(np.int64, -1), column(np.int64, t_ns)
                    who = column(np.uint16, point), column(np.uint32, session), column(np.uint32, seq)
                    reports[part].append(Sightings(*who, *times))
    for part, peer in (("hv1", "hv2"), ("hv2", "hv1")):
        t1 = BASE_NS + np.arange(40, dtype=np.int64) * 25 * MS
        here, there = OFFSETS_NS[part], OFFSETS_NS[peer]
        stamps = t1 + here, t1 + 50 * US + there, t1 + 51 * US + there, t1 + 101 * US + here
        reports[part].append(Exchanges(peer, *stamps))
    for part in reports:
        reports[part] += [Watermark(NOW_NS + OFFSETS_NS[HOSTS[part]]), PartDone({"port_dropped": 0})]
    return reports


ALL = range(len(PREPARED))


def settled(collection, which=ALL):
    """The documents of these sessions, as a spread run makes them."""
    clocks = clock_maps(collection, HOSTS)
    leads = {HOSTS[name]: record.lead_ns or 0 for name, record in collection.parts.items()}
    facts = RunFacts(PLAN, collection, NOW_NS, clocks, leads)
    prepared = [PREPARED[i] for i in which]
    found = settle_run(prepared, {one.probe.session: [Epoch(one.path)] for one in prepared}, facts)
    documents = [session_result(one, facts, None, {}).to_json() for one in found]
    for document in documents:
        document["counters"].pop("refused_reports")  # the same count everywhere: that somebody lied
    return documents


def collected(reports, lies, liar, *, seed=0):
    """The collection after honest reports, with lies thrown in anywhere; `liar` itself reports nothing else."""
    collection, rng = new_collection(), np.random.default_rng(seed)
    queues = {part: list(mine) for part, mine in reports.items() if part != liar}
    queues[liar] = list(lies)
    while any(queues.values()):
        part = rng.choice(sorted(p for p, q in queues.items() if q))
        collection.take(str(part), queues[part].pop(0), NOW_NS)
    return collection


# ---------------------------------------------------------------------------------------------------------------------
# Lies
# ---------------------------------------------------------------------------------------------------------------------

EXTREMES = [-(2**63), -1, 0, 1, BASE_NS - 10 * MS, BASE_NS, BASE_NS + 5 * MS, BASE_NS + 900 * MS, NOW_NS, FOR_EVER_NS]
times = st.sampled_from([*EXTREMES, FOR_EVER_NS - 1, 2**63 - 1]) | st.integers(BASE_NS, NOW_NS)
late = st.sampled_from([0, 1, BASE_NS, NOW_NS, NOW_NS + 10**15, FOR_EVER_NS - 1, FOR_EVER_NS, 2**63 - 1])
points = st.integers(0, len(POINTS) + 1) | st.just(0xFFFF)
numbers = st.sampled_from([*SESSIONS, 99, 0, 2**32 - 1])
seqs = st.integers(0, COUNT + 1) | st.just(2**32 - 1)
texts = st.sampled_from(["", "no", "x" * 300])
counts = st.sampled_from([0, 1, 2**53])


@st.composite
def hops(draw):
    small, index = st.integers(0, 3), st.sampled_from([0, 1, 65_535])
    rows = st.tuples(times, numbers, seqs, points, small, small, index)
    return Hops(HopBatch.of([HopRecord(*row) for row in draw(st.lists(rows, max_size=30))]))


@st.composite
def sightings(draw):
    rows = draw(st.lists(st.tuples(points, numbers, seqs, times, times, times, times), max_size=20))
    dtypes = (np.uint16, np.uint32, np.uint32, np.int64, np.int64, np.int64, np.int64)
    columns = zip(*rows, strict=True) if rows else [()] * 7
    return Sightings(*(np.array(values, dtype) for values, dtype in zip(columns, dtypes, strict=True)))


@st.composite
def sent_reports(draw):
    size = draw(st.integers(0, COUNT + 2))
    columns = [np.array(draw(st.lists(times, min_size=size, max_size=size)), np.int64) for _ in range(2)]
    first = draw(st.sampled_from([0, 0, 0, 3, COUNT, 2**32 - 1]))
    pacing = draw(st.none() | st.just(Pacing(2**53, 0, 2**53)))
    return SentReport(draw(numbers), first, *columns, pacing, draw(counts), draw(texts), draw(st.booleans()))


@st.composite
def exchanges(draw):
    size = draw(st.integers(0, 12))
    columns = [np.array(draw(st.lists(times, min_size=size, max_size=size)), np.int64) for _ in range(4)]
    return Exchanges(draw(st.sampled_from(["hv1", "hv2", "fabric", "hv9", ""])), *columns)


def plausible(seed):
    """Records and answers that look well: any session, any point, times that fit."""
    rng, many = np.random.default_rng(seed), 400
    who = rng.integers(0, len(POINTS), many), rng.choice(SESSIONS, many), rng.integers(0, COUNT, many)
    when = BASE_NS + rng.integers(0, 200 * MS, many)
    how = rng.integers(0, 2, many), rng.integers(0, 2, many)
    rows = [HopRecord(*map(int, row)) for row in zip(when, who[1], who[2], who[0], *how, strict=True)]
    columns = (who[0].astype(np.uint16), who[1].astype(np.uint32), who[2].astype(np.uint32))
    seen = Sightings(*columns, when, when + 1, rng.integers(-1, COUNT, many), when + 2 * MS)
    return Hops(HopBatch.of(rows)) if seed % 2 else seen


contexts = st.builds(
    HopContext,
    st.ip_addresses(),
    st.ip_addresses(),
    st.sampled_from([(), (1, 2)]),
    st.sampled_from(list(Tunnel)),
    st.integers(0, 7),
)
tallies = st.builds(Tally, forged=counts, dropped=counts, remarked=st.dictionaries(numbers, counts, max_size=3))
lies = st.lists(
    st.one_of(
        st.builds(plausible, st.integers(0, 2**16)),
        hops(),
        sightings(),
        sent_reports(),
        exchanges(),
        st.builds(Contexts, points, st.sampled_from([0, 1, 2**40]), st.lists(contexts, max_size=4).map(tuple)),
        st.builds(Tallies, st.dictionaries(points, tallies, max_size=4)),
        st.builds(Blind, points, late, late, texts),
        st.builds(Unwatched, points, texts, late),
        st.builds(Watermark, late, counts),
        st.builds(PartDone, st.dictionaries(texts, counts, max_size=2), texts),
    ),
    max_size=12,
)


def on_wire(reports):
    """Lies as they come: what no block can hold is none."""
    return [decoded for report in reports for decoded in decode_reports_untrusted(encode_reports([report]))]


ALL_WELL = honest({})
SOME_LOST = honest({(0, 3): 2, (1, 4): 2, (2, 5): 2, (2, 6): 6})
WITHOUT = {
    (liar, name): settled(collected(reports, [], liar))
    for liar in ("liar", "hv2")
    for name, reports in (("well", ALL_WELL), ("lost", SOME_LOST))
}


def away_from(liar):
    """The sessions that pass no point of the liar's, by their place in the plan."""
    return [
        i
        for i, (one, sender) in enumerate(zip(PREPARED, SENDERS, strict=True))
        if sender != liar and all(owner(s.point) != liar for s in one.stops)
    ]


def test_the_sessions_are_what_the_tests_below_think():
    """A session away from either liar, and one through the middle."""
    assert away_from("liar") == [0, 1]
    assert away_from("hv2") == [0, 3]
    assert {owner(s.point) for s in PREPARED[2].stops} == {"hv1", "hv2", "liar"}
    well = WITHOUT["liar", "well"]
    assert [one["received"] for one in well[:3]] == [COUNT] * 3
    assert [one["return"]["delivered"] for one in well[:3]] == [COUNT] * 3
    lost = WITHOUT["liar", "lost"]
    assert [one["lost"] for one in lost[:3]] == [1, 1, 2]


@pytest.mark.parametrize("liar", ["liar", "hv2"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(lies=lies, seed=st.integers(0, 2**16))
def test_no_lie_changes_what_others_saw(liar, lies, seed):
    """Sessions that pass none of the liar's points: to the last figure the same, with losses and without."""
    name, reports = ("well", ALL_WELL) if seed % 2 else ("lost", SOME_LOST)
    others = away_from(liar)
    told = settled(collected(reports, on_wire(lies), liar, seed=seed), others)
    assert told == [WITHOUT[liar, name][i] for i in others]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lies=lies, seed=st.integers(0, 2**16))
def test_no_lie_in_the_middle_changes_what_both_ends_saw(lies, seed):
    """All went well from hv1 to hv2, and both saw it: the ledger, and each segment between their points, stand."""
    told = settled(collected(ALL_WELL, on_wire(lies), "liar", seed=seed), [2])[0]
    without = WITHOUT["liar", "well"][2]
    for leg, other in ((told, without), (told["return"], without["return"])):
        for key in ("planned", "unsent", "lost", "unobserved", "pending", "late"):
            assert leg[key] == other[key]
        theirs = {s.id for s in POINTS if owner(s) == "liar"}
        figures = {s["id"]: s for s in other["segments"]}
        compared = [s for s in leg["segments"] if theirs.isdisjoint(s["id"].split("..")) and s["id"] in figures]
        assert len(compared) >= 4
        for segment in compared:
            assert segment == figures[segment["id"]]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lies=lies, seed=st.integers(0, 2**16))
@example(lies=[Watermark(FOR_EVER_NS - 1), PartDone()], seed=1)
def test_what_the_liar_sees_makes_no_loss_of_what_was_seen_further_on(lies, seed):
    """Silence at its own points, however well vouched for, is never a loss of a probe that arrived."""
    told = settled(collected(ALL_WELL, on_wire(lies), "liar", seed=seed), [2])[0]
    assert (told["lost"], told["unobserved"], told["received"]) == (0, 0, COUNT)


def made_up_answer(seq):
    """An answer to a lost probe of the session through the middle, with times that fit."""
    at = INDEX["fabric/fabric.hv1"]
    t2 = BASE_NS + 2 * MS + seq * 10 * MS + 80 * US
    who = column(np.uint16, at), column(np.uint32, 102), column(np.uint32, seq)
    return Sightings(*who, *(column(np.int64, n) for n in (t2 + 5 * MS, t2 + 5 * MS + 1, -1, t2 + 50 * US)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lies=lies, seed=st.integers(0, 2**16))
@example(lies=[made_up_answer(5), made_up_answer(6)], seed=0)
def test_no_answer_can_be_made_up(lies, seed):
    """A probe that hv2, which looked, never saw is not delivered because somebody says that he saw its answer."""
    told = settled(collected(SOME_LOST, on_wire(lies), "liar", seed=seed), [2])[0]
    assert told["received"] == COUNT - 2


@pytest.mark.parametrize("liar", ["liar", "hv2"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(lies=lies, seed=st.integers(0, 2**16))
def test_no_lie_keeps_a_run_from_its_end(liar, lies, seed):
    """Every session gets a document that fits into JSON, the liar's own among them."""
    documents = settled(collected(SOME_LOST, on_wire(lies), liar, seed=seed))
    for document in documents:
        msgspec.json.decode(msgspec.json.encode(document))
        fates = sum(document[k] for k in ("unsent", "received", "lost", "unobserved", "pending"))
        assert fates == document["planned"]


@given(lies=lies)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_refused_is_counted(lies):
    """Every record and word about others' points and sessions appears in the counters, and nowhere else."""
    collection = new_collection()
    own, sends = collection.parts["liar"].points, collection.parts["liar"].sessions
    for report in on_wire(lies):
        collection.take("liar", report)
    refused = collection.parts["liar"].refused
    assert set(collection.hops().point.tolist()) <= own
    assert not (set(collection.tallies) | set(collection.contexts) | set(collection.unwatched)) - own
    assert {w.point for w in collection.windows()} <= own | {
        i for name, record in collection.parts.items() if name != "liar" for i in record.points
    }
    assert all(not s.told.any() for number, s in collection.sendings.items() if number not in sends)
    foreign = sum(
        int(np.count_nonzero(~np.isin(r.hops.point, list(own)))) for r in on_wire(lies) if isinstance(r, Hops)
    )
    if foreign and not any(isinstance(r, PartDone) for r in lies):
        assert refused["points"] + refused["records"] >= foreign


def test_a_sender_cannot_take_back_what_it_said():
    """The first word stands, and more words after the last one are refused."""
    collection = new_collection()
    sent = np.arange(1, COUNT + 1, dtype=np.int64)
    collection.take("liar", SentReport(103, 0, sent[:4], sent[:4], is_last=False))
    collection.take("liar", SentReport(103, 0, sent * 7, sent * 7))
    collection.take("liar", SentReport(103, 0, sent * 9, sent * 9))
    assert collection.sendings[103].times_ns.tolist() == [*sent[:4].tolist(), *(sent[4:] * 7).tolist()]
    assert collection.parts["liar"].refused["sends"] == 4 + 1


def test_a_flood_of_records_takes_bounded_room_and_proves_nothing():
    """Records by the million at its own points: some are kept, and what it did not see then counts for nothing."""
    collection = new_collection()
    mine = min(i for i in collection.parts["liar"].points if POINTS[i].host == "fabric")
    rows = [HopRecord(BASE_NS, 102, seq % COUNT, mine, 0, 0) for seq in range(1_000)]
    batch = Hops(HopBatch.of(rows))
    for _ in range(100):
        collection.take("liar", batch)
    assert len(collection.hops()) == collecting.MIN_ROWS
    assert collection.parts["liar"].refused["too-many"] == 100_000 - collecting.MIN_ROWS
    assert (mine, 0, FOR_EVER_NS) in {(w.point, w.start_ns, w.end_ns) for w in collection.windows()}
    assert collection.overflowed[mine]


def test_other_floods_take_bounded_room():
    """Blind windows and contexts: each has its bound."""
    collection = new_collection()
    mine = min(collection.parts["liar"].points)
    for i in range(3_000):
        collection.take("liar", Blind(mine, i, i + 1, "so"))
        context = HopContext(IPv4Address(i), IPv4Address(i))
        collection.take("liar", Contexts(mine, len(collection.contexts.get(mine, ())), (context, context)))
    assert sum(w.point == mine for w in collection.windows()) <= collecting.MAX_WINDOWS + 1
    assert len(collection.contexts[mine]) == collecting.MAX_CONTEXTS


def test_exchanges_with_clocks_are_no_more_than_the_run_can_have_seen():
    """As many seconds as the run lasts, so many rows in each, and of clocks that take part."""
    collection = new_collection()
    collection.lasts_s = 20
    for second in range(1, 51):
        t = np.full(1_000, second * 1_000 * MS, np.int64)
        for peer in ("hv1", "hv2", "hv9"):
            collection.take("liar", Exchanges(peer, t, t, t, t))
            collection.take("liar", Exchanges(peer, t[::-1], t, t, t))
    record = collection.parts["liar"]
    assert {e.peer for e in record.exchanges} == {"hv1", "hv2"}
    assert [len(e.t1_ns) for e in record.exchanges] == [20 * collecting.EXCHANGES_A_SECOND] * 2
    assert record.refused["exchanges"] == 300_000 - 40 * collecting.EXCHANGES_A_SECOND


@given(st.lists(st.integers(0, 5), max_size=60))
@settings(deadline=None, derandomize=True)
def test_a_pile_keeps_rows_in_order_in_few_pieces(sizes):
    """Whatever the pieces, the rows are those that came, and no more than a few arrays hold them."""
    pile, dtype = RowPile(np.dtype([("n", "<i8")])), np.dtype([("n", "<i8")])
    rows = np.zeros(sum(sizes), dtype)
    rows["n"] = np.arange(sum(sizes))
    at = 0
    for size in sizes:
        pile.add(rows[at : at + size])
        at += size
    assert len(pile) == len(rows)
    assert len(pile._pieces) <= 8
    assert pile.rows().tolist() == rows.tolist()


def report(kind, header=b"\xc0", body=b""):
    return struct.pack("<BII", kind, len(header), len(body)) + header + body


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (report(8, msgspec.msgpack.encode([1, 0])) * (blocks.MAX_REPORTS + 1), "more than"),
        (report(9, b"\x81" * (blocks.MAX_HEADER_BYTES + 1)), "does not fit"),
        (report(2, msgspec.msgpack.encode([1, 0, [["1.2.3.4"] * 7] * 5_000])), "damaged"),
        (report(3, msgspec.msgpack.encode([{i: {} for i in range(2_000)}, {}])), "damaged"),
        (report(9, msgspec.msgpack.encode([{"agent_shed": 2**60}, ""])), "damaged"),
        (report(8, msgspec.msgpack.encode([1, 2**60])), "damaged"),
    ],
)
def test_a_block_that_would_take_long_or_says_too_much_is_garbage(block, why):
    """Reports without number, headers without end, counts that fit into no database."""
    with pytest.raises(WireError, match=why):
        decode_reports_untrusted(block)


def test_words_of_an_agent_are_short_and_can_be_seen():
    """They go to terminals: no escape sequences, no megabytes."""
    (told,) = decode_reports_untrusted(encode_reports([Unwatched(1, "\x1b[2J" + "x" * 10_000)]))
    assert told.why.startswith("?[2Jx")
    assert len(told.why) == blocks.MAX_TEXT


def test_tallies_of_many_points_are_several_reports():
    """What one report may not hold is told in two."""
    told = {i: Tally(forged=i) for i in range(blocks.MAX_TALLIES + 5)}
    back = decode_reports_untrusted(encode_reports([Tallies(told)]))
    assert len(back) == 2
    assert back[0].by_point | back[1].by_point == told
