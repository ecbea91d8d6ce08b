"""Processes by pid: recognised by start time and command line, ended for certain, never mistaken for another."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from support.waiting import until

from netprobe.errors import HostNotReadyError
from netprobe.host import process

STUBBORN = "import signal, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'x'); signal.pause()"


def test_a_started_process_is_alive_until_it_is_ended(tmp_path):
    record = process.spawn(["sleep", "77"], log=tmp_path / "log")
    assert process.is_alive(record)
    assert process.end([record]) == [record.pid]
    assert not process.is_alive(record)
    assert process.end([record]) == []


def test_another_start_time_or_command_line_is_another_process(tmp_path):
    record = process.spawn(["sleep", "77"], log=tmp_path / "log")
    try:
        until(lambda: process.command_line(record.pid) == record.argv)  # in the middle of its exec it shows none
        for other in (
            replace(record, start_ticks=record.start_ticks + 1),
            replace(record, argv=("sleep", "78")),
            replace(record, pid=0),
        ):
            assert not process.is_alive(other)
            assert process.end([other]) == []
        assert process.is_alive(record)
    finally:
        process.end([record])


def test_what_ignores_sigterm_is_killed(tmp_path):
    reader, writer = os.pipe()
    record = process.spawn([sys.executable, "-c", STUBBORN], log=tmp_path / "log", stdout_fd=writer)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    assert process.end([record], grace_s=0.05) == [record.pid]
    assert not process.is_alive(record)


def test_a_process_without_a_recorded_pid_is_found_by_its_exact_command_line(tmp_path):
    argv = ("sleep", "77.125")
    record = process.spawn(argv, log=tmp_path / "log")
    try:
        until(lambda: process.command_line(record.pid) == argv)  # spawned: its exec has begun, not ended
        assert [found.pid for found in process.find({argv}, tmp_path)[1]] == [record.pid]
        assert process.find({("sleep",)}, tmp_path) == ([], [])
    finally:
        process.end([record])


def test_a_command_that_is_missing_fails_or_hangs_is_named():
    with pytest.raises(HostNotReadyError, match="no-such-tool: is not installed"):
        process.run(["no-such-tool"])
    with pytest.raises(HostNotReadyError, match=r"failed: .*no-such-file"):
        process.run(["ls", "/no-such-file"])
    with pytest.raises(HostNotReadyError, match="did not end within"):
        process.run(["sleep", "9"], timeout_s=0.01)


@pytest.fixture
def hidden():
    """A shell that shows no command line, as a process in the middle of an exec; it runs what it is told."""
    with subprocess.Popen([""], executable="/bin/sh", stdin=subprocess.PIPE, text=True, bufsize=1) as shell:
        yield shell
        shell.kill()


def test_a_process_in_the_middle_of_its_exec_is_waited_for(hidden, tmp_path, monkeypatch):
    """What `lab down` looks for may just have been started by an `up` that was killed."""
    until(lambda: process.command_line(hidden.pid) == ("",))
    monkeypatch.setattr(process, "EXEC_WAIT_S", 5.0)
    said = []

    pause = time.sleep

    def wait(seconds: float) -> None:
        pause(seconds)
        if not said:
            said.append(hidden.stdin.write("exec sleep 77.25\n"))

    monkeypatch.setattr(process.time, "sleep", wait)
    assert [found.pid for found in process.find({("sleep", "77.25")}, tmp_path)[1]] == [hidden.pid]


def test_a_process_that_never_shows_a_command_line_is_not_waited_for_for_long(hidden, tmp_path, monkeypatch):
    until(lambda: process.command_line(hidden.pid) == ("",))
    monkeypatch.setattr(process, "EXEC_WAIT_S", 0.01)
    assert process.find({("sleep", "77.25")}, tmp_path) == ([], [])
