"""iproute2 and ethtool, by subprocess: network namespaces, links, addresses, sysctls of a namespace, offloads.

Whole lists of commands go to one `ip -batch`, since a process costs more than what it does. `tc` is not used: the lab's
faults come from a relay (netprobe.lab.relay), and nothing else shapes traffic.
"""

import fcntl
import json
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import exists, in_netns
from netprobe.host.process import run

SIOCGIFMTU = 0x8921  # linux/sockios.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14

OFFLOADS = ("tx", "rx", "sg", "tso", "gso", "gro")
"""Everything that lets a veth carry a partial checksum or a frame that is longer than the MTU."""


def batch(commands: Iterable[str], *, netns: str = "") -> None:
    """Run `ip` commands (each without the word `ip`), in one process, stopping at the first that fails.

    Raises:
        HostNotReadyError: one of them failed.
    """
    lines = "\n".join(commands)
    if lines:
        where = ["-n", netns] if netns else []
        run(["ip", *where, "-batch", "-"], stdin=lines + "\n")


def add_namespaces(names: Iterable[str]) -> None:
    """Make named network namespaces. Raises HostNotReadyError when one exists."""
    batch(f"netns add {name}" for name in names)


def delete_namespaces(names: Iterable[str]) -> None:
    """Remove those of the named network namespaces that are there, and with them their devices."""
    batch(f"netns del {name}" for name in names if exists(name))


def namespace_cookie(name: str) -> int:
    """The kernel's number of a namespace, never reused until the next boot (an inode number is).

    Raises:
        HostNotReadyError: the namespace is not there, or the kernel is older than 5.14.
    """

    def read() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
            (cookie,) = struct.unpack("=Q", any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
            return int(cookie)

    try:
        return in_netns(name, read)
    except OSError as error:
        raise HostNotReadyError(
            f"network namespace {name}", f"has no cookie: {error.strerror}", allowed="Linux 5.14 or newer"
        ) from error


def set_sysctls(netns: str, values: Mapping[str, str]) -> None:
    """Set sysctls of a namespace's network stack.

    Args:
        netns: the namespace.
        values: path below net/, with slashes (`ipv6/conf/all/disable_ipv6`), and the value.

    Raises:
        HostNotReadyError: the kernel has no such sysctl or refuses the value.
    """

    def write() -> None:
        for path, value in values.items():
            # /proc/sys/net shows the namespace of the thread that opens it.
            (Path("/proc/sys/net") / path).write_text(value)

    try:
        in_netns(netns, write)
    except OSError as error:
        raise HostNotReadyError(f"sysctl in {netns}", f"cannot be set: {error}") from error


def offloads_off(netns: str, devices: Iterable[str]) -> None:
    """Switch off what would leave checksums to hardware that is not there, or merge frames.

    With transmit checksumming on, a userspace vswitch's conntrack sees every TCP and UDP packet of a veth as invalid.
    """
    words = [word for name in OFFLOADS for word in (name, "off")]

    def go() -> None:
        for device in devices:
            run(["ethtool", "-K", device, *words])

    in_netns(netns, go)


def link_exists(netns: str, device: str) -> bool:
    """Whether a namespace has a device of that name."""
    return in_netns(netns, lambda: device in {name for _, name in socket.if_nameindex()})


def master(netns: str, device: str) -> str:
    """The kernel's bridge that a device is a port of, empty when it is none's.

    Raises:
        HostNotReadyError: the device is not there.
    """
    (link,) = json.loads(run(["ip", "-n", netns, "-json", "link", "show", "dev", device]))
    return str(link.get("master", ""))


def mtu(netns: str, device: str) -> int:
    """The MTU of a device, octets.

    Raises:
        HostNotReadyError: the namespace or the device is not there.
    """

    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("16sI12x", device.encode()[:15], 0)
            answer = fcntl.ioctl(sock.fileno(), SIOCGIFMTU, request)
        value: int = struct.unpack_from("I", answer, 16)[0]
        return value

    try:
        return in_netns(netns, read)
    except OSError as error:
        raise HostNotReadyError(
            f"device {device} in {netns}", f"cannot be asked for its MTU: {error.strerror}"
        ) from error
