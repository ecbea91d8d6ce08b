"""Watching: windows become states, a window that cannot be run is never loss, and a stop ends it cleanly."""

from dataclasses import replace

import pytest
import trio
from support.clouds import topology
from support.runs import START_NS, leg, outcome, session
from trio.testing import MockClock

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host.signals import StopRequest
from netprobe.judge.reachability import State
from netprobe.model.points import Leg
from netprobe.model.records import HopBatch, HopRecord
from netprobe.plan.plans import parse_plan
from netprobe.service.watch_plan import watch_plan, window_plan

SECOND = 1_000_000_000
PLAN = '[watch]\nwindow = "10s"\n[[session]]\nname = "web"\nsrc = "vm1"\ndst = "vm2"\nrate = 10\n'
POINTS = ("vm1.backend", "vm2.backend", "vm2.guest@hv2")


class Cloud:
    """Runs windows that were written down: each entry is what one window does with the plan."""

    def __init__(self, *windows):
        self.windows = list(windows)
        self.plans = []

    async def run(self, plan, where, progress):
        del where, progress
        self.plans.append(plan)
        made = self.windows[len(self.plans) - 1]
        if isinstance(made, BaseException):
            raise made
        return made(plan, len(self.plans) - 1)


def delivered(plan, number):
    """Every probe arrives; the answers are seen within the window."""
    start = START_NS + number * 12 * SECOND
    count = plan.sessions[0].count
    hops = [HopRecord(start + i * SECOND // 10, 0, i, 0, 0, Leg.FORWARD) for i in range(count)]
    hops += [HopRecord(start + i * SECOND // 10 + 1_000_000, 0, i, 0, 1, Leg.RETURN) for i in range(count)]
    return outcome([session("web", leg(count, count))], hops=HopBatch.of(hops), points=POINTS, started_ns=start)


def swallowed(plan, number):
    """Nothing gets beyond the first port."""
    start = START_NS + number * 12 * SECOND
    count = plan.sessions[0].count
    hops = [HopRecord(start + i * SECOND // 10, 0, i, 0, 0, Leg.FORWARD) for i in range(count)]
    gone = leg(count, 0, count, last_seen="vm1.backend", first_missing="vm2.backend")
    result = session("web", gone, reason={"code": "security-group"})
    return outcome([result], hops=HopBatch.of(hops), points=POINTS, started_ns=start)


async def one_cloud():
    return topology()


def watch(cloud, text=PLAN, *, windows=None, stop=None, read=None):
    """All reports, and the states at the end."""
    reports = []

    async def main():
        return await watch_plan(
            parse_plan(text, "p"),
            read or one_cloud,
            reports.append,
            stop=stop or StopRequest(),
            windows=windows,
            run=cloud.run,
            now_ns=lambda: START_NS,
        )

    return reports, trio.run(main, clock=MockClock(autojump_threshold=0))


def changes_of(reports):
    return [row.change for report in reports for row in report.rows if row.change]


def test_a_change_says_since_when_where_and_by_how_many():
    """Reachable, then nothing arrives: since the last answer that was seen, not since the window."""
    reports, states = watch(Cloud(delivered, delivered, swallowed), windows=3)
    first, second = changes_of(reports)
    assert (first.before, first.after) == (State.UNOBSERVED, State.REACHABLE)
    assert (second.before, second.after) == (State.REACHABLE, State.UNREACHABLE)
    assert second.since_ns == START_NS + 12 * SECOND + 99 * SECOND // 10 + 1_000_000
    assert (second.last_seen, second.first_missing) == ("vm1.backend", "vm2.backend")
    assert second.tests == {"reach": 100}
    assert second.reason == {"code": "security-group"}
    assert states == {"web": State.UNREACHABLE}


def test_gaps_between_windows_are_stated():
    """From the last probe of one window to the first of the next."""
    reports, _ = watch(Cloud(delivered, delivered), windows=2)
    assert reports[0].gap_ns is None
    assert reports[1].gap_ns == 12 * SECOND - 99 * SECOND // 10
    assert reports[1].to_json()["gap_ns"] == reports[1].gap_ns


def test_a_window_is_as_long_as_asked_and_has_a_seed_of_its_own():
    """10 s at 10 probes a second; at one in 4 s, two; never none. Schedules differ from window to window."""
    plan = parse_plan(PLAN, "p")
    assert [s.count for s in window_plan(plan, 0).sessions] == [100]
    slow = replace(plan, sessions=(replace(plan.sessions[0], rate_pps=1, stretch=4),))
    assert [s.count for s in window_plan(slow, 0).sessions] == [2]
    rare = replace(plan, sessions=(replace(plan.sessions[0], rate_pps=1, stretch=400),))
    assert [s.count for s in window_plan(rare, 0).sessions] == [1]
    assert window_plan(plan, 0).seed != window_plan(plan, 1).seed


@pytest.mark.parametrize(
    "error",
    [
        HostNotReadyError("agent of vm1", "is gone"),
        RefusedError("conntrack table of hv1", "is full"),
        ExceptionGroup("nursery", [ExceptionGroup("inner", [HostNotReadyError("agent of vm1", "is gone")])]),
    ],
)
def test_a_window_that_cannot_be_run_is_unobserved_and_the_watch_goes_on(error):
    """Never called loss; the error is in the report; afterwards the path is reachable again."""
    reports, states = watch(Cloud(delivered, error, delivered), windows=3)
    assert [c.after for c in changes_of(reports)] == [State.REACHABLE, State.UNOBSERVED, State.REACHABLE]
    assert reports[1].outcome is None
    assert reports[1].error
    assert reports[1].rows[0].facts.lost == 0
    assert states == {"web": State.REACHABLE}


def test_failing_windows_are_not_tried_in_a_circle():
    """The next one begins when its time has come: virtual time passes."""
    cloud = Cloud(delivered, *[HostNotReadyError("switch", "is gone")] * 5)

    async def main():
        await watch_plan(parse_plan(PLAN, "p"), one_cloud, lambda _: None, stop=StopRequest(), windows=6, run=cloud.run)
        return trio.current_time()

    started = MockClock(autojump_threshold=0)
    begin = started.current_time()
    assert trio.run(main, clock=started) - begin >= 50


def test_what_is_wrong_from_the_start_ends_the_watch():
    """A plan that does not fit, or an agent that is missing: an error, not a watch of nothing."""
    with pytest.raises(HostNotReadyError, match="is gone"):
        watch(Cloud(HostNotReadyError("agent", "is gone")), windows=3)
    with pytest.raises(UsageError, match="no guest fits"):
        watch(Cloud(), '[[mesh]]\nfrom = { guests = ["db"] }\n')


def test_a_fault_of_ours_is_not_swallowed():
    """Only errors that are raised on purpose make a window unobserved."""
    with pytest.raises(ZeroDivisionError):
        watch(Cloud(delivered, ZeroDivisionError()), windows=3)
    mixed = ExceptionGroup("nursery", [HostNotReadyError("a", "b"), ZeroDivisionError()])
    with pytest.raises(ExceptionGroup):
        watch(Cloud(delivered, mixed), windows=3)


def test_a_signal_during_a_window_ends_the_watch_with_what_is_known():
    """What was sent by then counts; nothing more is run."""

    def interrupted(plan, number):
        return replace(swallowed(plan, number), stopped="stopped by SIGTERM")

    stop = StopRequest()
    cloud = Cloud(delivered, interrupted, delivered)
    reports, states = watch(cloud, stop=stop)
    assert len(cloud.plans) == len(reports) == 2
    assert stop.why == "stopped by SIGTERM"
    assert states == {"web": State.UNREACHABLE}


def test_a_window_that_was_cut_short_before_it_began_changes_nothing():
    """Nothing sent: the state stays, it is not unobserved."""

    def nothing(plan, number):
        count = plan.sessions[0].count
        empty = session("web", leg(count, 0, unsent=count, last_seen=None))
        return outcome([empty], started_ns=START_NS + number * 12 * SECOND, stopped="stopped by SIGINT")

    reports, states = watch(Cloud(delivered, nothing))
    assert states == {"web": State.REACHABLE}
    assert reports[-1].rows[0].change is None


def test_a_full_table_ends_a_window_and_not_the_watch():
    """The run stopped itself; the watch goes on."""

    def full(plan, number):
        return replace(delivered(plan, number), stopped="the conntrack table of hv1 is nearly full")

    cloud = Cloud(delivered, full, delivered)
    reports, _ = watch(cloud, windows=3)
    assert len(reports) == 3
    assert reports[1].to_json()["stopped"] == "the conntrack table of hv1 is nearly full"


def test_a_changed_topology_is_compiled_anew_and_states_of_what_stays_are_kept():
    """vm3 goes away after the first window."""
    text = '[[mesh]]\nname = "m"\nprune = false\nfrom = { guests = ["vm1"] }\nto = {}\nrate = 10\n'
    before, after = (replace(topology(), guests=topology().guests[:n]) for n in (3, 2))
    clouds = iter([before, after, after])

    async def read():
        return next(clouds)

    def all_delivered(plan, number):
        del number
        return outcome([session(s.name, leg(s.count, s.count), src=s.src, dst=s.dst) for s in plan.sessions])

    reports, states = watch(Cloud(*[all_delivered] * 3), text, windows=3, read=read)
    assert [[row.dst for row in report.rows] for report in reports] == [["vm2", "vm3"], ["vm2"], ["vm2"]]
    assert set(states) == {"m:vm1->vm2"}
    assert len(changes_of(reports)) == 2
    assert reports[0].compiled.meshes[0].all_pairs == 2


def test_a_guest_that_moves_is_one_path():
    """Both results of its session count; the delay of neither stands for both."""

    def moved(plan, number):
        del number
        count = plan.sessions[0].count
        return outcome([session("web", leg(count // 2, count // 2)), session("web", leg(count // 2, 0, count // 2))])

    (report,), _ = watch(Cloud(moved), windows=1)
    facts = report.rows[0].facts
    assert (facts.sent, facts.delivered, facts.lost, facts.delay) == (100, 50, 50, None)


def test_a_windows_document_has_its_paths_with_their_tests():
    """What docs/watch.md promises."""
    (report,), _ = watch(Cloud(delivered), PLAN.replace('"10s"', '"10s"\nmax_loss = "1%"'), windows=1)
    said = report.to_json()
    assert (said["window"], said["stopped"], said["error"]) == (0, None, None)
    (path,) = said["sessions"]
    assert (path["state"], path["sent"], path["received"], path["lost"]) == ("reachable", 100, 100, 0)
    assert path["tests"]["reach"]["verdict"] == "fine"
    assert path["tests"]["loss"] == {"verdict": "open", "decided_by": 0, "samples": 100} | {
        "log_ratio": path["tests"]["loss"]["log_ratio"]
    }
    assert report.rows[0].change_json()["to"] == "reachable"
