"""A result as CSV: a row a segment, or a row a finding of a verification. Knows the documents of docs/json.md only."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from netprobe.show.report_plan import sessions_of

Document = Mapping[str, Any]
SEGMENT_FIELDS = ("run", "started", "session", "src", "dst", "vantage", "leg", "segment", "from", "to", "kind", "sent",
                  "received", "lost", "undecided", "loss_ratio", "loss_low_95", "loss_high_95", "delay_min_ns",
                  "delay_p50_ns", "delay_p90_ns", "delay_p99_ns", "delay_max_ns", "samples", "clock_error_ns",
                  "delay_p50_low_ns", "delay_p50_high_ns", "delay_p99_low_ns", "delay_p99_high_ns",
                  "duplicated", "reordered", "stamp")  # fmt: skip
FINDING_FIELDS = ("run", "started", "number", "kind", "src", "dst", "packet", "expected", "observed", "rule", "rule_id",
                  "sent", "arrived", "last_seen", "missing", "detail", "repeats")  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula; a name may begin so."""


def csv_text(document: Document) -> str:
    """CSV (RFC 4180) with a header line; an infinite quantile is `inf`, what is not known is empty."""
    out = io.StringIO()
    is_verification = "matrix" in document
    writer = csv.DictWriter(out, FINDING_FIELDS if is_verification else SEGMENT_FIELDS)
    writer.writeheader()
    for row in _findings(document) if is_verification else _segments(document):
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would calculate gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _segments(document: Document) -> Iterator[dict[str, object]]:
    for s in sessions_of(document):
        for leg, part in (("forward", s), ("return", s["return"])):
            for x in [*part["segments"], part["end_to_end"]] if part else ():
                delay = x["delay_ns"]
                figures = {
                    f"delay_{k}_ns": ("inf" if delay[k] is None else delay[k]) if delay else None
                    for k in ("min", "p50", "p90", "p99", "max")
                }
                yield {
                    "run": document["run"],
                    "started": document["started"],
                    "session": s["name"],
                    **{k: s[k] for k in ("src", "dst", "vantage")},
                    "leg": leg,
                    "segment": x["id"],
                    **{k: x[k] for k in ("from", "to", "kind", "sent", "received", "lost", "undecided", "loss_ratio")},
                    "loss_low_95": x["loss_interval_95"][0],
                    "loss_high_95": x["loss_interval_95"][1],
                    **figures,
                    "samples": delay["samples"] if delay else 0,
                    "clock_error_ns": x.get("clock_error_ns"),
                    **_sureness(x),
                    **{k: x.get(k) for k in ("duplicated", "reordered", "stamp")},
                }


def _sureness(segment: Document) -> dict[str, object]:
    """Between what median and 99th percentile lie: of one clock with 95 %, of two clocks for certain."""
    found: dict[str, object] = {}
    for name in ("p50", "p99"):
        ends = (segment.get("delay_bounds_ns") or {}).get(name) or (segment["delay_ns"] or {}).get(
            f"{name}_interval_95"
        )
        if ends is not None:
            found[f"delay_{name}_low_ns"] = 0 if ends[0] is None else ends[0]
            found[f"delay_{name}_high_ns"] = "inf" if ends[1] is None else ends[1]
    return found


def _findings(document: Document) -> Iterator[dict[str, object]]:
    for f in document["findings"]:
        evidence = f["evidence"] or {}
        yield {
            "run": document["run"],
            "started": document["started"],
            **{k: f[k] for k in ("number", "kind", "src", "dst", "packet", "expected", "observed", "rule", "rule_id")},
            **{k: evidence.get(k) for k in ("sent", "arrived", "last_seen", "missing")},
            "detail": f["detail"],
            "repeats": f["repeats"],
        }
