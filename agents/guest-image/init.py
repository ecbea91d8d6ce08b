#!/usr/bin/python3.11 -IS
"""Process 1 of the lab's guests: drivers, then the guest agent as its one service, under a lab's orders.

Everything is imported before the first order, so that a snapshot taken then starts in a moment. Orders come as lines of
JSON over a virtio-serial port of the lab's own: where the guest is, what its clock shows, what its agent suffers. In a
machine without that port the agent is started at once. Built into the image by build.py; needs Debian's kernel.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path += ["/usr/lib/netprobe", "/usr/lib/python3/dist-packages"]

LAB_PORT = "org.netprobe.lab.0"
AGENT_PORT = "org.netprobe.agent.0"
QUIET = {
    "accept_ra": "0",
    "autoconf": "0",
    "router_solicitations": "0",
    "dad_transmits": "0",
    "addr_gen_mode": "1",  # no link-local address, so nothing is announced for one
}
DEVICE_WAIT_S = 10.0
AGAIN_S = 0.5

FINIT_MODULE = 313  # x86-64's system call number
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFHWADDR, SIOCGIFINDEX = 0x8914, 0x8916, 0x891C, 0x8924, 0x8933
IFF_UP, ARPHRD_ETHER = 1, 1
ADJ_FREQUENCY, ADJ_SETOFFSET, ADJ_NANO = 0x2, 0x100, 0x2000
TIMEX_BYTES, FREQ_AT, TIME_AT, MAX_FREQ_PPM = 208, 16, 72, 500.0
"""struct timex of 64-bit Linux, and where in it `freq` and `time` are."""

libc = ctypes.CDLL(None, use_errno=True)


def say(text: str) -> None:
    """A line on the serial console."""
    print(f"netprobe-init: {text}", flush=True)


def checked(result: int, what: str) -> int:
    """The result of a C function that did not fail."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(kind: str, place: str) -> None:
    """Mount one of the kernel's file systems."""
    Path(place).mkdir(exist_ok=True)
    checked(libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None), f"mount {place}")


def load(driver: str) -> None:
    """Load a kernel module."""
    with Path(f"/lib/modules/{driver}.ko").open("rb") as file:
        checked(libc.syscall(FINIT_MODULE, file.fileno(), b"", 0), f"module {driver}")


def find_port(name: str) -> str | None:
    """The device of a virtio-serial port, or None; without udev there is no link by its name."""
    for port in Path("/sys/class/virtio-ports").glob("*"):
        with contextlib.suppress(OSError):
            if (port / "name").read_text().strip() == name:
                return f"/dev/{port.name}"
    return None


def wait_for(find: Callable[[], str | None]) -> str | None:
    """What `find` finds, or None after DEVICE_WAIT_S."""
    end = time.monotonic() + DEVICE_WAIT_S
    while (found := find()) is None and time.monotonic() < end:
        time.sleep(0.01)
    return found


def set_interface(device: str, address: dict[str, str]) -> None:
    """MAC and addresses; the interface is up when this returns."""
    name = device.encode()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as v6,
    ):
        fcntl.ioctl(v4, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        if address.get("mac"):
            mac = bytes.fromhex(address["mac"].replace(":", ""))
            fcntl.ioctl(v4, SIOCSIFHWADDR, struct.pack("16sH6s8x", name, ARPHRD_ETHER, mac))
        if address.get("ipv4"):
            ip, _, bits = address["ipv4"].partition("/")
            mask = (0xFFFFFFFF << (32 - int(bits))) & 0xFFFFFFFF
            for request, octets in ((SIOCSIFADDR, socket.inet_aton(ip)), (SIOCSIFNETMASK, mask.to_bytes(4, "big"))):
                fcntl.ioctl(v4, request, struct.pack("16sHH4s8x", name, socket.AF_INET, 0, octets))
        fcntl.ioctl(v4, SIOCSIFFLAGS, struct.pack("16sh14x", name, IFF_UP))
        if address.get("ipv6"):
            ip, _, bits = address["ipv6"].partition("/")
            (index,) = struct.unpack_from("16xi", fcntl.ioctl(v4, SIOCGIFINDEX, struct.pack("16s16x", name)))
            fcntl.ioctl(v6, SIOCSIFADDR, struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, ip), int(bits), index))


