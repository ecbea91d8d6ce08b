"""Puts the outcome of a spread run into the store."""

from pathlib import Path

from netprobe.service.spread_run import SpreadRun
from netprobe.store.duckdb_file import open_store
from netprobe.store.tables import StoredRun, StoredSession


def keep_spread_run(run: SpreadRun, path: Path) -> None:
    """Store a run that is over.

    Raises:
        HostNotReadyError: the store takes nothing.
        UsageError: it is of another version.
    """
    assert run.document is not None
    with open_store(path) as store:
        store.save(
            StoredRun(
                run_id=run.run,
                started_ns=run.started_ns,
                command="run",
                document=run.document,
                sessions=[StoredSession(n, result) for n, result in zip(run.numbers, run.results, strict=True)],
                hops=run.collection.hops(),
                points=run.collection.point_names(),
            )
        )
