"""Mirrors of one port of an Open vSwitch: each direction goes to a port of its own, a device where a ring can look.

For ports that no device of the kernel stands for. A mirror is a change of the cloud's own configuration, and copies
everything that passes (a filter came with Open vSwitch 3.4): whoever makes one has been allowed to, and has written it
down (service.vrings, service.journal). What this file makes, and nothing else, it takes away again, by its names.
"""

import json
from dataclasses import asdict, dataclass

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute
from netprobe.host.process import run

TIMEOUT_S = 5
IN, OUT = "i", "o"
"""Ends of the names: what came from the port's guest, what went to it."""


@dataclass(frozen=True, slots=True)
class PortMirror:
    """A port and its two mirrors.

    Attributes:
        rundir: the switch's run directory; it holds `db.sock`.
        netns: where the switch makes its devices.
        port: what is mirrored.
        stem: of the names of both mirrors, and of the ports and devices that they go to.
    """

    rundir: str
    netns: str
    bridge: str
    port: str
    stem: str

    @property
    def devices(self) -> tuple[str, str]:
        """Where copies arrive: of what came from the guest, of what went to it."""
        return self.stem + IN, self.stem + OUT

    def to_json(self) -> dict[str, str]:
        """For a journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: object) -> "PortMirror":
        """From a journal.

        Raises:
            TypeError, LookupError: it is none.
        """
        if not isinstance(table, dict):
            raise TypeError("mirror")
        return cls(*(str(table[name]) for name in cls.__slots__))


def add_mirror(mirror: PortMirror) -> None:
    """Make both mirrors, and their devices ready to be looked at.

    Raises:
        HostNotReadyError: the switch does not answer, has no such port, or cannot do it.
    """
    words = ["--id=@port", "get", "Port", mirror.port]
    for device, way in zip(mirror.devices, ("select_src_port", "select_dst_port"), strict=True):
        made = [f"name={device}", f"{way}=@port", f"output_port=@{device}", "external_ids:netprobe=mirror"]
        words += ["--", "add-port", mirror.bridge, device, "--", "set", "Interface", device, "type=internal"]
        words += ["--", f"--id=@{device}", "get", "Port", device]
        words += ["--", f"--id=@{device}-mirror", "create", "Mirror", *made]
        words += ["--", "add", "Bridge", mirror.bridge, "mirrors", f"@{device}-mirror"]
    _vsctl(mirror, *words)
    # Without an IPv6 address of its own a device sends nothing by itself.
    commands = [f"link set {device} addrgenmode none" for device in mirror.devices]
    iproute.batch([*commands, *(f"link set {device} up" for device in mirror.devices)], netns=mirror.netns)


def remove_mirror(mirror: PortMirror) -> None:
    """Take both mirrors and their ports away; fine where they are gone already.

    Raises:
        HostNotReadyError: the switch does not answer.
    """
    rows = json.loads(_vsctl(mirror, "--format=json", "--columns=_uuid,name", "list", "Mirror"))["data"]
    words: list[str] = []
    for uuid, name in rows:
        if name in mirror.devices:
            words += ["--", "remove", "Bridge", mirror.bridge, "mirrors", uuid[1]]
    for device in mirror.devices:
        words += ["--", "--if-exists", "del-port", mirror.bridge, device]
    _vsctl(mirror, *words[1:])


def _vsctl(mirror: PortMirror, *words: str) -> str:
    command = ["ovs-vsctl", f"--db=unix:{mirror.rundir}/db.sock", f"--timeout={TIMEOUT_S}", *words]
    try:
        return run(command, timeout_s=TIMEOUT_S + 1)
    except HostNotReadyError as error:
        raise HostNotReadyError(f"mirror of {mirror.port}", f"Open vSwitch: {error.problem}") from error
