"""What a collector keeps of a run: saved and taken up again it is the same, and blocks are taken once."""

import msgspec
import pytest
import trio
from support.clouds import topology

from netprobe.collect.epochs import Epoch
from netprobe.errors import HostNotReadyError
from netprobe.model.observations import Hops, Watermark
from netprobe.model.records import HopBatch, HopRecord
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.agents import Agents
from netprobe.service.kept_run import Part, Taken
from netprobe.service.prepare import prepare_run
from netprobe.service.run_files import ORDER, RunFolder, unfinished_runs
from netprobe.service.spread_run import SpreadRun, load_run
from netprobe.wire.blocks import encode_reports

BOOT, OTHER_BOOT = "a" * 32, "b" * 32


@pytest.fixture
def run(tmp_path):
    """A run of one session under way, with parts of two agents: hv1 reports the first two points, hv2 the rest."""
    cloud = topology()
    plan = RunPlan("kept", (SessionPlan("s", "vm1", "vm2", count=5),), seed=3)
    made = SpreadRun(RunFolder(tmp_path / "r1"), plan, cloud, agents=Agents())
    made.prepared = prepare_run(plan, cloud, lambda *_: (61_000,))
    made.collection = type(made.collection)(one.probe for one in made.prepared)
    for one in made.prepared:
        made.begin_epoch(one, Epoch(one.path))
        made.begin_epoch(one, Epoch(one.path, 99, "vm2 moved", 98))
    made.hosts = {"hv1": "hv1", "hv2": "hv2"}
    made.parts = {
        "hv1": Part("hv1", BOOT, [0, 1], [one.probe.session for one in made.prepared]),
        "hv2": Part("hv2", BOOT, [2, 3], []),
    }
    for part in made.parts.values():
        made.collection.add_part(part.agent, part.points, part.sessions)
    made.started_ns, made.went_ns = 1, 2
    made.open_log()
    made.save()
    yield made
    if made.log is not None:
        made.log.close()


def seen(run, point, seq=0):
    record = HopRecord(10, run.prepared[0].probe.session, seq, point, 0, 0)
    return encode_reports([Hops(HopBatch.of([record])), Watermark(50)])


def test_a_run_that_is_taken_up_is_the_run_that_was_saved(run):
    """Sessions, keys, paths of all epochs, points in order, parts; and what was delivered before."""
    assert trio.run(run.take_block, "hv1", BOOT, 0, seen(run, 1)) is Taken.NEW
    run.log.commit()
    run.log.close()
    again = load_run(run.folder, run.topology, Agents())
    again.replay()
    assert [one.probe for one in again.prepared] == [one.probe for one in run.prepared]
    assert again.epochs == run.epochs
    assert again.collection.points == run.collection.points
    assert again.parts.keys() == run.parts.keys()
    assert again.collection.hops().rows.tolist() == run.collection.hops().rows.tolist()
    assert again.collection.parts["hv1"].watermark_ns == 50
    assert trio.run(again.take_block, "hv1", BOOT, 0, seen(run, 1)) is Taken.AGAIN
    assert trio.run(again.take_block, "hv1", BOOT, 1, seen(run, 1, 1)) is Taken.NEW
    again.log.close()
    run.log = None


@pytest.mark.parametrize(
    ("agent", "boot", "number", "taken"),
    [
        ("hv1", BOOT, 0, Taken.NEW),
        ("hv1", BOOT, 5, Taken.IMPOSSIBLE),
        ("hv1", OTHER_BOOT, 0, Taken.UNWANTED),
        ("hv9", BOOT, 0, Taken.UNWANTED),
    ],
)
def test_a_block_counts_once_in_order_and_of_who_has_the_part(run, agent, boot, number, taken):
    """Gaps, other lives of the program and strangers are refused; nothing of theirs is in the collection."""
    assert trio.run(run.take_block, agent, boot, number, seen(run, 1)) is taken
    assert len(run.collection.hops()) == (taken is Taken.NEW)


def test_a_repeated_block_changes_nothing(run):
    """The second copy is told to be there already."""
    trio.run(run.take_block, "hv1", BOOT, 0, seen(run, 1))
    assert trio.run(run.take_block, "hv1", BOOT, 0, seen(run, 0)) is Taken.AGAIN
    assert len(run.collection.hops()) == 1


def test_garbage_and_others_points_are_counted_and_dropped(run):
    """A block that is none, and one about points of another agent."""
    trio.run(run.take_block, "hv1", BOOT, 0, b"\xff" * 40)
    trio.run(run.take_block, "hv1", BOOT, 1, seen(run, 3))
    assert len(run.collection.hops()) == 0
    assert run.refused["garbage_blocks"] == 1
    assert run.collection.parts["hv1"].refused["points"] == 1


def test_blocks_that_were_shed_make_the_agents_points_blind(run):
    """For the time that they stood for, at its own points alone."""
    assert trio.run(run.take_shed, "hv2", BOOT, 0, 3, (100, 200)) is Taken.NEW
    windows = [(w.point, w.start_ns, w.end_ns) for w in run.collection.windows() if w.end_ns == 200]
    assert windows == [(2, 100, 200), (3, 100, 200)]


def test_nothing_counts_once_a_run_is_being_settled(run):
    """What comes then is for nobody."""
    run.is_settling = True
    assert trio.run(run.take_block, "hv1", BOOT, 0, seen(run, 1)) is Taken.UNWANTED


def test_runs_without_a_result_are_unfinished(run, tmp_path):
    """Until a result is written; and a damaged order is said to be one."""
    assert [f.run for f in unfinished_runs(tmp_path)] == ["r1"]
    run.folder.finish({"run": "r1"})
    assert unfinished_runs(tmp_path) == []
    (run.folder.path / ORDER).write_bytes(msgspec.msgpack.encode({"schema": 1}))
    with pytest.raises(HostNotReadyError, match="cannot be taken up"):
        run.folder.load()
