"""The topology, from the state file that a lab leaves.

A state file is outside input: every field is checked, and what is wrong is said with the file's name. A lab is one
cloud among others: nothing here imports `netprobe.lab`. What OVSDB and OVN say about it since is service.following's.
"""

import json
import os
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.model.points import Point, PointKind, Stamp
from netprobe.model.topology import Attachment, Host, ManagementPlace, OvnPlaces, RouterLink, Topology

STATE_SCHEMA = 1
MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
Table = dict[str, object]


def base_dir() -> Path:
    """Where netprobe keeps what lives as long as the machine is up (NETPROBE_RUN_DIR overrides)."""
    return Path(os.environ.get("NETPROBE_RUN_DIR", "/run/netprobe"))


def state_path() -> Path:
    """Where a lab leaves its topology."""
    return base_dir() / "lab" / "state.json"


def _point(table: Table) -> Point:
    socket = _text(table, "socket")
    return Point(
        id=str(table["id"]),
        kind=PointKind(table["kind"]),
        host=str(table["host"]),
        netns=str(table["netns"]),
        device=str(table["device"]),
        socket=socket,
        stamp=Stamp.UPROBE if socket else Stamp.KERNEL_RX,
    )


def _list(table: Table, key: str) -> list[object]:
    """An optional list, empty where it is not there."""
    value = table.get(key, [])
    if not isinstance(value, list):
        raise TypeError(key)
    return value


def _table(table: Table, key: str) -> Table:
    """An optional table, empty where it is not there or null."""
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(key)
    return value


def _text(table: Table, key: str) -> str:
    """An optional text, empty where it is not there or null."""
    value = table.get(key)
    return "" if value is None else str(value)


def _attachment(table: Table, points: dict[str, Point]) -> Attachment:
    port, groups, chain = table["port"], table["groups"], table["chain"]
    if not isinstance(port, dict) or not isinstance(groups, list) or not isinstance(chain, list):
        raise TypeError("port, groups or chain")
    own, *ports = (points[str(p)] for p in chain)
    unobserved = _text(table, "unobserved")
    if unobserved:  # no ring may be opened there: what it does not see would be called lost
        ports = [replace(point, netns="", device="") for point in ports]
    return Attachment(
        name=str(table["name"]),
        host=str(table["host"]),
        netns=str(table["netns"]),
        device=str(table["device"]),
        mac=str(table["mac"]).lower(),
        ipv4=IPv4Address(str(table["ipv4"])),
        ipv6=IPv6Address(str(table["ipv6"])),
        groups=tuple(str(g) for g in groups),
        agent=str(table["agent"]),
        iface_id=str(port["iface_id"]),
        ofport=int(port["ofport"]),
        port_device=str(port["device"]),
        chain=(own, *ports),
        copy_of=str(table.get("copy_of", "")),
        network=_text(table, "network"),
        prefixes=tuple(ip_network(str(p)) for p in _list(table, "prefixes")),
        gateway_mac=_text(table, "gateway_mac").lower(),
        floating=IPv4Address(_text(table, "floating")) if table.get("floating") else None,
        behind_nat={k: IPv4Address(str(v)) for k, v in _table(table, "behind_nat").items()},
        unobserved=unobserved,
        floating_mac=_text(table, "floating_mac").lower(),
        has_own_clock=_text(table, "clock") == "own",
    )


def _host(table: Table, points: dict[str, Point]) -> Host:
    zone = table.get("zone")
    if zone is not None and not isinstance(zone, int):
        raise TypeError("zone")
    return Host(
        name=str(table["name"]),
        netns=str(table["netns"]),
        bridge=str(table["bridge"]),
        ovs_rundir=str(table["ovs_rundir"]),
        allowlist=str(table["allowlist"]),
        zone=zone,
        uplink=tuple(points[str(p)] for p in _list(table, "uplink")),
        encap_ips=tuple(ip_address(str(ip)) for ip in _list(table, "encap_ips")),
        chassis=_text(table, "chassis"),
        management_ip=_text(table, "management_ip"),
    )


def _router_link(table: object) -> RouterLink:
    if not isinstance(table, dict):
        raise TypeError("routers")
    gateway = _text(table, "gateway")
    return RouterLink(str(table["router"]), str(table["network"]), is_central=bool(gateway), gateway=gateway)


def _tables(state: Table, key: str) -> list[Table]:
    value = state[key]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise TypeError(key)
    return value


def topology_of(state: Table) -> Topology:
    """The topology in a state file's content.

    Raises:
        KeyError, ValueError, TypeError: a field is missing or of another kind; `read_topology` says so.
    """
    if state.get("schema") != STATE_SCHEMA:
        raise ValueError(f"schema {state.get('schema')!r}, not {STATE_SCHEMA}")
    points = {p.id: p for p in map(_point, _tables(state, "points"))}
    rules, ovn, management = (_table(state, key) for key in ("rules", "ovn", "management"))
    topology = Topology(
        hosts=tuple(_host(t, points) for t in _tables(state, "hosts")),
        guests=tuple(_attachment(t, points) for t in _tables(state, "guests")),
        bypasses=tuple(_attachment(t, points) for t in _tables(state, "bypasses")),
        vswitches={p.host: p for p in points.values() if p.kind is PointKind.VSWITCH},
        rules={str(k): {str(a): str(b) for a, b in _table(rules, k).items()} for k in rules},
        ovn=OvnPlaces(_text(ovn, "northbound"), _text(ovn, "southbound")) if ovn else None,
        management=ManagementPlace(_text(management, "netns"), str(management["ip"])) if management else None,
        routers=tuple(map(_router_link, _list(state, "routers"))),
    )
    _check(topology)
    return topology


def _check(topology: Topology) -> None:
    """What everything above relies on: known hosts, each with a vswitch; chains with a guest and a port; real MACs."""
    hosts = {h.name for h in topology.hosts}
    if not hosts or set(topology.vswitches) != hosts:
        raise ValueError(f"hosts {sorted(hosts)}, vswitch points of {sorted(topology.vswitches)}")
    for one in topology.attachments:
        if one.host not in hosts or len(one.chain) < 2 or not MAC.fullmatch(one.mac):
            raise ValueError(f"{one.name}: host {one.host!r}, {len(one.chain)} points, MAC {one.mac!r}")


def read_topology(path: Path | None = None) -> Topology:
    """The topology of this machine's lab.

    Raises:
        HostNotReadyError: there is no lab, it is in a machine of its own, or its state file cannot be read.
    """
    path = path or state_path()
    try:
        state = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HostNotReadyError("topology", "no lab is up", advice="run `netprobe lab up`") from None
    except PermissionError:
        raise HostNotReadyError("topology", f"{path} may not be read", advice="run as root") from None
    except (OSError, ValueError, RecursionError) as error:
        raise HostNotReadyError("topology", f"{path} is damaged: {error}", advice="run `netprobe lab up`") from error
    if isinstance(state, dict) and state.get("machine"):
        advice = "run it there: `netprobe lab exec netprobe ...`"
        raise HostNotReadyError("topology", "the lab is in a machine of its own", advice=advice)
    try:
        return topology_of(state)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise HostNotReadyError(
            "topology", f"{path} is no state file of this version: {error!r}", advice="run `netprobe lab down` and up"
        ) from error
