"""The command whose change a stopwatch watches: in a session of its own, bounded in time; and when it ended."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from netprobe.errors import UsageError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest

COMMAND_S = 60.0
"""How long a command may take."""

LOOK_S = 0.05
STDERR = 2


@dataclass(slots=True)
class Ran:
    """The command.

    Attributes:
        begin_ns: just before it was started, CLOCK_REALTIME; 0 where it never was.
        end_ns: when it was seen to have ended: the commit was not later.
        exit_code: negative: ended by that signal.
        notes: what else one should know.
    """

    begin_ns: int = 0
    end_ns: int = 0
    exit_code: int | None = None
    notes: list[str] = field(default_factory=list)


async def run_command(command: Sequence[str], ran: Ran, stop: StopRequest) -> None:
    """Run a command in a session of its own; what it prints goes to stderr. It is killed after COMMAND_S.

    Args:
        command: its words.
        ran: takes down when it began and ended, and how.
        stop: once it is asked, the command gets SIGTERM.

    Raises:
        UsageError: it cannot be started.
    """
    ran.begin_ns = realtime_ns()
    try:
        process = await trio.lowlevel.open_process(
            list(command), stdin=subprocess.DEVNULL, stdout=STDERR, start_new_session=True
        )
    except OSError as error:
        raise UsageError("--watch-change", f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        with trio.move_on_after(COMMAND_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, process, stop)
                await process.wait()
                ran.end_ns = realtime_ns()
                nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            ran.notes.append(f"the command was killed after {COMMAND_S:g} s")
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session, which it leads
            with trio.CancelScope(shield=True):
                await process.wait()
        ran.end_ns = ran.end_ns or realtime_ns()
        ran.exit_code = process.returncode


async def _pass_on(process: trio.Process, stop: StopRequest) -> None:
    while not stop.asked():  # noqa: ASYNC110  a signal handler sets no trio.Event
        await trio.sleep(LOOK_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
