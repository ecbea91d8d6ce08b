"""The store's tables of what comes while a run lasts: windows, their segments, hop records; and rows for them.

They stand beside the tables of whole runs (store.tables) and have a bound of their own. No connection is opened here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.collect.windows import ClosedWindow
from netprobe.model.points import Leg
from netprobe.model.records import HopBatch
from netprobe.store.tables import SEGMENT_FIGURES

STREAM_COLUMNS = {
    "run_id": "VARCHAR PRIMARY KEY",
    "stream": "INTEGER",
    "started_ns": "BIGINT",
    "points": "VARCHAR[]",
}
WINDOW_COLUMNS = {
    "run_id": "VARCHAR",
    "session": "UINTEGER",
    "leg": "VARCHAR",
    "first_seq": "UINTEGER",
    "probes": "UINTEGER",
    "from_ns": "BIGINT",
    "until_ns": "BIGINT",
    "planned": "BIGINT",
    "unsent": "BIGINT",
    "delivered": "BIGINT",
    "lost": "BIGINT",
    "unobserved": "BIGINT",
    "pending": "BIGINT",
    "late": "BIGINT",
    "shed": "BOOLEAN",
}
WINDOW_SEGMENT_COLUMNS = {
    "run_id": "VARCHAR",
    "session": "UINTEGER",
    "leg": "VARCHAR",
    "first_seq": "UINTEGER",
    **SEGMENT_FIGURES,
}
STREAM_HOP_COLUMNS = {
    "stream": "INTEGER",  # for the run's name in each row a fourth of the time would be spent
    "session": "UINTEGER",
    "seq": "UINTEGER",
    "point": "USMALLINT",
    "direction": "UTINYINT",
    "leg": "UTINYINT",
    "t_ns": "BIGINT",
}
TABLES: dict[str, Mapping[str, str]] = {
    "streams": STREAM_COLUMNS,
    "windows": WINDOW_COLUMNS,
    "window_segments": WINDOW_SEGMENT_COLUMNS,
    "stream_hops": STREAM_HOP_COLUMNS,
}
CREATE = "".join(
    f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(f'{n} {kind}' for n, kind in columns.items())});\n"
    for table, columns in TABLES.items()
)

Row = list[object]


@dataclass(frozen=True, slots=True)
class StreamedWindow:
    """One closed window of a session's leg."""

    session: int
    leg: Leg
    window: ClosedWindow


def window_rows(run_id: str, windows: Iterable[StreamedWindow]) -> Iterator[Row]:
    """The ledger of each window, as in WINDOW_COLUMNS."""
    for one in windows:
        w, r = one.window, one.window.result
        fates = [r.planned, r.unsent, r.delivered, r.lost, r.unobserved, r.pending, r.late]
        yield [
            run_id,
            one.session,
            one.leg.name.lower(),
            w.first,
            w.end - w.first,
            w.from_ns,
            w.until_ns,
            *fates,
            w.is_shed,
        ]


def window_segment_rows(run_id: str, windows: Iterable[StreamedWindow]) -> Iterator[Row]:
    """The segments of each window, as in WINDOW_SEGMENT_COLUMNS."""
    for one in windows:
        for s in one.window.result.segments:
            d = s.delay
            delays = [d.min, d.p50, d.p90, d.p99, d.max, d.samples] if d else [None] * 5 + [0]
            key = [run_id, one.session, one.leg.name.lower(), one.window.first, s.id, s.kind]
            yield [*key, s.sent, s.received, s.lost, *s.loss_interval_95, *delays, s.reordered, s.duplicated, s.stamp]


def hop_columns(hops: HopBatch) -> dict[str, npt.NDArray[np.generic]]:
    """Hop records as columns, without the run's name."""
    return {
        "session": hops.session,
        "seq": hops.seq,
        "point": hops.point,
        "direction": hops.direction,
        "leg": hops.leg,
        "t_ns": hops.t_ns,
    }
