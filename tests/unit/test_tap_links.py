"""What is written down about taps, and that a damaged journal makes nobody touch anything."""

import pytest

from netprobe.service import journal as journal_module
from netprobe.service import tap_links
from netprobe.service.journal import Journal, clean
from netprobe.service.tap_links import TapLink, TapLinks

LINKS = TapLinks(
    "np-verify-01af",
    0x1234_5678,
    (TapLink("hv1", "tapvm1", "np01af-0", "p0", adds_clsact=True), TapLink("", "tapvm2", "np01af-1", "p1", False)),
)


def damaged(**changes):
    return LINKS.to_json() | changes


def row(**changes):
    values = {"netns": "hv1", "tap": "tapvm1", "link": "np01af-0", "peer": "p0", "adds": True} | changes
    return damaged(links=[list(values.values())])


def test_links_survive_a_journal():
    """All that undoing needs is written down."""
    assert TapLinks.from_json(LINKS.to_json()) == LINKS


@pytest.mark.parametrize(
    "table",
    [
        {},
        damaged(namespace="default"),
        damaged(namespace="np-verify-01af/../x"),
        damaged(handle=0),
        damaged(handle="many"),
        damaged(links=7),
        damaged(links=[["hv1"]]),
        row(tap="tap; reboot"),
        row(tap=7),
        row(link="eth0"),
        row(netns="../etc"),
        row(netns=None),
    ],
)
def test_names_that_are_not_ours_are_refused(table):
    """Whatever somebody wrote into a journal: nothing of others' is deleted."""
    with pytest.raises((ValueError, LookupError, TypeError)):
        TapLinks.from_json(table)


@pytest.fixture
def undone(monkeypatch, tmp_path):
    """A journal's folder of its own, and what was undone; a problem, if the list of problems has one."""
    calls, problems = [], []
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(journal_module, "undo_links", lambda links: (calls.append(links), tuple(problems))[1])
    return calls, problems, tmp_path / "journal" / "run-1-2-3.json"


def test_taps_are_written_down_before_and_the_file_goes_when_they_are_undone(undone):
    """What is left stays written down, for the next attempt."""
    calls, problems, path = undone
    with Journal(path) as journal:
        journal.add_taps(LINKS)
        assert path.exists()
        problems.append("tc does not answer")
        assert journal.undo_taps(LINKS) == ("tc does not answer",)
        assert path.exists()
        problems.clear()
    assert calls == [LINKS, LINKS]
    assert not path.exists()


def test_clean_undoes_taps_of_a_run_that_was_killed(undone, monkeypatch):
    """A journal of a process that is gone; one whose taps cannot be undone stays, and is told."""
    calls, problems, path = undone
    monkeypatch.setattr(journal_module, "may_run", lambda *_: True)
    Journal(path).add_taps(LINKS)
    assert clean(None).taps_undone == 0  # it still runs
    monkeypatch.setattr(journal_module, "may_run", lambda *_: False)
    problems.append("tc does not answer")
    assert clean(None).unreachable == ("tc does not answer",)
    assert path.exists()
    problems.clear()
    done = clean(None)
    assert (done.journals, done.taps_undone, done.damaged) == (1, 2, ())
    assert not path.exists()
    assert calls == [LINKS, LINKS]


def test_a_journal_without_taps_is_read_as_before(undone):
    """Journals of an earlier version have no such entry."""
    _, _, path = undone
    path.parent.mkdir()
    path.write_text('{"schema": 1, "pid": 999999999, "start_ticks": 1, "conntrack": []}')
    assert clean(None).journals == 1


def test_frames_lost_in_links_are_read_from_the_kernels_table(monkeypatch):
    """The twelfth number of a device's line is what it dropped in transmission; other devices do not count."""
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier\n"
        "    p0:     500       5    0    1    0     0          0         0     1200      10    0    7    0   0   0  0\n"
        "np01af-0:   500       5    0    1    0     0          0         0     1200      10    0    4    0   0   0  0\n"
        " eth0:     1300      21    0    0    0     0          0         0     6200      40    0    9    0   0   0  0\n"
    )
    monkeypatch.setattr(tap_links, "in_netns", lambda _name, _function: text)
    one = TapLinks(LINKS.namespace, 1, LINKS.links[:1])
    assert tap_links.lost_in_links(one) == (7, 4)
