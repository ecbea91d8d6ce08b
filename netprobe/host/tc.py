"""tc, by subprocess: filters of netprobe's own on ports, which divert its packets before a guest sees them.

Ours have a preference number that nobody else uses and a handle of their run, and are added beside those of others:
what has a lower number goes first, as it did before. Whole lists of commands go to one `tc -batch`. cls_bpf with
classic bytecode is the only classifier used; it matches a frame from its Ethernet header on. The parsers are total:
what says nothing known is skipped. Open vSwitch may delete a port's clsact when it sets policing or offload there, so
whoever relies on a filter asks for it again (`is_absorbing`).
"""

import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from netprobe.errors import HostNotReadyError
from netprobe.host.process import COMMAND_TIMEOUT_S

PREFERENCE = 0x6E70
""""np", 28272. tc numbers filters that are given none from 49152 down, and people and agents count up from 1."""

CATCH_ALL = "1,6 0 0 4294967295"  # bytecode: ret -1, which cls_bpf takes as a match of its whole class
DEVICE = re.compile(r"""[^\s/"'\\#]{1,15}""")
"""Names that a batch can hold; others are refused."""

_FAILED = re.compile(r"^Command failed -:(\d+)$")


class Way(Enum):
    """The two lists of filters of clsact: what comes into a device, what leaves it."""

    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a device.

    Attributes:
        preference: the lower one is asked first.
        kind: its classifier.
        handle: 0 for the entry that stands for all filters of one preference.
        redirects_to: the device that its action redirects to, "" where it does something else.
    """

    preference: int
    kind: str
    handle: int
    redirects_to: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether some netprobe made it."""
        return self.preference == PREFERENCE and self.kind == "bpf"


def _argv(netns: str, *words: str) -> list[str]:
    return ["tc", *(["-n", netns] if netns else []), *words]


def _run(argv: Sequence[str], stdin: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(argv, input=stdin, text=True, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise HostNotReadyError("command tc", "is not installed", advice="install iproute2 and try again") from error
    except subprocess.TimeoutExpired as error:
        raise HostNotReadyError(" ".join(argv), f"did not end within {COMMAND_TIMEOUT_S:g} s") from error


# ---------------------------------------------------------------------------------------------------------------------
# Changing
# ---------------------------------------------------------------------------------------------------------------------


def batch(netns: str, commands: Sequence[str]) -> dict[int, str]:
    """Run `tc` commands (each without the word `tc`) in one process; one that fails does not keep the others.

    Returns:
        What was said of those that failed, by their index.

    Raises:
        HostNotReadyError: tc is not there, or there is no such namespace.
    """
    if not commands:
        return {}
    done = _run(_argv(netns, "-force", "-batch", "-"), "\n".join(commands) + "\n")
    failures = parse_failures(done.stderr)
    if done.returncode and not failures:
        raise HostNotReadyError(f"tc in {netns or 'this namespace'}", f"failed: {_one_line(done.stderr)}")
    return failures


def parse_failures(text: str) -> dict[int, str]:
    """Which commands failed, by index from 0, in what `tc -force -batch -` says: the reason, then the line number."""
    failures: dict[int, str] = {}
    said: list[str] = []
    for line in text.splitlines():
        if failed := _FAILED.match(line):
            failures[int(failed[1]) - 1] = "; ".join(said) or "no reason is given"
            said = []
        else:
            said.append(line.removeprefix("Error: ").strip())
    return failures


def clsact_command(device: str, *, add: bool = True) -> str:
    """Add or delete the place where a device's filters hang."""
    return f"qdisc {'add' if add else 'del'} dev {device} clsact"


def absorb_command(device: str, handle: int, bytecode: str, to: str) -> str:
    """What leaves `device` and is matched by `bytecode` leaves by device `to` instead."""
    return _redirect(device, Way.EGRESS, handle, bytecode, to)


def inject_command(device: str, handle: int, to: str) -> str:
    """All that comes into `device` comes into device `to` instead, as if its other end had sent it."""
    return _redirect(device, Way.INGRESS, handle, CATCH_ALL, to)


def _redirect(device: str, way: Way, handle: int, bytecode: str, to: str) -> str:
    where = f"dev {device} {way.value} protocol all pref {PREFERENCE} handle {handle:#x}"
    return f'filter add {where} bpf bytecode "{bytecode}" action mirred {way.value} redirect dev {to}'


def remove_command(device: str, way: Way, handle: int) -> str:
    """Remove the one filter of ours that has this handle."""
    return f"filter del dev {device} {way.value} protocol all pref {PREFERENCE} handle {handle:#x} bpf"


# ---------------------------------------------------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------------------------------------------------


def qdiscs(netns: str) -> dict[str, frozenset[str]]:
    """Kinds of the qdiscs of every device of a namespace, by device.

    Raises:
        HostNotReadyError: tc is not there, or there is no such namespace.
    """
    done = _run(_argv(netns, "-json", "qdisc", "show"))
    if done.returncode:
        raise HostNotReadyError(f"tc in {netns or 'this namespace'}", f"failed: {_one_line(done.stderr)}")
    return parse_qdiscs(done.stdout)


def parse_qdiscs(text: str) -> dict[str, frozenset[str]]:
    """Kinds by device in `tc -json qdisc show`."""
    found: dict[str, set[str]] = {}
    for row in _rows(text):
        found.setdefault(str(row.get("dev", "")), set()).add(str(row.get("kind", "")))
    return {device: frozenset(kinds) for device, kinds in found.items()}


def filters(netns: str, device: str) -> tuple[Filter, ...]:
    """All filters of a device, both ways; none where it has no clsact or is not there.

    Raises:
        HostNotReadyError: tc is not there, or there is no such namespace.
    """
    commands = "".join(f"filter show dev {device} {way.value}\n" for way in Way)
    done = _run(_argv(netns, "-json", "-force", "-batch", "-"), commands)
    if done.returncode and not parse_failures(done.stderr):
        raise HostNotReadyError(f"tc in {netns or 'this namespace'}", f"failed: {_one_line(done.stderr)}")
    return parse_filters(done.stdout)


def parse_filters(text: str) -> tuple[Filter, ...]:
    """Filters in `tc -json filter show`, of one command or several."""
    found = []
    for row in _rows(text):
        options = row.get("options")
        options = options if isinstance(options, dict) else {}
        actions = options.get("actions")
        first = actions[0] if isinstance(actions, list) and actions and isinstance(actions[0], dict) else {}
        to = first.get("to_dev", "") if first.get("mirred_action") == "redirect" else ""
        found.append(
            Filter(_number(row.get("pref")), str(row.get("kind", "")), _number(options.get("handle")), str(to))
        )
    return tuple(found)


def is_absorbing(netns: str, device: str, to: str) -> bool:
    """Whether a filter of ours on a device still redirects what it matches to device `to`.

    Raises:
        HostNotReadyError: tc is not there, or there is no such namespace.
    """
    return any(one.is_ours and one.redirects_to == to for one in filters(netns, device))


def _rows(text: str) -> Iterable[dict[str, object]]:
    """Objects of all arrays in a text; a batch prints one array after the other."""
    decoder = json.JSONDecoder()
    at = 0
    while (at := text.find("[", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield from (row for row in value if isinstance(row, dict))


def _number(value: object) -> int:
    """A number as tc prints it: 28272 or "0x1234"; 0 for what is none."""
    try:
        return int(str(value), 0)
    except ValueError:
        return 0


def _one_line(text: str) -> str:
    return text.strip().replace("\n", "; ")
