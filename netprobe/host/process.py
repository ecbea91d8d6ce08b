"""Child processes by pid: start one that outlives its starter, say whether a recorded one still is the same, end it.

A pid alone is never trusted: it is compared with the start time and the command line that were recorded, and signals
go through a pidfd, so that a reused pid cannot be hit. Knows nothing of labs; netprobe.host.ovs and netprobe.lab stand
above.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError

PROC = Path("/proc")

KILL_WAIT_S = 5.0
"""After SIGKILL a process is gone within milliseconds, unless it hangs in the kernel."""

COMMAND_TIMEOUT_S = 20.0
"""The commands run here take milliseconds; longer means that a lock in the kernel is stuck."""

EXEC_WAIT_S = 0.5
"""An exec takes a millisecond, in which a process shows no command line; one that hides its own never ends that."""

EXEC_LOOK_S = 0.001

KERNEL_THREAD = 0x00200000
"""PF_KTHREAD among the flags in /proc/PID/stat: it never has a command line (linux/include/linux/sched.h)."""

FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO (linux/include/linux/proc_ns.h)."""

UNREADABLE = -1
"""Instead of a PID namespace that only root may know."""

MONITOR_TITLE = "ovs-vswitchd: monitoring pid"
"""A process that OVS's --monitor keeps as a guard replaces its command line by this and the guarded pid."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What was written down about a process, enough to recognise it later.

    Attributes:
        name: for people: `ovs-vswitchd`, `agent vm1`.
        argv: the command line that it was (or is about to be) started with.
        pid: 0 while it is only intended.
        start_ticks: field 22 of /proc/PID/stat, clock ticks since boot; 0 while it is only intended.
    """

    name: str
    argv: tuple[str, ...]
    pid: int = 0
    start_ticks: int = 0


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third one on (the second may hold blanks); empty when the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 when it is gone or a zombie."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else 0


def parent(pid: int) -> int:
    """The pid of a process's parent, 0 when it is gone."""
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else 0


def command_line(pid: int) -> tuple[str, ...]:
    """The arguments of a process as it shows them now, empty when it is gone."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(raw.rstrip(b"\0").decode(errors="replace").split("\0"))


def from_pid_file(name: str, argv: tuple[str, ...], path: Path) -> ProcessRecord:
    """The record of a daemon that went into the background and left its pid in a file.

    Raises:
        HostNotReadyError: there is no such file, or no number in it.
    """
    try:
        pid = int(path.read_text())
    except (OSError, ValueError) as error:
        raise HostNotReadyError(name, f"left no pid in {path}", advice=f"see the log in {path.parent}") from error
    return ProcessRecord(name, argv, pid, start_ticks(pid))


def is_pid_file_live(path: Path) -> bool:
    """Whether a process is there that a pid file names; a daemon that was killed leaves its file."""
    try:
        return start_ticks(int(path.read_text())) > 0
    except (OSError, ValueError):
        return False


def identity() -> tuple[int, int, int]:
    """This process, for `may_run`: its PID namespace's inode, its pid as /proc has it, its start in clock ticks."""
    pid = int((PROC / "self").readlink().name)
    return _pid_namespace("self"), pid, start_ticks(pid)


def may_run(namespace: int, pid: int, ticks: int) -> bool:
    """Whether a process may still be there that said this of itself, maybe in another PID namespace.

    Args:
        namespace: its PID namespace's inode.
        pid: as /proc had it there.
        ticks: its start.
    """
    if namespace == _pid_namespace("self"):
        return start_ticks(pid) == ticks != 0
    if not sees_all():
        return True
    numbers = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal())
    return any(start_ticks(each) == ticks and _pid_namespace(each) in (namespace, UNREADABLE) for each in numbers)


def sees_all() -> bool:
    """Whether this process is in the first PID namespace, and so sees the processes of all others."""
    return _pid_namespace("self") == FIRST_PID_NAMESPACE


def _pid_namespace(pid: int | str) -> int:
    """Its inode; 0 when the process is gone."""
    try:
        return (PROC / str(pid) / "ns" / "pid").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return UNREADABLE


