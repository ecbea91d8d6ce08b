"""What the live page and reports ask of the store: newest results of each path, a path's history, verifications.

Read-only, and each look is short: DuckDB lets nobody write while somebody reads in another process, and a writer waits
for LOCK_WAIT_S only. Values come out as JSON (docs/live-page.md); nothing here knows of HTTP.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netprobe.collect.segments import loss_ratio
from netprobe.errors import UsageError
from netprobe.model.results import Json
from netprobe.store.duckdb_file import Store, open_store

MAX_RUNS = 500
"""The newest runs in which paths are looked for: what has not been probed since is not shown."""

MAX_CHANGES = 200
MAX_HISTORY = 1_000
MAX_FAULTS = 20
MAX_VERIFICATIONS = 50

_OVERVIEW = (
    "path, run_id, started_ns, name, src, dst, vantage, type_p, planned, unsent, delivered, lost,"
    " unobserved + pending AS undecided, loss_low, loss_high, delay_p50, delay_p99, samples, clock_error, state,"
    " since_ns, last_seen, first_missing, reason, overflow"
)
_POINT = (
    "s.run_id, s.started_ns, s.planned - s.unsent AS sent, s.delivered AS received, s.lost, s.loss_low, s.loss_high,"
    " s.delay_min, s.delay_p50, s.delay_p90, s.delay_p99, s.delay_max, s.samples, s.state"
)
_SEGMENT_POINT = (
    "s.run_id, s.started_ns, g.sent, g.received, g.lost, g.loss_low, g.loss_high, g.delay_min, g.delay_p50,"
    " g.delay_p90, g.delay_p99, g.delay_max, g.samples, s.state"
)


class History:
    """An open store, to be asked; made by `open_history`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        result = self._store.connection.execute(query, list(values))
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def runs(self, limit: int = MAX_RUNS) -> list[dict[str, Any]]:
        """The newest runs, newest first: `run_id`, `started_ns`, `command`."""
        query = "SELECT run_id, started_ns, command FROM runs ORDER BY started_ns DESC, rowid DESC LIMIT ?"
        return self._rows(query, [limit])

    def newest(self, run_ids: Iterable[str]) -> list[dict[str, Any]]:
        """Of these runs the newest row of each path; a path of an older netprobe has no name and is left out."""
        query = (
            f"SELECT {_OVERVIEW} FROM sessions WHERE run_id IN (SELECT unnest(?::VARCHAR[])) AND path IS NOT NULL"  # noqa: S608
            " QUALIFY row_number() OVER (PARTITION BY path ORDER BY started_ns DESC, rowid DESC) = 1"
        )
        return [_with_state(_parsed(row, "type_p", "reason")) for row in self._rows(query, [list(run_ids)])]

    def changes(self) -> list[dict[str, Any]]:
        """The newest changes of states."""
        query = "SELECT * FROM changes ORDER BY at_ns DESC LIMIT ?"
        return [_parsed(row, "reason") for row in self._rows(query, [MAX_CHANGES])]

    def verifications(self) -> list[dict[str, Any]]:
        """The newest verifications, newest first, without their findings."""
        query = (
            "SELECT run_id, started_ns, document->'counts' AS counts, document->>'backend' AS backend,"
            " document->>'source' AS source, document->>'vantage' AS vantage, document->'policy' AS policy,"
            " document->>'stopped' AS stopped"
            " FROM runs WHERE command = 'verify' AND json_exists(document, 'matrix')"
            " ORDER BY started_ns DESC LIMIT ?"
        )
        return [_parsed(row, "counts", "policy") for row in self._rows(query, [MAX_VERIFICATIONS])]

    def session(self, path: str, run_id: str | None = None) -> Json | None:
        """A path's document in one run, or in its newest: `run_id`, `started_ns`, `command`, `session`, `state`."""
        where, values = ("AND s.run_id = ?", [path, run_id]) if run_id else ("", [path])
        query = (
            "SELECT s.path, s.run_id, s.started_ns, r.command, s.state, s.since_ns, s.planned, s.unsent, s.delivered,"  # noqa: S608
            " s.lost, s.unobserved + s.pending AS undecided, s.document AS session, r.document->>'plan' AS plan,"
            " r.document->>'stopped' AS stopped"
            f" FROM sessions s JOIN runs r USING (run_id) WHERE s.path = ? {where}"
            " ORDER BY s.started_ns DESC, s.rowid DESC LIMIT 1"
        )
        rows = self._rows(query, values)
        return _parsed(_with_state(rows[0]), "session") if rows else None

    def history(self, path: str, leg: str = "", segment: str = "") -> list[dict[str, Any]]:
        """A path's figures, or those of one of its segments, in each of its newest runs; oldest first."""
        if segment:
            query = (
                f"SELECT {_SEGMENT_POINT} FROM sessions s JOIN segments g USING (run_id, session)"  # noqa: S608
                " WHERE s.path = ? AND g.leg = ? AND g.segment = ? ORDER BY s.started_ns DESC LIMIT ?"
            )
            rows = self._rows(query, [path, leg, segment, MAX_HISTORY])
        else:
            query = f"SELECT {_POINT} FROM sessions s WHERE s.path = ? ORDER BY s.started_ns DESC LIMIT ?"  # noqa: S608
            rows = self._rows(query, [path, MAX_HISTORY])
        return rows[::-1]

    def columns(self, path: str, leg: str = "", segment: str = "") -> Json:
        """`history` as columns: a thousand points have their names written once."""
        rows = self.history(path, leg, segment)
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def faults(self, path: str) -> list[dict[str, Any]]:
        """The newest runs in which the path lost probes."""
        query = (
            "SELECT run_id, started_ns, planned - unsent AS sent, lost, last_seen, first_missing, reason"
            " FROM sessions WHERE path = ? AND lost > 0 ORDER BY started_ns DESC LIMIT ?"
        )
        return [_parsed(row, "reason") for row in self._rows(query, [path, MAX_FAULTS])]

    def verification(self, run_id: str) -> Json | None:
        """The document of a verification, without `truth`, which is for programs."""
        document = self._store.document(run_id)
        if document is None or "matrix" not in document:
            return None
        document.pop("truth", None)
        return document


def _parsed(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row whose JSON columns are values."""
    return {**row, **{name: json.loads(row[name]) if row[name] else None for name in names}}


def _with_state(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its loss, that says whether its path is watched; of one that is not, what its last run alone says."""
    row = {**row, "loss_ratio": loss_ratio(row["lost"], row["delivered"], row["undecided"])}
    if row["state"]:
        return {**row, "is_watched": True}
    lost, delivered = row["lost"], row["delivered"]
    if delivered:
        state = "degraded" if lost else "reachable"
    else:
        state = "unreachable" if lost > row["undecided"] else "unobserved"
    return {**row, "state": state, "since_ns": None, "is_watched": False}


@contextmanager
def open_history(path: Path) -> Iterator[History]:
    """Open a store to be read.

    Raises:
        NoAnswerError: it holds nothing yet.
        HostNotReadyError: it cannot be opened.
        UsageError: an older netprobe wrote it, and none of today has written to it since.
    """
    with open_store(path, read_only=True) as store:
        if store.version < 3:
            raise UsageError(
                f"store {path}",
                "an older netprobe wrote it",
                advice="let this one write a result to it: then it is brought up to date",
            )
        yield History(store)
