"""Results as readings: what is known is there, what is not is missing, and nothing else is in a tag than names."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.results import segment
from support.runs import START_NS, leg, outcome, session

from netprobe.collect.histogram import Histogram, shown_low_ns
from netprobe.model.metric_catalogue import CATALOGUE
from netprobe.model.metrics import FieldKind
from netprobe.model.results import DelayBounds
from netprobe.service.telemetry import collector_readings, outcome_readings
from netprobe.show.policy_metrics import enforcement_readings, policy_name, verification_readings
from netprobe.show.run_metrics import bucket_edge_ns, delay_buckets, session_readings, state_readings

BY_NAME = {one.name: one for one in CATALOGUE}
TYPES = {FieldKind.INTEGER: int, FieldKind.FLOAT: float, FieldKind.TEXT: str}


def checked(readings):
    """All of them, each as the catalogue has it."""
    found = list(readings)
    for reading in found:
        measurement = BY_NAME[reading.measurement]
        kinds = {f.name: TYPES[f.kind] for f in measurement.fields}
        assert reading.tags.keys() <= measurement.tags.keys()
        assert reading.fields
        for name, value in reading.fields.items():
            assert type(value) is kinds[name], name
    return found


def lossy():
    """A path that loses half: its median is infinite."""
    forward = replace(
        leg(100, 50, 50, last_seen="vm1.backend", first_missing="vm2.backend"),
        segments=(segment(30_000, name="a..b"), segment(40_000, lost=1000, name="b..c")),
    )
    reason = {"code": "acl", "detail": 'the ACL "web" drops it'}
    return session('web "1"', forward, leg(50, 50), reason=reason, src="<script>alert(1)</script>")


def test_a_path_says_where_probes_are_lost():
    found = checked(session_readings([lossy()], "p", 7))
    (path,) = [r for r in found if r.measurement == "netprobe_path" and r.tags["leg"] == "forward"]
    assert path.fields["lost_in"] == "vm1.backend..vm2.backend"
    assert path.fields["reason"] == "acl"
    assert path.fields["lost_probes"] == 50
    assert (path.t_ns, path.tags["src"]) == (7, "<script>alert(1)</script>")
    segments = [r for r in found if r.measurement == "netprobe_segment"]
    assert [(r.tags["hop"], r.tags["segment"], r.fields["lost_probes"]) for r in segments] == [
        ("00", "a..b", 0),
        ("01", "b..c", 1000),
    ]


def test_an_infinite_or_unknown_figure_is_missing_and_never_zero():
    one = segment(40_000, lost=1000)
    infinite = replace(one, delay=replace(one.delay, p50=None, p90=None, p99=None), loss_ratio=None)
    forward = replace(leg(10, 10), segments=(infinite, replace(one, delay=None, pdv=None, id="x")))
    found = checked(session_readings([session("s", forward)], "p", 1))
    first, second = [r.fields for r in found if r.measurement == "netprobe_segment"]
    assert not {"owdelay_p50_ns", "owdelay_p99_ns", "owloss_ratio"} & first.keys()
    assert first["owdelay_samples"] == 1000
    assert not {name for name in second if name.startswith(("owdelay", "owpdv"))}


def test_between_two_clocks_bounds_are_told_also_where_no_delay_is():
    """The clocks are further apart than the delay is long: what it does not exceed is known all the same."""
    bounds = DelayBounds((None, 9), (None, 10), (None, 20), (None, 30), (5, None))
    one = replace(segment(40_000), delay=None, pdv=None, delay_bounds=bounds, clock_error_ns=700)
    found = checked(session_readings([session("s", replace(leg(5, 5), segments=(one,)))], "p", 1))
    (fields,) = [r.fields for r in found if r.measurement == "netprobe_segment"]
    told = {name: value for name, value in fields.items() if name.startswith("owdelay")}
    assert told == {"owdelay_p50_high_ns": 10, "owdelay_p99_high_ns": 30, "owdelay_error_ns": 700}


def test_of_one_clock_the_ends_of_95_percent_intervals_are_told():
    """Of median and 99th percentile; an end that is not known is missing."""
    one = segment(40_000)
    one = replace(one, delay=replace(one.delay, p99_interval_95=(50_000, None)))
    found = checked(session_readings([session("s", replace(leg(5, 5), segments=(one,)))], "p", 1))
    (fields,) = [r.fields for r in found if r.measurement == "netprobe_segment"]
    told = {name: value for name, value in fields.items() if name.endswith(("low_ns", "high_ns"))}
    assert told == {"owdelay_p50_low_ns": 38_000, "owdelay_p50_high_ns": 42_000, "owdelay_p99_low_ns": 50_000}


def test_epochs_of_one_path_are_series_of_their_own():
    parts = [replace(session("s", leg(5, 5)), epoch={"number": n}) for n in range(2)]
    paths = [r for r in session_readings(parts, "p", 1) if r.measurement == "netprobe_path"]
    assert len({tuple(sorted(r.tags.items())) for r in paths}) == len(paths) == 2


def test_what_the_governor_held_back_is_told_once_a_session():
    """Of the forward leg; a session of two epochs says it twice, and it is counted once."""
    governor = {"held_back": 30, "lowest_share": 0.25, "changes": 2, "steps": []}
    parts = [
        replace(session("s", leg(50, 20, unsent=30), leg(20, 20)), governor=governor, epoch={"number": n})
        for n in (0, 1)
    ]
    found = checked(outcome_readings(outcome([*parts, session("t", leg(5, 5))]), "p", "run", START_NS))
    (run,) = [r.fields for r in found if r.measurement == "netprobe_run"]
    assert (run["held_back_probes"], run["governor_lowest_ratio"]) == (30, 0.25)
    paths = [r for r in found if r.measurement == "netprobe_path"]
    assert [r.fields.get("held_back_probes") for r in paths] == [30, None, 30, None, 0]


def test_a_run_is_told_as_a_whole_with_its_counters():
    results = [replace(session("a", leg(5, 5)), counters={"ring_dropped": 3}), session("b", leg(5, 4, 1))]
    found = checked(outcome_readings(outcome(results, stopped="stopped by SIGTERM"), "p", "run", START_NS + 5))
    (run,) = [r for r in found if r.measurement == "netprobe_run"]
    assert run.fields["planned_probes"] == 10
    assert run.fields["failed"] == 1
    assert run.fields["duration_ns"] == 5
    (counter,) = [r for r in found if r.measurement == "netprobe_counter"]
    assert (counter.tags["counter"], counter.fields["events"]) == ("ring_dropped", 3)


@given(st.integers(0, 1 << 40))
def test_a_bucket_holds_its_delay(delay_ns):
    """Below its upper edge, at most a factor of 2 away; and a histogram's coarse bucket lies in one of these."""
    edge = bucket_edge_ns(delay_ns)
    assert delay_ns < edge <= max(2 * delay_ns, 2)
    ((low, _),) = Histogram.of(np.array([delay_ns])).shown()
    assert bucket_edge_ns(low) == edge or delay_ns < 8


