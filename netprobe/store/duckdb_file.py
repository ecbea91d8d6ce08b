"""The embedded store: one DuckDB file with runs, sessions, segment statistics and hop records.

Hop records are kept for the newest runs only (MAX_HOPS); everything else for MAX_RUNS. The file carries the version of
its tables; a newer one is refused, never guessed at. DuckDB is imported when a store is opened, not before: `--help`
must not wait for it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError, NoAnswerError, UsageError
from netprobe.model.records import HopBatch
from netprobe.model.results import Json, SessionResult

if TYPE_CHECKING:
    import duckdb

SCHEMA_VERSION = 2
FIRST_VERSION = 1  # without the clocks' error; brought up to date when it is written to
MAX_RUNS = 10_000
MAX_HOPS = 5_000_000
LOCK_WAIT_S = 3.0
LOCK_LOOK_S = 0.05
NEWEST = 200  # runs that are searched for an earlier result of a path
DEFAULT_PATH = Path("/var/lib/netprobe/netprobe.duckdb")

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (version INTEGER);
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR PRIMARY KEY, started_ns BIGINT, command VARCHAR, document JSON);
CREATE TABLE IF NOT EXISTS sessions (
    run_id VARCHAR, session UINTEGER, name VARCHAR, src VARCHAR, dst VARCHAR, vantage VARCHAR, type_p JSON,
    seed BIGINT, tmax_ms DOUBLE, planned BIGINT, unsent BIGINT, delivered BIGINT, lost BIGINT, unobserved BIGINT,
    pending BIGINT, late BIGINT, forged BIGINT, overflow BOOLEAN);
CREATE TABLE IF NOT EXISTS segments (
    run_id VARCHAR, session UINTEGER, leg VARCHAR, segment VARCHAR, kind VARCHAR, sent BIGINT, received BIGINT,
    lost BIGINT, loss_low DOUBLE, loss_high DOUBLE, delay_min BIGINT, delay_p50 BIGINT, delay_p90 BIGINT,
    delay_p99 BIGINT, delay_max BIGINT, samples BIGINT, reordered BIGINT, duplicated BIGINT, stamp VARCHAR,
    clock_error BIGINT, clock_problem VARCHAR);
CREATE TABLE IF NOT EXISTS hops (
    run_id VARCHAR, session UINTEGER, seq UINTEGER, point VARCHAR, direction UTINYINT, leg UTINYINT, t_ns BIGINT);
"""

_FROM_FIRST_VERSION = """
ALTER TABLE segments ADD COLUMN IF NOT EXISTS clock_error BIGINT;
ALTER TABLE segments ADD COLUMN IF NOT EXISTS clock_problem VARCHAR;
"""

# Runs whose hop records, together with those of all newer runs, are more than the bound.
_FORGET_HOPS = """
DELETE FROM hops WHERE run_id IN (
    SELECT run_id FROM (
        SELECT run_id, sum(n) OVER (ORDER BY started_ns DESC) AS total
        FROM runs JOIN (SELECT run_id, count(*) AS n FROM hops GROUP BY run_id) USING (run_id))
    WHERE total > ?)
"""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session to be stored: its number and what was said of it."""

    session: int
    result: SessionResult


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run to be stored.

    Attributes:
        run_id: unique.
        started_ns: CLOCK_REALTIME.
        command: what was asked: `trace`, `run`.
        document: what was printed with --json.
        hops: hop records of all sessions; their points are indices into `points`.
    """

    run_id: str
    started_ns: int
    command: str
    document: Json
    sessions: Sequence[StoredSession]
    hops: HopBatch
    points: Sequence[str]


