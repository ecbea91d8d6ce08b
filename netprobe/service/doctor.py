"""`netprobe doctor`: is this host ready? Each check finds out by trying, assumes nothing and leaves nothing behind.

A check that fails says what is missing and what to do. Required ones make the exit code 3.
"""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio

from netprobe.errors import NetprobeError
from netprobe.host import iproute, ovn_databases
from netprobe.host.guest_agent import open_guest_agent
from netprobe.host.netns import in_netns
from netprobe.host.ovs_mirror import orphaned_mirrors
from netprobe.host.ovsdb_idl import Database, read_once
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.points import Direction
from netprobe.model.results import Json
from netprobe.model.topology import Host, Topology
from netprobe.observe.ring import ETH_P_ALL, RxRing
from netprobe.service.discovery import read_topology
from netprobe.service.inventory import inventory
from netprobe.service.journal import stale_journals
from netprobe.service.permits import read_host_allowlist
from netprobe.service.sink import DEFAULT_FOLDER
from netprobe.service.spool_places import left_behind
from netprobe.store.duckdb_file import DEFAULT_PATH, open_store
from netprobe.wire.serial_sync import SERIAL

MIN_PYTHON = (3, 11)
TOOLS = {
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovs-vsctl": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-common",
    "ip": "iproute2",
    "ethtool": "ethtool",
}
"""Programs that a lab and a hypervisor need, and Debian's packages that hold them."""

PASS_ALL = b"\x06\x00\x00\x00\xff\xff\x00\x00"  # classic BPF: ret 65535
FRAME = b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + b"netprobe doctor" + bytes(31)  # 0x88b5: experiments
RING_WAIT_S = 2.0
SYSTEM_RUNDIR = Path("/run/openvswitch")
"""Where a distribution's Open vSwitch has its sockets."""

SHOWN_PORTS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        is_required: nothing works without it.
        detail: what was found.
        advice: what to do, where it failed.
    """

    name: str
    is_ok: bool
    is_required: bool
    detail: str
    advice: str = ""

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "name": self.name,
            "ok": self.is_ok,
            "required": self.is_required,
            "detail": self.detail,
            "advice": self.advice,
        }


def _attempt(name: str, look: Callable[[], str], *, is_required: bool = True, advice: str = "") -> Check:
    try:
        return Check(name, True, is_required, look())
    except (NetprobeError, OSError, ValueError, subprocess.SubprocessError) as error:
        said = error.advice if isinstance(error, NetprobeError) and error.advice else advice
        return Check(name, False, is_required, str(error), said)


def _python() -> str:
    if sys.version_info < MIN_PYTHON:
        raise ValueError(
            f"Python {sys.version.split()[0]} is too old; {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed"
        )
    return f"Python {sys.version.split()[0]}"


def _root() -> str:
    if os.geteuid():
        raise PermissionError(f"uid {os.geteuid()}: packet sockets and namespaces need root")
    return "root"


def _tool(name: str, package: str) -> Check:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return Check(f"tool {name}", path is not None, True, path or "not found", f"apt-get install {package}")


def _switch_version() -> str:
    out = subprocess.run(["ovs-vswitchd", "--version"], capture_output=True, text=True, timeout=5, check=True).stdout
    version = out.splitlines()[0].rpartition(" ")[2]
    if version.startswith("3.1."):
        # lib/conntrack.c of 3.1: a NATed tuple seen again 2 to 18 s after its entry expired aborts the switch.
        return f"{version}; its userspace conntrack aborts on reused NAT tuples: keep --monitor on"
    return version


@contextmanager
def _veth(namespace: str) -> Iterator[None]:
    iproute.add_namespaces([namespace])
    try:
        iproute.batch(
            ["link add name np0 type veth peer name np1", "link set np0 up", "link set np1 up"], netns=namespace
        )
        yield
    finally:
        iproute.delete_namespaces([namespace])


def _stamps_of(ring: RxRing, direction: Direction) -> tuple[int, int]:
    """(frames, frames without a kernel stamp) of our own frame on a ring."""
    deadline = time.monotonic() + RING_WAIT_S
    while time.monotonic() < deadline:
        select.select([ring], [], [], deadline - time.monotonic())
        blocks = ring.blocks()
        for block in blocks:
            mine = (block.direction == direction) & (block.lengths == len(FRAME))
            if mine.any():
                return int(mine.sum()), block.unstamped
        ring.release(len(blocks))
    raise TimeoutError(f"no frame came through within {RING_WAIT_S:g} s")


def _rings() -> str:
    """Send one frame over a veth pair of our own and look at both ends."""
    namespace = f"np-doctor-{os.getpid()}"
    with _veth(namespace):
        rings = {d: RxRing(namespace, d, PASS_ALL) for d in ("np0", "np1")}
        sock = in_netns(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ETH_P_ALL))
        try:
            sock.bind(("np0", 0))
            sock.send(FRAME)
            out = _stamps_of(rings["np0"], Direction.OUT)
            came = _stamps_of(rings["np1"], Direction.IN)
        finally:
            sock.close()
            for ring in rings.values():
                ring.close()
    if out[1] or came[1]:
        raise OSError("TPACKET_V3 works, but frames carry no kernel stamp")
    return "TPACKET_V3, kernel stamps in both directions"


def _store() -> str:
    """Looks only: a doctor makes no store."""
    if DEFAULT_PATH.exists():
        with open_store():
            return f"{DEFAULT_PATH} can be written"
    place = next(p for p in DEFAULT_PATH.parents if p.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{place} cannot be written")
    return f"{DEFAULT_PATH} can be made"


def _readings() -> str:
    """Whether readings wait for a database that no program writes to."""
    found = [
        f"{one.batches} batches ({one.size_bytes / 1e6:.1f} MB) for {one.database or 'some database'} in {one.place}, "
        f"the oldest of {datetime.fromtimestamp(one.since_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC"
        for one in left_behind(DEFAULT_FOLDER)
    ]
    if found:
        raise ValueError(f"no program sends what waits: {'; '.join(found)}")
    return "none wait"


def _journals() -> str:
    """Whether a killed run left something behind."""
    left = stale_journals()
    if left:
        raise ValueError(f"{len(left)} runs were killed and left something behind")
    return "nothing left behind"


def _agent(path: str) -> str:
    if path.startswith(SERIAL):  # that socket is QEMU's, whoever is behind it
        return trio.run(_serial_agent, path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        sock.connect(path)
    return "answers"


async def _serial_agent(path: str) -> str:
    async with open_guest_agent(path) as agent:
        return f"answers over virtio-serial, {agent.hello.device} is {agent.hello.mac.hex(':')}"


def _switch(host: Host) -> str:
    with UnixctlClient(host.ovs_rundir) as client:
        return client.call("version").splitlines()[0]


def _mirrors(host: Host) -> str:
    left = orphaned_mirrors(host.ovs_rundir, host.netns)
    if left:
        raise ValueError(
            f"runs that are gone left {', '.join(mirror.stem for mirror in left)}: all of a port is copied"
        )
    return "nothing left behind"


def _mirrors_check(host: Host) -> Check:
    look = partial(_mirrors, host)
    return _attempt(f"mirrors of {host.name}", look, is_required=False, advice="run `netprobe clean`")


def _allowlist(host: Host) -> str:
    read_host_allowlist(host)
    return host.allowlist


def _ports(host: Host) -> str:
    """Whether probes can be seen at all of a host's ports. What cannot be seen is unobserved, never lost."""
    found = inventory(host)
    guests = {row.name for row in found.interfaces if row.iface_id}
    offload = "on" if found.is_offload_on else "off"
    if not found.offloaded:
        return f"{len(guests)} ports with an iface-id, hw-offload is {offload}"
    shown = "; ".join(f"{name}: {why}" for name, why in sorted(found.offloaded.items())[:SHOWN_PORTS])
    more = f"; and {len(found.offloaded) - SHOWN_PORTS} more" if len(found.offloaded) > SHOWN_PORTS else ""
    raise ValueError(f"{len(found.offloaded)} devices cannot be looked at ({shown}{more})")