def test_buckets_lose_no_delay():
    delays = np.random.default_rng(1).integers(0, 10**9, 5000)
    one = segment(10)
    buckets = delay_buckets(replace(one.delay, histogram=Histogram.of(delays).shown()))
    assert sum(buckets.values()) == 5000
    edges = sorted(buckets)
    for low, high in zip([0, *edges], edges, strict=False):
        assert buckets[high] == np.count_nonzero((delays >= low) & (delays < high))
    assert shown_low_ns(0) == 0


def window(state, change=None):
    row = {
        "name": "s", "src": "a", "dst": "b", "state": state, "since_ns": 5, "lost": 1, "undecided": 0,
        "last_seen": None, "first_missing": None, "change": change,
    }  # fmt: skip
    return {"end_ns": 9, "sessions": [row]}


@pytest.mark.parametrize(("state", "code"), [("reachable", 0), ("degraded", 1), ("unreachable", 2), ("unobserved", 3)])
def test_states_have_codes(state, code):
    """Also of a window that could not be run, of which there are no results."""
    (found,) = checked(state_readings(window(state, {"reason": {"code": "acl"}}), "p", ()))
    assert (found.fields["state_code"], found.fields["state"], found.fields["changed"]) == (code, state, 1)
    assert found.fields["reason"] == "acl"


def finding(number, **changes):
    return {
        "number": number, "kind": "leak", "src": "vm1", "dst": "vm2", "packet": 'tcp "80"', "expected": "be dropped",
        "observed": "passed", "rule": 'allow "x"', "rule_id": "r", "evidence": {"segment": "a..b"}, "repeats": 2,
        "decided": {"rule": "", "place": None, "table": 3, "chain": None}, "detail": "why",
    } | changes  # fmt: skip


