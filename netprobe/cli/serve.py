"""`netprobe serve`: the collector."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import say
from netprobe.errors import NetprobeError, UsageError
from netprobe.host.signals import until_signalled
from netprobe.host.tls import Credentials
from netprobe.model.topology import Topology
from netprobe.service.collector import Collector, CollectorConfig
from netprobe.service.collector_config import read_config
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.keeping import keep_spread_run
from netprobe.service.spread_run import SpreadRun
from netprobe.store.duckdb_file import DEFAULT_PATH

FINE = 0


def place(text: str, where: str) -> tuple[str, int]:
    """Address and port as `ADDRESS:PORT`, IPv6 in brackets.

    Raises:
        UsageError: it is neither.
    """
    address, colon, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not colon or not address or not port.isascii() or not port.isdigit() or not int(port) < 65_536:
        raise UsageError(where, f"got {text!r}", allowed="ADDRESS:PORT, such as 192.0.2.1:8620 or [2001:db8::1]:8620")
    return address, int(port)


def _where(args: argparse.Namespace) -> tuple[Topology, Path | None]:
    """What was written down: a collector's configuration, or the state file that a lab leaves."""
    if args.config:
        return read_config(Path(args.config)), None
    return read_topology(), state_path()


def _keeper(args: argparse.Namespace) -> Callable[[SpreadRun], bool]:
    store = Path(args.store) if args.store else DEFAULT_PATH

    def keep(run: SpreadRun) -> bool:
        if args.no_store:
            return False
        try:
            keep_spread_run(run, store)
        except NetprobeError as error:
            say(f"netprobe serve: run {run.run} was not stored: {error}")
            return False
        return True

    return keep


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    topology, state_file = _where(args)
    config = CollectorConfig(
        listen=place(args.listen, "--listen"),
        credentials=Credentials.in_folder(Path(args.pki), args.name),
        folder=Path(args.dir) / "runs",
        topology=topology,
        state_file=state_file,
        keep=_keeper(args),
    )
    collector = Collector(config, lambda text: say(f"netprobe serve: {text}"))

    def ready(port: int) -> None:
        print(f"ready on port {port}", flush=True)

    trio.run(until_signalled, partial(collector.serve, ready))
    return FINE
