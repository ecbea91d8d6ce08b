"""`netprobe run PLAN`: a plan from a file."""

import argparse
from pathlib import Path

from netprobe.cli.running import execute
from netprobe.errors import UsageError
from netprobe.plan.plans import RunPlan, parse_plan


def read_plan(name: str) -> RunPlan:
    """The plan in a file.

    Raises:
        UsageError: it cannot be read, or is no plan.
    """
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"plan {path}", f"cannot be read: {error.strerror}", advice="check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"plan {path}", "is no UTF-8 text", advice="see docs/plans.md") from error
    return parse_plan(text, str(path))


def run(args: argparse.Namespace) -> int:
    """Run a plan file."""
    if args.collector:
        from netprobe.cli.remote import execute_remotely  # noqa: PLC0415  TLS, which a local run needs not

        if args.influx:
            raise UsageError(
                "--influx",
                "with --collector",
                advice="give it to `netprobe serve`, which writes readings itself",
            )

        return execute_remotely(args)
    return execute(args, read_plan(args.plan))
