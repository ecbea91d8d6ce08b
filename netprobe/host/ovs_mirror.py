"""Mirrors of one port of an Open vSwitch: each direction goes to a port of its own, a device where a ring can look.

For ports that no device of the kernel stands for. A mirror is a change of the cloud's own configuration, and copies
everything that passes (a filter came with Open vSwitch 3.4): whoever makes one has been allowed to, and has written it
down (service.vrings, service.journal). What this file makes, and nothing else, it takes away again, by its names. The
switch's database outlives the host's journals, so the row of a mirror says too whose it is.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute
from netprobe.host.process import identity, is_pid_file_live, may_run, run, sees_all

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MARK, OWNER = "netprobe", "netprobe-owner"
"""Keys of `external_ids`: that this is netprobe's; and boot, PID namespace, pid and start of who made a mirror."""

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

    @property
    def where(self) -> str:
        """It in errors."""
        return f"mirror of {self.port}" if self.port else f"mirror {self.stem}"

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
        made = [f"name={device}", f"{way}=@port", f"output_port=@{device}"]
        made += [f"external_ids:{MARK}=mirror", f"external_ids:{OWNER}={_owner()}"]
        words += ["--", "add-port", mirror.bridge, device, "--", "set", "Interface", device, "type=internal"]
        words += ["--", f"--id=@{device}", "get", "Port", device, "--", "set", "Port", device]
        words += [f"external_ids:{MARK}=mirror"]
        words += ["--", f"--id=@{device}-mirror", "create", "Mirror", *made]
        words += ["--", "add", "Bridge", mirror.bridge, "mirrors", f"@{device}-mirror"]
    _vsctl(mirror.rundir, mirror.where, *words)
    # Without an IPv6 address of its own a device sends nothing by itself.
    commands = [f"link set {device} addrgenmode none" for device in mirror.devices]
    iproute.batch([*commands, *(f"link set {device} up" for device in mirror.devices)], netns=mirror.netns)


def remove_mirror(mirror: PortMirror) -> None:
    """Take both mirrors and their ports away; fine where they are gone already.

    Raises:
        HostNotReadyError: the switch's database does not answer, or the switch runs and does not do it.
    """
    words: list[str] = []
    for uuid, _ in _own_rows(mirror, "Mirror"):
        words += ["--", "remove", "Bridge", mirror.bridge, "mirrors", uuid]
    for _, name in _own_rows(mirror, "Port"):
        words += ["--", "--if-exists", "del-port", mirror.bridge, name]
    if not words:
        return
    # A switch that does not run can't be waited for: it will find its mirrors gone.
    how = ["--no-wait"] if _is_stopped(mirror.rundir) else []
    _vsctl(mirror.rundir, mirror.where, *how, *words[1:])


def _is_stopped(rundir: str) -> bool:
    """Whether a switch is known not to run; one in another PID namespace may."""
    path = Path(rundir) / "ovs-vswitchd.pid"
    return not path.exists() or (sees_all() and not is_pid_file_live(path))


def _own_rows(mirror: PortMirror, table: str) -> list[tuple[str, str]]:
    """(uuid, name) of what netprobe made for a mirror; an operator's own of the same name is not."""
    rows = _rows(mirror.rundir, mirror.where, table, "_uuid,name,external_ids")
    return [
        (uuid[1], name) for uuid, name, ids in rows if name in mirror.devices and dict(ids[1]).get(MARK) == "mirror"
    ]


def orphaned_mirrors(rundir: str, netns: str) -> list[PortMirror]:
    """Mirrors of netprobe's in a switch whose run is gone; `port` of each is "", for its row no longer matters.

    Raises:
        HostNotReadyError: the switch does not answer.
    """
    where = f"mirrors in {rundir}"
    rows = _rows(rundir, where, "Mirror", "_uuid,name,external_ids")
    orphans = {uuid[1]: name for uuid, name, ids in rows if _is_orphaned(dict(ids[1]))}
    if not orphans:
        return []
    found = set()
    for bridge, mirrors in _rows(rundir, where, "Bridge", "name,mirrors"):
        held = [uuid for _, uuid in mirrors[1]] if mirrors[0] == "set" else [mirrors[1]]
        found |= {PortMirror(rundir, netns, bridge, "", orphans[uuid][:-1]) for uuid in held if uuid in orphans}
    return sorted(found, key=lambda mirror: (mirror.bridge, mirror.stem))


def _owner() -> str:
    return "/".join([BOOT_ID.read_text().strip(), *map(str, identity())])


def _is_orphaned(external_ids: dict[str, str]) -> bool:
    """Whether these are a mirror of netprobe's, and nobody is there who will take it away."""
    boot, *numbers = external_ids.get(OWNER, "").split("/")
    if external_ids.get(MARK) != "mirror" or len(numbers) != len(identity()) or not all(map(str.isdecimal, numbers)):
        return False
    return boot != BOOT_ID.read_text().strip() or not may_run(*map(int, numbers))


def _rows(rundir: str, where: str, table: str, columns: str) -> list[list[Any]]:
    rows: list[list[Any]] = json.loads(_vsctl(rundir, where, "--format=json", f"--columns={columns}", "list", table))[
        "data"
    ]
    return rows


def _vsctl(rundir: str, where: str, *words: str) -> str:
    command = ["ovs-vsctl", f"--db=unix:{rundir}/db.sock", f"--timeout={TIMEOUT_S}", *words]
    try:
        return run(command, timeout_s=TIMEOUT_S + 1)
    except HostNotReadyError as error:
        raise HostNotReadyError(where, f"Open vSwitch: {error.problem}") from error
