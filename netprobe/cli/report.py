"""`netprobe report`: a stored result again, for people, programs, spreadsheets, or as one HTML file for a ticket."""

import argparse
import sys
from pathlib import Path
from typing import Any

from netprobe.cli.output import print_json, say, to_stdout
from netprobe.errors import HostNotReadyError, NoAnswerError, UsageError
from netprobe.model.results import Json
from netprobe.show.many import print_result
from netprobe.show.report_csv import csv_text
from netprobe.show.report_html import MOST_WHOLE, report_html, worst_first
from netprobe.show.report_plan import sessions_of
from netprobe.show.tables import console
from netprobe.store.duckdb_file import DEFAULT_PATH, open_store
from netprobe.store.history import History
from netprobe.store.tables import path_id_of

Found = tuple[Json, dict[str, Json]]


def _read(path: Path, run_id: str | None, *, with_history: bool) -> Found:
    """A document, and the histories of its worst sessions where they are wanted.

    Raises:
        NoAnswerError: there is no result, or none of that id.
    """
    with open_store(path, read_only=True) as store:
        document = store.document(run_id) if run_id else store.last_document()
        if document is None:
            what = f"holds no run {run_id}" if run_id else "holds no result yet"
            raise NoAnswerError(f"store {path}", what, advice="run `netprobe trace` first")
        histories: dict[str, Json] = {}
        if with_history and store.version >= 3:
            history = History(store)
            for session in worst_first(sessions_of(document))[:MOST_WHOLE]:
                path_id = path_id_of(session)
                points = history.columns(path_id)
                histories[str(session["name"])] = {"history": points, "faults": history.faults(path_id)}
    return document, histories


def _write(name: str, text: str) -> None:
    """Into a file, or on stdout.

    Raises:
        UsageError: the file cannot be written.
    """
    if name == "-":
        with to_stdout():
            sys.stdout.write(text)
        return
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--html {name}", f"cannot be written: {error.strerror}", advice="name another file"
        ) from error
    say(f"netprobe: {name}: {len(text.encode()) / 1000:.0f} kB")


def run(args: argparse.Namespace) -> int:
    """Print a stored result, the newest unless another one is asked for."""
    if sum(map(bool, (args.json, args.csv, args.html))) > 1:
        raise UsageError("--json, --csv, --html", "are alternatives", advice="give one")
    path = Path(args.store) if args.store else DEFAULT_PATH
    try:
        document, histories = _read(path, args.run, with_history=bool(args.html))
        _show(args, document, histories)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        which = f"run {args.run}" if args.run else "its newest result"
        raise HostNotReadyError(
            f"store {path}",
            f"{which} cannot be read, as another netprobe wrote it or it is damaged: {error!r}",
            advice="`netprobe report --json` prints it as it is" if not args.json else "name another one with --run",
        ) from error
    return 0


def _show(args: argparse.Namespace, document: dict[str, Any], histories: dict[str, Json]) -> None:
    if args.html:
        _write(args.html, report_html(document, histories))
        return
    with to_stdout():
        if args.json:
            print_json(document)
        elif args.csv:
            sys.stdout.write(csv_text(document))
        else:
            print_result(console(), document)
