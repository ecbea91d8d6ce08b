"""`netprobe report`: a stored result again."""

import argparse
from pathlib import Path

from netprobe.cli.output import print_json
from netprobe.errors import NoAnswerError
from netprobe.show.tables import console, print_document
from netprobe.store.duckdb_file import DEFAULT_PATH, open_store


def run(args: argparse.Namespace) -> int:
    """Print the newest stored result."""
    path = Path(args.store) if args.store else DEFAULT_PATH
    with open_store(path) as store:
        document = store.last_document()
    if document is None:
        raise NoAnswerError(f"store {path}", "holds no result yet", advice="run `netprobe trace` first")
    if args.json:
        print_json(document)
    else:
        print_document(console(), document)
    return 0
