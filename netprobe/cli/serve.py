"""`netprobe serve`: the collector, and with `--web` the live page beside it, or alone (netprobe.cli.web)."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import say
from netprobe.cli.readings import readers_config
from netprobe.cli.web import ready_of, run_viewer, web_config
from netprobe.errors import NetprobeError, UsageError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import until_signalled
from netprobe.host.tls import Credentials
from netprobe.service.collector import Collector, CollectorConfig
from netprobe.service.collector_config import CollectorFile, read_config
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.keeping import keep_spread_run
from netprobe.service.readers import ReadersConfig, open_readers
from netprobe.service.spread_run import SpreadRun
from netprobe.service.telemetry import collector_readings, spread_readings
from netprobe.service.web_page import WebConfig, serve_with_page
from netprobe.store.duckdb_file import DEFAULT_PATH

FINE = 0
DEFAULT_LISTEN = "127.0.0.1:8620"


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


def _where(args: argparse.Namespace) -> tuple[CollectorFile, Path | None]:
    """What was written down: a collector's configuration, or the state file that a lab leaves."""
    if args.config:
        return read_config(Path(args.config)), None
    return CollectorFile(read_topology()), state_path()


def _check_alone(args: argparse.Namespace) -> None:
    """Refuse what the live page alone has no use for.

    Raises:
        UsageError: there are readings of a collector only.
    """
    for name in ("influx", "metrics"):
        if getattr(args, name):
            raise UsageError(f"--{name}", "tells of a collector, and there is none", advice="give --listen too")


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


def _say(text: str) -> None:
    say(f"netprobe serve: {text}")


async def _serve(
    config: CollectorConfig, told: ReadersConfig, ready: Callable[[int], None], web: WebConfig | None
) -> None:
    """Serve, and send readings of runs and agents meanwhile."""
    async with open_readers(told, "serve", _say) as readers:
        collector = Collector(replace(config, told=lambda run: readers.put(spread_readings(run))), _say)
        readers.tell_regularly(lambda: collector_readings(collector.status(), realtime_ns()))
        await serve_with_page(web, collector.status, partial(collector.serve, ready), ready_of(web))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    if args.web and not args.listen:
        _check_alone(args)
        return run_viewer(args)
    web = web_config(args)
    written, state_file = _where(args)
    told = readers_config(args, written.influx)
    config = CollectorConfig(
        listen=place(args.listen or DEFAULT_LISTEN, "--listen"),
        credentials=Credentials.in_folder(Path(args.pki), args.name),
        folder=Path(args.dir) / "runs",
        topology=written.topology,
        state_file=state_file,
        keep=_keeper(args),
    )

    def ready(port: int) -> None:
        print(f"ready on port {port}", flush=True)

    trio.run(until_signalled, partial(_serve, config, told, ready, web))
    return FINE