def set_clock(step_ns: int, ppm: float) -> None:
    """Step the wall clock by exactly this much, and let it run fast by that much."""
    room = ctypes.create_string_buffer(TIMEX_BYTES)
    struct.pack_into("@I", room, 0, ADJ_FREQUENCY)
    struct.pack_into("@q", room, FREQ_AT, round(max(-MAX_FREQ_PPM, min(MAX_FREQ_PPM, ppm)) * 65_536))
    checked(libc.adjtimex(room), "adjtimex")
    if step_ns:
        struct.pack_into("@I", room, 0, ADJ_SETOFFSET | ADJ_NANO)
        struct.pack_into("@qq", room, TIME_AT, *divmod(step_ns, 1_000_000_000))
        checked(libc.adjtimex(room), "adjtimex")


def show_time(magic: bytes, seconds: float) -> None:
    """For so long write the time into a page of memory, where a test that reads this machine's memory finds it.

    Behind 16 octets of magic: a count, the time in ns, and the count again, each 8 octets.
    """
    if os.fork():
        return
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[: len(magic)] = magic
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count += 1
        struct.pack_into("<QQQ", page, 16, count, time.time_ns(), count)
    os._exit(0)


class Service:
    """The guest agent as a child of this process."""

    def __init__(self) -> None:
        self.pid = 0
        self.device = "eth0"

    def start(self) -> None:
        """Fork it; what it needs is imported already."""
        port = find_port(AGENT_PORT)
        arguments = ["--device", self.device, *(["--control-port", port] if port else [])]
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = agent.main(arguments)
        except BaseException:  # noqa: BLE001  said on the console; the parent starts it again
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.pid:
            os.kill(self.pid, number)

    def reap(self) -> None:
        """Start it again when it has ended; collect everything else that has."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    say(f"the agent has ended ({ended[1]}), and is started again")
                    time.sleep(AGAIN_S)
                    self.start()


def obey(order: dict[str, Any], service: Service) -> None:
    """Carry out one order of the lab."""
    match order["do"]:
        case "place":
            Path("/proc/sys/kernel/hostname").write_text(order["name"])
            with Path("/dev/urandom").open("wb") as entropy:  # guests from one snapshot share everything else
                entropy.write(order["name"].encode() + bytes.fromhex(order.get("seed", "")))
            set_interface(service.device, order)
            time.clock_settime_ns(time.CLOCK_REALTIME, order["now_ns"])
            if order.get("agent", True):
                service.start()
        case "clock":
            set_clock(order.get("step_ns", 0), order.get("ppm", 0.0))
        case "beacon":
            show_time(bytes.fromhex(order["magic"]), order["seconds"])
        case "signal":
            service.signal(order["number"])
        case "panic":
            Path("/proc/sysrq-trigger").write_text("c")
        case other:
            raise ValueError(f"unknown order {other!r}")


def serve(port: str, service: Service) -> None:
    """Take the lab's orders until the machine ends."""
    fd = os.open(port, os.O_RDWR | os.O_NONBLOCK)
    pending = b""
    while True:
        service.reap()
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            data = b""
        if not data:
            time.sleep(0.05)
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in filter(None, lines):
            try:
                obey(json.loads(line), service)
                answer = {"ok": True}
            except Exception as error:  # noqa: BLE001  said to the lab
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            os.set_blocking(fd, True)
            os.write(fd, json.dumps(answer).encode() + b"\n")
            os.set_blocking(fd, False)


def main() -> None:
    """Bring the machine up and serve."""
    for kind, place in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),  # noqa: S108
        ("tmpfs", "/run"),
    ):
        mount(kind, place)
    for name, value in QUIET.items():
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/default/{name}").write_text(value)
    for driver in Path("/lib/modules/order").read_text().split():
        load(driver)
    global agent  # noqa: PLW0603  imported when the machine can read files and no sooner
    import netprobe_agents.serve  # noqa: PLC0415  what the agent imports when it starts, trio above all
    from netprobe_agents import guest as agent  # noqa: PLC0415

    netprobe_agents.serve.trio.run(netprobe_agents.serve.trio.sleep, 0)

    service = Service()
    lab = wait_for(lambda: find_port(LAB_PORT) or (None if find_port(AGENT_PORT) is None else ""))
    if not lab:
        say("no lab here")
        service.start()
        while True:
            service.reap()
            time.sleep(AGAIN_S)
    say("waits for its place")
    serve(lab, service)


try:
    main()
except BaseException:
    traceback.print_exc()
    say("gave up")
    raise
