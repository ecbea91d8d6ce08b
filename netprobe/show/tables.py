"""Results for people: tables on a terminal.

Knows the JSON documents of docs/json.md only, so that a stored result and a
fresh one look the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
Draw = Callable[[Console, Document], None]
INFINITE = "∞"
NO_TERMINAL_WIDTH = 170  # the widest table fits


class _Console(Console):
    """For rich, which turns a reader that went away into exit code 1: that is the caller's to decide."""

    def on_broken_pipe(self) -> None:
        """Pass it on."""
        raise BrokenPipeError


def console(*, width: int | None = None, stderr: bool = False) -> Console:
    """A console: as wide as the terminal, or wide enough for the tables where there is none."""
    probe = Console(stderr=stderr)
    if width is None and not probe.is_terminal:
        width = NO_TERMINAL_WIDTH
    # No markup: names and rules of others are text, whatever brackets they hold.
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def duration(ns: int | None) -> str:
    """A duration in the unit that reads best; None is infinite."""
    if ns is None:
        return INFINITE
    if abs(ns) < 1_000:
        return f"{ns} ns"
    if abs(ns) < 1_000_000:
        return f"{ns / 1e3:.1f} us"
    if abs(ns) < 1_000_000_000:
        return f"{ns / 1e6:.2f} ms"
    return f"{ns / 1e9:.2f} s"


def percent(ratio: float | None) -> str:
    """A share as a percentage."""
    return "-" if ratio is None else f"{100 * ratio:.2f} %"


def loss_text(segment: Document) -> str:
    """Loss with its exact 95 % interval."""
    low, high = segment["loss_interval_95"]
    if not segment["sent"]:
        return "none came so far"
    ratio = "?" if segment["loss_ratio"] is None else f"{100 * segment['loss_ratio']:.2f} %"
    return f"{ratio} [{100 * low:.2f}, {100 * high:.2f}]"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, what stands in it, and how wide a console must be to show it."""

    name: str
    cell: Callable[[Document], str]
    justify: Literal["left", "right"] = "right"
    from_width: int = 0


def _delay(key: str) -> Callable[[Document], str]:
    def cell(segment: Document) -> str:
        if segment["delay_ns"] is not None:
            return duration(segment["delay_ns"][key])
        bounds = segment.get("delay_bounds_ns")
        return "-" if bounds is None else between(*bounds[key])

    return cell


def between(low: int | None, high: int | None) -> str:
    """What a delay across two clocks lies between, where no single number can be stated."""
    if low is None:
        return INFINITE if high is None else f"< {duration(high)}"
    return f"{duration(low)} to {duration(high)}"


def _sureness(key: str) -> Callable[[Document], str]:
    def cell(segment: Document) -> str:
        bounds, delay = segment.get("delay_bounds_ns"), segment["delay_ns"] or {}
        ends = bounds[key] if bounds is not None else delay.get(f"{key}_interval_95")
        return "-" if ends is None else f"> {duration(ends[0])}" if ends[1] is None and ends[0] else between(*ends)

    return cell


def _clock_error(segment: Document) -> str:
    error_ns = segment.get("clock_error_ns")
    return "" if error_ns is None else f"±{duration(error_ns)}"


def _count(key: str) -> Callable[[Document], str]:
    return lambda segment: str(segment[key]) if segment[key] else "-"


def _pdv(segment: Document) -> str:
    return "-" if segment["pdv_ns"] is None else duration(segment["pdv_ns"]["p99"])


COLUMNS = (
    Column("segment", lambda s: str(s["id"]), "left"),
    Column("sent", lambda s: str(s["sent"])),
    Column("lost", lambda s: str(s["lost"])),
    Column("loss [95 % interval]", loss_text, from_width=100),
    Column("min", _delay("min"), from_width=120),
    Column("p50", _delay("p50")),
    Column("clocks", _clock_error),
    Column("p50 lies in", _sureness("p50"), from_width=190),
    Column("p90", _delay("p90"), from_width=110),
    Column("p99", _delay("p99")),
    Column("p99 lies in", _sureness("p99"), from_width=190),
    Column("max", _delay("max"), from_width=110),
    Column("PDV p99", _pdv, from_width=135),
    Column("dup", _count("duplicated"), from_width=80),
    Column("reorder", _count("reordered"), from_width=120),
    Column("stamped by", lambda s: str(s["stamp"]), "left", from_width=150),
)
"""A narrow console shows fewer columns, never half a number; --json has them all."""


def segment_table(segments: Sequence[Document], width: int, changed: frozenset[str] = frozenset()) -> Table:
    """One row a segment, with the columns that fit into `width`; the clocks' error where two clocks stamped."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    is_across = any(s.get("clock_error_ns") is not None for s in segments)
    columns = [c for c in COLUMNS if c.from_width <= width and (is_across or c.cell is not _clock_error)]
    for column in columns:
        table.add_column(column.name, justify=column.justify, no_wrap=True)
    for segment in segments:
        is_bad = segment["id"] in changed or segment["lost"] > 0
        table.add_row(*(c.cell(segment) for c in columns), style="yellow" if is_bad else "")
    return table


