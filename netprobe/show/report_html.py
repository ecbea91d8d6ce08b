"""The report: one HTML file with everything in it, to be attached to a ticket (docs/live-page.md).

The pictures are the live page's own scripts, with the data beside them; all numbers stand in tables too, so that it can
be read where no script runs. It asks no host for anything: its Content-Security-Policy names its own blocks by hash.
What came from the network is escaped here, or becomes text nodes there.
"""

import base64
import hashlib
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from rich.console import Console

from netprobe import __version__
from netprobe.model.results import Json
from netprobe.show.many import print_result
from netprobe.show.policy import answer_text
from netprobe.show.report_plan import limits, plan_text, sessions_of, statements
from netprobe.show.tables import COLUMNS, NO_TERMINAL_WIDTH, ledger_line, reason_lines, verdict_text

Document = Mapping[str, Any]
STYLES = ("vendor/uPlot.min.css", "static/style.css")
SCRIPTS = ("vendor/uPlot.iife.min.js", "static/base.js", "static/charts.js", "static/grid.js", "static/path.js",
           "static/mesh.js", "static/policy.js", "static/report.js")  # fmt: skip
MOST_WHOLE = 60
"""Sessions that are drawn: the worst first. All are in the tables, in --json and in --csv."""

MOST_ROWS = 2_000


