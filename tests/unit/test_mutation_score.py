"""How many mutants are tried: `count` of those that are not equivalent, and again what a spoiled lab had found."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from mutation.mutants import Mutant
from mutation.score import BATCH, Score, _is_done

MUTANTS = [Mutant(f"m{n}", "policy", "port", n) for n in range(60)]


@dataclass
class Bench:
    """A lab in which some mutants show nothing, and no packet tells them from the original; it may be spoiled."""

    equivalent: set
    wrongs: list = field(default_factory=list)
    state: object = None
    packets: int = 20_000

    def __post_init__(self):
        self.enforcement = SimpleNamespace(apply=lambda state: setattr(self, "state", state))
        finding = SimpleNamespace(kind=SimpleNamespace(value="leak"), key="k", detail="")
        self.hunter = SimpleNamespace(findings=lambda: [] if self.state in self.equivalent else [finding], plan=None)
        self.replay = SimpleNamespace(difference=lambda _: "", packets=self.packets)

    def wrong(self):
        return self.wrongs.pop(0) if self.wrongs else ""


@pytest.fixture(autouse=True)
def _explained(monkeypatch):
    monkeypatch.setattr("mutation.score.explanation", lambda *_: "no packet shows it")


@pytest.mark.parametrize(("equivalent", "tried"), [(set(), 20), ({0, 5}, 22), ({19}, 21), ({30}, 20)])
def test_equivalent_mutants_do_not_count_and_others_are_tried_for_them(equivalent, tried):
    found = Score()
    assert _is_done(found, MUTANTS, 20, Bench(equivalent), lambda _: None)
    assert (found.mutants, found.killed, found.real) == (tried, 20, 20)
    assert found.problems() == []


def test_all_are_tried_where_there_are_not_as_many():
    found = Score()
    assert _is_done(found, MUTANTS[:10], 20, Bench({1}), lambda _: None)
    assert (found.mutants, found.killed, found.real) == (10, 9, 9)


def test_what_a_spoiled_lab_found_is_not_counted_and_tried_again():
    found, told = Score(), []
    assert not _is_done(found, MUTANTS, 60, Bench(set(), ["", "overblock: x"]), told.append)
    assert found.mutants == BATCH
    assert "overblock: x" in told[-1]
    assert _is_done(found, MUTANTS, 60, Bench(set()), told.append)
    assert (found.mutants, found.killed) == (60, 60)
    assert [line.split()[0] for line in told if "policy" in line and "not as" not in line].count("26") == 2