def _print_table(out: Console, table: Table) -> None:
    """A table as wide as it needs to be: the terminal may wrap it, but no number is cut short."""
    needed = out.measure(table, options=out.options.update(width=1_000)).maximum
    out.print(table, width=max(needed, out.width), crop=False)


def ledger_line(leg: Document) -> str:
    """The ledger's equation with its numbers."""
    delivered = leg.get("received", leg.get("delivered"))
    line = (
        f"{leg['planned']} planned = {leg['unsent']} unsent + {delivered} delivered + {leg['lost']} lost"
        f" + {leg['unobserved']} unobserved + {leg['pending']} pending"
    )
    return line + (f"; {leg['late']} of the lost came late" if leg["late"] else "")


def type_p_text(type_p: Document) -> str:
    """Type-P in words."""
    ports = f" dport {type_p['dst_port']}" if type_p["dst_port"] else ""
    mark = "no class mark" if type_p["dscp"] is None else f"DSCP {type_p['dscp']}"
    return f"{type_p['proto']}{ports}, IPv{type_p['family']}, {type_p['size_bytes']} bytes, {mark}"


def reason_lines(reason: Document) -> list[str]:
    """Why probes were dropped, by which rule, and how that is known."""
    lines = [f"reason: {reason['code']} ({reason['evidence']})"]
    if reason.get("detail"):
        lines.append(f"  {reason['detail']}")
    if reason.get("table") is not None:
        priority = f", priority {reason['priority']}" if reason.get("priority") is not None else ""
        lines.append(
            f"  OpenFlow rule: table {reason['table']}, cookie {reason['cookie']}{priority}, {reason['match']}"
        )
    if reason.get("rule"):
        lines.append(f"  security group rule: {reason['rule']}")
    return lines


def change_line(change: Document) -> str:
    """One segment that is not what it was."""
    parts = []
    if change["delay_ns"] is not None:
        low, high = change["delay_interval_95"]
        word = "slower" if change["delay_ns"] > 0 else "faster"
        parts.append(f"{duration(abs(change['delay_ns']))} {word} (median; {duration(low)} to {duration(high)})")
    if change["loss_ratio"] is not None:
        low, high = change["loss_interval_95"]
        parts.append(
            f"loses {percent(change['loss_ratio'])} [{100 * low:.2f}, {100 * high:.2f}],"
            f" before {percent(change['loss_before'])}"
        )
    return f"{change['segment']}: " + "; ".join(parts)


def _largest_loss(session: Document) -> int:
    """How many were lost between the two points that the verdict names."""
    for segment in session["segments"]:
        if (segment["from"], segment["to"]) == (session["last_seen"], session["first_missing"]):
            return int(segment["lost"])
    return int(session["lost"])


