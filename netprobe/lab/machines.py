"""Virtual machines of the labs `vm` and `dpdk`: resumed from one snapshot of a booted guest, and told their places.

There is no KVM to count on: QEMU emulates them (netprobe.host.qemu). The image is made by agents/guest-image/build.py,
and what its first process takes for orders is in agents/guest-image/init.py. netprobe.lab.build calls `start`, tests
`order`.
"""

import hashlib
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, process, qemu
from netprobe.host.guest_agent import open_guest_agent
from netprobe.host.ovs import PortSpec, PrivateSwitch
from netprobe.host.ovs_dpdk import vhost_port
from netprobe.host.qemu import Machine, Nic, TapNic, VhostUserNic
from netprobe.lab.journal import Journal
from netprobe.lab.shapes import BRIDGE, SHAPES, Network, Shape
from netprobe.lab.state import Places
from netprobe.lab.topology import Endpoint
from netprobe.wire.serial_sync import SERIAL

MEMORY_MIB = 128
LAB_PORT = "org.netprobe.lab.0"
AGENT_PORT = "org.netprobe.agent.0"
READY = b"netprobe-init: waits for its place"

IMAGE = "NETPROBE_GUEST_IMAGE"
"""Environment variable: folder with `kernel` and `initrd` to use instead of the image that the lab makes."""
BUILD_WAIT_S = 300.0

BOOT_WAIT_S = 60.0
ORDER_WAIT_S = 60.0
ANSWER_BYTES_MAX = 4096
LOOK_S = 0.01
TEMPLATE = "template"
TEMPLATE_MAC = "fa:16:3e:ff:ff:fe"


@dataclass(frozen=True, slots=True)
class Image:
    """Kernel and initramfs of the guests, and where their snapshots are kept."""

    kernel: Path
    initrd: Path

    @property
    def folder(self) -> Path:
        """Where both are."""
        return self.kernel.parent


def machine_name(endpoint: str) -> str:
    """The name of a guest's process in the journal."""
    return f"machine {endpoint}"


def guest_image() -> Image:
    """The image, made first where there is none yet (some seconds, and Debian's mirror is asked).

    Raises:
        HostNotReadyError: it cannot be made.
    """
    own = os.environ.get(IMAGE)
    if own:
        image = Image(Path(own) / "kernel", Path(own) / "initrd")
        missing = [path.name for path in (image.kernel, image.initrd) if not path.is_file()]
        if missing:
            raise HostNotReadyError(f"{IMAGE}={own}", f"has no {' and no '.join(missing)}")
        return image
    found = importlib.util.find_spec("netprobe_agents")
    folder = Path(found.origin).parent.parent if found is not None and found.origin else Path()
    script = folder / "guest-image" / "build.py"
    if not script.is_file():
        raise HostNotReadyError(
            "guest image",
            f"{script} is not there",
            advice=f"the lab vm needs netprobe's source tree, or an image in {IMAGE}",
        )
    said = json.loads(process.run([sys.executable, str(script)], timeout_s=BUILD_WAIT_S))
    return Image(Path(said["kernel"]), Path(said["initrd"]))


class _StaleSnapshotError(HostNotReadyError):
    """A snapshot that this QEMU cannot read."""

    def __init__(self, error: HostNotReadyError) -> None:
        super().__init__(error.where, error.problem, advice=error.advice)


def start(image: Image, ends: Sequence[Endpoint], places: Places, journal: Journal, *, with_agents: bool) -> None:
    """Start the lab's virtual machines, and wait until each has its place and its agent answers.

    Args:
        image: what they boot.
        ends: the lab's endpoints; their taps are there.
        places: where the lab's files are.
        journal: of the lab.
        with_agents: start the guest agents; without, machines are there to be measured from outside.

    Raises:
        HostNotReadyError: one does not boot, take its place or answer; the text has the end of its serial log.
    """
    guests = [end for end in ends if end.is_machine]
    if not with_agents:
        guests = [replace(end, has_agent=False) for end in guests]
    starter = _Starter(image, places, journal, SHAPES[journal.state.name])
    snapshot = starter.snapshot(guests[0])
    try:
        starter.resume_all(guests, snapshot)
    except _StaleSnapshotError:  # the disk lost it, or another build of QEMU wrote it: once more
        starter.end_all(guests)  # those that could read it as well: each is started anew
        snapshot.unlink(missing_ok=True)
        starter.resume_all(guests, starter.snapshot(guests[0]))


