"""`netprobe agent guest …`: hands over to the deployed program; what it takes is its own `--help`'s business."""

import argparse

from netprobe.errors import UsageError


def run(args: argparse.Namespace) -> int:
    """Start an agent in the foreground."""
    kind, *rest = args.rest or [""]
    if kind != "guest":
        raise UsageError("netprobe agent", f"got {kind!r}", allowed="guest", advice="try `netprobe agent guest --help`")
    from netprobe_agents.guest import main  # noqa: PLC0415  it stands beside the command line, and imports trio

    return main(rest)
