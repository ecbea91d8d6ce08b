"""Sweeps over frame sizes: the exact byte is found wherever it lies, and loss is never taken for a size."""

from dataclasses import replace

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clouds import topology
from support.runs import SizedPath, outcome

from netprobe.host.signals import StopRequest
from netprobe.judge.sizes import Place, SizeRecord, SizeRun, SizeState, judge_sizes
from netprobe.model.probes import Protocol
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.plan.sweep import first_sizes, gaps, ranges_of, rounds, sizes_between
from netprobe.service import sweeping
from netprobe.service.sweeping import PER_RUN, sweep_sizes

SMALLEST, LARGEST = 62, 1514


@pytest.fixture(autouse=True)
def nic(monkeypatch):
    monkeypatch.setattr(sweeping, "mtu", lambda *_: LARGEST - 14)


def swept(path, *, count=4, stop=None):
    session = SessionPlan("mtu", "vm1", "vm2", protocol=Protocol.RAW_UDP, dst_port=9, count=count, rate_pps=100)
    plan = RunPlan("mtu", (session,))
    told = []

    async def main():
        return await sweep_sizes(plan, topology(), stop or StopRequest(), told.append, run=path.run)

    return trio.run(main)


def path_that(swallows, seed=1, **more):
    return SizedPath(swallows, np.random.default_rng(seed), **more)


@pytest.mark.parametrize("limit", [62, 68, 82, 128, 129, 200, 576, 914, 1279, 1414, 1456, 1500, 1513])
def test_the_exact_byte_is_found_wherever_it_lies(limit):
    """`limit` bytes pass, limit + 1 vanish; where the range ends, too."""
    answer = swept(path_that(lambda size: size > limit)).to_json()
    assert answer["verdict"] == "limited"
    assert (answer["passes_up_to"], answer["first_failing"], answer["exact"]) == (limit, limit + 1, True)
    assert (answer["passes_up_to_packet"], answer["first_failing_packet"]) == (limit - 14, limit - 13)
    assert (answer["segment"], answer["certain"]) == ("vm1.backend..vm2.backend", True)
    assert answer["failing"] == [[limit + 1, LARGEST]]
    assert answer["runs"] <= 40


def test_a_path_that_takes_everything_says_so():
    """Up to what the sender's own NIC takes, and no further."""
    path = path_that(lambda _: False)
    answer = swept(path).to_json()
    assert (answer["verdict"], answer["passes_up_to"], answer["first_failing"]) == ("all-pass", LARGEST, None)
    assert answer["segment"] is None
    assert all(s.probe_mtu and s.size_bytes <= LARGEST for plan in path.plans for s in plan.sessions)


def test_no_run_has_more_sizes_than_an_agent_takes_orders():
    """Eight at a time, all of them in turn at the rate that was asked for."""
    path = path_that(lambda size: size > 700)
    swept(path)
    assert max(len(plan.sessions) for plan in path.plans) <= PER_RUN
    for plan in path.plans:
        assert len({s.start_ns for s in plan.sessions}) == len(plan.sessions)
        assert sum(s.mean_pps for s in plan.sessions) <= 100
        assert len({s.name for s in plan.sessions}) == len(plan.sessions)


def test_islands_that_fail_are_found_to_the_byte():
    """Failures need not be monotonic: 69 to 75 and 256 to 511 vanish, everything else passes."""
    answer = swept(path_that(lambda size: 69 <= size <= 75 or 256 <= size <= 511)).to_json()
    assert (answer["passes_up_to"], answer["first_failing"]) == (68, 69)
    assert answer["failing"] == [[69, 75], [256, 511]]


def test_small_frames_that_fail_while_large_ones_pass():
    """The limit may be one of the least: 100 bytes and more pass."""
    answer = swept(path_that(lambda size: size < 100)).to_json()
    assert (answer["verdict"], answer["passes_up_to"], answer["first_failing"]) == ("limited", None, SMALLEST)
    assert answer["failing"] == [[SMALLEST, 99]]


def test_the_last_stretch_may_as_well_be_the_answers_first():
    """Where nobody sees whether the guest got it, the answer says so."""
    answer = swept(path_that(lambda size: size > 914, is_silent=True)).to_json()
    assert (answer["passes_up_to"], answer["first_failing"]) == (914, 915)
    assert (answer["segment"], answer["certain"], answer["reason"]) == ("vm2.backend..vm2.guest", False, "unanswered")