@dataclass(frozen=True, slots=True)
class _Starter:
    """Starts machines of one lab, each journaled before it runs."""

    image: Image
    places: Places
    journal: Journal
    shape: Shape

    def machine(self, end: Endpoint) -> Machine:
        """A guest's machine, as it would boot."""
        ports = (LAB_PORT, self.places.lab_port(end.name)), (AGENT_PORT, self.places.agent_port(end.name))
        return Machine(
            name=end.name,
            directory=self.places.lab,
            kernel=self.image.kernel,
            initrd=self.image.initrd,
            memory_mib=MEMORY_MIB,
            nics=(self._nic(end),),
            channels=ports,
            netns=end.host,
        )

    def _nic(self, end: Endpoint) -> Nic:
        if self.shape.is_dpdk:
            return VhostUserNic(self.places.vhost(end.name), end.mac)
        return TapNic(end.tap, end.mac)

    def snapshot(self, end: Endpoint) -> Path:
        """A snapshot of a guest that has booted and waits for its place; made where there is none for this host."""
        template = replace(end, name=TEMPLATE, mac=TEMPLATE_MAC)
        machine = self.machine(template)
        path = self.image.folder / f"{_snapshot_key(machine)}.snapshot"
        if path.is_file():
            return path
        self._plug_template(template)
        record = self._start(template, machine)
        try:
            _wait_booted(machine, record)
            with machine.open_monitor(record) as monitor:
                monitor.save(path)
        finally:
            process.end([record])
            self._unplug_template(template)
            self.journal.forget(machine_name(TEMPLATE))
        return path

    def _plug_template(self, end: Endpoint) -> None:
        if self.shape.is_dpdk:
            port = vhost_port(end.vhost, self.places.vhost(end.name), PortSpec(end.vhost, 0))
            PrivateSwitch(end.host, self.places.switch(end.host)).add_port(BRIDGE, port)
        else:
            iproute.batch([f"tuntap add dev {end.tap} mode tap", f"link set {end.tap} up"], netns=end.host)

    def _unplug_template(self, end: Endpoint) -> None:
        if self.shape.is_dpdk:
            PrivateSwitch(end.host, self.places.switch(end.host)).remove_port(BRIDGE, end.vhost)
        else:
            iproute.batch([f"link del {end.tap}"], netns=end.host)

    def _start(self, end: Endpoint, machine: Machine) -> process.ProcessRecord:
        name = machine_name(end.name)
        self.journal.intend(name, machine.argv)
        record = machine.start()
        self.journal.started(name, record)
        return record

    def resume_all(self, ends: Sequence[Endpoint], snapshot: Path) -> None:
        """Start all guests from a snapshot, at once, since each waits most of the time."""
        with ThreadPoolExecutor(max_workers=len(ends)) as pool:
            for each in [pool.submit(self._resume, end, snapshot) for end in ends]:
                each.result()

    def end_all(self, ends: Sequence[Endpoint]) -> None:
        """End the machines of these guests that are there."""
        names = {machine_name(end.name) for end in ends}
        process.end([record for record in self.journal.state.processes if record.name in names])
        for name in names:
            self.journal.forget(name)

    def _resume(self, end: Endpoint, snapshot: Path) -> None:
        machine = replace(self.machine(end), snapshot=snapshot)
        record = self._start(end, machine)
        try:
            with machine.open_monitor(record) as monitor:
                monitor.resume()
        except HostNotReadyError as error:
            process.end([record])
            self.journal.forget(machine_name(end.name))
            raise _StaleSnapshotError(error) from error
        try:
            order(self.places, end.name, **_place(end, self.shape.network(end.network)))
            if end.has_agent:
                _wait_agent(f"{SERIAL}{self.places.agent_port(end.name)}", record)
        except HostNotReadyError as error:
            raise machine.trouble(str(error).rstrip(".")) from error


def _wait_agent(agent: str, record: process.ProcessRecord) -> None:
    """Wait until a guest's agent answers; on a busy machine its first words take a while."""
    deadline = time.monotonic() + BOOT_WAIT_S
    while True:
        try:
            trio.run(_greet, agent)
        except HostNotReadyError:
            if not process.is_alive(record) or time.monotonic() > deadline:
                raise
        else:
            return


def _snapshot_key(machine: Machine) -> str:
    """What a snapshot depends on: image, devices, QEMU, and the processor, whose clock the guest has counted."""
    image = [(each.st_size, each.st_mtime_ns) for each in (machine.kernel.stat(), machine.initrd.stat())]
    devices = [word for word in machine.argv if not word.startswith(("/", "unix:", "file:", "socket,"))]
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    text = json.dumps([image, devices, qemu.version(), model])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wait_booted(machine: Machine, record: process.ProcessRecord) -> None:
    deadline = time.monotonic() + BOOT_WAIT_S
    while not _has_said(machine.serial_log, READY):
        if not process.is_alive(record):
            raise machine.trouble("ended while it booted")
        if time.monotonic() > deadline:
            raise machine.trouble(f"has not booted in {BOOT_WAIT_S:g} s")
        time.sleep(LOOK_S)


def _has_said(log: Path, text: bytes) -> bool:
    try:
        return text in log.read_bytes()
    except FileNotFoundError:
        return False


def _place(end: Endpoint, network: Network) -> dict[str, object]:
    return {
        "do": "place",
        "name": end.name,
        "mac": end.mac,
        "ipv4": f"{end.ipv4}/{network.ipv4.prefixlen}",
        "ipv6": f"{end.ipv6}/{network.ipv6.prefixlen}",
        "seed": os.urandom(32).hex(),
        "now_ns": time.time_ns(),
        "agent": end.has_agent,
    }


async def _greet(agent: str) -> None:
    async with open_guest_agent(agent):
        pass


def order(places: Places, guest: str, **what: object) -> None:
    """Give a virtual machine's first process an order (agents/guest-image/init.py), and wait until it is carried out.

    Args:
        places: where the lab's files are.
        guest: its name.
        what: `do`, and what belongs to it.

    Raises:
        HostNotReadyError: the machine does not answer, or could not do it.
    """
    where = f"order {what.get('do')!r} for {guest}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ORDER_WAIT_S)
        answer = b""
        try:
            sock.connect(str(places.lab_port(guest)))
            sock.sendall(json.dumps(what).encode() + b"\n")
            while not answer.endswith(b"\n"):
                data = sock.recv(4096)
                if not data:
                    raise HostNotReadyError(where, "was not answered: the machine has ended")
                answer += data
                if len(answer) > ANSWER_BYTES_MAX:
                    break
        except OSError as error:
            raise HostNotReadyError(where, f"was not answered: {error}") from error
    try:
        is_done = json.loads(answer) == {"ok": True}
    except (ValueError, RecursionError):  # a guest may say anything
        is_done = False
    if not is_done:
        raise HostNotReadyError(where, f"failed: {answer[:ANSWER_BYTES_MAX].decode(errors='replace').strip()}")
