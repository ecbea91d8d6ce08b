"""Where results go besides the terminal and the store: options and the plan's [influx] to a sink's configuration."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import trio

from netprobe.cli.output import say
from netprobe.errors import NetprobeError, UsageError
from netprobe.model.metrics import Reading
from netprobe.plan.influx import DEFAULT_BUCKET, InfluxPlan, checked_url
from netprobe.service.metrics_page import OPTIONS
from netprobe.service.readers import ReadersConfig, send_readings
from netprobe.service.sink import DEFAULT_FOLDER, SinkConfig
from netprobe.show.web.guard import guard_of
from netprobe.store.influx import InfluxTarget

TOKEN_VARIABLES = ("NETPROBE_INFLUX_TOKEN", "INFLUX_TOKEN")
"""The second one is what InfluxDB's own command line reads."""

ONLY_WITH_URL = ("influx_bucket", "influx_org", "influx_token_file", "influx_ca")


def _read_secret(path: str, where: str) -> str:
    """The one line of a file with a token.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(where, f"{path} cannot be read: {error}", advice="check the path") from error
    if not text or not text.isprintable():
        raise UsageError(where, f"{path} holds no token", allowed="one line")
    return text


def influx_plan(args: argparse.Namespace, written: InfluxPlan | None) -> InfluxPlan | None:
    """What options and a plan say together; options come first. None: nowhere.

    Raises:
        UsageError: options that mean nothing without a URL.
    """
    url = checked_url(args.influx, "--influx") if args.influx else written.url if written else ""
    if not url:
        lost = next((name for name in ONLY_WITH_URL if getattr(args, name)), None)
        if lost:
            raise UsageError(f"--{lost.replace('_', '-')}", "says how to write to a database", advice="give --influx")
        return None
    default = written or InfluxPlan(url)
    return InfluxPlan(
        url=url,
        bucket=args.influx_bucket or default.bucket or DEFAULT_BUCKET,
        org=args.influx_org or default.org,
        token_file=args.influx_token_file or default.token_file,
        ca_file=args.influx_ca or default.ca_file,
    )


def sink_config(args: argparse.Namespace, written: InfluxPlan | None = None) -> SinkConfig | None:
    """How to write to a database, None where nobody asked for it.

    Args:
        args: of the command.
        written: [influx] of a plan or of a collector's configuration.

    Raises:
        UsageError: a value or a file is wrong.
    """
    plan = influx_plan(args, written)
    if plan is None:
        return None
    if plan.token_file:
        token = _read_secret(plan.token_file, "--influx-token-file")
    else:
        token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), "")
    target = InfluxTarget(plan.url, plan.bucket, plan.org, token, plan.ca_file)
    return SinkConfig(target, Path(args.influx_spool) if args.influx_spool else DEFAULT_FOLDER)


def readers_config(args: argparse.Namespace, written: InfluxPlan | None = None) -> ReadersConfig:
    """The same with the page of `--metrics`.

    Raises:
        UsageError: a value or a file is wrong, or others could read the page without a token.
    """
    sink = sink_config(args, written)
    if not args.metrics:
        if args.metrics_token_file:
            raise UsageError("--metrics-token-file", "protects a page", advice="give --metrics")
        return ReadersConfig(sink)
    from netprobe.cli.serve import place  # noqa: PLC0415  which imports this module

    listen = place(args.metrics, "--metrics")
    token = _read_secret(args.metrics_token_file, "--metrics-token-file") if args.metrics_token_file else ""
    guard_of(listen[0], token, OPTIONS)  # now, not when half of the command has been done
    return ReadersConfig(sink, listen, token)


def send(config: SinkConfig | None, program: str, readings: Iterable[Reading]) -> None:
    """Send what a command found out. A database that fails loses no result, and changes no exit code."""
    if config is None:
        return
    try:
        trio.run(send_readings, config, program, readings, lambda text: say(f"netprobe: {text}"))
    except NetprobeError as error:
        say(f"netprobe: readings were not sent: {error}")
