"""Removes a lab, whatever state it is in: complete, half-made, half-removed, or with anything in it killed.

Only what the journal names is touched, and only while it still is what the journal says. netprobe.lab.control calls it.
"""

import contextlib
import shutil

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, netns, process
from netprobe.lab.daemons import is_guard
from netprobe.lab.journal import Journal
from netprobe.lab.state import NamespaceRecord, Places, State

GRACE_S = 1.0
FORKS_MAX = 10
"""A daemon that was just being started forks twice more on its way into the background."""

LAST_LOOKS = 2
"""That find nothing, one after the other: a process may be forked while one goes through them."""


def tear_down(state: State, places: Places) -> list[str]:
    """End a lab's processes, remove its namespaces and files.

    Args:
        state: as read from its state file.
        places: where that was.

    Returns:
        What was left alone because it isn't the lab's any more, for people.

    Raises:
        HostNotReadyError: a process or namespace cannot be removed; `down` may be tried again.
    """
    state.endpoints, state.faults, state.moving = (), (), ""
    if places.lab.exists():
        Journal(state, places.state).write()  # from here on nobody takes it for a complete lab
    _end_processes(state.processes, places)
    ours: list[str] = []
    foreign: list[str] = []
    for record in state.namespaces:
        if netns.exists(record.name):
            (ours if _is_ours(record) else foreign).append(record.name)
    iproute.delete_namespaces(ours)
    remove_files(places)
    return [f"network namespace {name}: it was made anew by somebody else" for name in foreign]


def remove_files(places: Places) -> None:
    """Remove the lab's directory.

    Raises:
        HostNotReadyError: it cannot be removed.
    """
    shutil.rmtree(places.lab, ignore_errors=True)
    if places.lab.exists():  # a command of a killed `up` was still writing there
        try:
            shutil.rmtree(places.lab)
        except OSError as error:
            raise HostNotReadyError(str(places.lab), f"cannot be removed: {error}") from error


def forget_lock(places: Places) -> None:
    """Remove the lock file (its holder does) and the base directory, if nothing else is in it."""
    places.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        places.base.rmdir()


def _is_ours(record: NamespaceRecord) -> bool:
    """By its cookie; one that was only intended was not there before, so it is ours."""
    return record.cookie in (0, iproute.namespace_cookie(record.name))


def _end_processes(records: tuple[process.ProcessRecord, ...], places: Places) -> None:
    """First the guard, or it would start its daemon again; last what carries our command lines and no record."""
    process.end([record for record in records if is_guard(record.name)], force=True)
    process.end([record for record in records if not is_guard(record.name)], grace_s=GRACE_S)
    looks = 0
    for _ in range(FORKS_MAX):
        guards, others = process.find({record.argv for record in records}, places.lab)
        looks = 0 if guards or others else looks + 1
        if looks == LAST_LOOKS:
            break
        process.end(guards, force=True)
        process.end(others, grace_s=GRACE_S)
