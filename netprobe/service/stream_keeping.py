"""A stream's windows, and its hop records when asked, into the store while it runs. Used by service.streamed_run."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from netprobe.collect.windows import ClosedWindow
from netprobe.host.clock import realtime_ns
from netprobe.model.points import Leg
from netprobe.store.stream_tables import StreamedWindow
from netprobe.store.stream_writer import StreamWriter

CLOSE_S = 60.0
"""How long what still waits for the disk is waited for."""


@dataclass(frozen=True, slots=True)
class StreamKeep:
    """Where a stream is to be kept.

    Attributes:
        path: the store's file.
        run_id: of the run.
        hops: whether single hop records are kept too.
    """

    path: Path
    run_id: str
    hops: bool = False


class Keeper:
    """Takes windows; without a writer it lets them go.

    Args:
        writer: to the store, None for nowhere.
        session: number of the session.
    """

    def __init__(self, writer: StreamWriter | None, session: int) -> None:
        self._writer, self._session = writer, session

    def take(self, window: ClosedWindow) -> None:
        """A window that is closed; never waits."""
        if self._writer is None:
            return
        self._writer.put_windows([StreamedWindow(self._session, Leg.FORWARD, window)])
        if window.hops is not None and len(window.hops):
            self._writer.put_hops(window.hops)

    @property
    def counters(self) -> dict[str, int]:
        """What was stored and what was shed, for the result."""
        return {} if self._writer is None else {f"store_{name}": n for name, n in self._writer.counters.items()}

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the store."""
        if self._writer is None:
            return []
        if self._writer.failure:
            return [f"not all of the windows are in the store: {self._writer.failure}"]
        shed = self._writer.counters["hops_shed"]
        return [f"the disk could not follow: {shed} hop records are not in the store"] if shed else []


@asynccontextmanager
async def open_keeper(keep: StreamKeep | None, session: int, points: Sequence[str]) -> AsyncIterator[Keeper]:
    """A keeper for one stream; at the end all that was not shed is on the disk.

    Args:
        keep: where to; None for nowhere.
        session: its number.
        points: names of the points, by index in the hop records.
    """
    if keep is None:
        yield Keeper(None, session)
        return
    writer = StreamWriter(keep.path, keep.run_id, started_ns=realtime_ns(), points=points)
    writer.start()
    try:
        yield Keeper(writer, session)
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await trio.to_thread.run_sync(writer.close, abandon_on_cancel=True)
