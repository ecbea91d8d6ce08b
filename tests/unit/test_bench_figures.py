"""Figures of the benchmarks: what is judged, when a target is missed, what results.json says."""

import pytest

from bench.harness import Bench, at_least, at_most, compare, measure

NOISY = [0.9, 1.0, 1.1, 1.2, 0.95, 1.05, 1.0, 1.1]
ONES = [1.0] * 8


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (at_least(1.0), True),  # inside the interval
        (at_least(0.5), True),
        (at_least(1.1), True),  # above the ratio, and still inside
        (at_least(1.3), False),
        (at_most(1.0), True),
        (at_most(0.8), False),
        (None, True),
    ],
)
def test_a_target_is_missed_only_by_the_whole_interval(target, met):
    assert compare(NOISY, ONES, unit="frames/s", peer="trafgen", target=target).met is met


def test_the_document_has_the_keys_that_others_read():
    document = compare([2.0, 4.0], [1.0, 2.0], unit="frames/s", peer="trafgen", target=at_least(1.0)).document()
    wanted = {"value": 3.0, "unit": "frames/s", "peer": "trafgen", "peer_value": 1.5, "ratio": 2.0, "target": 1.0}
    assert {key: document[key] for key in wanted} == wanted
    assert document["interval"] == [2.0, 2.0]
    assert document["met"] is True


def test_a_measured_value_needs_no_peer():
    document = measure([10.0, 12.0], unit="ms", target=at_most(150)).document()
    assert (document["value"], document["peer"], document["peer_value"], document["ratio"]) == (11.0, "", None, None)
    assert document["interval"] == [10.0, 12.0]


def test_what_must_hold_and_does_not_is_a_miss():
    document = measure([10.0, 12.0], unit="ms", target=at_most(150), broken="3 frames lost").document()
    assert (document["met"], document["broken"]) == (False, "3 frames lost")


def test_a_key_is_met_when_all_its_figures_are():
    good = measure([1.0, 1.0], unit="s", target=at_most(2))
    bad = measure([3.0, 3.0], unit="s", target=at_most(2), label="the other")
    assert good.also(good).met
    document = good.also(good, bad).document()
    assert document["met"] is False
    assert [other["met"] for other in document["also"]] == [True, False]


def test_arms_alternate_a_b_b_a():
    calls = []

    def arm(name):
        calls.append(name)
        return len(calls)

    slices = Bench(short=False, cpus=(0, 1)).alternate({"a": lambda: arm("a"), "b": lambda: arm("b")}, rounds=3)
    assert "".join(calls) == "ab" + "abbaab"  # the first two are not recorded
    assert slices == {"a": [3, 6, 7], "b": [4, 5, 8]}
