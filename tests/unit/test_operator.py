"""Whoever orders a run waits for its result, whatever becomes of the connection meanwhile."""

import pytest
import trio
from trio.testing import MockClock

from netprobe.errors import HostNotReadyError
from netprobe.service import operator
from netprobe.service.operator import OperatorConfig, run_remotely

TROUBLES = [
    HostNotReadyError("collector 192.0.2.1:8620", "cannot be reached"),
    HostNotReadyError("link", "is cut"),
    HostNotReadyError("TLS handshake with the collector", "took longer than 5 s"),
]


def ask(monkeypatch, troubles):
    """Order a run of a collector that knows it, and then gives these troubles before it answers."""
    left = list(troubles)

    async def ask_once(_config, op, _args):
        await trio.sleep(1)
        if op == "run":
            return {"run": "r"}
        if left:
            raise left.pop(0)
        return {"whole": True}

    monkeypatch.setattr(operator, "_ask_once", ask_once)
    config = OperatorConfig("operator", ("192.0.2.1", 8620), None)
    return trio.run(run_remotely, config, "", "plan.toml", clock=MockClock(autojump_threshold=0))


def test_a_run_outlasts_what_becomes_of_the_connection(monkeypatch):
    """Also a collector that has just come back and is too busy for a handshake."""
    assert ask(monkeypatch, TROUBLES * 2) == {"whole": True}


def test_what_the_collector_itself_says_is_the_end(monkeypatch):
    with pytest.raises(HostNotReadyError, match="no such run"):
        ask(monkeypatch, [HostNotReadyError("run r", "no such run")])