class Store:
    """An open store; made by `open_store`."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._db = connection

    def save(self, run: StoredRun) -> None:
        """Write a run, all of it or nothing, and forget what is older than the bounds."""
        db = self._db
        db.begin()
        try:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?)",
                [run.run_id, run.started_ns, run.command, json.dumps(run.document)],
            )
            for stored in run.sessions:
                self._save_session(run.run_id, stored)
            self._save_hops(run)
            self._forget()
            db.commit()
        except BaseException:
            with suppress(Exception):  # a failed commit has rolled back already; its own error is the one to tell
                db.rollback()
            raise

    def _save_session(self, run_id: str, stored: StoredSession) -> None:
        result, leg = stored.result, stored.result.forward
        row = [run_id, stored.session, result.name, result.src, result.dst, result.vantage, json.dumps(result.type_p)]
        row += [result.seed, result.tmax_ms, leg.planned, leg.unsent, leg.delivered, leg.lost, leg.unobserved]
        row += [leg.pending, leg.late, result.forged, result.overflow]
        self._insert("sessions", row)
        legs = [("forward", leg)] + ([("return", result.returned)] if result.returned else [])
        for name, one in legs:
            for s in one.segments:
                d = s.delay
                figures = [d.min, d.p50, d.p90, d.p99, d.max, d.samples] if d else [None] * 5 + [0]
                values = [run_id, stored.session, name, s.id, s.kind, s.sent, s.received, s.lost, *s.loss_interval_95]
                values += [*figures, s.reordered, s.duplicated, s.stamp, s.clock_error_ns, s.clock_problem or None]
                self._insert("segments", values)

    def _insert(self, table: str, row: Sequence[object]) -> None:
        places = ", ".join("?" * len(row))
        self._db.execute(f"INSERT INTO {table} VALUES ({places})", row)  # noqa: S608  names of our own

    def _save_hops(self, run: StoredRun) -> None:
        if not len(run.hops):
            return
        names = np.array(run.points, dtype=object)
        columns: dict[str, npt.NDArray[np.generic]] = {
            "session": run.hops.session,
            "seq": run.hops.seq,
            "point": names[run.hops.point],
            "direction": run.hops.direction,
            "leg": run.hops.leg,
            "t_ns": run.hops.t_ns,
        }
        self._db.register("new_hops", columns)
        self._db.execute(
            "INSERT INTO hops SELECT ?, session, seq, point, direction, leg, t_ns FROM new_hops", [run.run_id]
        )
        self._db.unregister("new_hops")

    def _forget(self) -> None:
        newest = "SELECT run_id FROM runs ORDER BY started_ns DESC"
        for table in ("runs", "sessions", "segments", "hops"):
            self._db.execute(f"DELETE FROM {table} WHERE run_id NOT IN ({newest} LIMIT {MAX_RUNS})")  # noqa: S608  ditto
        self._db.execute(_FORGET_HOPS, [MAX_HOPS])

    def last_document(self) -> Json | None:
        """The newest run's document."""
        return next(self._documents(1), None)

    def last_session(self, like: SessionResult) -> Json | None:
        """The newest stored session of the same path, vantage, Type-P and rate, as it was printed."""
        wanted = _path_of(like.to_json())
        for document in self._documents(NEWEST):
            sessions = document.get("sessions", [document])
            for session in sessions if isinstance(sessions, list) else []:
                if isinstance(session, dict) and _path_of(session) == wanted:
                    return session
        return None

    def _documents(self, limit: int) -> Iterator[Json]:
        query = "SELECT document FROM runs ORDER BY started_ns DESC, rowid DESC LIMIT ?"
        for (text,) in self._db.execute(query, [limit]).fetchall():
            yield json.loads(text)


def _path_of(session: Json) -> list[object]:
    """What must be the same for two sessions to be compared; source ports come and go."""
    type_p = session.get("type_p")
    kind = {k: v for k, v in type_p.items() if k not in {"src_port", "src_ports"}} if isinstance(type_p, dict) else {}
    return [*(session.get(k) for k in ("src", "dst", "vantage", "rate_pps", "schedule")), kind]


def _prepare(db: "duckdb.DuckDBPyConnection", path: Path, *, read_only: bool) -> None:
    known = db.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = 'meta'").fetchone()
    if known and known[0]:
        row = db.execute("SELECT max(version) FROM meta").fetchone()
        version = row[0] if row else None
        if version not in {FIRST_VERSION, SCHEMA_VERSION}:
            raise UsageError(
                f"store {path}",
                f"its tables are of version {version}",
                allowed=f"version {SCHEMA_VERSION}",
                advice="use the netprobe that wrote it, or name another file with --store",
            )
        if version == FIRST_VERSION and not read_only:
            db.begin()
            db.execute(_FROM_FIRST_VERSION)
            db.execute("UPDATE meta SET version = ?", [SCHEMA_VERSION])
            db.commit()
        return
    if read_only:
        raise NoAnswerError(f"store {path}", "holds no result", advice="run `netprobe trace` first")
    db.begin()
    db.execute(_TABLES)
    db.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])
    db.commit()


def _connect(path: Path, *, read_only: bool) -> "duckdb.DuckDBPyConnection":
    """Connect; while another process writes, try again for a moment."""
    import duckdb  # noqa: PLC0415  50 ms that only those pay who store

    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only)
        except duckdb.IOException as error:
            if "lock" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOCK_LOOK_S)


@contextmanager
def open_store(path: Path = DEFAULT_PATH, *, read_only: bool = False) -> Iterator[Store]:
    """Open the store, and make it where there is none.

    Args:
        path: the file; only the default one's folder is made.
        read_only: look only; there must be one.

    Raises:
        HostNotReadyError: the file cannot be opened or written (disk full, locked, no permission, no DuckDB file).
        UsageError: its tables are of another version.
    """
    import duckdb  # noqa: PLC0415  as above

    try:
        if path == DEFAULT_PATH and not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(path, read_only=read_only)
    except (duckdb.Error, OSError) as error:
        raise HostNotReadyError(
            f"store {path}", f"cannot be opened: {_first_line(error)}", advice="name another file with --store"
        ) from error
    try:
        _prepare(db, path, read_only=read_only)
        yield Store(db)
    except duckdb.Error as error:
        raise HostNotReadyError(
            f"store {path}", f"cannot be written or read: {_first_line(error)}", advice="is the disk full?"
        ) from error
    finally:
        try:
            db.close()
        except duckdb.Error as error:
            raise HostNotReadyError(
                f"store {path}", f"cannot be closed: {_first_line(error)}", advice="is the disk full?"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
