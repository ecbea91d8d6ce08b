"""`netprobe report`: a stored result again."""

import argparse
from pathlib import Path

from netprobe.cli.output import print_json, to_stdout
from netprobe.errors import HostNotReadyError, NoAnswerError
from netprobe.show.many import print_result
from netprobe.show.tables import console
from netprobe.store.duckdb_file import DEFAULT_PATH, open_store


def run(args: argparse.Namespace) -> int:
    """Print the newest stored result."""
    path = Path(args.store) if args.store else DEFAULT_PATH
    with open_store(path, read_only=True) as store:
        document = store.last_document()
    if document is None:
        raise NoAnswerError(f"store {path}", "holds no result yet", advice="run `netprobe trace` first")
    try:
        with to_stdout():
            if args.json:
                print_json(document)
            else:
                print_result(console(), document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostNotReadyError(
            f"store {path}", f"its newest result cannot be read: {error!r}", advice="see it with --json"
        ) from error
    return 0
