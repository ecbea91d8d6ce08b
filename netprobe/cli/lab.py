"""`netprobe lab up|down|status|exec|move|fault`: the lab for people (tables) and programs (--json)."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from netprobe.cli.output import print_json, say
from netprobe.errors import UsageError
from netprobe.lab import control
from netprobe.plan.fields import parse_duration_ns, parse_ratio
from netprobe.show.tables import console, duration

FINE, NO = 0, 1


def _describe(status: control.LabStatus) -> None:
    state: Mapping[str, Any] = status.state
    out = console()
    guests = Table(box=None, pad_edge=False, header_style="dim")
    is_joined = len(state["hosts"]) > 1
    where = ("host", "network") if is_joined else ("host",)
    for name in ("guest", *where, "addresses", "groups", "points, from the guest to the vswitch"):
        guests.add_column(name)
    for guest in [*state["guests"], *state["bypasses"]]:
        copy = f" (groups of {guest['copy_of']})" if guest.get("copy_of") else ""
        guests.add_row(
            guest["name"],
            *(guest[name] for name in where),
            ", ".join(filter(None, (guest["ipv4"], guest["ipv6"], guest["floating"]))),
            ", ".join(guest["groups"]) + copy,
            " .. ".join(guest["chain"]),
        )
    out.print(guests)
    for host in state["hosts"]:
        if host["uplink"]:
            out.print(f"{host['name']}: points from its NIC to the fabric: {' .. '.join(host['uplink'])}")
    faults = [s for s in state["segments"] if s["fault"]]
    for segment in faults:
        out.print(f"fault in {segment['id']}: {_fault_text(segment['fault'])}", style="yellow")
    if state["machine"]:
        text = "it is in a machine of its own, for this kernel has no module openvswitch: `netprobe lab exec COMMAND`"
        out.print(f"{text} runs there", style="yellow")
    out.print(f"{len(state['segments'])} segments; `netprobe lab status --json` lists them", style="dim")


def _fault_text(fault: Mapping[str, Any]) -> str:
    parts = [f"{k.removesuffix('_ns')} {duration(fault[k])}" for k in ("delay_ns", "jitter_ns") if fault[k]]
    parts += [f"{k} {100 * fault[k]:g} %" for k in ("loss", "duplicate", "reorder") if fault[k]]
    if not parts:
        return "a relay that changes nothing"
    if fault["share"] < 1:
        parts.append(f"on {100 * fault['share']:g} % of the probes")
    return ", ".join([*parts, f"seed {fault['seed']}"])


def up(args: argparse.Namespace) -> int:
    """Bring the lab up."""
    if control.needs_machine(args.name):
        say("netprobe lab: this kernel has no module openvswitch: the lab is in a machine that has it")
    status = control.up(args.name, config_path=Path(args.config) if args.config else None)
    if args.json:
        print_json(status.to_json())
        return FINE
    for problem in status.repaired:
        say(f"netprobe lab: repaired: {problem}")
    print(f"lab {args.name} " + ("is already up" if status.was_up else f"is up after {status.seconds:.1f} s"))
    _describe(status)
    return FINE


def down(args: argparse.Namespace) -> int:
    """Take the lab down."""
    result = control.down()
    if args.json:
        print_json(result.to_json())
    else:
        print("the lab is down, nothing is left" if result.was_up else "no lab was up")
    for thing in result.left_alone:
        say(f"netprobe lab: left alone, since it is not the lab's: {thing}")
    return FINE


def status(args: argparse.Namespace) -> int:
    """Say what is up; 1 when there is none, or a broken one."""
    found = control.status()
    if args.json:
        print_json(found.to_json())
    elif not found.is_up:
        print("no lab is up; `netprobe lab up` makes one")
    else:
        print(f"lab {found.state['name']} is {'up' if found.is_healthy else 'BROKEN'}")
        _describe(found)
        for problem in found.problems:
            say(f"netprobe lab: broken: {problem}; `netprobe lab up` repairs it")
    return FINE if found.is_healthy else NO


def execute(args: argparse.Namespace) -> int:
    """Run a command in the lab's machine; exits as it did."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise UsageError(
            "netprobe lab exec", "no command was given", advice="such as `netprobe lab exec netprobe doctor`"
        )
    files = {}
    for path in map(Path, args.file):
        try:
            files[path.name] = path.read_bytes()
        except OSError as error:
            raise UsageError(f"--file {path}", f"cannot be read: {error.strerror}") from error
    return control.execute(words, files=files, write=_write)


def _write(fd: int, data: bytes) -> None:
    stream = (sys.stdout if fd == 1 else sys.stderr).buffer
    stream.write(data)
    stream.flush()


def move(args: argparse.Namespace) -> int:
    """Move a guest."""
    result = control.move(args.guest, args.host)
    if args.json:
        print_json(result.to_json())
    elif result.old_host == result.new_host:
        print(f"{result.guest} is on {result.new_host} already")
    else:
        print(f"{result.guest} moved from {result.old_host} to {result.new_host} in {result.seconds:.2f} s")
    return FINE


def fault_set(args: argparse.Namespace) -> int:
    """Put a fault into a segment."""
    result = control.fault_set(
        args.segment,
        delay_ns=parse_duration_ns(args.delay, "--delay"),
        jitter_ns=parse_duration_ns(args.jitter, "--jitter"),
        loss=parse_ratio(args.loss, "--loss"),
        duplicate=parse_ratio(args.duplicate, "--duplicate"),
        reorder=parse_ratio(args.reorder, "--reorder"),
        share=parse_ratio(args.share, "--share"),
        seed=args.seed,
        expose=args.points,
    )
    if args.json:
        print_json(result.to_json())
        return FINE
    if result.replaced:
        print(f"the fault in {result.replaced} is gone: one relay a port")
    for fault in result.faults:
        print(f"fault in {fault['segment']}: {_fault_text(fault)}")
    return FINE


def fault_clear(args: argparse.Namespace) -> int:
    """Take faults out."""
    result = control.fault_clear(args.segment)
    if args.json:
        print_json(result.to_json())
    else:
        print("\n".join(f"the fault in {f['segment']} is gone" for f in result.faults) or "there was no fault")
    return FINE
