"""QEMU: a guest's command line, its monitor (QMP), its snapshots, and what its serial line said.

A guest is emulated (TCG): no KVM is asked for. Its NICs are taps or vhost-user sockets, its channels virtio-serial
ports, each a unix socket here. A guest is one process, started with netprobe.host.process, so whoever starts it
records and ends it as any other one. What is in the guest, netprobe.lab knows; what its agent says,
netprobe.host.guest_agent.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import process
from netprobe.host.process import ProcessRecord

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"

MONITOR_WAIT_S = 60.0
"""A vhost-user guest opens its monitor only after the switch has connected."""

ANSWER_WAIT_S = 30.0
SNAPSHOT_WAIT_S = 60.0
LOOK_S = 0.01
SERIAL_LINES = 12
SERIAL_BYTES = 16_384
PANIC = "Kernel panic"
CONTROL_SEQUENCE = re.compile(r"\x1b[\[(][0-?]*[ -/]*[@-~]|\x1bc")
"""What firmware and kernel send to a terminal."""

TRANSLATION_CACHE_MIB = 64
"""QEMU's own default is 1 GiB a guest (`tb-size`); this much holds what a small guest runs."""


@dataclass(frozen=True, slots=True)
class TapNic:
    """A virtio NIC whose backend is a tap that exists already, without any offload: frames are as they are.

    Attributes:
        device: the tap, in the network namespace that the guest is started in.
    """

    device: str
    mac: str

    def argv(self, number: int) -> list[str]:
        """Its words of the command line."""
        backend = f"tap,id=net{number},ifname={_escaped(self.device)},script=no,downscript=no,vhost=off,vnet_hdr=off"
        return ["-netdev", backend, "-device", f"virtio-net-pci,netdev=net{number},mac={self.mac},romfile="]


@dataclass(frozen=True, slots=True)
class VhostUserNic:
    """A virtio NIC whose backend is a switch that connects to a socket, which QEMU serves (dpdkvhostuserclient).

    QEMU waits in its start until the switch has connected. `vectors=0`: with TCG, QEMU 7.2 crashes when a vhost-user
    NIC uses MSI-X.

    Attributes:
        socket: path of the unix socket.
    """

    socket: Path
    mac: str

    def argv(self, number: int) -> list[str]:
        """Its words of the command line."""
        chardev = f"socket,id=vhost{number},path={_escaped(self.socket)},server=on,wait=off"
        device = f"virtio-net-pci,netdev=net{number},mac={self.mac},romfile=,vectors=0"
        return [
            *("-chardev", chardev, "-netdev", f"vhost-user,id=net{number},chardev=vhost{number}", "-device", device)
        ]


