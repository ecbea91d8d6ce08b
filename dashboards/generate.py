"""Writes the dashboards and alert rules that are committed beside this file; a test sees to it that they are the same.

python -m dashboards.generate            # from the top of the checkout
"""

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.alerts import alert_file
from dashboards.boards import BOARDS

FOLDER = Path(__file__).parent


def texts() -> dict[str, str]:
    """Every generated file's text, by its name."""
    found = {f"json/{name}.json": _text(_mended(_plain(board().build()))) for name, board in BOARDS.items()}
    found["provisioning/alerting/netprobe.json"] = _text(_plain(alert_file()))
    return found


def _plain(value: object) -> Any:
    """What the SDK built as dicts, lists and texts."""
    return json.loads(json.dumps(value, cls=JSONEncoder))


def _mended(board: dict[str, Any]) -> dict[str, Any]:
    """Without what the SDK (0.0.21) writes and Grafana (13.2) no longer has; @grafana/schema finds it."""
    for variable in board["templating"]["list"]:
        for name in ("auto", "auto_min", "auto_count"):
            variable.pop(name, None)
    for panel in board["panels"]:
        if panel["type"] == "table":
            panel["options"].pop("footer", None)
    return board


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write them."""
    for name, text in texts().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
