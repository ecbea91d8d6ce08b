"""Network namespaces: run a function inside one. A socket keeps the namespace it was opened in.

Python 3.11 has no os.setns, so it is called through ctypes, in a thread of its own: setns(2) moves one thread.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from netprobe.errors import HostNotReadyError

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h


def exists(name: str) -> bool:
    """Whether a named network namespace is there."""
    return (NETNS_DIR / name).exists()


def _enter(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)


def in_netns(name: str, function: Callable[[], T]) -> T:
    """Call `function` in network namespace `name` and return what it returns.

    Args:
        name: as `ip netns` shows it; the empty name is the caller's own namespace.
        function: runs in a short-lived thread; sockets that it opens stay in the namespace.

    Raises:
        HostNotReadyError: the namespace is not there, or entering it is not permitted.
        BaseException: whatever `function` raises.
    """
    if not name:
        return function()
    results: list[T] = []
    failures: list[BaseException] = []

    def go() -> None:
        try:
            _enter(name)
        except OSError as error:
            failures.append(
                HostNotReadyError(
                    f"network namespace {name}",
                    f"cannot be entered: {error.strerror}",
                    advice="is the lab up, and are you root?",
                )
            )
            return
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  carried to the caller's thread, whole
            failures.append(error)

    thread = threading.Thread(target=go, name=f"netns-{name}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
