"""A lab in a machine of its own: `ovs-kernel`, where this kernel has no module openvswitch.

The machine is emulated and boots Debian's kernel, which has the module; the same lab is then brought up in it, by the
netprobe of this checkout. What runs there is ordered over a virtio-serial port. agents/guest-image/hypervisor.py makes
the machine's disks, agents/guest-image/orders.py is its service. netprobe.lab.control calls `build`, `ping` and `run`.
"""

import base64
import fcntl
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import process
from netprobe.host.process import ProcessRecord
from netprobe.host.qemu import Machine
from netprobe.lab.build import rules_of
from netprobe.lab.config import LabConfig
from netprobe.lab.journal import Journal
from netprobe.lab.machines import LAB_PORT, machine_name
from netprobe.lab.state import Places, State
from netprobe.lab.topology import endpoints

NAME = "hypervisor"
MEMORY_MIB = 1024
CACHE_MIB = 256
"""Much of a Python and of an Open vSwitch is translated; with less, QEMU does it again and again."""
READY = b"netprobe-hypervisor: takes orders"

IMAGE = "NETPROBE_HYPERVISOR_IMAGE"
"""Environment variable: folder with `kernel`, `initrd` and `disk` to use instead of those that the lab makes."""
BUILD_WAIT_S = 300.0
BOOT_WAIT_S = 120.0
UP_WAIT_S = 300.0
LOOK_S = 0.05
PING_WAIT_S = 30.0
LINE_BYTES_MAX = 1 << 20
CONFIG = "lab.toml"
TAIL_LINES = 8

Write = Callable[[int, bytes], None]
"""Takes what a command has written: 1 or 2, and octets."""


@dataclass(frozen=True, slots=True)
class Image:
    """What the machine boots: kernel, initramfs, a disk with programs and one with netprobe."""

    kernel: Path
    initrd: Path
    disk: Path
    source: Path


def make_image(source: Path) -> Image:
    """The machine's files; those that are kept are made first where there are none yet.

    Args:
        source: where the disk with netprobe is to be.

    Raises:
        HostNotReadyError: they cannot be made.
    """
    found = importlib.util.find_spec("netprobe_agents")
    folder = Path(found.origin).parent.parent if found is not None and found.origin else Path()
    script = folder / "guest-image" / "hypervisor.py"
    if not script.is_file():
        advice = "a lab in a machine of its own needs netprobe's source tree; or load the kernel's module openvswitch"
        raise HostNotReadyError("hypervisor image", f"{script} is not there", advice=advice)
    own = os.environ.get(IMAGE)
    words = [sys.executable, str(script), str(source), *(["--image", own] if own else [])]
    said = json.loads(process.run(words, timeout_s=BUILD_WAIT_S))
    image = Image(*(Path(said[name]) for name in Image.__slots__))
    missing = [str(getattr(image, name)) for name in Image.__slots__ if not getattr(image, name).is_file()]
    if missing:
        raise HostNotReadyError("hypervisor image", f"has no {' and no '.join(missing)}")
    return image


def build(config: LabConfig, config_path: Path | None, places: Places) -> State:
    """Start the machine and bring the lab up in it.

    Args:
        config: which lab, its groups and guests.
        config_path: the file that it was read from; None for the one that ships with it.
        places: where its files go.

    Raises:
        HostNotReadyError: something failed; what was made is in the state file.
    """
    places.lab.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal(State(config.shape.name, places.lab, machine=NAME), places.state)
    journal.write()
    machine = _machine(places, make_image(places.lab / "source.disk"))
    journal.intend(machine_name(NAME), machine.argv)
    record = machine.start()
    journal.started(machine_name(NAME), record)
    _wait_ready(machine, record)
    _bring_up(journal.state, places, config_path)
    journal.state.rules = rules_of(config)
    journal.state.endpoints = endpoints(config)
    journal.write()
    return journal.state


def _machine(places: Places, image: Image) -> Machine:
    return Machine(
        name=NAME,
        directory=places.lab,
        kernel=image.kernel,
        initrd=image.initrd,
        memory_mib=MEMORY_MIB,
        channels=((LAB_PORT, places.lab_port(NAME)),),
        cpus=2,
        disks=(image.disk, image.source),
        cache_mib=CACHE_MIB,
    )