def test_answers_that_are_swallowed_are_told_apart_from_probes():
    """Forward all passes; of the answers 1,000 bytes do and 1,001 don't."""
    answer = swept(path_that(lambda _: False, swallows_back=lambda size: size > 1000)).to_json()
    assert answer["verdict"] == "all-pass"
    back = answer["return"]
    assert (back["verdict"], back["passes_up_to"], back["first_failing"]) == ("limited", 1000, 1001)
    assert back["segment"] == "vm2.backend..vm1.backend"


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_a_lossy_path_never_makes_a_false_size(loss, seed):
    """With loss and no limit, and with a limit: the right byte or no answer, never another byte."""
    nothing = swept(path_that(lambda _: False, seed, loss=loss)).to_json()
    assert nothing["verdict"] in {"all-pass", "inconclusive"}
    assert nothing["first_failing"] is None
    limited = swept(path_that(lambda size: size > 914, seed, loss=loss)).to_json()
    assert limited["verdict"] in {"limited", "inconclusive"}
    assert limited["first_failing"] in {915, None}


def test_a_little_loss_does_not_keep_the_answer_back():
    """2 % of loss cost a few more probes, not the answer."""
    verdicts = [swept(path_that(lambda size: size > 914, s, loss=0.02)).to_json()["verdict"] for s in range(10)]
    assert verdicts == ["limited"] * 10


def test_a_path_that_loses_most_gives_no_answer():
    """85 % lost: inconclusive, and it says what it lost."""
    answer = swept(path_that(lambda size: size > 914, 3, loss=0.85)).to_json()
    assert answer["verdict"] == "inconclusive"
    assert (answer["passes_up_to"], answer["first_failing"]) == (None, None)
    assert "of what passes" in answer["why"]


def test_a_path_that_is_down_is_unreachable_and_no_matter_of_size():
    """Nothing arrives of any size: two runs, and the place is named."""
    path = path_that(lambda _: True)
    answer = swept(path).to_json()
    assert path.runs == 2
    assert (answer["verdict"], answer["first_failing"]) == ("unreachable", None)
    assert answer["segment"] == "vm1.backend..vm2.backend"
    assert swept(path_that(lambda _: True, is_silent=True)).to_json()["verdict"] == "unobserved"


def test_a_path_that_goes_down_meanwhile_gives_no_answer():
    """Half of the sizes were tried: not "all pass"."""
    path = path_that(lambda _: False, outages=frozenset(range(5, 100)))
    answer = swept(path).to_json()
    assert (answer["verdict"], answer["runs"]) == ("inconclusive", 6)
    assert "nothing arrived any more" in answer["why"]


@pytest.mark.parametrize("at", [1, 3, 12])
def test_an_outage_is_not_taken_for_a_size(at):
    """A run of which nothing arrives is done again, and counts for nothing."""
    answer = swept(path_that(lambda size: size > 914, outages=frozenset({at}))).to_json()
    assert (answer["passes_up_to"], answer["first_failing"]) == (914, 915)


def test_a_limit_that_moves_is_no_answer():
    """It was 914 at first, and 500 when it was asked again."""
    path = path_that(None)
    path.swallows = lambda size: size > (914 if path.runs < 20 else 500)
    answer = swept(path).to_json()
    assert answer["verdict"] == "inconclusive"
    assert "the limit moves, or depends on the flow" in answer["why"]
    assert answer["first_failing"] is None


def test_a_limit_is_asked_once_more_with_new_probes():
    """It was gone when the sweep was about to answer: no answer, not the byte of a moment."""
    steady = path_that(lambda size: size > 914)
    runs = swept(steady).runs
    assert [s.size_bytes for s in steady.plans[-1].sessions] == [SMALLEST, 914, 915]
    path = path_that(None)
    path.swallows = lambda size: size > 914 and path.runs < runs
    assert swept(path).to_json()["verdict"] == "inconclusive"


def test_stopped_early_it_gives_no_answer():
    """What was interrupted is inconclusive, and says by what."""
    path = path_that(lambda size: size > 914)

    async def stopped(plan, topology, progress):
        done = await path.run(plan, topology, progress)
        return outcome(done.results, stopped="stopped by SIGINT" if path.runs == 3 else "")

    class Stopping:
        run = staticmethod(stopped)

    answer = swept(Stopping()).to_json()
    assert (answer["verdict"], answer["why"], answer["runs"]) == ("inconclusive", "stopped by SIGINT", 3)


def test_sizes_that_are_not_sent_are_named_and_prove_nothing():
    """The sender's kernel refused them."""
    path = path_that(lambda _: False)

    async def refusing(plan, topology, progress):
        done = await path.run(plan, topology, progress)
        results = [
            replace(r, forward=replace(r.forward, unsent=r.forward.planned, delivered=0, lost=0))
            if s.size_bytes > 1400
            else r
            for r, s in zip(done.results, plan.sessions, strict=True)
        ]
        return outcome(results)

    class Refusing:
        run = staticmethod(refusing)

    answer = swept(Refusing()).to_json()
    assert (answer["verdict"], answer["passes_up_to"]) == ("all-pass", 1295)
    assert min(answer["unsent"]) > 1400


# ---------------------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------------------


