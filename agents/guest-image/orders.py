"""The one service of the hypervisor machine (hypervisor.py): runs what the lab orders over a virtio-serial port.

An order is a line of JSON: `id`, the words `argv` of a command, and `files`, name to base64, which are put into the
folder that it runs in. What it writes goes back as it comes, as lines with `id`, `fd` (1 or 2) and `data` (base64), and
last its exit code, as a line with `id` and `code`. One command at a time; when nobody listens any more it is ended.
netprobe.lab.hypervisor is the other end. The standard library alone; it starts where nothing else does.
"""  # noqa: INP001  a script beside what packs it

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

READ_BYTES = 32_768
GRACE_S = 10.0
"""An emulated Python takes seconds to tidy up."""
NOBODY_S = 0.05
NOT_FOUND = 127


class GoneError(Exception):
    """Nobody is at the other end any more."""


class Port:
    """The lab's end of a byte stream; non-blocking, so that a host that does not read stops nobody for ever."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd

    def send(self, message: dict[str, Any]) -> None:
        """A line of JSON, whole. Raises GoneError."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            self._wait(select.POLLOUT)
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise GoneError from error

    def receive(self) -> bytes:
        """What has come. Raises GoneError."""
        self._wait(select.POLLIN)
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise GoneError from error
        if not data:
            raise GoneError
        return data

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.fd, events)
        ((_, found),) = poll.poll()
        if not found & events:
            raise GoneError


def serve(port: Port, folder: Path) -> None:
    """Take orders until nobody is at the other end."""
    pending = b""
    with contextlib.suppress(GoneError):
        while True:
            *lines, pending = (pending + port.receive()).split(b"\n")
            for line in filter(None, lines):
                obey(port, line, folder)


def obey(port: Port, line: bytes, folder: Path) -> None:
    """Carry out one order; what is wrong with it is said on its standard error."""
    ident = ""
    try:
        order = json.loads(line)
        ident, argv = str(order["id"]), [str(word) for word in order["argv"]]
        for name, data in order.get("files", {}).items():
            (folder / Path(name).name).write_bytes(base64.b64decode(data))
        code = run(port, ident, argv, folder) if argv else 0
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        text = f"hypervisor: {error.strerror}: {error.filename}" if isinstance(error, OSError) else f"order: {error!r}"
        port.send({"id": ident, "fd": 2, "data": base64.b64encode(f"{text}\n".encode()).decode()})
        code = NOT_FOUND
    port.send({"id": ident, "code": code})


def run(port: Port, ident: str, argv: list[str], folder: Path) -> int:
    """Run a command to its end. Raises GoneError; then it has been ended."""
    command = subprocess.Popen(
        argv,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    with command.stdout, command.stderr:
        try:
            forward(port, ident, command, {command.stdout.fileno(): 1, command.stderr.fileno(): 2})
        except GoneError:
            end(command)
            raise
    code = command.wait()
    return code if code >= 0 else 128 - code


def forward(port: Port, ident: str, command: "subprocess.Popen[bytes]", streams: dict[int, int]) -> None:
    """Send on what a command writes until it has ended; a daemon that it left may hold its streams open for ever."""
    ended = os.pidfd_open(command.pid)
    poll = select.poll()
    poll.register(port.fd, 0)  # that nobody is there any more
    poll.register(ended, select.POLLIN)
    for stream in streams:
        os.set_blocking(stream, False)
        poll.register(stream, select.POLLIN)
    left, is_over = dict(streams), False
    try:
        while left:
            found = dict(poll.poll(0 if is_over else None))
            if port.fd in found:
                raise GoneError
            ready = [stream for stream in left if stream in found]
            if not ready and is_over:
                return
            is_over = is_over or ended in found
            for stream in ready:
                data = os.read(stream, READ_BYTES)
                if data:
                    port.send({"id": ident, "fd": streams[stream], "data": base64.b64encode(data).decode()})
                else:
                    poll.unregister(stream)
                    del left[stream]
    finally:
        os.close(ended)


def end(command: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C does, and by force after a while."""
    for number, wait_s in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(wait_s)


def main() -> None:
    """Serve until the machine ends: `orders.py PORT FOLDER`."""
    device, folder = sys.argv[1:]
    port = Port(os.open(device, os.O_RDWR | os.O_NONBLOCK))
    print("netprobe-hypervisor: takes orders", flush=True)
    while True:
        serve(port, Path(folder))
        time.sleep(NOBODY_S)


if __name__ == "__main__":
    main()
