"""A session whose guest moved: its probes are divided among its paths, none lost and none counted twice."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clouds import topology

from netprobe.collect.answers import Answers
from netprobe.collect.epochs import Epoch, epoch_bounds, epoch_input
from netprobe.collect.ledger import Fate
from netprobe.collect.session import SessionInput, settle_session
from netprobe.model.observations import FOR_EVER_NS
from netprobe.model.points import Direction, Leg, Path, Point, PointKind, Stamp, Stop, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.records import HopBatch, HopRecord
from netprobe.plan.paths import build_path

MS = 1_000_000
START = 1_700_000_000_000_000_000


@settings(deadline=None, derandomize=True)
@given(
    left=st.lists(st.integers(0, 1_000), max_size=40).map(sorted),
    changes=st.lists(st.integers(0, 1_200), max_size=4).map(sorted),
)
def test_every_probe_belongs_to_one_epoch(left, changes):
    """Whatever the times, the ranges follow each other and cover all numbers, and each probe is in its own time."""
    epochs = [Epoch(Path(())), *(Epoch(Path(()), at) for at in changes)]
    bounds = epoch_bounds(epochs, np.array(left, np.int64))
    assert [b for b, _ in bounds] == [0, *(e for _, e in bounds[:-1])]
    assert bounds[-1][1] == len(left)
    for (first, end), epoch in zip(bounds, epochs, strict=True):
        assert all(left[seq] >= epoch.from_ns for seq in range(first, end))


def test_a_change_that_is_not_watched_yet_takes_no_probe():
    """An epoch that begins in the future of all probes is empty."""
    bounds = epoch_bounds([Epoch(Path(())), Epoch(Path(()), FOR_EVER_NS)], np.array([1, 2, 3], np.int64))
    assert bounds == [(0, 3), (3, 3)]


def test_each_epoch_is_settled_on_its_own_path():
    """10 probes, from number 6 on along another backend: all delivered, six on the one path and four on the other."""
    cloud = topology()
    vm1, vm2 = cloud.guest("vm1", "test"), cloud.guest("vm2", "test")
    old = build_path(cloud, vm1, vm2, Vantage.GUEST, Protocol.RAW_UDP)
    moved = Point("vm2.backend", PointKind.BACKEND, "hv9", "hv9", "tapvm2")
    new = Path((*old.forward[:-1], Stop(moved, Direction.OUT, Stamp.KERNEL_RX)))
    sent = START + np.arange(10) * 10 * MS
    places = {s.point.place: i for i, s in enumerate((*old.forward, new.forward[-1]))}
    rows = []
    for seq in range(10):
        last = old.forward[-1] if seq < 6 else new.forward[-1]
        for hop, stop in enumerate((old.forward[1], last)):
            at = int(sent[seq]) + (hop + 1) * MS
            rows.append(HopRecord(at, 7, seq, places[stop.point.place], int(stop.direction), int(Leg.FORWARD)))
    epochs = [Epoch(old), Epoch(new, int(sent[6]), "vm2 moved")]
    fates = []
    for epoch, bounds in zip(epochs, epoch_bounds(epochs, sent), strict=True):
        index = {s.point.id: places[s.point.place] for s in epoch.path.forward}
        given_ = SessionInput(
            session=7,
            path=epoch.path,
            point_index=index,
            sent_ns=sent,
            sender_ns=sent,
            tmax_ns=100 * MS,
            now_ns=int(sent[-1]) + 1_000 * MS,
            hops=HopBatch.of(rows),
            answers=Answers.none(),
        )
        outcome = settle_session(epoch_input(given_, epoch.path, bounds))
        fates.append(outcome.forward.ledger.fate.tolist())
    assert fates == [[Fate.DELIVERED] * 6, [Fate.DELIVERED] * 4]


def test_a_stateless_reflector_stays_one_in_a_later_epoch():
    """It copies the probe's own number: numbered from 0 in its epoch, the probe and its copy still agree."""
    n = np.arange(4)
    answers = Answers(n.astype(np.uint32), n, n, n, n)
    given_ = SessionInput(
        session=7,
        path=Path(()),
        point_index={},
        sent_ns=n,
        sender_ns=n,
        tmax_ns=1,
        now_ns=9,
        hops=HopBatch.empty(),
        answers=answers,
    )
    later = epoch_input(given_, Path(()), (2, 4)).answers
    assert later.seq.tolist() == later.reflector_seq.tolist() == [0, 1]
