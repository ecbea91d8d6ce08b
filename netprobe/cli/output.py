"""One JSON document on stdout, or tables for people; shared by the commands."""

import json
import sys
from collections.abc import Mapping

JSON_SCHEMA = 1


def print_json(document: Mapping[str, object]) -> None:
    """The document with its schema's number, on stdout."""
    json.dump({"schema": JSON_SCHEMA, **document}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def say(text: str) -> None:
    """Progress and warnings for people, on stderr."""
    print(text, file=sys.stderr)
