"""Open vSwitch's control socket, as ovs-appctl uses it: JSON-RPC over a socket that stays open, one call or many.

For traces, conntrack and the wait for counters. Every call has a timeout: a switch that is stopped answers nobody, and
ovs-appctl would wait for ever. Knows no command's output; netprobe.host.conntrack and netprobe.judge do.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from netprobe.errors import HostNotReadyError

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 1 << 28
"""A million conntrack entries are 150 MB of text; what is longer than this is not an answer."""

IN_FLIGHT = 10
"""Requests that a daemon takes from one connection in one round of its main loop (Open vSwitch, lib/unixctl.c)."""

_READ_BYTES = 1 << 18
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class CommandError(HostNotReadyError):
    """The daemon carried the call out and said no; `said` is its text."""

    def __init__(self, where: str, command: str, said: str) -> None:
        self.said = said
        super().__init__(where, f"{command} failed: {said}")


class UnixctlClient:
    """The control socket of one daemon. Use it as a context manager; not for two threads at once.

    The socket is opened at the first call, and again after it broke: with --monitor a dead switch comes back under
    another pid. A call that was cut off is never repeated by itself.

    Args:
        run_dir: the daemon's run directory; it holds `<program>.pid` and `<program>.<pid>.ctl`.
        program: the daemon.
        timeout_s: how long one call may take, seconds.
    """

    def __init__(self, run_dir: Path | str, *, program: str = "ovs-vswitchd", timeout_s: float = TIMEOUT_S) -> None:
        self._run_dir = Path(run_dir)
        self._program = program
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._next_id = 0

    def close(self) -> None:
        """Let go of the socket. Twice is fine."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, command: str, *arguments: str) -> str:
        """Run one command as `ovs-appctl COMMAND ARGUMENTS` would.

        Returns:
            The text that it prints.

        Raises:
            CommandError: the daemon refused the command.
            HostNotReadyError: the daemon does not run, does not answer in time, or died over it.
        """
        (answer,) = self._exchange(command, [arguments])
        return self._result(command, self._next_id, answer)

    def call_each(self, command: str, arguments: Sequence[Sequence[str]]) -> list[str | HostNotReadyError]:
        """Run one command many times, several requests under way at once; that saves both sides most of the waiting.

        Args:
            command: the command.
            arguments: those of each call.

        Returns:
            The text that each prints, in order. CommandError where the daemon refused; where it is lost,
            HostNotReadyError for those under way and all the rest.
        """
        found: list[str | HostNotReadyError] = []
        while len(found) < len(arguments):
            part = arguments[len(found) : len(found) + IN_FLIGHT]
            try:
                answers = self._exchange(command, part)
                for number, answer in enumerate(answers, self._next_id - len(part) + 1):
                    found.append(self._result_or_refusal(command, number, answer))
            except HostNotReadyError as error:
                return found + [error] * (len(arguments) - len(found))
        return found

    def _exchange(self, command: str, arguments: Sequence[Sequence[str]]) -> list[object]:
        """Send a request for each, and take the answers in."""
        requests = [
            {"id": number, "method": command, "params": list(words)}
            for number, words in enumerate(arguments, self._next_id + 1)
        ]
        self._next_id += len(requests)
        try:
            sock = self._socket or self._open()
            sock.settimeout(self._timeout_s)
            sock.sendall("".join(map(json.dumps, requests)).encode())
            return self._answers(sock, len(requests))
        except OSError as error:
            self.close()
            raise self._lost(f"{command}: {error.strerror or error}") from error
        except HostNotReadyError:
            self.close()
            raise

    def wait_revalidators(self) -> None:
        """Wait until the datapath's counters have been pushed into the OpenFlow tables."""
        self.call("revalidator/wait")

    def _open(self) -> socket.socket:
        pid_file = self._run_dir / f"{self._program}.pid"
        try:
            pid = int(pid_file.read_text())
        except (OSError, ValueError) as error:
            raise self._lost(f"no pid in {pid_file}") from error
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(str(self._run_dir / f"{self._program}.{pid}.ctl"))
        except OSError:
            sock.close()
            raise
        self._socket = sock
        return sock

    def _answers(self, sock: socket.socket, count: int) -> list[object]:
        found: list[object] = []
        deadline = time.monotonic() + self._timeout_s
        data = bytearray()
        while len(found) < count and len(data) < MAX_ANSWER_BYTES:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            sock.settimeout(left_s)
            try:
                part = sock.recv(_READ_BYTES)
            except TimeoutError:
                break
            if not part:
                raise self._lost("closed the connection instead of answering")
            data += part
            if part.rstrip().endswith(b"}"):  # an object may be complete: parsing each part would be quadratic
                complete = _objects(data)
                found += complete
                if complete:  # each has its own time
                    deadline = time.monotonic() + self._timeout_s
        if len(found) != count:
            came = f"{len(found)} of {count} answers, and {len(data)} bytes more"
            raise self._lost(f"gave no answer within {self._timeout_s:g} s ({came}, came)")
        return found

    def _result_or_refusal(self, command: str, number: int, answer: object) -> str | CommandError:
        try:
            return self._result(command, number, answer)
        except CommandError as error:
            return error

    def _result(self, command: str, number: int, answer: object) -> str:
        if not isinstance(answer, dict) or answer.get("id") != number:
            self.close()
            raise self._lost(f"{command}: the answer is not one to the question")
        error, result = answer.get("error"), answer.get("result")
        if error is not None:
            raise CommandError(self._program, command, str(error).strip().replace("\n", "; "))
        return result if isinstance(result, str) else ""

    def _lost(self, problem: str) -> HostNotReadyError:
        return HostNotReadyError(
            f"{self._program} in {self._run_dir}", problem, advice="is it running, and are you root? See its log"
        )


def _objects(data: bytearray) -> list[object]:
    """The JSON values that data begins with; they are taken off it."""
    found: list[object] = []
    end = 0
    with contextlib.suppress(ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        text = data.decode()
        while (begin := _SPACE.match(text, end).end()) < len(text):  # type: ignore[union-attr]  # it always matches
            value, end = _DECODER.raw_decode(text, begin)
            found.append(value)
    if found:
        data[:] = text[end:].encode()
    return found
