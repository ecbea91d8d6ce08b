"""Signals as a question: who hears it when one loop runs within another."""

import signal

import pytest

from netprobe.host.signals import stop_on_signals


@pytest.fixture(autouse=True)
def handlers():
    """Those of this process come back whatever happens."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_innermost_hears_a_signal():
    """The outer one learns of it from what the inner one returns."""
    with stop_on_signals() as outer, stop_on_signals() as inner:
        signal.raise_signal(signal.SIGTERM)
        assert (inner.asked(), inner.why) == (True, "stopped by SIGTERM")
        assert not outer.asked()


def test_a_signal_just_before_the_inner_one_began_is_not_forgotten():
    """A watch that was asked while it prepared a run does not begin to wait for the run's end."""
    with stop_on_signals() as outer:
        signal.raise_signal(signal.SIGTERM)
        assert outer.asked()
        with stop_on_signals() as inner:
            assert (inner.asked(), inner.why) == (True, "stopped by SIGTERM")


def test_what_was_asked_of_one_that_is_over_concerns_nobody_else():
    with stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
    with stop_on_signals() as later:
        assert not later.asked()