Nic = TapNic | VhostUserNic


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest as it is to be started.

    Attributes:
        name: for people, and of its files.
        directory: where its sockets and logs are; it exists.
        kernel, initrd: files of its boot image.
        memory_mib: of the guest; the process takes about 100 MiB more.
        nics: in the order of the guest's PCI bus.
        channels: virtio-serial ports: name in the guest, and the unix socket on this side.
        append: further words of the kernel's command line.
        snapshot: start from this file instead of booting (see `save`); the guest is then paused until `resume`.
        netns: network namespace of the process; empty for the caller's own.
        cpus: virtual ones, a thread each.
        disks: files that the guest has as block devices, and cannot write.
        cache_mib: of translated code.
    """

    name: str
    directory: Path
    kernel: Path
    initrd: Path
    memory_mib: int
    nics: tuple[Nic, ...] = ()
    channels: tuple[tuple[str, Path], ...] = ()
    append: str = ""
    snapshot: Path | None = None
    netns: str = ""
    cpus: int = 1
    disks: tuple[Path, ...] = ()
    cache_mib: int = TRANSLATION_CACHE_MIB

    @property
    def monitor(self) -> Path:
        """The monitor's socket (QMP)."""
        return self.directory / f"{self.name}.qmp"

    @property
    def serial_log(self) -> Path:
        """What the guest's kernel and init have said."""
        return self.directory / f"{self.name}.serial.log"

    @property
    def log(self) -> Path:
        """What QEMU itself has said."""
        return self.directory / f"{self.name}.qemu.log"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line."""
        shares_memory = any(isinstance(nic, VhostUserNic) for nic in self.nics)
        machine, memory = "pc,usb=off", ["-m", f"{self.memory_mib}M"]
        if shares_memory:  # the switch reads and writes the guest's memory
            memory += ["-object", f"memory-backend-memfd,id=mem0,size={self.memory_mib}M,share=on"]
            machine += ",memory-backend=mem0"
        words = [PROGRAM, "-name", _escaped(self.name), "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-no-reboot", "-machine", machine, "-cpu", "max", "-smp", str(self.cpus), *memory]
        words += ["-accel", f"tcg,thread=multi,tb-size={self.cache_mib}"]
        words += ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", self._kernel_line]
        words += ["-serial", f"file:{self.serial_log}", "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        for disk in self.disks:
            words += ["-drive", f"file={_escaped(disk)},format=raw,if=virtio,readonly=on"]
        words += ["-device", "virtio-serial-pci,max_ports=8"] if self.channels else []
        for number, (name, path) in enumerate(self.channels):
            words += ["-chardev", f"socket,id=port{number},path={_escaped(path)},server=on,wait=off"]
            words += ["-device", f"virtserialport,chardev=port{number},name={_escaped(name)},nr={number + 1}"]
        for number, nic in enumerate(self.nics):
            words += nic.argv(number)
        if self.snapshot is not None:
            words += ["-S", "-incoming", f"exec:cat {shlex.quote(str(self.snapshot))}"]
        return tuple(words)

    @property
    def _kernel_line(self) -> str:
        # The TSC is the host's own, so a watchdog and a recalibration under load could only make it worse.
        fixed = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off"
        return f"{fixed} {self.append}".strip()

    def start(self) -> ProcessRecord:
        """Start the process. The guest boots, or waits for `resume` where it comes from a snapshot.

        Raises:
            HostNotReadyError: QEMU is not installed.
        """
        for path in (self.monitor, *(path for _, path in self.channels)):
            path.unlink(missing_ok=True)
        return process.spawn(self.argv, log=self.log, netns=self.netns)

    def trouble(self, problem: str) -> HostNotReadyError:
        """The error of a guest that does not do what it should, with the end of what it and QEMU said."""
        said = [f"QEMU: {text}" for text in [tail(self.log)] if text]
        said.append(f"its serial line: {tail(self.serial_log) or 'nothing'}")
        return HostNotReadyError(
            f"guest {self.name}", f"{problem}; {'; '.join(said)}", advice=f"see {self.serial_log}, while it is there"
        )

    def wait_open(self, path: Path, record: ProcessRecord, *, timeout_s: float = MONITOR_WAIT_S) -> socket.socket:
        """Connect to one of the guest's sockets as soon as QEMU serves it.

        Raises:
            HostNotReadyError: QEMU has ended, or does not serve it in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            if sock.connect_ex(str(path)) == 0:
                return sock
            sock.close()
            if not process.is_alive(record):
                raise self.trouble("has ended")
            if time.monotonic() > deadline:
                raise self.trouble(f"does not serve {path.name} after {timeout_s:g} s")
            time.sleep(LOOK_S)

    @contextlib.contextmanager
    def open_monitor(self, record: ProcessRecord) -> Iterator["Monitor"]:
        """Its monitor; one user at a time.

        Raises:
            HostNotReadyError: see wait_open.
        """
        with contextlib.closing(self.wait_open(self.monitor, record)) as sock:
            yield Monitor(self, sock)