def verdict_text(session: Document) -> Text:
    """The answer in one line: delivered, or where it stopped; what nobody can say is said too."""
    lost, open_ = session["lost"], session["unobserved"] + session["pending"]
    unsure = f"; of {open_} nobody can say" if open_ else ""
    unsure += f"; {session['unsent']} not sent" if session["unsent"] else ""
    if lost and session["first_missing"]:
        there = _largest_loss(session)
        elsewhere = f", {lost - there} elsewhere" if lost > there else ""
        word = "late" if (session["reason"] or {}).get("code") == "late" else "dropped"
        where = f"{there} {word} between {session['last_seen']} and {session['first_missing']}{elsewhere}{unsure}"
        if session["delivered"]:
            return Text(f"delivered with loss: {where}", style="bold yellow")
        if lost > open_ + session["unsent"]:
            return Text(f"NOT delivered: {where}", style="bold red")
        return Text(f"no answer: {where}", style="bold magenta")
    if not session["delivered"]:
        where = session["last_seen"] or "no point"
        return Text(f"no answer: last seen at {where}, and nobody can say more{unsure}", style="bold magenta")
    if unsure:
        return Text(f"delivered: {session['received']} for certain{unsure}", style="bold yellow")
    seen = ", seen at every point" if session["complete"] else ""
    return Text(f"delivered to {session['last_seen']}{seen}", style="bold green")


def _heading(session: Document, *, is_named: bool) -> str:
    name = f"{session['name']}: " if is_named else ""
    return f"{name}{session['src']} -> {session['dst']}, vantage {session['vantage']}, {type_p_text(session['type_p'])}"


def print_session(out: Console, session: Document, *, is_named: bool = False, draw: Draw | None = None) -> None:
    """Everything that a person wants to know of one session: the answer first, then what it rests on.

    Args:
        out: where.
        session: its document.
        is_named: whether its name is told: there are others.
        draw: draws its path (show.drawing), None for no picture.
    """
    out.print()
    out.print(_heading(session, is_named=is_named), style="bold")
    out.print(verdict_text(session))
    for line in reason_lines(session["reason"]) if session["reason"] else []:
        out.print(f"  {line}")
    for change in session["changes"] or []:
        out.print(f"  changed: {change_line(change)}", style="yellow")
    if session["changes"] == []:
        out.print("  no segment changed")
    if draw is not None:
        draw(out, session)
    changed = frozenset(c["segment"] for c in session["changes"] or [])
    _print_table(out, segment_table(session["segments"], out.width, changed))
    out.print(f"  {ledger_line(session)}", style="dim")
    back = session["return"]
    if back and back["planned"]:
        out.print("  answers:")
        _print_table(out, segment_table(back["segments"], out.width, changed))
        out.print(f"  {ledger_line(back)}", style="dim")
    _print_oddities(out, session)


def clock_lines(session: Document) -> list[str]:
    """Which delays are not stated because of the clocks, and why; the same words for several segments once."""
    legs = [session] + ([session["return"]] if session["return"] else [])
    problems: dict[str, list[str]] = {}
    for segment in (s for leg in legs for s in leg["segments"]):
        if segment.get("clock_problem"):
            problems.setdefault(segment["clock_problem"], []).append(segment["id"])
    return [f"clocks: {', '.join(ids)}: {problem}" for problem, ids in problems.items()]


def _print_oddities(out: Console, session: Document) -> None:
    for line in clock_lines(session):
        out.print(f"  {line}", style="yellow")
    pacing, counters = session["pacing"], session["counters"]
    if pacing:
        out.print(
            f"  pacing error p50 {duration(pacing['p50_ns'])}, p99 {duration(pacing['p99_ns'])};"
            f" Tmax {session['tmax_ms']:g} ms; seed {session['seed']}",
            style="dim",
        )
    unknown = counters.get("unknown_session", 0)
    if unknown:
        out.print(f"  {unknown} marks of no session of this run were seen (stale, or another run's): no hops of ours")
    if session["forged"] > unknown:
        out.print(f"  {session['forged'] - unknown} forged records were not counted as hops", style="bold red")
    if session["overflow"]:
        places = "; ".join(f"{point}: {why}" for point, why in session.get("overflowed", {}).items())
        out.print(f"  frames were shed, so this result is incomplete: {places}", style="bold red")
    if session["remarked_at"]:
        out.print(f"  the class mark was rewritten: first seen changed at {session['remarked_at']}", style="yellow")
    for note in session["notes"]:
        out.print(f"  note: {note}", style="dim")


def print_document(out: Console, document: Document, draw: Draw | None = None) -> None:
    """The document of `trace` or `run`; `draw` draws the path of a single one."""
    sessions = document.get("sessions")
    for session in [document] if sessions is None else sessions:
        print_session(out, session, is_named=sessions is not None, draw=None if sessions else draw)
