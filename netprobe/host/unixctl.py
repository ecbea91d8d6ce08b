"""Open vSwitch's control socket, as ovs-appctl uses it: one JSON-RPC call at a time over a socket that stays open.

For traces, conntrack and the wait for counters. Every call has a timeout: a switch that is stopped answers nobody, and
ovs-appctl would wait for ever. Knows no command's output; netprobe.host.conntrack and netprobe.judge do.
"""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Self

from netprobe.errors import HostNotReadyError

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 1 << 28
"""A million conntrack entries are 150 MB of text; what is longer than this is not an answer."""

_READ_BYTES = 1 << 18


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
        self._next_id += 1
        request = {"id": self._next_id, "method": command, "params": list(arguments)}
        try:
            sock = self._socket or self._open()
            sock.settimeout(self._timeout_s)
            sock.sendall(json.dumps(request).encode())
            answer = self._answer(sock)
        except OSError as error:
            self.close()
            raise self._lost(f"{command}: {error.strerror or error}") from error
        except HostNotReadyError:
            self.close()
            raise
        return self._result(command, answer)

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

    def _answer(self, sock: socket.socket) -> object:
        deadline = time.monotonic() + self._timeout_s
        data = bytearray()
        while len(data) < MAX_ANSWER_BYTES:
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
                with contextlib.suppress(ValueError, RecursionError):
                    return json.loads(data)
        raise self._lost(f"gave no answer within {self._timeout_s:g} s ({len(data)} bytes came)")

    def _result(self, command: str, answer: object) -> str:
        if not isinstance(answer, dict) or answer.get("id") != self._next_id:
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
