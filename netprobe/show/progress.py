"""A run while it lasts, as a live table on a terminal: how many probes are due, how many have arrived.

Drawn on stderr, and gone when the run is over: the result alone is on stdout. Without a terminal nothing is drawn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from netprobe.model.progress import SessionProgress
from netprobe.show.tables import console

MOST_ROWS = 15
"""Paths that are shown one by one; of more, those of which most is outstanding."""


class RunTable:
    """The table; `update` is told what is known."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, sessions: Sequence[SessionProgress]) -> None:
        """Draw what is known by now."""
        self._live.update(drawn(sessions), refresh=True)


def drawn(sessions: Sequence[SessionProgress]) -> Group:
    """All together in one bar, then the paths of which most is outstanding."""
    due, arrived = sum(s.due for s in sessions), sum(s.arrived for s in sessions)
    planned = sum(s.planned for s in sessions)
    head = Text(f"{arrived:,} of {due:,} probes that are due have arrived, {planned:,} are planned")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("path", no_wrap=True, overflow="ellipsis", max_width=50)
    for name in ("due", "arrived", "outstanding"):
        table.add_column(name, justify="right")
    table.add_column("")
    shown = sessions
    if len(sessions) > MOST_ROWS:
        shown = sorted(sessions, key=lambda s: s.arrived - s.due)[:MOST_ROWS]
    for s in shown:
        outstanding = max(0, s.due - s.arrived)
        style = "yellow" if outstanding > 0.05 * s.due + 2 else ""
        bar = ProgressBar(
            total=max(1, s.planned), completed=s.arrived, width=24, complete_style="cyan", finished_style="green"
        )
        name = f"{s.name}: {s.src} -> {s.dst}"
        table.add_row(Text(name), str(s.due), str(s.arrived), Text(str(outstanding), style), bar)
    more = len(sessions) - MOST_ROWS
    return Group(head, table, *([Text(f"and {more:,} more paths", "dim")] if more > 0 else []))


@contextmanager
def run_table(out: Console | None = None) -> Iterator[RunTable | None]:
    """Around a run: its table, None where stderr is no terminal.

    Args:
        out: where to draw; default: stderr.
    """
    out = console(stderr=True) if out is None else out
    if not out.is_terminal or out.is_dumb_terminal:
        yield None
        return
    with Live(console=out, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield RunTable(live)
