"""Grafana's part in tests: dashboards as they are committed, their queries with macros and variables filled in."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dashboards"


def boards():
    """Every committed dashboard by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "json").glob("*.json"))
    }


def panels(board):
    """Its panels that ask something."""
    return [panel for panel in board["panels"] if panel.get("targets")]


def filled(query, variables, *, from_ns, to_ns, interval="1s"):
    """A query as Grafana's InfluxDB data source sends it: a regular expression is escaped, a text is quoted."""
    query = query.replace("$timeFilter", f"time >= {from_ns // 10**6}ms AND time <= {to_ns // 10**6}ms")
    query = query.replace("$__interval", interval)
    for name, value in variables.items():
        query = query.replace(f"/^${name}$/", f"/^({value if value == '.*' else re.escape(value)})$/")
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        query = query.replace(f"'${name}'", f"'{escaped}'")
    assert "$" not in query.replace("$/", ""), query
    return query


def alerts():
    """The committed alert rules: their queries by uid."""
    file = json.loads((FOLDER / "provisioning" / "alerting" / "netprobe.json").read_text(encoding="utf-8"))
    return {rule["uid"]: rule["data"][0]["model"]["query"] for group in file["groups"] for rule in group["rules"]}
