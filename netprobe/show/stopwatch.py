"""A watched change for people: when the new verdict held, what passed or was dropped wrongly meanwhile.

Knows the JSON documents of docs/json.md only, like show.tables.
"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netprobe.show.tables import Document, duration

ANSWERS = {
    "changed": ("the new verdict held by the end of the command", "bold green"),
    "violated": ("the new verdict did not hold when the command had ended", "bold red"),
    "unchanged": ("nothing changed", "bold yellow"),
    "undecided": ("nobody can say whether anything changed", "bold yellow"),
}
CONNECTIONS = {
    "cut": "the established connection was cut",
    "lives on": "the established connection lives on (stale conntrack)",
    "kept": "the established connection was not touched",
    "let in": "the flow that was kept out passes now",
    "stays out": "new connections pass, the flow that was kept out does not",
    "kept out": "the flow was kept out before and after",
    "unknown": "what became of the connection is not known",
}


def print_stopwatch(out: Console, document: Document) -> None:
    """The answer first, then a line a stream."""
    text, style = ANSWERS[document["answer"]]
    watch = document["change"]
    out.print(Text(text, style=style) + Text(f" ({document['backend']})"))
    out.print(Text(f"command: {' '.join(watch['command'])}: {_command(watch)}"))
    if document["classes"]:
        out.print(_table(document))
    for one in document["classes"]:
        stale = one["connection"] in ("lives on", "stays out")
        line = f"{one['rule']}, {one['packet']}: {CONNECTIONS[one['connection']]}"
        out.print(Text(line, style="red" if stale else ""))
    for rule in document["left_out"]:
        out.print(Text(f"not watched, there was no room: {rule}", style="yellow"))
    for note in document["notes"]:
        out.print(Text(f"note: {note}", style="yellow"))
    out.print(
        Text(
            f"{document['sent']} packets and {document['controls']} controls in {document['seconds']:.1f} s; "
            f"{document['loss']['misses_needed']} misses in a row are a drop; after_commit counts from the end of the "
            f"command, which may be later than the change itself",
            style="dim",
        )
    )


def _command(watch: Document) -> str:
    if watch["took_ns"] is None:
        return "was not run"
    return f"took {duration(watch['took_ns'])}, exit code {watch['exit_code']}"


def _table(document: Document) -> Table:
    table = Table()
    for name in ("rule", "packets", "before", "after", "last old verdict", "leaked", "blocked", "mixed"):
        table.add_column(name, justify="right" if name in ("leaked", "blocked", "mixed") else "left")
    for one in document["classes"]:
        for kind in ("existing", "new"):
            change = one[kind]
            if change is not None:
                what = f"{one['src']} > {one['dst']} {'existing flow' if kind == 'existing' else 'new connections'}"
                counts = [
                    Text(str(change[name]), style="bold red" if change[name] and name != "mixed" else "")
                    for name in ("leaked", "blocked", "mixed")
                ]
                verdicts = [change[side] or "?" for side in ("old", "new")]
                table.add_row(one["rule"], what, *verdicts, _moment(change), *counts)
    return table


def _moment(change: Document) -> str:
    """When the last packet with the old verdict was sent, seen from the end of the command."""
    late_ns = change["after_commit_ns"]
    if late_ns is None:
        return "-"
    side = "after" if late_ns > 0 else "before"
    return f"{duration(abs(late_ns))} {side} the end, +{duration(change['uncertainty_ns'])}"
