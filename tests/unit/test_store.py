"""The store: all or nothing, bounded, versioned; and the tables that people read."""

from dataclasses import replace

import duckdb
import numpy as np
import pytest
from support.results import segment

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.model.records import HopBatch, HopRecord
from netprobe.model.results import DelayBounds, LegResult, SessionResult
from netprobe.show.tables import change_line, console, duration, print_document
from netprobe.store import duckdb_file
from netprobe.store.duckdb_file import open_store
from netprobe.store.tables import StoredRun, StoredSession


def result(**changes):
    leg = LegResult(
        planned=2000,
        unsent=0,
        delivered=1960,
        lost=40,
        unobserved=0,
        pending=0,
        late=1,
        segments=(segment(30_000, lost=40),),
        end_to_end=segment(30_000, lost=40),
        last_seen="a",
        first_missing="b",
        missed={},
        is_complete=True,
    )
    given = {
        "name": "s",
        "src": "vm1",
        "dst": "vm2",
        "vantage": "guest",
        "type_p": {"proto": "udp", "dst_port": 862, "family": 4, "size_bytes": 110, "dscp": 3},
        "seed": 1,
        "tmax_ms": 1000.0,
        "schedule": "periodic",
        "rate_pps": 100,
        "pacing": None,
        "forward": leg,
        "returned": None,
        "forged": 2,
        "remarked_at": "b",
        "reason": {"code": "link-loss", "table": None, "cookie": None, "evidence": "predicted", "detail": "a queue"},
        "overflowed": {"b": "its ring had no room for 5 frames"},
        "counters": {"ring_dropped": 5, "agent_shed": 0},
        "notes": ("a note",),
    } | changes
    return SessionResult(**given)


def stored(run_id, started_ns, hops=0, **changes):
    one = result(**changes)
    batch = HopBatch.of([HopRecord(i, 7, i, i % 2, 0, 0) for i in range(hops)])
    document = {**one.to_json(), "run": run_id}
    return StoredRun(run_id, started_ns, "trace", document, [StoredSession(7, one)], batch, ["a", "b"])


def count(path, table):
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_what_is_saved_comes_back(tmp_path):
    """Newest first; by path and vantage; hop records with their points' names."""
    path = tmp_path / "x.duckdb"
    with open_store(path) as store:
        assert store.last_document() is None
        store.save(stored("one", 1, hops=4))
        store.save(stored("two", 2, dst="vm3"))
    with open_store(path) as store:
        assert store.last_document()["run"] == "two"
        assert store.last_session(result())["dst"] == "vm2"
        assert store.last_session(result(vantage="bypass")) is None
        assert store.last_session(result(type_p={**result().type_p, "dst_port": 863})) is None
        assert store.last_session(result(rate_pps=200)) is None
    with duckdb.connect(str(path), read_only=True) as db:
        assert db.execute("SELECT point, count(*) FROM hops GROUP BY point ORDER BY point").fetchall() == [
            ("a", 2),
            ("b", 2),
        ]
        assert db.execute("SELECT lost, delay_p50 FROM segments LIMIT 1").fetchone() == (40, 30_000)


def test_a_run_that_cannot_be_saved_whole_is_not_saved_at_all(tmp_path):
    """The second run has the first one's id: nothing of it stays, and the error is netprobe's own."""
    path = tmp_path / "x.duckdb"
    with open_store(path) as store:
        store.save(stored("one", 1, hops=3))
    with pytest.raises(HostNotReadyError), open_store(path) as store:
        store.save(stored("one", 2, hops=3))
    assert (count(path, "runs"), count(path, "sessions"), count(path, "hops")) == (1, 1, 3)


def test_hop_records_are_kept_for_the_newest_runs_only(tmp_path, monkeypatch):
    """Bounded: the oldest runs lose their hop records, never their statistics."""
    monkeypatch.setattr(duckdb_file, "MAX_HOPS", 7)
    path = tmp_path / "x.duckdb"
    with open_store(path) as store:
        for i in range(4):
            store.save(stored(f"run{i}", i, hops=3))
    with duckdb.connect(str(path), read_only=True) as db:
        kept = db.execute("SELECT DISTINCT run_id FROM hops ORDER BY run_id").fetchall()
    assert kept == [("run2",), ("run3",)]
    assert count(path, "runs") == 4


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    """Never guessed at."""
    path = tmp_path / "x.duckdb"
    with duckdb.connect(str(path)) as db:
        db.execute("CREATE TABLE meta (version INTEGER)")
        db.execute("INSERT INTO meta VALUES (4)")
    with pytest.raises(UsageError, match=r"version 4 \(allowed: version 3\)"), open_store(path):
        raise AssertionError("must not open")


