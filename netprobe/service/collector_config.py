"""A collector's configuration (TOML): the hosts of a cloud and where OVN's databases are (docs/deployment.md).

What is written down is what no database tells: which hosts there are, their NICs, where their agents compare clocks.
Guests, ports, networks and tunnels come from OVN and from the hosts' agents.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import UsageError
from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Host, OvnPlaces, Topology
from netprobe.plan.fields import Fields
from netprobe.plan.influx import InfluxPlan, influx_table

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class CollectorFile:
    """What a configuration says: the cloud, and where readings go (None: nowhere)."""

    topology: Topology
    influx: InfluxPlan | None = None


def read_config(path: Path) -> CollectorFile:
    """A configuration file.

    Raises:
        UsageError: it cannot be read, or something in it is not as documented.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(str(path), f"cannot be read: {error}", advice="check the path") from error
    return parse_file(text, str(path))


def parse_config(text: str, where: str) -> Topology:
    """The cloud of a configuration: see `parse_file`."""
    return parse_file(text, where).topology


def parse_file(text: str, where: str) -> CollectorFile:
    """A configuration.

    Args:
        text: TOML.
        where: its name, for errors.

    Raises:
        UsageError: something in it is not as documented.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"is no TOML: {error}", advice="see docs/deployment.md") from error
    fields = Fields(table, where)
    fields.integer("schema", SCHEMA, SCHEMA, SCHEMA)
    hosts = tuple(_host(t, w) for w, t in fields.tables("host"))
    ovn = [_ovn(t, w) for w, t in fields.tables("ovn")]
    influx = influx_table(fields.table("influx"), where, has_token=True)
    fields.finish()
    if not hosts or len(ovn) > 1:
        raise UsageError(where, f"names {len(hosts)} hosts and {len(ovn)} OVNs", allowed="[[host]]s, one [[ovn]]")
    names = [host.name for host in hosts]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise UsageError(where, f"two hosts are called {min(twice)!r}", advice="give each a name of its own")
    topology = Topology(
        hosts=hosts,
        guests=(),
        bypasses=(),
        vswitches={h.name: Point(f"{h.name}.vswitch", PointKind.VSWITCH, h.name) for h in hosts},
        ovn=ovn[0] if ovn else None,
    )
    return CollectorFile(topology, influx)


def _host(table: dict[str, object], where: str) -> Host:
    fields = Fields(table, where)
    name = fields.text("name")
    uplink = fields.text("uplink", "")
    host = Host(
        name=name,
        netns="",
        bridge=fields.text("bridge", "br-int"),
        ovs_rundir="",
        allowlist="",
        zone=None,
        uplink=(Point(f"{name}.nic", PointKind.NIC, name, "", uplink),) if uplink else (),
        chassis=fields.text("chassis", name),
        management_ip=fields.text("management_ip", ""),
    )
    fields.finish()
    return host


def _ovn(table: dict[str, object], where: str) -> OvnPlaces:
    fields = Fields(table, where)
    places = OvnPlaces(fields.text("northbound"), fields.text("southbound"))
    fields.finish()
    return places
