"""What lets several pytest-xdist workers run system tests at once: a world for each, and turns for tests that need all.

A lab has fixed names: network namespaces hv1, vm1 ... and the run directory. Therefore a worker sees private
directories where these names are. Processor time cannot be made private, so a test marked `alone` waits until no other
worker runs a test, and keeps the others waiting until it is over (unit tests beside it, though niced, cost it packets).
tests/conftest.py uses this, in workers only; a run without workers is as it is without this module.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

CLONE_NEWNS = 0x00020000  # linux/sched.h; Python 3.11 has no os.unshare
RUN_DIR = Path("/run/netprobe-tests")  # fixed, so that what a killed run left is found and removed by the next
PRIVATE = (
    RUN_DIR,
    Path("/run/netns"),
    Path("/run/netprobe"),
    Path("/var/lib/netprobe"),
    Path("/var/log/netprobe"),
)
GATE, GROUND = Path("/run/netprobe-tests.gate"), Path("/run/netprobe-tests.ground")
"""Files of all runs on this machine: a test is not alone either while another run's tests are under way."""


class World:
    """The mount namespace of the thread that makes it, and of all threads and processes that it starts afterwards."""

    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS):
            code = ctypes.get_errno()
            raise OSError(code, f"unshare: {os.strerror(code)}; a worker needs a mount namespace of its own")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for place in PRIVATE:
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
        # If this process is killed, nobody finds its lab by name any more: one who stays behind takes it down then.
        # A line means that all is well; the end of the file without one, that the writer died.
        command = 'read -r line || exec "$0" -m netprobe.cli.main lab down'
        self._watcher = subprocess.Popen(
            ["sh", "-c", command, sys.executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NETPROBE_RUN_DIR": str(RUN_DIR)},
            start_new_session=True,  # Ctrl-C is not for it
        )

    def close(self):
        """The tests have removed what they made."""
        with contextlib.suppress(BrokenPipeError):
            self._watcher.communicate(b"\n", timeout=10)


class Scheduling(LoadFileScheduling):
    """A file is one worker's, since its tests share a lab; and all tests that must be alone are one worker's.

    Were they several workers', each would be set up and taken down in between. Who hands tests out knows no marks, only
    names, and therefore reads for itself what is marked.
    """

    ALONE = "alone"

    def __init__(self, config, log=None):
        super().__init__(config, log)
        self._alone = alone_tests(config.rootpath)

    def _split_scope(self, nodeid):
        path, _, name = nodeid.partition("::")
        is_alone = path in self._alone or f"{path}::{name.partition('[')[0]}" in self._alone
        return self.ALONE if is_alone else path


def alone_tests(root):
    """Files whose tests are all marked `alone`, and tests that are by themselves, as pytest names them."""
    found = set()
    for path in root.glob("tests/system/test_*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        if re.search(r"^(pytestmark =.*|    )pytest\.mark\.alone\(", text, re.MULTILINE):
            found.add(name)
        for test in re.findall(r"^@pytest\.mark\.alone\(.*\)\n(?:@.*\n)*def (\w+)", text, re.MULTILINE):
            found.add(f"{name}::{test}")
    return found


class Turns:
    """Tests of all workers run beside each other, except those marked `alone`.

    A test that wants to be alone holds the gate while it waits for the ground; the others pass the gate first, so they
    cannot keep it waiting for ever. The turn begins before a test's first fixture and ends behind its last one, and it
    is kept from one test that is alone to the next: the other worker's lab does not even come up in between.
    """

    def __init__(self, gate=GATE, ground=GROUND):
        self._gate, self._ground = gate.open("w"), ground.open("w")
        self._held = fcntl.LOCK_UN

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        """Around set-up, call and tear-down of one test."""
        self._hold(turn_of(item))
        try:
            return (yield)
        finally:
            keeps = self._held == fcntl.LOCK_EX and nextitem is not None and turn_of(nextitem) == fcntl.LOCK_EX
            if not keeps:
                self._hold(fcntl.LOCK_UN)

    def _hold(self, wanted):
        if wanted == self._held:
            return
        if wanted != fcntl.LOCK_UN:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._ground, wanted)
            self._held = wanted
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def close(self):
        """Closing the files gives up what is held."""
        self._gate.close()
        self._ground.close()


def turn_of(item):
    """The lock that a test takes."""
    return fcntl.LOCK_SH if item.get_closest_marker("alone") is None else fcntl.LOCK_EX