def test_a_store_of_before_several_clocks_is_brought_up_to_date(tmp_path):
    """Read as it is; written to after its table has got the new columns, with all that was in it."""
    path = tmp_path / "x.duckdb"
    with open_store(path) as store:
        store.save(stored("one", 1))
    with duckdb.connect(str(path)) as db:
        db.execute("ALTER TABLE segments DROP COLUMN clock_error; ALTER TABLE segments DROP COLUMN clock_problem")
        db.execute("UPDATE meta SET version = 1")
    with open_store(path, read_only=True) as store:
        assert store.last_document()["run"] == "one"
    across = replace(segment(30_000), clock_error_ns=20_000, clock_problem="a problem")
    with open_store(path) as store:
        store.save(stored("two", 2, forward=replace(result().forward, segments=(across,))))
        assert store.last_document()["run"] == "two"
    with duckdb.connect(str(path), read_only=True) as db:
        rows = db.execute("SELECT run_id, clock_error, clock_problem FROM segments ORDER BY run_id").fetchall()
    assert rows == [("one", None, None), ("two", 20_000, "a problem")]


def test_a_file_that_is_no_database_is_said_so(tmp_path):
    """Exit code 3, and the file's name."""
    path = tmp_path / "x.duckdb"
    path.write_bytes(b"garbage" * 4096)
    with pytest.raises(HostNotReadyError, match=r"x\.duckdb: cannot be opened"), open_store(path):
        raise AssertionError("must not open")


@pytest.mark.parametrize(
    ("ns", "text"),
    [(None, "∞"), (0, "0 ns"), (999, "999 ns"), (1_500, "1.5 us"), (2_345_678, "2.35 ms"), (3_000_000_000, "3.00 s")],
)
def test_durations_are_shown_in_the_unit_that_reads_best(ns, text):
    """Three figures are enough for people; programs read ns."""
    assert duration(ns) == text


def test_the_table_shows_all_that_a_person_must_know(capsys):
    """Loss with its interval, infinite quantiles, forged records, shed frames, re-marking, notes."""
    print_document(console(width=200), result().to_json())
    said = capsys.readouterr().out
    for text in (
        "2.00 % [1.43, 2.71]",
        "∞",
        "40 dropped between a and b",
        "2000 planned = 0 unsent + 1960 delivered + 40 lost + 0 unobserved + 0 pending; 1 of the lost came late",
        "reason: link-loss (predicted)",
        "2 forged records were not counted",
        "frames were shed, so this result is incomplete: b: its ring had no room for 5 frames",
        "first seen changed at b",
        "note: a note",
    ):
        assert text in said


def table_of(capsys, **changes):
    """What is printed of a session with one segment of which something is different."""
    forward = replace(result().forward, segments=(replace(segment(30_000), **changes),))
    print_document(console(width=200), result(forward=forward).to_json())
    return capsys.readouterr().out


def test_a_delay_between_hosts_is_shown_with_what_the_clocks_may_be_off(capsys):
    """Beside the figures; without such a segment there is no such column."""
    assert "±" not in table_of(capsys)
    assert "±20.0 us" in table_of(capsys, clock_error_ns=20_000)


def test_a_delay_that_may_be_negative_is_shown_as_what_it_lies_between(capsys):
    """No number is negative, none is clamped: only bounds, an infinite one as such."""
    bounds = DelayBounds((None, 12_000), (3_000, 40_000), (5_000, 60_000), (None, None), (9_000, 90_000))
    said = table_of(capsys, delay=None, clock_error_ns=20_000, delay_bounds=bounds)
    for text in ("< 12.0 us", "3.0 us to 40.0 us", "∞", "9.0 us to 90.0 us"):
        assert text in said
    assert "-12" not in said


def test_a_clock_problem_is_told_once_with_the_segments_that_it_spoils(capsys):
    """The sentence of the result, not a number."""
    said = table_of(capsys, delay=None, pdv=None, negative=3, clock_problem="the clocks contradict")
    assert said.count("clocks: a..b: the clocks contradict") == 1


def test_a_change_is_told_with_its_intervals():
    """How much, and how sure."""
    change = {
        "segment": "a..b",
        "delay_ns": 300_000,
        "delay_interval_95": [296_000, 304_000],
        "loss_ratio": 0.02,
        "loss_interval_95": [0.014, 0.027],
        "loss_before": 0.0,
    }
    assert change_line(change) == (
        "a..b: 300.0 us slower (median; 296.0 us to 304.0 us); loses 2.00 % [1.40, 2.70], before 0.00 %"
    )


def test_hop_batches_refuse_other_arrays():
    """A wrong dtype is an error at the boundary, not a wrong number behind it."""
    with pytest.raises(UsageError):
        HopBatch(np.zeros(3, np.int64))
