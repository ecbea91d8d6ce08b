"""Results for people: tables on a terminal.

Knows the JSON documents of docs/json.md only, so that a stored result and a
fresh one look the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
INFINITE = "∞"


def console(*, width: int | None = None, stderr: bool = False) -> Console:
    """A console: as wide as the terminal, or wide enough for the tables where there is none."""
    probe = Console(stderr=stderr)
    if width is None and not probe.is_terminal:
        width = 150
    # No markup: names and rules of others are text, whatever brackets they hold.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


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


def _delay_cells(segment: Document) -> list[str]:
    delay, pdv = segment["delay_ns"], segment["pdv_ns"]
    if delay is None:
        return ["-"] * 6
    return [*(duration(delay[k]) for k in ("min", "p50", "p90", "p99", "max")), duration(pdv["p99"])]


def segment_table(title: str, segments: Sequence[Document], changed: frozenset[str] = frozenset()) -> Table:
    """One row a segment."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("segment", no_wrap=True)
    for name in ("sent", "lost"):
        table.add_column(name, justify="right")
    table.add_column("loss [95 % interval]", justify="right", no_wrap=True)
    for name in ("min", "p50", "p90", "p99", "max", "PDV p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("dup", "reorder"):
        table.add_column(name, justify="right")
    table.add_column("stamped by", no_wrap=True)
    for segment in segments:
        is_bad = segment["id"] in changed or (segment["loss_ratio"] or 0) > 0
        cells = [segment["id"], str(segment["sent"]), str(segment["lost"]), loss_text(segment)]
        cells += _delay_cells(segment)
        cells += [str(segment["duplicated"]), str(segment["reordered"]), segment["stamp"]]
        table.add_row(*cells, style="yellow" if is_bad else "")
    return table


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
    """The answer in one line: delivered, or where it stopped."""
    lost, unobserved = session["lost"], session["unobserved"]
    if lost and session["first_missing"]:
        there = _largest_loss(session)
        elsewhere = f", {lost - there} elsewhere" if lost > there else ""
        where = f"{there} dropped between {session['last_seen']} and {session['first_missing']}{elsewhere}"
        style = "bold yellow" if session["delivered"] else "bold red"
        lead = "delivered with loss" if session["delivered"] else "NOT delivered"
        return Text(f"{lead}: {where}", style=style)
    if not session["delivered"]:
        where = session["last_seen"] or "no point"
        return Text(f"no answer: last seen at {where}, and nobody can say more", style="bold magenta")
    if unobserved:
        text = f"delivered: {session['received']} for certain; of {unobserved} nobody can say whether they arrived"
        return Text(text, style="bold yellow")
    seen = "" if session["missed"] else ", seen at every point"
    return Text(f"delivered to {session['last_seen']}{seen}", style="bold green")


def print_session(out: Console, session: Document) -> None:
    """Everything that a person wants to know of one session."""
    head = f"{session['src']} -> {session['dst']}  vantage {session['vantage']}  {type_p_text(session['type_p'])}"
    changed = frozenset(c["segment"] for c in session["changes"] or [])
    out.print()
    out.print(segment_table(head, session["segments"], changed))
    out.print(verdict_text(session))
    out.print(f"  {ledger_line(session)}")
    for line in reason_lines(session["reason"]) if session["reason"] else []:
        out.print(f"  {line}")
    for change in session["changes"] or []:
        out.print(f"  changed: {change_line(change)}", style="yellow")
    if session["changes"] == []:
        out.print("  no segment changed")
    _print_return(out, session)
    _print_oddities(out, session)


def _print_return(out: Console, session: Document) -> None:
    back = session["return"]
    if not back or not back["planned"]:
        return
    out.print(segment_table("  answers", back["segments"]))
    out.print(f"  {ledger_line(back)}")


def _print_oddities(out: Console, session: Document) -> None:
    pacing = session["pacing"]
    if pacing:
        out.print(
            f"  pacing error p50 {duration(pacing['p50_ns'])}, p99 {duration(pacing['p99_ns'])};"
            f" Tmax {session['tmax_ms']:g} ms; seed {session['seed']}",
            style="dim",
        )
    if session["forged"]:
        out.print(f"  {session['forged']} forged or stale records were not counted as hops", style="bold red")
    if session["overflow"]:
        shed = ", ".join(f"{k} {session['counters'][k]}" for k in ("ring_dropped", "agent_shed"))
        out.print(f"  frames were shed, so this result is incomplete: {shed}", style="bold red")
    if session["remarked_at"]:
        out.print(f"  the class mark was rewritten: first seen changed at {session['remarked_at']}", style="yellow")
    for note in session["notes"]:
        out.print(f"  note: {note}", style="dim")


def print_document(out: Console, document: Document) -> None:
    """The document of `trace` or `run`."""
    sessions = document.get("sessions", [document])
    for session in sessions:
        print_session(out, session)