def _asset(name: str) -> str:
    return files("netprobe.show.web").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(value: object) -> str:
    """JSON that no parser of HTML takes for anything else."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def worst_first(sessions: Sequence[Document]) -> list[Document]:
    """Sessions by how much they lost, then as planned."""
    return sorted(sessions, key=lambda s: -(s["lost"] / max(1, s["planned"] - s["unsent"]) + (not s["delivered"])))


def _row_of(session: Document, number: int) -> Json:
    """A session as the matrix wants it (docs/live-page.md)."""
    whole = session["end_to_end"]
    delay = whole["delay_ns"] or {}
    lost, delivered = session["lost"], session["received"]
    undecided = session["unobserved"] + session["pending"]
    state = "reachable" if delivered and not lost else "degraded" if delivered else (
        "unreachable" if lost > undecided else "unobserved"
    )  # fmt: skip
    return {
        "path": str(number),
        **{k: session[k] for k in ("name", "src", "dst", "vantage", "type_p", "lost", "last_seen", "first_missing")},
        "delivered": delivered,
        "undecided": undecided,
        "loss_ratio": whole["loss_ratio"],
        "loss_low": whole["loss_interval_95"][0],
        "loss_high": whole["loss_interval_95"][1],
        "delay_p50": delay.get("p50"),
        "delay_p99": delay.get("p99"),
        "samples": delay.get("samples", 0),
        "clock_error": whole["clock_error_ns"],
        "state": state,
        "is_watched": False,
        "started_ns": 0,
    }


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    cells = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _session_tables(sessions: Sequence[Document]) -> str:
    """The numbers of sessions without pictures."""
    parts, rows = [], 0
    for s in sessions:
        title = f"{s['name']}: {s['src']} → {s['dst']}, vantage {s['vantage']}"
        parts.append(f"<h3>{escape(title)}</h3><p>{escape(verdict_text(s).plain)}</p>")
        parts += [f"<p>{escape(line)}</p>" for line in (reason_lines(s["reason"]) if s["reason"] else [])]
        for leg in (s, s["return"]):
            if leg and leg["planned"]:
                segments = [*leg["segments"], leg["end_to_end"]]
                rows += len(segments)
                parts.append(_table([c.name for c in COLUMNS], [[c.cell(x) for c in COLUMNS] for x in segments]))
                parts.append(f'<p class="ledger">{escape(ledger_line(leg))}</p>')
        parts += [f'<p class="muted">{escape(note)}</p>' for note in s["notes"]]
        if rows > MOST_ROWS:
            parts.append("<p>… the others are in --json and --csv.</p>")
            break
    return "".join(parts)


def _finding_tables(document: Document) -> str:
    rows = [
        (f["number"], f["kind"], f"{f['src']} → {f['dst']}" if f["src"] else "", f["packet"], f["expected"],
         f["observed"], f["rule"], f["detail"])
        for f in document["findings"][:MOST_ROWS]
    ]  # fmt: skip
    head = ("#", "finding", "pair", "packet", "should", "did", "rule", "why")
    return f"<p>{escape(answer_text(document).plain)}</p>" + _table(head, rows)


def _as_on_a_terminal(document: Document) -> str:
    """Results that have no pictures: sizes of frames, a change that was watched."""
    out = Console(file=io.StringIO(), width=NO_TERMINAL_WIDTH, highlight=False, markup=False, emoji=False)
    print_result(out, document)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def _statements(document: Document) -> str:
    rows = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(text)}</dd></div>" for n, text in statements(document))
    parts = [f'<dl class="figures one">{rows}</dl>']
    plan = plan_text(document)
    if plan:
        left_out = "".join(f"<li>{escape(text)}</li>" for text in limits(document))
        parts.append(
            "<details><summary>The plan that repeats it: <code>netprobe run plan.toml</code></summary>"
            f'<ul class="notes">{left_out}</ul><pre>{escape(plan)}</pre></details>'
        )
    elif "matrix" in document:
        words = [
            "netprobe",
            "verify",
            str(document["source"]),
            "--vantage",
            document["vantage"],
            "--seed",
            document["seed"],
        ]
        words += ["--rate", document["rate_pps"], "--tmax", f"{document['tmax_ms']:g}ms", "--alpha", document["alpha"]]
        parts.append(f"<p>Repeat it: <code>{escape(shlex.join(map(str, words)))}</code></p>")
    return "".join(parts)


def report_html(document: Document, histories: Mapping[str, Json]) -> str:
    """The report of one result.

    Args:
        document: as `report --json` prints it.
        histories: by the name of a session: `history` and `faults`, as the live page has them; may lack some.

    Returns:
        HTML.
    """
    sessions = sessions_of(document)
    chosen = worst_first(sessions)[:MOST_WHOLE]
    numbers = {id(s): i for i, s in enumerate(sessions)}
    data: Json = {
        "document": {k: v for k, v in document.items() if k not in ("sessions", "truth", "return", "segments")},
        "rows": [_row_of(s, i) for i, s in enumerate(sessions)],
        "sessions": [{"number": numbers[id(s)], "session": s, **histories.get(s["name"], {})} for s in chosen],
        "left_out": len(sessions) - len(chosen),
    }
    is_verification = "matrix" in document
    if is_verification:
        numbers_part = _finding_tables(document)
    elif sessions:
        numbers_part = _session_tables(worst_first(sessions))
    else:
        numbers_part = f"<pre>{escape(_as_on_a_terminal(document))}</pre>"
    return _page(
        title=f"netprobe: {document.get('source' if is_verification else 'plan') or 'result'}",
        head=f"{'Verification' if is_verification else 'Result'} of {document['started']}",
        statements=_statements(document),
        numbers=numbers_part,
        data=_data(data),
        opened="" if is_verification or sessions else " open",
    )


def _page(*, title: str, head: str, statements: str, numbers: str, data: str, opened: str) -> str:
    style = "\n".join(_asset(name) for name in STYLES)
    scripts = [_asset(name) for name in SCRIPTS]
    policy = (
        f"default-src 'none'; script-src {' '.join(_hash(s) for s in scripts)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    blocks = "\n".join(f"<script>{s}</script>" for s in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header class="top"><span class="brand">netprobe report</span>
<p class="fresh">made by netprobe {__version__}</p></header>
<main id="main">
<div class="head"><h1>{escape(title.removeprefix("netprobe: "))}</h1><p class="muted">{escape(head)}</p></div>
<div id="pictures"></div>
<section class="panel"><h2>What makes it reproducible</h2>{statements}</section>
<section class="panel"><details{opened}><summary>All numbers as tables</summary>{numbers}</details></section>
</main>
<script type="application/json" id="data">{data}</script>
{blocks}
</body>
</html>
"""
