"""What a watch says to people: one line a change, one a window. Knows the documents of docs/watch.md only."""

from collections import Counter
from datetime import UTC, datetime

from netprobe.show.tables import Document, duration


def clock(t_ns: int) -> str:
    """A time of day to the millisecond, in this machine's time zone."""
    at = datetime.fromtimestamp(t_ns / 1e9, UTC).astimezone()
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"


def change_text(change: Document) -> str:
    """A path that is in another state: since when, where, and by how many samples."""
    text = f"{change['src']} -> {change['dst']}: {change['from']} -> {change['to']} since {clock(change['since_ns'])}"
    if change["last_seen"]:
        text += f", last seen at {change['last_seen']}"
    if change["first_missing"]:
        text += f", first missing at {change['first_missing']}"
    reason = (change["reason"] or {}).get("code")
    text += f", reason {reason}" if reason and reason != "unknown" else ""
    tests = "".join(f"; {name}: {samples} samples" for name, samples in change["tests"].items())
    return f"{text} ({change['name']}{tests})"


def window_text(window: Document) -> str:
    """One window in one line."""
    counts = Counter(session["state"] for session in window["sessions"])
    states = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    gap = "" if window["gap_ns"] is None else f"; {duration(window['gap_ns'])} unwatched before it"
    trouble = f"; not run: {window['error']}" if window["error"] else ""
    trouble += f"; {window['stopped']}" if window["stopped"] else ""
    return f"window {window['window']}: {states}{gap}{trouble}"