def _ports_check(host: Host) -> Check:
    advice = "results call these points unobserved; netprobe switches no offload off"
    return _attempt(f"ports of {host.name}", partial(_ports, host), is_required=False, advice=advice)


def _database(database: Database) -> str:
    tables = read_once(database)
    return ", ".join(f"{name} {len(rows)}" for name, rows in sorted(tables.items()))


def _ovn(topology: Topology) -> list[Check]:
    """OVN's databases, as far as the topology names them."""
    if topology.ovn is None:
        return []
    both = (ovn_databases.northbound(topology.ovn.northbound), ovn_databases.southbound(topology.ovn.southbound))
    return [
        _attempt(database.label, partial(_database, database), advice="is ovsdb-server running?") for database in both
    ]


def _system_switch() -> list[Check]:
    """The switch that this machine itself runs, if any."""
    if not (SYSTEM_RUNDIR / "db.sock").exists():
        return []
    own = Host("this host", "", "br-int", str(SYSTEM_RUNDIR), "", None)
    return [_ports_check(own), _mirrors_check(own)]


def _cloud(topology: Topology) -> list[Check]:
    checks = _ovn(topology)
    advice = "run `netprobe lab up`"
    for host in topology.hosts:
        checks.append(_attempt(f"vswitch of {host.name}", partial(_switch, host), advice=advice))
        checks.append(_attempt(f"allowlist of {host.name}", partial(_allowlist, host)))
        checks.append(_ports_check(host))
        checks.append(_mirrors_check(host))
    agents = [guest for guest in topology.attachments if guest.agent]
    return checks + [_attempt(f"agent of {a.name}", partial(_agent, a.agent), advice=advice) for a in agents]


def examine() -> list[Check]:
    """All checks of this host; those of the cloud only where one is up."""
    checks = [
        _attempt("python", _python, advice="install Python 3.11 or newer"),
        _attempt("privilege", _root, advice="run as root"),
        *(_tool(name, package) for name, package in TOOLS.items()),
        _attempt("Open vSwitch", _switch_version, advice="apt-get install openvswitch-switch"),
        _attempt("packet rings", _rings, advice="needs CAP_NET_RAW, CAP_NET_ADMIN and a kernel with TPACKET_V3"),
        _attempt("journals", _journals, is_required=False, advice="run `netprobe clean`"),
        _attempt("store", _store, is_required=False, advice="name another file with --store"),
        _attempt(
            "readings",
            _readings,
            is_required=False,
            advice="write to that database again (--influx), or remove the folder if it is gone for good",
        ),
        *_system_switch(),
    ]
    try:
        topology = read_topology()
    except NetprobeError as error:
        return [*checks, Check("cloud", False, False, error.problem, error.advice)]
    return checks + _cloud(topology)
