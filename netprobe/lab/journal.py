"""Writes the lab's state file as things are made, and holds the lock under which one program at a time may do so."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.process import ProcessRecord, start_ticks
from netprobe.lab.state import NamespaceRecord, State

DEAD_HOLDER_WAIT_S = 2.0
DEAD_HOLDER_LOOK_S = 0.005


class Journal:
    """A state that is written down at each change, before what it says is done.

    Threads may share one.
    """

    def __init__(self, state: State, path: Path) -> None:
        self.state = state
        self._path = path
        self._lock = threading.Lock()

    def write(self) -> None:
        """Put the state in the file's place, whole or not at all."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(self.state.to_json(), file, indent=1)
        fresh.replace(self._path)

    def set_namespaces(self, *records: NamespaceRecord) -> None:
        """These are, or are about to be, the lab's namespaces."""
        with self._lock:
            self.state.namespaces = records
            self._write()

    def intend(self, name: str, argv: tuple[str, ...]) -> None:
        """A process with this command line is about to be started."""
        with self._lock:
            self.state.processes += (ProcessRecord(name, argv),)
            self._write()

    def started(self, name: str, record: ProcessRecord) -> None:
        """An intended process runs now."""
        with self._lock:
            new = replace(record, name=name)
            self.state.processes = tuple(new if old.name == name else old for old in self.state.processes)
            self._write()

    def forget(self, name: str) -> None:
        """A process is gone."""
        with self._lock:
            self.state.processes = tuple(old for old in self.state.processes if old.name != name)
            self._write()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lab's lock.

    Raises:
        HostNotReadyError: another netprobe holds it.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = _lock(path)
    try:
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def _lock(path: Path) -> int:
    """Open and lock the file that is at `path` now: its last holder may have removed the one that was opened.

    A holder that was killed while it started a command has a copy of its lock in that child, until the child's exec.
    """
    deadline = time.monotonic() + DEAD_HOLDER_WAIT_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            if not _runs(holder) and time.monotonic() < deadline:
                time.sleep(DEAD_HOLDER_LOOK_S)
                continue
            raise HostNotReadyError(
                f"lab in {path.parent}",
                f"another netprobe (process {holder}) is changing it",
                advice="wait for it to end and try again",
            ) from error
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)


def _runs(holder: str) -> bool:
    return holder.isdecimal() and start_ticks(int(holder)) > 0
