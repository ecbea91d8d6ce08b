"""What a collection believes of parts; a run that was cut, moved or lied about says no loss where nobody looked."""

from dataclasses import replace

import numpy as np
import pytest
from support.clouds import pair

from netprobe.collect.answers import Answers, proved_unreflected
from netprobe.collect.epochs import Epoch, epoch_input
from netprobe.collect.ledger import Fate
from netprobe.collect.results import leg_result
from netprobe.collect.session import SessionInput, settle_session
from netprobe.model.observations import Hops, PartDone, SentReport, Sightings, Watermark
from netprobe.model.points import Direction, Leg, Path, Point, PointKind, Stamp, Stop, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.records import HopBatch, HopRecord
from netprobe.plan.paths import build_path
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.collection import Collection
from netprobe.service.moves import are_ports_known
from netprobe.service.prepare import prepare_run
from netprobe.service.settling import RunFacts, settle_run

MS = 1_000_000
T0 = 1_700_000_000_000_000_000
TMAX_NS = 1_000 * MS
COUNT = 20
STRANGER = Point("hv9.nic", PointKind.NIC, "hv9", "hv9", "eth0")


def plan(protocol):
    session = SessionPlan(
        name="s",
        src="vm1",
        dst="vm2",
        vantage=Vantage.GUEST,
        protocol=protocol,
        family=4,
        count=COUNT,
        rate_pps=100,
        dst_port=9 if protocol is Protocol.RAW_UDP else 862,
    )
    return RunPlan("p", (session,), seed=1, tmax_ns=TMAX_NS)


