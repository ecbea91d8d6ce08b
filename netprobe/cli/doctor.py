"""`netprobe doctor`: the findings as a table or as JSON; 3 when something required is missing."""

import argparse

from rich.table import Table
from rich.text import Text

from netprobe.cli.output import print_json
from netprobe.service.doctor import Check, examine
from netprobe.show.tables import console


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("check", "", "found"):
        table.add_column(name)
    for check in checks:
        word, style = ("ok", "green") if check.is_ok else ("missing", "red" if check.is_required else "yellow")
        advice = f"\n-> {check.advice}" if check.advice and not check.is_ok else ""
        table.add_row(check.name, Text(word, style=style), check.detail + advice)
    return table


def run(args: argparse.Namespace) -> int:
    """Examine this host."""
    checks = examine()
    is_ready = all(c.is_ok for c in checks if c.is_required)
    if args.json:
        print_json({"ready": is_ready, "checks": [c.to_json() for c in checks]})
    else:
        console().print(_table(checks))
    return 0 if is_ready else 3
