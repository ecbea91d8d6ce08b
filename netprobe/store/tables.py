"""The tables of the store, their versions, and the rows that results become. No connection is opened here.

`sessions.path` names the same path in every run: its ends, vantage, name and Type-P, without source ports, which come
and go. A session's JSON document (docs/json.md) stands in its row, so that one path is read without its whole run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from netprobe.model.records import HopBatch
from netprobe.model.results import Json, SegmentResult, SessionResult

SCHEMA_VERSION = 3

RUN_COLUMNS = {"run_id": "VARCHAR PRIMARY KEY", "started_ns": "BIGINT", "command": "VARCHAR", "document": "JSON"}
SESSION_COLUMNS = {
    "run_id": "VARCHAR",
    "session": "UINTEGER",
    "name": "VARCHAR",
    "src": "VARCHAR",
    "dst": "VARCHAR",
    "vantage": "VARCHAR",
    "type_p": "JSON",
    "seed": "BIGINT",
    "tmax_ms": "DOUBLE",
    "planned": "BIGINT",
    "unsent": "BIGINT",
    "delivered": "BIGINT",
    "lost": "BIGINT",
    "unobserved": "BIGINT",
    "pending": "BIGINT",
    "late": "BIGINT",
    "forged": "BIGINT",
    "overflow": "BOOLEAN",
    # Since version 3; null in rows of before.
    "path": "VARCHAR",
    "started_ns": "BIGINT",
    "state": "VARCHAR",
    "since_ns": "BIGINT",
    "loss_low": "DOUBLE",
    "loss_high": "DOUBLE",
    "delay_min": "BIGINT",
    "delay_p50": "BIGINT",
    "delay_p90": "BIGINT",
    "delay_p99": "BIGINT",
    "delay_max": "BIGINT",
    "samples": "BIGINT",
    "clock_error": "BIGINT",
    "last_seen": "VARCHAR",
    "first_missing": "VARCHAR",
    "reason": "JSON",
    "document": "JSON",
}
_OF_VERSION_3 = list(SESSION_COLUMNS)[list(SESSION_COLUMNS).index("path") :]
SEGMENT_FIGURES = {
    "segment": "VARCHAR",
    "kind": "VARCHAR",
    "sent": "BIGINT",
    "received": "BIGINT",
    "lost": "BIGINT",
    "loss_low": "DOUBLE",
    "loss_high": "DOUBLE",
    "delay_min": "BIGINT",
    "delay_p50": "BIGINT",
    "delay_p90": "BIGINT",
    "delay_p99": "BIGINT",
    "delay_max": "BIGINT",
    "samples": "BIGINT",
    "reordered": "BIGINT",
    "duplicated": "BIGINT",
    "stamp": "VARCHAR",
}
"""What a row says of a segment, of a whole run or of one window of a stream."""
SEGMENT_COLUMNS = {
    "run_id": "VARCHAR",
    "session": "UINTEGER",
    "leg": "VARCHAR",
    **SEGMENT_FIGURES,
    "clock_error": "BIGINT",
    "clock_problem": "VARCHAR",
}
CHANGE_COLUMNS = {
    "run_id": "VARCHAR",
    "name": "VARCHAR",
    "src": "VARCHAR",
    "dst": "VARCHAR",
    "before": "VARCHAR",
    "after": "VARCHAR",
    "since_ns": "BIGINT",
    "at_ns": "BIGINT",
    "last_seen": "VARCHAR",
    "first_missing": "VARCHAR",
    "reason": "JSON",
}
HOP_COLUMNS = {
    "run_id": "VARCHAR",
    "session": "UINTEGER",
    "seq": "UINTEGER",
    "point": "VARCHAR",
    "direction": "UTINYINT",
    "leg": "UTINYINT",
    "t_ns": "BIGINT",
}


def _table(name: str, columns: Mapping[str, str]) -> str:
    return f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(f'{n} {kind}' for n, kind in columns.items())});\n"


TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (version INTEGER);\n"
    + _table("runs", RUN_COLUMNS)
    + _table("sessions", SESSION_COLUMNS)
    + _table("segments", SEGMENT_COLUMNS)
    + _table("changes", CHANGE_COLUMNS)
    + _table("hops", HOP_COLUMNS)
)

UPDATES = {
    1: "ALTER TABLE segments ADD COLUMN IF NOT EXISTS clock_error BIGINT;"
    "ALTER TABLE segments ADD COLUMN IF NOT EXISTS clock_problem VARCHAR;",
    2: "".join(f"ALTER TABLE sessions ADD COLUMN IF NOT EXISTS {n} {SESSION_COLUMNS[n]};" for n in _OF_VERSION_3)
    + _table("changes", CHANGE_COLUMNS),
}
"""From a version to the next. The clocks' error came with 2, the live page's columns with 3."""


def path_key(session: Mapping[str, object]) -> list[object]:
    """What must be the same for two sessions to be of one path and Type-P; source ports come and go.

    Args:
        session: a document (docs/json.md).
    """
    type_p = session.get("type_p")
    kind = {k: v for k, v in type_p.items() if k not in {"src_port", "src_ports"}} if isinstance(type_p, dict) else {}
    return [*(session.get(k) for k in ("src", "dst", "vantage")), kind]


def path_id(result: SessionResult) -> str:
    """The name of a session's path in the store: 16 hexadecimal digits."""
    ends: Json = {"src": result.src, "dst": result.dst, "vantage": result.vantage, "type_p": result.type_p}
    return path_id_of({"name": result.name, **ends})


