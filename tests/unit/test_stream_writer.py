"""What is stored while a run lasts: all that was put, or counted as shed; and nobody waits."""

import threading

import duckdb
import numpy as np

from netprobe.collect.windows import Windows
from netprobe.model.points import Direction, Leg, Point, PointKind, Stamp, Stop
from netprobe.model.records import HopBatch
from netprobe.store import stream_writer
from netprobe.store.duckdb_file import open_store
from netprobe.store.stream_tables import StreamedWindow
from netprobe.store.stream_writer import open_stream

STOPS = [
    Stop(Point(f"p{i}", PointKind.BACKEND, "h"), Direction.IN, Stamp.KERNEL_RX if i else Stamp.SENDER) for i in range(3)
]


def hops_of(seq, point):
    t_ns = 1_000 + seq * 10 + point
    one = np.full(len(seq), 7, np.uint32)
    return HopBatch.from_columns(t_ns=t_ns, session=one, seq=seq.astype(np.uint32), point=point, direction=0, leg=0)


def closed_windows():
    """Three windows of four probes; probe 5 is lost at the second point."""
    windows = Windows(STOPS, range(3), count=12, tmax_ns=500, span=4, max_live=16, keeps_hops=True)
    windows.sent(0, 1_000 + np.arange(12) * 10)
    seq = np.arange(12)
    windows.feed(hops_of(seq, 1))
    windows.feed(hops_of(seq[seq != 5], 2))
    return windows.advance(10_000)


def asked(path, query):
    with open_store(path, read_only=True) as store:
        return store.connection.execute(query).fetchall()


def stream(path, run_id="run-1", **settings):
    return open_stream(path, run_id, started_ns=settings.pop("started_ns", 1), points=["p0", "p1", "p2"], **settings)


def test_windows_segments_and_hops_come_back(tmp_path):
    """A window's ledger, a row a segment, and every record as it was."""
    path = tmp_path / "s.duckdb"
    closed = closed_windows()
    with stream(path) as writer:
        writer.put_windows([StreamedWindow(7, Leg.FORWARD, one) for one in closed])
        for one in closed:
            writer.put_hops(one.hops)
    ledgers = asked(
        path, "SELECT session, leg, first_seq, probes, delivered, lost, shed FROM windows ORDER BY first_seq"
    )
    assert ledgers == [(7, "forward", at, 4, 3 if at == 4 else 4, int(at == 4), False) for at in (0, 4, 8)]
    rows = asked(path, "SELECT first_seq, segment, sent, lost, delay_p50 FROM window_segments ORDER BY ALL")
    assert (4, "p1..p2", 4, 1, 1) in rows
    assert len(rows) == 6
    kept = asked(path, "SELECT session, seq, point, direction, leg, t_ns FROM stream_hops ORDER BY point, seq")
    assert kept == [(7, s, p, 0, 0, 1_000 + 10 * s + p) for p in (1, 2) for s in range(12) if (s, p) != (5, 2)]
    assert asked(path, "SELECT run_id, points FROM streams") == [("run-1", ["p0", "p1", "p2"])]
    assert writer.counters == {"windows_stored": 3, "hops_stored": 23, "windows_shed": 0, "hops_shed": 0}


def test_what_finds_no_room_is_shed_and_counted_and_nobody_waits(tmp_path, monkeypatch):
    """While the disk hangs, the queue fills up to its bound; the rest is counted, and what was taken is stored."""
    may_write, is_writing = threading.Event(), threading.Event()
    real = stream_writer.open_store

    def slow(path):
        is_writing.set()
        assert may_write.wait(30)
        return real(path)

    monkeypatch.setattr(stream_writer, "open_store", slow)
    monkeypatch.setattr(stream_writer, "PIECE_ROWS", 100)
    monkeypatch.setattr(stream_writer, "MAX_QUEUED_WINDOWS", 2)
    closed = [StreamedWindow(7, Leg.FORWARD, one) for one in closed_windows()]
    with stream(tmp_path / "s.duckdb", max_queued=250) as writer:
        writer.put_hops(hops_of(np.arange(100), 1))
        assert is_writing.wait(30)
        for low in range(100, 1_000, 100):  # two fit beside those that are being written, but not a third
            writer.put_hops(hops_of(np.arange(low, low + 75), 1))
        writer.put_windows(closed)
        may_write.set()
    assert writer.counters == {"windows_stored": 2, "windows_shed": 1, "hops_stored": 250, "hops_shed": 7 * 75}
    assert asked(tmp_path / "s.duckdb", "SELECT count(*), max(seq) FROM stream_hops") == [(250, 274)]