def netns_argv(netns: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs `argv` in a network namespace; `ip netns exec` becomes `argv` under the same pid."""
    return ("ip", "netns", "exec", netns, *argv)


def _shows(pid: int, argv: Sequence[str]) -> bool:
    """Whether a process, known by its start, shows this command line, or none: it is in the middle of its exec."""
    shown = command_line(pid)
    return not any(shown) or _settled(shown) == tuple(argv) or is_guard(pid)


def is_alive(record: ProcessRecord) -> bool:
    """Whether the recorded process still runs: same pid, same start, same command line."""
    return bool(record.pid) and start_ticks(record.pid) == record.start_ticks != 0 and _shows(record.pid, record.argv)


def find(command_lines: Collection[tuple[str, ...]], place: Path) -> tuple[list[ProcessRecord], list[ProcessRecord]]:
    """All processes with exactly one of these command lines: first those that guard others of them, then the rest.

    For processes that were intended and whose starter died before it could write down the pid, and for a daemon that
    its guard (`--monitor`) has started again: the command line names files of one lab alone.

    Args:
        command_lines: what to look for.
        place: directory that those files are in; a process that sees another one there (it runs in a container, or
            in another mount namespace with a lab of its own) is not meant.
    """
    shown = _command_lines()
    mine = {pid for pid, line in shown.items() if line in command_lines and _sees(pid, place)}
    guards = {pid for pid in map(parent, mine) if pid in mine or is_guard(pid)}

    def records(some: set[int]) -> list[ProcessRecord]:
        return [ProcessRecord("", shown.get(pid, ()), pid, start_ticks(pid)) for pid in sorted(some)]

    return records(guards), records(mine - guards)


def _command_lines() -> dict[int, tuple[str, ...]]:
    """Of all processes, none of them in the middle of an exec: what it will be can't be said before that is over."""
    deadline = time.monotonic() + EXEC_WAIT_S
    while True:
        shown = {int(entry.name): command_line(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdecimal()}
        in_exec = any(_is_program(pid) for pid, line in shown.items() if not any(line))
        if not in_exec or time.monotonic() > deadline:
            return {pid: _settled(line) for pid, line in shown.items()}
        time.sleep(EXEC_LOOK_S)


def _is_program(pid: int) -> bool:
    """Whether a process is there that is neither a kernel's thread nor a zombie."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in "ZX" and not int(fields[6]) & KERNEL_THREAD


def _sees(pid: int, place: Path) -> bool:
    """Whether a path means the same directory to a process as to us."""
    try:
        return os.path.samestat((PROC / str(pid) / "root" / place.relative_to("/")).stat(), place.stat())
    except OSError:
        return False


def _settled(shown: tuple[str, ...]) -> tuple[str, ...]:
    """A command line as it is after `ip netns exec NAME` has become its command."""
    return shown[4:] if shown[:3] == ("ip", "netns", "exec") else shown


def is_guard(pid: int) -> bool:
    """Whether a process is the parent that OVS's --monitor leaves behind."""
    shown = command_line(pid)
    return len(shown) == 1 and shown[0].startswith(MONITOR_TITLE)


def run(
    command: Sequence[str], *, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S, env: dict[str, str] | None = None
) -> str:
    """Run a command and return its standard output.

    Args:
        command: the words of the command.
        stdin: text for its standard input.
        timeout_s: how long it may take, seconds.
        env: the whole environment, the caller's own when None.

    Raises:
        HostNotReadyError: it is not installed, failed, or took too long; the text has what it said.
    """
    try:
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, timeout=timeout_s, check=False, env=env
        )
    except FileNotFoundError as error:
        raise HostNotReadyError(
            f"command {command[0]}", "is not installed", advice="install it and try again"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise HostNotReadyError(" ".join(command), f"did not end within {timeout_s:g} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").replace("\n", "; ")
        raise HostNotReadyError(" ".join(command), f"failed: {said}")
    return done.stdout


def spawn(
    argv: Sequence[str], *, log: Path, netns: str = "", env: dict[str, str] | None = None, stdout_fd: int | None = None
) -> ProcessRecord:
    """Start a process in a session of its own, with no standard input; it outlives its starter.

    Args:
        argv: the command; its first word is looked up in PATH.
        log: file that standard error (and output) is appended to.
        netns: network namespace, empty for the caller's own.
        env: the whole environment, the caller's own when None.
        stdout_fd: an open file that becomes standard output instead of the log.

    Raises:
        HostNotReadyError: the command cannot be started.
    """
    full = netns_argv(netns, argv) if netns else tuple(argv)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # posix_spawn and not Popen: nobody waits for this child here, and that is on purpose.
        pid = os.posix_spawnp(
            full[0],
            full,
            dict(os.environ) if env is None else env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log_fd if stdout_fd is None else stdout_fd, 1),
                (os.POSIX_SPAWN_DUP2, log_fd, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise HostNotReadyError(f"command {full[0]}", f"cannot be started: {error.strerror}") from error
    finally:
        os.close(log_fd)
    return ProcessRecord(Path(argv[0]).name, tuple(argv), pid, start_ticks(pid))


def _reap(pid: int) -> None:
    """Take a child's exit status, so that no zombie stays; another's child is not ours to wait for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end(records: Iterable[ProcessRecord], *, grace_s: float = 1.0, force: bool = False) -> list[int]:
    """End recorded processes: SIGTERM to all, then SIGKILL to those that are still there after `grace_s`.

    Processes that no longer are what was recorded are left alone.

    Args:
        records: what to end; entries with pid 0 are skipped.
        grace_s: how long all of them together may take to leave by themselves, seconds.
        force: SIGKILL at once.

    Returns:
        The pids that were ended.

    Raises:
        HostNotReadyError: one does not even leave after SIGKILL.
    """
    open_fds: dict[int, int] = {}
    try:
        for record in records:
            if record.pid and record.pid not in open_fds.values() and is_alive(record):
                with contextlib.suppress(ProcessLookupError):
                    open_fds[os.pidfd_open(record.pid)] = record.pid
        ended = sorted(open_fds.values())
        left = _signal_and_wait(open_fds, signal.SIGKILL if force else signal.SIGTERM, grace_s)
        left = _signal_and_wait(left, signal.SIGKILL, KILL_WAIT_S)
    finally:
        for fd, pid in open_fds.items():
            os.close(fd)
            _reap(pid)
    if left:
        raise HostNotReadyError(
            f"process {min(left.values())}", "is still there after SIGKILL", advice="see /proc/PID/stack"
        )
    return ended


def _signal_and_wait(pidfds: dict[int, int], number: signal.Signals, wait_s: float) -> dict[int, int]:
    """Signal each process and wait until all are gone.

    Args:
        pidfds: pidfd -> pid.
        number: the signal.
        wait_s: how long at most, seconds.

    Returns:
        Those that are still there.
    """
    left = dict(pidfds)
    for fd in left:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + wait_s
    while left:
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1e3)
        for fd, _ in events:
            poll.unregister(fd)
            del left[fd]
        if not events and time.monotonic() >= deadline:
            break
    return left
