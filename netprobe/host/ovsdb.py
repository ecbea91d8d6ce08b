"""A host's own OVSDB: which port of a bridge is a guest's, and what else discovery wants to know. Only read.

`local_ports` and `bound_ports` ask once, by ovs-vsctl; `inventory_of` reads what netprobe.host.ovsdb_idl follows.
"""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.ovsdb_idl import Database, Row, Tables
from netprobe.model.inventory import HostInventory, InterfaceRow

TIMEOUT_S = 5
AF_PACKET = re.compile(r"(?:eth|net)_af_packet\d*,(?:.*,)?iface=([^,]+)")
"""dpdk-devargs of DPDK's driver over a device of the kernel, and that device."""

TABLES = {
    "Open_vSwitch": ("external_ids", "other_config"),
    "Bridge": ("name", "ports"),
    "Port": ("interfaces",),
    "Interface": ("name", "type", "ofport", "external_ids", "options", "status", "link_state", "error"),
}
"""Columns of ovs-vswitchd.conf.db(5). Statistics are left out: they change every few seconds."""


def database(rundir: str, host: str) -> Database:
    """The OVSDB of a host's switch.

    Args:
        rundir: the switch's run directory; it holds `db.sock`.
        host: its name, for messages.
    """
    return Database(f"OVSDB of {host}", f"unix:{Path(rundir) / 'db.sock'}", "Open_vSwitch", TABLES)


def inventory_of(host: str, tables: Tables) -> HostInventory:
    """A host's inventory from the rows of `TABLES`; what is offloaded is netprobe.host.offload's to find out.

    Args:
        host: its name in the topology.
        tables: as they are now.
    """
    switch: Row = next(iter(tables["Open_vSwitch"].values()), {})
    ids, config = mapping(switch, "external_ids"), mapping(switch, "other_config")
    bridges = {
        interface: text(bridge, "name")
        for bridge in tables["Bridge"].values()
        for port in texts(bridge, "ports")
        for interface in texts(tables["Port"].get(port, {}), "interfaces")
    }
    rows = (_interface(row, bridges.get(key, "")) for key, row in tables["Interface"].items())
    return HostInventory(
        host=host,
        chassis=ids.get("system-id", ""),
        encap_ips=tuple(ip.strip() for ip in ids.get("ovn-encap-ip", "").split(",") if ip.strip()),
        is_offload_on=config.get("hw-offload", "false") == "true",
        interfaces=tuple(sorted(rows, key=lambda row: row.name)),
    )


def _interface(row: Row, bridge: str) -> InterfaceRow:
    ids, options = mapping(row, "external_ids"), mapping(row, "options")
    ofport = number(row, "ofport")
    packet = AF_PACKET.match(options.get("dpdk-devargs", ""))
    return InterfaceRow(
        name=text(row, "name"),
        bridge=bridge,
        kind=text(row, "type"),
        ofport=ofport,
        iface_id=ids.get("iface-id", ""),
        mac=ids.get("attached-mac", "").lower(),
        driver=mapping(row, "status").get("driver_name", ""),
        remote_ip=options.get("remote_ip", ""),
        socket=options.get("vhost-server-path", ""),
        packet_device=packet[1] if packet and "qdisc_bypass=0" in options["dpdk-devargs"].split(",") else "",
        is_up=text(row, "link_state") == "up",
        error=text(row, "error"),
    )


def text(row: Row, column: str) -> str:
    """A column's one value as text, "" where it is empty or not there."""
    value = row.get(column, "")
    if isinstance(value, list):
        value = value[0] if value else ""
    return str(value)


def texts(row: Row, column: str) -> tuple[str, ...]:
    """All values of a set."""
    value = row.get(column, [])
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def number(row: Row, column: str) -> int:
    """A column's one number, 0 where it is empty or not there."""
    value = text(row, column)
    return int(value) if value.lstrip("-").isdigit() else 0


def mapping(row: Row, column: str) -> dict[str, str]:
    """A map, empty where it is not there."""
    value = row.get(column, {})
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A guest's port, as the host's own OVSDB has it now.

    Attributes:
        ofport: OpenFlow port number; 0 or less while the switch has not opened the device.
        mac: external_ids:attached-mac, the guest's own; "" where the cloud does not write it down.
    """

    device: str
    ofport: int
    iface_id: str
    mac: str


def local_ports(rundir: str) -> list[LocalPort]:
    """Every port that carries an iface-id.

    Args:
        rundir: the switch's run directory; it holds `db.sock`.

    Raises:
        HostNotReadyError: OVSDB does not answer.
    """
    socket = Path(rundir) / "db.sock"
    command = ["ovs-vsctl", f"--db=unix:{socket}", f"--timeout={TIMEOUT_S}", "--format=json"]
    command += ["--columns=name,ofport,external_ids", "list", "Interface"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S + 1, check=True)
        rows = [(name, ofport, dict(ids[1])) for name, ofport, ids in json.loads(done.stdout)["data"]]
    except FileNotFoundError as error:
        raise HostNotReadyError("ovs-vsctl", "is not installed", advice="run `netprobe doctor`") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise HostNotReadyError(f"OVSDB at {socket}", said[0], advice="is ovsdb-server running?") from error
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise HostNotReadyError(f"OVSDB at {socket}", f"gave no answer: {error}", advice="is it running?") from error
    return [
        LocalPort(name, ofport if isinstance(ofport, int) else 0, ids["iface-id"], ids.get("attached-mac", ""))
        for name, ofport, ids in rows
        if ids.get("iface-id")
    ]


def bound_ports(rundir: str) -> dict[str, int]:
    """OpenFlow port number of each port that carries an iface-id and that the switch has opened.

    Args:
        rundir: the switch's run directory; it holds `db.sock`.

    Raises:
        HostNotReadyError: OVSDB does not answer.
    """
    return {port.iface_id: port.ofport for port in local_ports(rundir) if port.ofport > 0}