def test_findings_of_one_proof_are_rows_of_their_own():
    document = {
        "source": "/etc/policies/web.toml", "backend": "ovs-ct", "vantage": "tap", "sent": 5, "unsent": 0, "rounds": 3,
        "seconds": 1.5, "overflow": 0, "forged": 0, "stopped": None,
        "counts": {"leak": 2, "overblock": 0, "wrong place": 0, "divergence": 0, "unproven": 0},
        "matrix": [
            {"src": "a", "dst": "b", "reachable": None, "passed": 0, "dropped": 1, "undecided": 1, "passes": []},
            {"src": "b", "dst": "a", "reachable": True, "passed": 1, "dropped": 0, "undecided": 0, "passes": ["x"]},
        ],
        "findings": [finding(1), finding(2, evidence=None, decided=None)],
    }  # fmt: skip
    found = checked(verification_readings(document, 100))
    assert len({(r.measurement, tuple(sorted(r.tags.items())), r.t_ns) for r in found}) == len(found) == 5
    (whole,) = [r for r in found if r.measurement == "netprobe_verification"]
    assert (whole.tags["policy"], whole.fields["violated"], whole.fields["duration_ns"]) == (
        "web.toml",
        1,
        1_500_000_000,
    )
    first = next(r for r in found if r.measurement == "netprobe_finding")
    assert (first.fields["packets"], first.fields["decided_by"], first.t_ns) == (3, "3", 101)
    verdicts = [r.fields.get("reachable") for r in found if r.measurement == "netprobe_verdict"]
    assert verdicts == [None, 1]
    assert whole.fields["overblock_findings"] == 0


@pytest.mark.parametrize(("leaks", "violated"), [(0, None), (2, 1)])
def test_a_proof_that_was_stopped_does_not_say_that_there_is_nothing(leaks, violated):
    """What it found it found; else the newest value stays that of the proof before it."""
    counts = {"leak": leaks, "overblock": 0, "wrong place": 0, "divergence": 0, "unproven": 3}
    numbers = dict.fromkeys(("sent", "unsent", "rounds", "seconds", "overflow", "forged"), 1)
    document = {"source": "p", "backend": "ovn", "vantage": "tap", "counts": counts, "matrix": [], "findings": []}
    (whole,) = checked(verification_readings(document | numbers | {"stopped": "stopped by SIGINT"}, 100))
    told = {name: value for name, value in whole.fields.items() if name.endswith("findings") or name == "violated"}
    assert told.pop("unproven_findings") == 3
    assert told == ({"leak_findings": 2, "violated": 1} if leaks else {})
    assert whole.fields.get("violated") == violated
    assert whole.fields["stopped"] == "stopped by SIGINT"


def test_a_watched_change_tells_both_streams():
    change = dict.fromkeys(("after_commit_ns", "after_begin_ns", "uncertainty_ns"), 7)
    change |= dict.fromkeys(("leaked", "blocked", "flaps", "sent", "undecided"), 0) | {"old": "pass", "new": "drop"}
    row = {"rule": "web", "src": "a", "dst": "b", "connection": "cut", "existing": change, "new": None}
    found = checked(enforcement_readings({"classes": [row, {**row, "new": change}]}, "p.toml", 50))
    assert [(r.tags["stream"], r.t_ns) for r in found] == [("existing", 50), ("existing", 51), ("new", 51)]


def test_a_policy_is_named_by_its_file():
    assert policy_name("/a/b/web.toml") == "web.toml"
    assert policy_name("unix:/run/ovn/nb.sock") == "nb.sock"
    assert policy_name("policy") == "policy"


def test_an_agent_that_was_there_and_is_not_is_told():
    """Also one that came and went between two looks."""
    here = {"name": "hv1", "host": "hv1", "since_ns": 5, "guests": ["vm1"], "trouble": ""}
    status = {
        "agents": [here], "away": [{"name": "hv2", "host": ""}], "counters": {"links_garbage": 2},
        "runs": [{"run": "a", "over": False}, {"run": "b", "over": True}],
    }  # fmt: skip
    found = checked(collector_readings(status, 9))
    agents = {r.tags["agent"]: r.fields for r in found if r.measurement == "netprobe_agent"}
    assert agents == {"hv1": {"connected": 1, "connected_ns": 4, "guests": 1}, "hv2": {"connected": 0}}
    events = {r.tags["counter"]: r.fields["events"] for r in found if r.measurement == "netprobe_collector"}
    assert events == {"links_garbage": 2, "runs": 2, "runs_under_way": 1}


def test_an_agent_is_told_of_when_it_has_said_where_it_is_or_why_it_does_not():
    """Else it would be two: one without a host stays connected on a page for Prometheus when the other one is gone."""
    new = {"name": "hv1", "host": "", "since_ns": 5, "guests": [], "trouble": ""}
    status = {"agents": [new], "away": [], "counters": {}, "runs": []}
    assert not [r for r in collector_readings(status, 9) if r.measurement == "netprobe_agent"]
    status["agents"] = [{**new, "trouble": "speaks of another host"}]
    (told,) = [r for r in collector_readings(status, 9) if r.measurement == "netprobe_agent"]
    assert told.fields["trouble"] == "speaks of another host"
