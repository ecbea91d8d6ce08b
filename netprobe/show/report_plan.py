"""From a result back to a plan that repeats it: what a reader of a report needs to measure the same again.

Knows the JSON documents of docs/json.md only. Schedules are exact: same seed, same gaps. What a plan of single sessions
cannot say stands in `limits`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from netprobe.model.results import Json

Document = Mapping[str, Any]
MAX_SESSIONS = 10_000


def sessions_of(document: Document) -> list[Document]:
    """All sessions of a document of `run`, `watch` or `trace`."""
    sessions = document.get("sessions")
    if isinstance(sessions, list) and sessions:
        return sessions
    return [document] if "planned" in document else []


def plan_text(document: Document) -> str:
    """A plan (docs/plans.md) with the sessions of a result, "" where it is none of sessions."""
    sessions = list({s["name"]: s for s in sessions_of(document)}.values())  # epochs of one session are one again
    if not sessions or len(sessions) > MAX_SESSIONS:
        return ""
    counts: dict[str, int] = {}
    for s in sessions_of(document):
        counts[s["name"]] = counts.get(s["name"], 0) + s["planned"]
    lines = [
        "schema = 1",
        f"name = {_text(str(document.get('plan') or sessions[0]['name']))}",
        f"seed = {document.get('seed', sessions[0]['seed'])}",
        f'tmax = "{round(sessions[0]["tmax_ms"] * 1_000)}us"',
    ]
    for session in sessions:
        lines += ["", "[[session]]", *_session_lines(session, counts[session["name"]])]
    return "\n".join(lines) + "\n"


def limits(document: Document) -> list[str]:
    """What the plan of `plan_text` leaves out, in sentences."""
    sessions, found = sessions_of(document), []
    if any(s["epoch"] for s in sessions):
        found.append("A guest moved during the run: a repetition begins where it is now.")
    if document.get("mesh"):
        found.append(
            "Paths of a mesh begin one after the other within the first gap; as single sessions they begin together."
        )
    if any("#" in s["name"] for s in sessions):
        found.append("Flows take turns; as single sessions they send at the same times.")
    if any(s["rate_pps"] < 1 or s["rate_pps"] != int(s["rate_pps"]) for s in sessions):
        found.append("A budget slowed paths down to below whole probes a second: their rate is rounded up here.")
    if any(not s["type_p"].get("src_port") for s in sessions):
        found.append("Source ports that were new for each probe are others next time.")
    return found


def _session_lines(session: Document, count: int) -> list[str]:
    kind: Json = session["type_p"]
    values: dict[str, object] = {
        "name": session["name"],
        "src": session["src"],
        "dst": session["dst"],
        "vantage": session["vantage"],
        "proto": kind["proto"],
        "family": kind["family"],
        "count": count,
        "rate": max(1, -int(-session["rate_pps"] // 1)),
        "schedule": session["schedule"],
        "size": None if kind["proto"] == "tcp" else kind["size_bytes"],
        "class_mark": "none" if kind["dscp"] is None else kind["dscp"],
        "dport": kind.get("dst_port") or None,
        "flow": kind.get("flow"),
        "ttl": kind.get("ttl"),
    }
    return [f"{k} = {_text(v) if isinstance(v, str) else v}" for k, v in values.items() if v is not None]


def _text(value: str) -> str:
    """A TOML basic string: as JSON has it, and DEL escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def statements(document: Document) -> list[tuple[str, str]]:
    """Name and text of everything that makes the numbers reproducible: seed, Type-P, Tmax, clocks, stamps."""
    sessions: Sequence[Document] = sessions_of(document)
    found = [("run", document["run"]), ("begun", document["started"])]
    if document.get("stopped"):
        found.append(("ended early", document["stopped"]))
    if "matrix" in document:
        names = ("source", "backend", "vantage", "seed", "rate_pps", "tmax_ms", "alpha")
        return [*found, *((name, str(document[name])) for name in names)]
    if not sessions:
        return found
    segments = [x for s in sessions for leg in (s, s["return"]) if leg for x in leg["segments"]]
    errors = [x["clock_error_ns"] for x in segments if x.get("clock_error_ns") is not None]
    problems = sorted({x["clock_problem"] for x in segments if x.get("clock_problem")})
    clocks = "one clock stamps both ends of every segment"
    if errors:
        clocks = f"segments between clocks are off by up to ±{max(errors)} ns"
    elif problems:
        clocks = "the clocks do not allow every delay"
    found += [
        ("plan", str(document.get("plan") or "trace")),
        ("seed", str(document.get("seed", sessions[0]["seed"])) + "; session i of the plan uses seed + i"),
        ("Tmax", f"{sessions[0]['tmax_ms']:g} ms: what comes later counts as lost (RFC 7679, 7680)"),
        ("sessions", str(len(sessions))),
        ("Type-P", "; ".join(sorted({_type_p(s["type_p"]) for s in sessions})[:8])),
        ("schedules", "; ".join(sorted({f"{s['schedule']}, {s['rate_pps']:g} per second" for s in sessions})[:8])),
        ("clocks", "; ".join([clocks, *problems[:4]])),
        ("stamps", "; ".join(sorted({x["stamp"] for x in segments}))),
        ("loss intervals", "exact binomial, 95 % (Clopper and Pearson), whatever became of undecided probes"),
        ("delays", "lost probes count as infinite, so a quantile may be infinite (RFC 7679 §4)"),
    ]
    shed = sorted({f"{place}: {why}" for s in sessions for place, why in s["overflowed"].items()})
    if shed:
        found.append(("shed", "; ".join(shed[:8])))
    return found


def _type_p(kind: Document) -> str:
    port = f"/{kind['dst_port']}" if kind.get("dst_port") else ""
    mark = "no class mark" if kind["dscp"] is None else f"DSCP {kind['dscp']}"
    return f"{kind['proto']}{port}, IPv{kind['family']}, {kind['size_bytes']} bytes, {mark}, TTL {kind.get('ttl')}"