def test_the_first_sizes_have_every_boundary_that_matters():
    """Both ends, every byte from 64 to 128, powers of two and one beside, 1280, the tunnels' MTUs, 1500; each once."""
    sizes = first_sizes(SMALLEST, LARGEST)
    assert sizes == tuple(sorted(set(sizes)))
    assert {SMALLEST, LARGEST, *range(64, 129), 255, 256, 257, 1023, 1024, 1025, 1294, 1295, 1414, 1464} <= set(sizes)
    assert first_sizes(110, 110) == (110,)
    assert max(first_sizes(110, 9014)) == 9014


@settings(max_examples=300)
@given(st.dictionaries(st.integers(60, 9000), st.booleans(), min_size=2, max_size=40), st.integers(1, 8))
def test_every_gap_closes(passes, most):
    """Sizes to try next are new, inside a gap, at most as many as asked; trying them on ends with no gap left."""
    known = dict(passes)
    for _ in range(4000):
        between = sizes_between(known, most)
        if not between:
            break
        assert len(between) <= most
        assert not set(between) & set(known)
        assert all(any(low < size < high for low, high in gaps(known)) for size in between)
        known |= {size: passes[max(s for s in passes if s < size)] for size in between}
    assert not gaps(known)


@given(st.lists(st.integers(1, 2000), unique=True, max_size=60), st.integers(1, 9))
def test_rounds_have_every_size_once_and_no_more_than_asked(sizes, each):
    """Nothing is left out, nothing is tried twice."""
    dealt = rounds(sizes, each)
    assert sorted(size for chunk in dealt for size in chunk) == sorted(sizes)
    assert all(0 < len(chunk) <= each for chunk in dealt)


def test_ranges_join_only_what_nothing_else_lies_between():
    """70 failed and 80 failed; 75 passed, so they are two ranges."""
    assert ranges_of([70, 80], [60, 70, 75, 80]) == ((70, 70), (80, 80))
    assert ranges_of([70, 80], [60, 70, 80, 90]) == ((70, 80),)
    assert ranges_of([], [60]) == ()


def records(*rows):
    return [SizeRecord(size, tuple(SizeRun(*run) for run in runs)) for size, *runs in rows]


def test_one_arrival_proves_that_a_size_passes():
    """However many were lost."""
    sizes = judge_sizes(records((100, (50, 50, 0)), (200, (50, 1, 49))))
    assert sizes.states[200] is SizeState.PASSES


def test_none_of_few_is_open_and_none_of_enough_fails():
    """How many are enough is said, and it holds."""
    sizes = judge_sizes(records((100, (50, 45, 5)), (200, (2, 0, 2))))
    assert sizes.states[200] is SizeState.OPEN
    assert sizes.needed > 2
    n = sizes.needed
    assert judge_sizes(records((100, (50, 45, 5)), (200, (n, 0, n)))).states[200] is SizeState.FAILS
    assert judge_sizes(records((100, (50, 45, 5)), (200, (n - 1, 0, n - 1)))).states[200] is SizeState.OPEN


def test_the_place_is_where_most_went_missing():
    """A switch that drops the rest of a batch loses one elsewhere: it is not blamed for the eleven beyond it."""
    elsewhere = SizeRecord(1319, (SizeRun(4, 0, 1),), ((Place("vm1.backend", "vm2.backend", "link-loss"), 1),))
    record = elsewhere.plus(SizeRecord(1319, (SizeRun(12, 0, 0),), ((Place("vm2.backend"), 11),)))
    assert record.place == Place("vm2.backend")
    assert (record.sent, record.lost) == (16, 1)
    assert elsewhere.place == Place("vm1.backend", "vm2.backend", "link-loss")
    assert SizeRecord(60).place is None


@pytest.mark.parametrize("loss", [0.2, 0.5, 0.7])
def test_the_bound_of_the_paths_loss_holds_though_only_sizes_that_pass_are_looked_at(loss):
    """Two probes of each of 40 sizes: those of which none arrived are left out, and the bound is not fooled by it."""
    rng = np.random.default_rng(6)
    for passed in rng.binomial(2, 1 - loss, (1000, 40)).tolist():
        found = judge_sizes([SizeRecord(i, (SizeRun(2, n, 2 - n),)) for i, n in enumerate(passed)])
        assert found.loss_bound >= loss


@pytest.mark.parametrize("loss", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("probes", [2, 4, 8])
def test_chance_makes_a_size_fail_less_often_than_stated(loss, probes):
    """2,000 simulated sweeps in which every size passes: one of 40 is called failing less than once in 1,000."""
    rng = np.random.default_rng(5)
    wrong = 0
    for passed in rng.binomial(probes, 1 - loss, (2000, 40)).tolist():
        sizes = judge_sizes([SizeRecord(i, (SizeRun(probes, n, probes - n),)) for i, n in enumerate(passed)])
        wrong += SizeState.FAILS in sizes.states.values()
    assert wrong <= 0.001 * 2000