def path_id_of(session: Mapping[str, object]) -> str:
    """The same of a session's document."""
    key = json.dumps([session.get("name"), *path_key(session)], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session to be stored: its number and what was said of it.

    Attributes:
        state, since_ns: of its path, where somebody watches it; "" and None where nobody does.
    """

    session: int
    result: SessionResult
    state: str = ""
    since_ns: int | None = None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run to be stored.

    Attributes:
        run_id: unique.
        started_ns: CLOCK_REALTIME.
        command: what was asked: `trace`, `run`, `watch`, `verify`.
        document: what was printed with --json.
        hops: hop records of all sessions; their points are indices into `points`.
        changes: of states, as in docs/watch.md.
    """

    run_id: str
    started_ns: int
    command: str
    document: Json
    sessions: Sequence[StoredSession]
    hops: HopBatch
    points: Sequence[str]
    changes: Sequence[Json] = ()


def session_rows(run: StoredRun) -> Iterator[list[object]]:
    """The rows of `sessions`."""
    printed = run.document.get("sessions")
    is_each = isinstance(printed, list) and len(printed) == len(run.sessions)
    documents = printed if is_each else [stored.result.to_json() for stored in run.sessions]
    assert isinstance(documents, list)
    for stored, document in zip(run.sessions, documents, strict=True):
        result = stored.result
        leg, whole = result.forward, result.forward.end_to_end
        row = [run.run_id, stored.session, result.name, result.src, result.dst, result.vantage]
        row += [json.dumps(result.type_p), result.seed, result.tmax_ms, leg.planned, leg.unsent, leg.delivered]
        row += [leg.lost, leg.unobserved, leg.pending, leg.late, result.forged, result.overflow]
        row += [path_id(result), run.started_ns, stored.state or None, stored.since_ns, *whole.loss_interval_95]
        row += [*_figures(whole), whole.clock_error_ns, leg.last_seen, leg.first_missing]
        yield [*row, json.dumps(result.reason) if result.reason else None, json.dumps(document)]


def segment_rows(run: StoredRun) -> Iterator[list[object]]:
    """The rows of `segments`, of both legs."""
    for stored in run.sessions:
        legs = [("forward", stored.result.forward), ("return", stored.result.returned)]
        for name, leg in legs:
            for s in leg.segments if leg else ():
                row = [run.run_id, stored.session, name, s.id, s.kind, s.sent, s.received, s.lost]
                row += [*s.loss_interval_95, *_figures(s), s.reordered, s.duplicated, s.stamp]
                yield [*row, s.clock_error_ns, s.clock_problem or None]


def _figures(segment: SegmentResult) -> list[int | None]:
    """Columns delay_min to samples."""
    d = segment.delay
    return [d.min, d.p50, d.p90, d.p99, d.max, d.samples] if d else [*[None] * 5, 0]


def change_rows(run: StoredRun) -> Iterator[list[object]]:
    """The rows of `changes`."""
    names = ("name", "src", "dst", "from", "to", "since_ns", "at_ns", "last_seen", "first_missing")
    for change in run.changes:
        reason = json.dumps(change["reason"]) if change["reason"] else None
        yield [run.run_id, *(change[name] for name in names), reason]