def _wait_ready(machine: Machine, record: ProcessRecord) -> None:
    deadline = time.monotonic() + BOOT_WAIT_S
    while not (machine.serial_log.is_file() and READY in machine.serial_log.read_bytes()):
        if not process.is_alive(record):
            raise machine.trouble("ended while it booted")
        if time.monotonic() > deadline:
            raise machine.trouble(f"has not booted in {BOOT_WAIT_S:g} s")
        time.sleep(LOOK_S)


def _bring_up(state: State, places: Places, config_path: Path | None) -> None:
    """The lab in the machine; without agents, since each would take half a minute to start."""
    words = ["python3", "-m", "netprobe.lab", "up", state.name, "with_agents=False"]
    files = {}
    if config_path is not None:
        files[CONFIG] = config_path.read_bytes()
        words.append(f"config_path={CONFIG!r}")
    said = bytearray()
    code = run(
        state,
        places,
        words,
        files=files,
        write=lambda fd, data: said.extend(data) if fd == 2 else None,
        timeout_s=UP_WAIT_S,
    )
    if code:
        text = " / ".join(said.decode(errors="replace").strip().splitlines()[-TAIL_LINES:])
        raise HostNotReadyError(f"lab {state.name} in its machine", f"is not up (exit code {code}): {text}")


def ping(state: State, places: Places) -> str:
    """What is wrong with the machine's service; "" where it answers, or is busy with a command."""
    try:
        run(state, places, (), write=lambda *_: None, timeout_s=PING_WAIT_S)
    except _BusyError:
        return ""
    except HostNotReadyError as error:
        return str(error)
    return ""


class _BusyError(HostNotReadyError):
    """Another command is under way."""


def run(
    state: State,
    places: Places,
    words: Sequence[str],
    *,
    write: Write,
    files: Mapping[str, bytes] | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run a command in the lab's machine, to its end; when this is interrupted, so is the command.

    Args:
        state: of the lab.
        places: where its files are.
        words: the command; none to see whether the machine answers.
        write: takes what it writes, as it comes.
        files: what is put into the folder that it runs in, by name.
        timeout_s: how long the machine may be silent; None for ever, seconds.

    Returns:
        Its exit code.

    Raises:
        HostNotReadyError: the machine has ended or does not answer, or another command is under way.
    """
    machine = _machine(places, Image(Path(), Path(), Path(), Path()))  # for its sockets and logs
    order = {
        "id": os.urandom(8).hex(),
        "argv": list(words),
        "files": {name: base64.b64encode(data).decode() for name, data in (files or {}).items()},
    }
    records = [record for record in state.processes if record.name == machine_name(NAME)]
    if not records or not process.is_alive(records[0]):
        raise machine.trouble("has ended")
    with _turn(places), machine.wait_open(places.lab_port(NAME), records[0]) as sock:
        sock.settimeout(timeout_s)
        try:
            _order(sock, json.dumps(order))
            return _follow(sock, str(order["id"]), write)
        except TimeoutError as error:
            raise machine.trouble(f"has not answered in {timeout_s:g} s") from error
        except EOFError as error:
            raise machine.trouble("ended while a command ran") from error


def _order(sock: socket.socket, text: str) -> None:
    """Say what is to be done.

    Raises:
        EOFError: the machine is gone.
    """
    try:
        sock.sendall(text.encode() + b"\n")
    except ConnectionError as error:
        raise EOFError from error


@contextmanager
def _turn(places: Places) -> Iterator[None]:
    """One command at a time: the machine has one port for them."""
    fd = os.open(places.lab / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            advice = "wait for it to end and try again"
            raise _BusyError(f"guest {NAME}", "runs another command", advice=advice) from error
        yield
    finally:
        os.close(fd)


def _follow(sock: socket.socket, ident: str, write: Write) -> int:
    """Hand over what one command writes, until its exit code comes; what is left of an earlier one is passed over.

    Raises:
        EOFError: the machine is gone, or says what no machine of ours says.
    """
    pending = b""
    while True:
        try:
            data = sock.recv(1 << 16)
        except ConnectionError as error:  # not of `write`, whose reader may have gone away
            raise EOFError from error
        if not data or len(pending) > LINE_BYTES_MAX:
            raise EOFError
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
                is_ours = said["id"] == ident
            except (ValueError, TypeError, KeyError):
                continue  # the end of a line whose beginning went to nobody
            if not is_ours:
                continue
            try:
                code = int(said["code"]) if "code" in said else None
                fd, written = (0, b"") if code is not None else (int(said["fd"]), base64.b64decode(said["data"]))
            except (ValueError, TypeError, KeyError) as error:
                raise EOFError from error
            if code is not None:
                return code
            write(fd, written)
