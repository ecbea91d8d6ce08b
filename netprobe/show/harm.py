"""What probing does to tenants, for people. Knows the JSON document of docs/json.md only."""

from rich.console import Console
from rich.table import Table

from netprobe.show.tables import Document, duration

NAMES = {"rr_p50": "TCP request, p50", "rr_p99": "TCP request, p99", "throughput": "TCP throughput"}


def _amount(value: float, unit: str) -> str:
    return duration(round(value)) if unit == "ns" else f"{value * 8 / 1e9:.2f} Gbit/s"


def _share(value: float) -> str:
    return f"{100 * value:+.1f} %"


def print_harm(console: Console, document: Document) -> None:
    """The table and what it means."""
    probing, first = document["probing"], document["tenants"]
    console.print(
        f"tenants {first[0]} and {first[1]}, {document['rounds']} rounds of {document['slice_s']:g} s; probes "
        f"{document['src']} -> {document['dst']} at {document['rate_pps']}/s, vantage {document['vantage']}"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("what", "without", "with probing", "worse by", "95 % interval", "A/A", "A/A interval", "verdict"):
        table.add_column(title, justify="left" if title in {"what", "verdict"} else "right")
    for row in document["metrics"]:
        intervals = [
            "[" + ", ".join(_share(end) for end in row[key]) + "]" for key in ("interval_95", "aa_interval_95")
        ]
        table.add_row(
            NAMES.get(row["name"], row["name"]),
            _amount(row["quiet"], row["unit"]),
            _amount(row["probing"], row["unit"]),
            _share(row["shift"]),
            intervals[0],
            _share(row["aa_shift"]),
            intervals[1],
            row["verdict"],
        )
    console.print(table)
    sent = probing["sent_share"]
    console.print(
        f"{probing['planned'] - probing['unsent']} of {probing['planned']} probes sent"
        + ("" if sent is None else f" ({100 * sent:.1f} %)")
        + f", {probing['lost']} lost, {probing['unobserved']} unobserved; governor {document['governor']}"
    )
    if probing["held_back"]:
        least = f"{100 * probing['lowest_share']:g} %"
        console.print(f"the governor held {probing['held_back']} back; at the least {least} of what was due was sent")
    limit = f"{100 * document['limit']:g} %"
    meanings = {
        "within": f"no metric is worse by more than {limit}",
        "beyond": f"a metric is worse by more than {limit}",
        "open": f"inconclusive: the intervals are too wide to say whether {limit} is passed; take more rounds",
    }
    console.print(meanings[document["verdict"]])
