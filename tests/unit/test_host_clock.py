"""The test-only clock of an agent: what it shows, and when it showed it."""

import time

import numpy as np
import pytest

from netprobe.errors import UsageError
from netprobe.host.clock import HostClock, monotonic_offset_ns, realtime_of_monotonic

MS, S = 10**6, 10**9
BEGAN = 1_800_000_000 * S


def shown(clock, *since_s):
    times = np.array([BEGAN + round(s * S) for s in since_s], np.int64)
    return (clock.shown(times) - times).tolist()


def test_it_is_off_drifts_and_jumps_as_told():
    """300 ms ahead, 50 ppm too fast, 20 ms more after 5 s, 40 ms less after 8 s."""
    clock = HostClock.parse("offset=300ms, drift=50ppm,step=5s:20ms,step=8s:-40ms", began_ns=BEGAN)
    expected = [300 * MS, 300 * MS + 200_000, 320 * MS + 250_000, 280 * MS + 500_000]
    assert shown(clock, 0, 4, 5, 10) == expected
    assert clock.shown_one(BEGAN + 5 * S) == BEGAN + 5 * S + expected[2]
    assert not clock.is_true


def test_without_a_word_it_is_the_real_one():
    """Nothing is touched, and now is now."""
    clock = HostClock.parse("")
    assert clock.is_true
    assert shown(clock, 1, 2) == [0, 0]
    assert abs(clock.now_ns() - HostClock().now_ns()) < S


def test_a_time_of_the_monotonic_clock_is_given_by_the_wall_clock():
    """It lies between two looks at the wall clock, with one at the other clock in between; differences stay."""
    _, error_ns = monotonic_offset_ns()
    before, there, after = time.time_ns(), time.monotonic_ns(), time.time_ns()
    shown_ns = realtime_of_monotonic(np.array([there, there + 5], np.int64))
    margin_ns = error_ns + 1 * MS  # of the second look, which may be less lucky
    assert before - margin_ns <= shown_ns[0] <= after + margin_ns
    assert shown_ns[1] - shown_ns[0] == 5


@pytest.mark.parametrize("text", ["offset=-3s", "drift=-200ppm", "step=2s:1s", "offset=1ms,drift=80ppm,step=3s:5ms"])
def test_what_was_shown_can_be_taken_back(text):
    """real(shown(t)) is t to 1 ns; what a jump left out was never shown, so it stands for the jump."""
    clock = HostClock.parse(text, began_ns=BEGAN)
    times = BEGAN + np.linspace(0, 6 * S, 1_001).astype(np.int64)
    assert np.abs(clock.real(clock.shown(times)) - times).max() <= 1
    if text.startswith("step"):
        assert clock.real(np.array([BEGAN + 2 * S + S // 2])).tolist() == [BEGAN + 2 * S]


def test_of_a_time_shown_twice_the_first_counts():
    """Set back by 1 s after 3 s: 2.5 s was shown at 2.5 s and at 3.5 s."""
    clock = HostClock.parse("step=3s:-1s", began_ns=BEGAN)
    assert clock.real(np.array([BEGAN + 5 * S // 2, BEGAN + 7 * S // 2])).tolist() == [
        BEGAN + 5 * S // 2,
        BEGAN + 9 * S // 2,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("offset=3", "no duration"),
        ("offset=--3s", "no duration"),
        ("offset=99999999999s", "too much"),
        ("drift=50", "no drift"),
        ("drift=20000ppm", "up to 10000ppm"),
        ("step=5s", "no duration"),
        ("ofset=3s", "Did you mean 'offset'"),
        ("offset", "no duration"),
    ],
)
def test_bad_text_is_refused_with_what_is_allowed(text, said):
    """UsageError, exit code 2."""
    with pytest.raises(UsageError, match=said):
        HostClock.parse(text)