def test_what_is_written_makes_room_again(tmp_path, monkeypatch):
    """The bound is on what waits, not on what has ever been put."""
    monkeypatch.setattr(stream_writer, "PIECE_ROWS", 50)
    written = threading.Semaphore(0)
    real = stream_writer.StreamWriter._write_or_shed

    def told(self, *args, **kwargs):
        real(self, *args, **kwargs)
        written.release()

    monkeypatch.setattr(stream_writer.StreamWriter, "_write_or_shed", told)
    with stream(tmp_path / "s.duckdb", max_queued=60) as writer:
        for low in (0, 50, 100):
            writer.put_hops(hops_of(np.arange(low, low + 50), 1))
            assert written.acquire(timeout=30)
    assert writer.counters["hops_stored"] == 150


def test_a_run_stores_no_more_than_its_bound(tmp_path):
    with stream(tmp_path / "s.duckdb", max_hops=150) as writer:
        for low in (0, 100, 200):
            writer.put_hops(hops_of(np.arange(low, low + 60), 2))
    assert writer.counters["hops_stored"] == 120
    assert writer.counters["hops_shed"] == 60


def test_a_store_that_fails_is_told_and_ends_nothing(tmp_path):
    """No directory, no disk: the run goes on, all is shed, and why is known."""
    with stream(tmp_path / "nowhere" / "s.duckdb") as writer:
        writer.put_windows([StreamedWindow(7, Leg.FORWARD, one) for one in closed_windows()])
        writer.put_hops(hops_of(np.arange(10), 1))
    assert "cannot be opened" in writer.failure
    assert writer.counters == {"windows_stored": 0, "hops_stored": 0, "windows_shed": 3, "hops_shed": 10}
    writer.put_hops(hops_of(np.arange(10), 1))
    assert writer.counters["hops_shed"] == 20


def test_old_streams_are_forgotten_and_the_same_run_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_writer, "MAX_STREAMS", 2)
    path = tmp_path / "s.duckdb"
    for run_id, started_ns in (("a", 1), ("b", 2), ("c", 3), ("c", 3)):
        with stream(path, run_id, started_ns=started_ns) as writer:
            writer.put_hops(hops_of(np.arange(started_ns), 1))
    assert asked(
        path, "SELECT run_id, count(*) FROM stream_hops JOIN streams USING (stream) GROUP BY ALL ORDER BY ALL"
    ) == [
        ("b", 2),
        ("c", 3),
    ]
    assert asked(path, "SELECT run_id FROM streams ORDER BY run_id") == [("b",), ("c",)]


def test_others_can_read_between_two_pieces(tmp_path, monkeypatch):
    """The file is open only while it is written."""
    monkeypatch.setattr(stream_writer, "PIECE_ROWS", 10)
    written = threading.Event()
    real = stream_writer.StreamWriter._write_or_shed

    def told(self, *args, **kwargs):
        real(self, *args, **kwargs)
        written.set()

    monkeypatch.setattr(stream_writer.StreamWriter, "_write_or_shed", told)
    with stream(tmp_path / "s.duckdb") as writer:
        writer.put_hops(hops_of(np.arange(10), 1))
        assert written.wait(30)
        with duckdb.connect(str(tmp_path / "s.duckdb"), read_only=True) as db:
            assert db.execute("SELECT count(*) FROM stream_hops").fetchone() == (10,)