class Monitor:
    """A guest's monitor, greeted. From `Machine.open_monitor`."""

    def __init__(self, machine: Machine, sock: socket.socket) -> None:
        self._machine = machine
        self._sock = sock
        self._lines = b""
        sock.settimeout(ANSWER_WAIT_S)
        self._next("QMP")
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: object) -> object:
        """Run a command and return what it says; events that come meanwhile are passed over.

        Raises:
            HostNotReadyError: QEMU refuses it, is gone, or does not answer.
        """
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        try:
            self._sock.sendall(text.encode() + b"\n")
        except OSError as error:
            raise self._machine.trouble(f"took no {command}: {error.strerror or error}") from error
        answer = self._next("return", "error")
        if "error" in answer:
            raise self._machine.trouble(f"refused {command}: {answer['error']}")
        return answer["return"]

    def _next(self, *keys: str) -> Mapping[str, object]:
        """The next message that has one of these keys."""
        while True:
            line, found, rest = self._lines.partition(b"\n")
            if found:
                self._lines = rest
                message = self._message(line)
                if not message.keys().isdisjoint(keys):
                    return message
                continue
            try:
                data = self._sock.recv(65_536)
            except OSError as error:
                raise self._machine.trouble(f"has a monitor that does not answer: {error}") from error
            if not data:
                raise self._machine.trouble("has ended")
            self._lines += data

    def _message(self, line: bytes) -> dict[str, object]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise self._machine.trouble(f"has a monitor that speaks nonsense: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise self._machine.trouble(f"has a monitor that speaks nonsense: {line[:80]!r}")
        return message

    @property
    def state(self) -> str:
        """What the guest does: `running`, `paused`, `inmigrate` while a snapshot is being read."""
        status = self.call("query-status")
        return str(status.get("status", "")) if isinstance(status, dict) else ""

    def resume(self) -> None:
        """Let a guest that was started from a snapshot go on where it was saved.

        Raises:
            HostNotReadyError: the snapshot cannot be read, or is of another kind of guest.
        """
        self._wait(lambda: self.state != "inmigrate", SNAPSHOT_WAIT_S, "did not read its snapshot")
        self.call("cont")

    def save(self, path: Path) -> None:
        """Stop the guest and write memory and devices to a file, whole or not at all. The guest stays stopped.

        A machine with the same devices, in the same order, and as much memory can be started from it; a NIC has the MAC
        of the one that was saved.

        Raises:
            HostNotReadyError: it cannot be written.
        """
        self.call("stop")
        fresh = path.with_suffix(f".{os.getpid()}.new")
        try:
            self.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            self.call("migrate", uri=f"exec:cat >{shlex.quote(str(fresh))}")
            self._wait(self._is_saved, SNAPSHOT_WAIT_S, "was not saved")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def _is_saved(self) -> bool:
        said = self.call("query-migrate")
        state = said.get("status") if isinstance(said, dict) else None
        if state == "failed":
            raise self._machine.trouble(f"was not saved: {said}")
        return state == "completed"

    def _wait(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise self._machine.trouble(f"{problem} in {timeout_s:g} s")
            time.sleep(LOOK_S)


def check_installed() -> None:
    """Raise HostNotReadyError unless QEMU is there."""
    if shutil.which(PROGRAM) is None:
        raise HostNotReadyError(PROGRAM, "is not installed", advice=f"apt-get install {PACKAGE}")


def version() -> str:
    """QEMU's version, as it says it; a snapshot of one is of no use to another.

    Raises:
        HostNotReadyError: it is not installed.
    """
    return process.run([PROGRAM, "--version"]).partition("\n")[0]


def tail(path: Path, lines: int = SERIAL_LINES) -> str:
    """The last lines of a log that have something in them, in one line, printable; "" where there is none.

    Of a kernel that panicked, the last ones up to the panic: what follows are addresses.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - SERIAL_BYTES))
            raw = file.read(SERIAL_BYTES)
    except FileNotFoundError:
        return ""
    text = CONTROL_SEQUENCE.sub("", raw.decode(errors="replace"))
    found = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    panic = next((i + 1 for i, line in enumerate(found) if PANIC in line), None)
    return " / ".join([line for line in found[:panic] if line][-lines:])


def _escaped(value: Path | str) -> str:
    """A value in an option of QEMU's, where a comma separates."""
    return str(value).replace(",", ",,")
