"""`netprobe clean`: undo what a killed run left behind."""

import argparse
import os

from netprobe.cli.output import print_json, say
from netprobe.errors import HostNotReadyError
from netprobe.service.discovery import read_topology
from netprobe.service.journal import clean


def run(args: argparse.Namespace) -> int:
    """Clean this host; 3 when something could not be reached or read."""
    if os.geteuid():
        raise HostNotReadyError("netprobe clean", "is not root, so it could see nothing", advice="run it as root")
    try:
        topology = read_topology()
    except HostNotReadyError:
        topology = None  # no cloud, so no bridge that could hold flows of ours
    done = clean(topology)
    if args.json:
        print_json(
            {
                "journals": done.journals,
                "conntrack_deleted": done.conntrack_deleted,
                "flows_deleted": done.flows_deleted,
                "taps_undone": done.taps_undone,
                "mirrors_undone": done.mirrors_undone,
                "damaged": list(done.damaged),
                "unreachable": list(done.unreachable),
            }
        )
    else:
        print(
            f"{done.journals} runs undone: {done.conntrack_deleted} conntrack entries,"
            f" {done.flows_deleted} flows removed, {done.taps_undone} taps as they were,"
            f" {done.mirrors_undone} mirrors removed"
        )
    for problem in (
        *(f"{path} is damaged: see what it says, and remove it by hand" for path in done.damaged),
        *done.unreachable,
    ):
        say(f"netprobe clean: {problem}")
    return 3 if done.damaged or done.unreachable else 0
