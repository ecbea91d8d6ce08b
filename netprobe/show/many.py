"""Results of many sessions for people: a line a session, flows side by side, sizes of frames.

Knows the JSON documents of docs/json.md only, like show.tables, which prints a single session whole.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from netprobe.show.drawing import draw_path
from netprobe.show.policy import print_verification
from netprobe.show.stopwatch import print_stopwatch
from netprobe.show.tables import Document, duration, percent, print_document, print_session, type_p_text, verdict_text

FEW = 6
"""So many sessions are printed whole; of more, those of interest."""

MOST_WHOLE = 3
_STATE_STYLE = {"fails": "bold red", "lossy": "yellow", "suspect": "magenta", "unknown": "magenta"}
_VERDICT_STYLE = {"all-pass": "bold green", "limited": "bold red", "unreachable": "bold red"}


def print_result(out: Console, document: Document) -> None:
    """The document of `trace`, `trace --mtu` or `run`: the answer first, and as much as one can read."""
    if document.get("mtu"):
        print_sweep(out, document)
        return
    if "matrix" in document:
        print_verification(out, document)
        return
    if "change" in document:
        print_stopwatch(out, document)
        return
    groups = document.get("flow_groups") or []
    for group in groups:
        print_flows(out, group, [row for row in document["flows"] if _group_of(row) == group["name"]])
    sessions = document.get("sessions")
    if sessions is None or (len(sessions) <= FEW and not groups):
        print_document(out, document, draw_path)
        return
    flows = {row["session"] for row in document.get("flows") or []}
    single = [s for s in sessions if s["name"] not in flows]
    if len(single) > FEW:
        out.print(_session_table(single))
    for session in _of_interest(sessions, flows):
        print_session(out, session, is_named=True)


def _group_of(row: Document) -> str:
    return str(row["session"]).rpartition("#")[0]


def _is_bad(session: Document) -> bool:
    return bool(session["lost"]) or not session["delivered"]


def _of_interest(sessions: Sequence[Document], flows: set[str]) -> list[Document]:
    """Few single sessions whole; of many, and of flows, the first bad ones, or one that stands for all."""
    single = [s for s in sessions if s["name"] not in flows]
    spread = [s for s in sessions if s["name"] in flows]
    found: list[Document] = []
    for some, is_whole in ((single, len(single) <= FEW), (spread, False)):
        bad = [s for s in some if _is_bad(s)]
        found += some if is_whole else (bad or some)[: MOST_WHOLE if bad else 1]
    return found


def _session_table(sessions: Sequence[Document]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("session", "left"), ("sent", "right"), ("lost", "right"), ("loss", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # two of rich's words
    for name in ("p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for session in sessions:
        end = session["end_to_end"]
        delay = end["delay_ns"]
        table.add_row(
            str(session["name"]),
            str(session["sent"]),
            str(session["lost"]),
            percent(end["loss_ratio"]),
            *("-" if delay is None else duration(delay[key]) for key in ("p50", "p99")),
            verdict_text(session),
        )
    return table


def print_flows(out: Console, group: Document, rows: Sequence[Document]) -> None:
    """How many of the flows pass, and one row a flow."""
    low, high = group["failing_interval_95"]
    style = "bold red" if group["failing"] else "bold magenta" if group["passes"] < group["flows"] else "bold green"
    out.print()
    out.print(f"{group['name']}: {group['text']}", style=style)
    out.print(f"  of all flows that there might be, {percent(low)} to {percent(high)} fail", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("flow", "source port", "sent", "received", "lost", "undecided"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        where = f", between {row['last_seen']} and {row['first_missing']}" if row["first_missing"] else ""
        cells = [str(row[key]) for key in ("flow", "src_port", "sent", "received", "lost", "undecided")]
        table.add_row(*cells, f"{row['state']}{where}", style=_STATE_STYLE.get(row["state"], ""))
    out.print(table)


def sweep_text(mtu: Document) -> str:
    """The answer of a sweep in a sentence or two."""
    if mtu["verdict"] == "all-pass":
        return f"every size passes that was tried, up to {mtu['passes_up_to']} bytes"
    if mtu["verdict"] == "limited":
        at_most = "" if mtu["exact"] else "at most "
        upto = "not even the smallest passes" if mtu["passes_up_to"] is None else f"{mtu['passes_up_to']} bytes pass"
        where = f"between {mtu['last_seen']} and {mtu['first_missing']}" if mtu["segment"] else "nobody saw where"
        where += "" if mtu["certain"] else ", or the answer on its first stretch back"
        return f"{upto}, {at_most}{mtu['first_failing']} vanish {where}"
    if mtu["verdict"] == "inconclusive":
        return f"no answer: {mtu['why']}"
    where = f": last seen at {mtu['last_seen']}" if mtu["last_seen"] else ""
    return f"nothing arrives, whatever its size{where}"


def _ranges_text(mtu: Document) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in mtu["failing"])


def print_sweep(out: Console, document: Document) -> None:
    """What `trace --mtu` found: the answer, and one row a size around each limit."""
    mtu = document["mtu"]
    out.print()
    type_p = {**document["type_p"], "size_bytes": f"{mtu['smallest']} to {mtu['largest']}"}
    out.print(
        f"{document['src']} -> {document['dst']}, vantage {document['vantage']}, {type_p_text(type_p)}", style="bold"
    )
    out.print(sweep_text(mtu), style=_VERDICT_STYLE.get(mtu["verdict"], "bold magenta"))
    if mtu["passes_up_to_packet"] is not None:
        out.print(f"  an IP packet of {mtu['passes_up_to_packet']} bytes passes", style="dim")
    if mtu["failing"]:
        out.print(f"  of the sizes that were tried, these fail: {_ranges_text(mtu)}")
    if mtu["reason"]:
        out.print(f"  reason: {mtu['reason']}")
    if mtu["return"] and mtu["return"]["verdict"] == "limited":
        out.print(f"  answers: {sweep_text(mtu['return'])}", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("bytes", "packet", "sent", "passed", "lost", "silent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in _edges(mtu["sizes"]):
        cells = [str(row[key]) for key in ("size", "packet", "sent", "passed", "lost", "silent")]
        table.add_row(*cells, row["state"], style="" if row["state"] == "passes" else "yellow")
    out.print(table)
    out.print(
        f"  {len(mtu['sizes'])} sizes in {mtu['runs']} runs; of what passes the path loses at most"
        f" {percent(mtu['loss_bound'])}",
        style="dim",
    )


def _edges(sizes: Sequence[Document]) -> list[Document]:
    """Both ends, and every size that is not like its neighbours, with them."""
    wanted = {0, len(sizes) - 1}
    for i in range(1, len(sizes)):
        if sizes[i]["state"] != sizes[i - 1]["state"]:
            wanted |= {i - 1, i}
    return [sizes[i] for i in sorted(wanted) if 0 <= i < len(sizes)]
