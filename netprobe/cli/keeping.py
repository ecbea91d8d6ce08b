"""Results of a verification into the store, as `--store` and `--no-store` ask."""

import argparse
import uuid
from pathlib import Path

from netprobe.cli.output import say
from netprobe.cli.running import head_of
from netprobe.errors import NetprobeError
from netprobe.model.records import HopBatch
from netprobe.model.results import Json
from netprobe.store.duckdb_file import DEFAULT_PATH, open_store
from netprobe.store.tables import StoredRun


def keep(args: argparse.Namespace, found: Json, started_ns: int, stopped: str) -> Json:
    """The document with its head, stored as asked. A store that fails loses no result.

    Args:
        args: of the command.
        found: what it found out.
        started_ns: CLOCK_REALTIME.
        stopped: why it ended early, "" when it did not.
    """
    run_id = str(uuid.uuid4())
    document = {**head_of(run_id, started_ns, stopped), **found}
    if args.no_store:
        return {**document, "stored": False}
    try:
        with open_store(Path(args.store) if args.store else DEFAULT_PATH) as store:
            store.save(StoredRun(run_id, started_ns, "verify", document, (), HopBatch.empty(), ()))
    except NetprobeError as error:
        say(f"netprobe: the result was not stored: {error}")
        return {**document, "stored": False}
    return {**document, "stored": True}