class Run:
    """One session vm1 -> vm2 in two parts, hv1 (which sends) and hv2, and a third that is not on its way."""

    def __init__(self, protocol=Protocol.RAW_UDP):
        self.topology = pair()
        self.plan = plan(protocol)
        (self.one,) = prepare_run(self.plan, self.topology, lambda *_: range(61_000, 61_001))
        self.session = self.one.probe.session
        self.collection = Collection([self.one.probe])
        self.epochs = [Epoch(self.one.path)]
        self.begin(self.one.path)
        self.collection.add_points([STRANGER])
        for name in ("hv1", "hv2", "hv9"):
            mine = [i for i, p in enumerate(self.collection.points) if p.host in (name, {"hv1": "vm1"}.get(name))]
            self.collection.add_part(name, mine, [self.session] if name == "hv1" else [])
        self.collection.add_part("fabric", [i for i, p in enumerate(self.collection.points) if p.host == "fabric"], [])
        self.collection.add_part("hv2", [self.collection.index[s.point.place] for s in self.one.path.forward[-1:]], [])
        self.sent_ns = T0 + self.one.due_ns

    def begin(self, path):
        self.collection.add_points(s.point for s in (*path.forward, *path.returned))
        self.collection.expect(self.session, path)

    def part_of(self, point):
        index = self.collection.index[point.place]
        return next(name for name, part in self.collection.parts.items() if index in part.points)

    def see(self, path, seqs, upto=None):
        """Rings of a path see these probes, 0.1 ms a stop."""
        for i, stop in enumerate(path.forward[1:upto], 1):
            if stop.is_observed_by_ring:
                self.record(stop, [(int(s), int(self.sent_ns[s]) + i * MS // 10) for s in seqs])

    def record(self, stop, rows, part=None):
        index = self.collection.index[stop.point.place]
        records = [HopRecord(t, self.session, s, index, int(stop.direction), int(Leg.FORWARD)) for s, t in rows]
        self.collection.take(part or self.part_of(stop.point), Hops(HopBatch.of(records)))

    def tell_sent(self):
        self.collection.take("hv1", SentReport(self.session, 0, self.sent_ns, self.sent_ns))

    def end(self, *names, why=""):
        for name in names:
            self.collection.take(name, Watermark(T0 + 60_000 * MS))
            self.collection.take(name, PartDone(why=why))

    def settle(self, **more):
        facts = RunFacts(self.plan, self.collection, T0 + 60_000 * MS, **more)
        return settle_run([self.one], {self.session: self.epochs}, facts)


def fates(settled):
    return [Fate(f) for f in settled.outcome.forward.ledger.fate]


@pytest.mark.parametrize("why", [None, "the agent was stopped"])
def test_a_part_that_ended_early_is_blind_from_then_on(why):
    """Whether its agent was killed or stopped in good order: what it did not see afterwards is unobserved, not lost."""
    run = Run()
    run.tell_sent()
    run.see(run.one.path, range(COUNT), upto=-2)
    run.see(run.one.path, range(5))
    run.end("hv1", "fabric", "hv9")
    run.collection.take("hv2", Watermark(int(run.sent_ns[4]) + 2 * MS))
    if why:
        run.collection.take("hv2", PartDone(why=why))
    (settled,) = run.settle()
    assert fates(settled) == [Fate.DELIVERED] * 5 + [Fate.UNOBSERVED] * 15


def test_a_part_that_saw_it_through_can_say_no():
    """Its silence is loss."""
    run = Run()
    run.tell_sent()
    run.see(run.one.path, range(COUNT), upto=-1)
    run.see(run.one.path, range(5))
    run.end("hv1", "hv2", "fabric", "hv9")
    (settled,) = run.settle()
    assert fates(settled) == [Fate.DELIVERED] * 5 + [Fate.LOST] * 15


def sightings(run, point):
    n = np.arange(COUNT)
    columns = (run.sent_ns + 2 * MS, run.sent_ns + 3 * MS, n.astype(np.int64), run.sent_ns + 4 * MS)
    index = np.full(COUNT, run.collection.index[point.place], np.uint16)
    return Sightings(index, np.full(COUNT, run.session, np.uint32), n.astype(np.uint32), *columns)


def test_an_agent_that_is_not_on_the_way_cannot_make_a_lost_probe_delivered():
    """Answers that it claims to have seen at its own points are refused; those of a host on the way count."""
    run = Run(Protocol.UDP)
    run.tell_sent()
    run.see(run.one.path, range(COUNT), upto=3)
    run.collection.take("hv9", sightings(run, STRANGER))
    run.end("hv1", "hv2", "fabric", "hv9")
    (settled,) = run.settle()
    assert fates(settled) == [Fate.LOST] * COUNT
    assert run.collection.parts["hv9"].refused["records"] == COUNT
    honest = Run(Protocol.UDP)
    honest.tell_sent()
    backend = next(s.point for s in honest.one.path.returned if s.point.id == "vm2.backend")
    honest.collection.take("hv2", sightings(honest, backend))
    honest.end("hv1", "hv2", "fabric", "hv9")
    assert fates(honest.settle()[0]) == [Fate.DELIVERED] * COUNT


def test_an_agent_that_is_not_on_the_way_cannot_make_an_unsent_probe_lost():
    """Records of a session that passes none of its points are refused: they prove no sending, and no forgery."""
    run = Run()
    nothing = np.zeros(COUNT, np.int64)
    run.collection.take("hv1", SentReport(run.session, 0, nothing, nothing))
    run.record(Stop(STRANGER, Direction.IN, Stamp.KERNEL_RX), [(s, T0 + s) for s in range(COUNT)])
    run.end("hv1", "hv2", "fabric", "hv9")
    (settled,) = run.settle()
    assert fates(settled) == [Fate.UNSENT] * COUNT
    assert settled.outcome.forged == 0
    assert run.collection.parts["hv9"].refused["sessions"] == COUNT


def moved_run(protocol, at, *, noticed):
    """vm2 moves to hv1 in truth just before probe `at` leaves; followed before probe `noticed` leaves."""
    run = Run(protocol)
    moved = replace(run.topology.guest("vm2", "test"), host="hv1")
    backend = replace(moved.chain[1], host="hv1", netns="hv1")
    moved = replace(moved, chain=(moved.chain[0], backend))
    path = build_path(run.topology, run.one.sender, moved, Vantage.GUEST, protocol)
    run.begin(path)
    run.collection.add_part("hv1", [run.collection.index[backend.place]], ())
    since_ns = int(run.sent_ns[noticed]) - MS
    run.epochs.append(Epoch(path, since_ns, "vm2 moved", since_ns - MS))
    run.see(run.one.path, range(at))
    run.see(path, range(at, noticed), upto=-1)  # vm1's own tap sees all
    run.see(path, range(noticed, COUNT))
    return run, path


def test_a_sender_that_told_nothing_does_not_put_all_probes_on_the_first_path():
    """Its agent died after the guest had moved: what points saw says which path each probe had."""
    run, _ = moved_run(Protocol.RAW_UDP, 12, noticed=12)
    run.end("hv1", "hv2", "fabric", "hv9")
    first, second = run.settle()
    assert (first.first, first.end, second.end) == (0, 12, COUNT)
    assert fates(first) == [Fate.DELIVERED] * 12
    assert fates(second) == [Fate.DELIVERED] * 8


def test_what_took_the_new_path_before_it_was_noticed_is_not_lost_on_the_old_one():
    """Nobody looked for probes 8 to 11 where they went. What the new path's points saw of them is no forgery."""
    run, path = moved_run(Protocol.RAW_UDP, 8, noticed=12)
    run.tell_sent()
    run.record(path.forward[-1], [(11, int(run.sent_ns[11]) + MS)])
    run.end("hv1", "hv2", "fabric", "hv9")
    first, second = run.settle()
    assert fates(first) == [Fate.DELIVERED] * 8 + [Fate.UNOBSERVED] * 4
    assert fates(second) == [Fate.DELIVERED] * 8
    assert first.outcome.forged == second.outcome.forged == 0


def test_a_point_was_blind_before_it_was_looked_at():
    """Hosts' clocks are known to some tenths of a second: the first probes of a new path may have met nobody."""
    run, _ = moved_run(Protocol.RAW_UDP, 8, noticed=8)
    run.tell_sent()
    run.end("hv1", "hv2", "fabric", "hv9")
    since_ns = run.epochs[1].from_ns
    run.epochs[1] = replace(run.epochs[1], from_ns=since_ns - 40 * MS)  # noted too early by that much
    _, second = run.settle(leads_ns={"hv1": 0, "hv2": 0})
    assert (second.first, fates(second)[:4]) == (4, [Fate.UNOBSERVED] * 4)
    assert fates(second)[4:] == [Fate.DELIVERED] * 12


def test_losses_long_before_a_move_are_still_losses():
    """Only what was sent shortly before the path changed may have gone another way."""
    run, _ = moved_run(Protocol.RAW_UDP, 4, noticed=12)
    run.tell_sent()
    run.end("hv1", "hv2", "fabric", "hv9")
    run.epochs[1] = replace(run.epochs[1], noticed_ns=int(run.sent_ns[6]) + 2_000 * MS)
    first, _ = run.settle()
    assert fates(first)[4:] == [Fate.LOST] * 2 + [Fate.UNOBSERVED] * 6


def test_what_a_point_missed_on_the_way_in_and_out_is_added_up():
    """A leg through a gateway passes a NIC twice."""
    ids = ["a", "gw.nic", "gw.nic", "b"]
    points = {i: Point(i, PointKind.NIC, "h", "h", i) for i in ids}
    directions = (Direction.OUT, Direction.IN, Direction.OUT, Direction.OUT)
    stops = tuple(Stop(points[i], d, Stamp.KERNEL_RX) for i, d in zip(ids, directions, strict=True))
    index = {i: n for n, i in enumerate(points)}
    sent = T0 + np.arange(4) * MS
    rows = [HopRecord(int(t) + 1, 1, s, index["b"], 1, 0) for s, t in enumerate(sent)]
    rows += [HopRecord(int(sent[0]), 1, 0, index["gw.nic"], 1, 0)]
    given = SessionInput(1, Path(stops), index, sent, sent, TMAX_NS, T0 + 9_000 * MS, HopBatch.of(rows), Answers.none())
    assert leg_result(settle_session(given).forward).missed == {"gw.nic": 4 + 3}


def test_a_stateful_reflectors_count_of_earlier_epochs_proves_no_loss():
    """Ten were lost in the first epoch, so that its numbers lag behind; the answer to 22 was lost on the way back."""
    count, first = 40, 20
    sent = T0 + np.arange(count) * 10 * MS
    seqs = np.array([s for s in range(10, count) if s != 22])
    times = (sent[seqs] + MS, sent[seqs] + MS + 1_000, seqs - 10, sent[seqs] + 2 * MS)
    answers = Answers(seqs.astype(np.uint32), *times)
    given = SessionInput(1, Path(()), {}, sent, sent, TMAX_NS, T0, HopBatch.empty(), answers)
    epoch = epoch_input(given, Path(()), (first, count))
    assert not proved_unreflected(sent[first:], sent[first:], epoch.answers, 3 * MS).any()
    stateless = replace(given, answers=replace(answers, reflector_seq=seqs.astype(np.int64)))
    shifted = epoch_input(stateless, Path(()), (first, count)).answers
    assert (shifted.reflector_seq == shifted.seq).all()


def test_a_move_is_followed_when_the_new_hosts_port_is_known():
    """OVN says where a guest is before its new host says by which port; a ring that is opened then looks nowhere."""
    run = Run()
    device = run.one.path.forward[-1].point
    unknown = Stop(replace(device, device=""), Direction.OUT, Stamp.KERNEL_RX)
    early = Path((*run.one.path.forward[:-1], unknown), run.one.path.returned)
    assert not are_ports_known([(run.one, early, "moved")])
    assert are_ports_known([(run.one, run.one.path, "moved")])
