"""OVN's southbound and northbound databases: which tables discovery reads of them, and their rows. Never written to.

`southbound_of` and `northbound_of` read what netprobe.host.ovsdb_idl follows. Agents never come here; only the
collector does.
"""

from netprobe.host.ovsdb import mapping, number, text, texts
from netprobe.host.ovsdb_idl import Database, Row, Tables
from netprobe.model.inventory import (
    ChassisRow,
    DatapathRow,
    NatRow,
    Northbound,
    PortBindingRow,
    PortGroupRow,
    Southbound,
    SwitchRow,
)

SOUTHBOUND_TABLES = {
    "Chassis": ("name", "hostname", "encaps"),
    "Encap": ("ip",),
    "Datapath_Binding": ("external_ids", "tunnel_key"),
    "Port_Binding": (
        *("logical_port", "type", "datapath", "chassis", "mac"),
        *("external_ids", "options", "tunnel_key", "up"),
    ),
}
"""Columns of ovn-sb(5). `nb_cfg` and the like are left out: they change all the time."""

NORTHBOUND_TABLES = {
    "Logical_Switch": ("name", "other_config"),
    "Logical_Switch_Port": ("name",),
    "Logical_Router": ("name", "nat"),
    "NAT": ("type", "external_ip", "logical_ip", "external_mac", "logical_port"),
    "Port_Group": ("name", "ports"),
}
"""Columns of ovn-nb(5). ACLs are left out: there are very many, and netprobe.host.ovn_flows asks for single ones."""


def southbound(remote: str, netns: str = "") -> Database:
    """OVN's southbound database at a remote, reached from a network namespace."""
    return Database("OVN southbound", remote, "OVN_Southbound", SOUTHBOUND_TABLES, netns)


def northbound(remote: str, netns: str = "") -> Database:
    """OVN's northbound database at a remote, reached from a network namespace."""
    return Database("OVN northbound", remote, "OVN_Northbound", NORTHBOUND_TABLES, netns)


def southbound_of(tables: Tables) -> Southbound:
    """The rows of `SOUTHBOUND_TABLES`, each table sorted by name."""
    encaps = {key: text(row, "ip") for key, row in tables["Encap"].items()}
    names = {key: text(row, "name") for key, row in tables["Chassis"].items()}
    chassis = (_chassis(row, encaps) for row in tables["Chassis"].values())
    datapaths = (_datapath(key, row) for key, row in tables["Datapath_Binding"].items())
    bindings = (_binding(row, names) for row in tables["Port_Binding"].values())
    return Southbound(
        chassis=tuple(sorted(chassis, key=lambda row: row.name)),
        datapaths=tuple(sorted(datapaths, key=lambda row: (row.name, row.id))),
        bindings=tuple(sorted(bindings, key=lambda row: row.logical_port)),
    )


def _chassis(row: Row, encaps: dict[str, str]) -> ChassisRow:
    ips = {encaps[key] for key in texts(row, "encaps") if key in encaps}  # one a protocol: geneve and vxlan share an IP
    return ChassisRow(text(row, "name"), text(row, "hostname"), tuple(sorted(ips)))


def _datapath(key: str, row: Row) -> DatapathRow:
    ids = mapping(row, "external_ids")
    router = ids.get("logical-router", "")
    return DatapathRow(
        id=key,
        name=ids.get("name2") or ids.get("name", ""),
        tunnel_key=number(row, "tunnel_key"),
        is_router=bool(router),
        northbound_id=router or ids.get("logical-switch", ""),
    )


def _binding(row: Row, chassis: dict[str, str]) -> PortBindingRow:
    options = mapping(row, "options")
    return PortBindingRow(
        logical_port=text(row, "logical_port"),
        kind=text(row, "type"),
        datapath=text(row, "datapath"),
        chassis=chassis.get(text(row, "chassis"), ""),
        addresses=texts(row, "mac"),
        label=mapping(row, "external_ids").get("name", ""),
        peer=options.get("peer", ""),
        redirected=options.get("distributed-port", ""),
        tunnel_key=number(row, "tunnel_key"),
        is_up=text(row, "up") != "False",
    )


def northbound_of(tables: Tables) -> Northbound:
    """The rows of `NORTHBOUND_TABLES`, each table sorted."""
    ports = {key: text(row, "name") for key, row in tables["Logical_Switch_Port"].items()}
    nats = (
        _nat(router, tables["NAT"][key])
        for router, row in tables["Logical_Router"].items()
        for key in texts(row, "nat")
        if key in tables["NAT"]
    )
    groups = (
        PortGroupRow(text(row, "name"), tuple(sorted(ports[key] for key in texts(row, "ports") if key in ports)))
        for row in tables["Port_Group"].values()
    )
    return Northbound(
        nats=tuple(sorted(nats, key=lambda row: (row.router, row.kind, row.logical_ip, row.external_ip))),
        groups=tuple(sorted(groups, key=lambda row: row.name)),
        switches=tuple(sorted((_switch(k, row) for k, row in tables["Logical_Switch"].items()), key=lambda s: s.name)),
    )


def _nat(router: str, row: Row) -> NatRow:
    return NatRow(
        router=router,
        kind=text(row, "type"),
        external_ip=text(row, "external_ip"),
        logical_ip=text(row, "logical_ip"),
        external_mac=text(row, "external_mac").lower(),
        logical_port=text(row, "logical_port"),
    )


def _switch(key: str, row: Row) -> SwitchRow:
    config = mapping(row, "other_config")
    subnets = [config.get("subnet", ""), config.get("ipv6_prefix", "")]
    return SwitchRow(key, text(row, "name"), tuple(subnet for subnet in subnets if subnet))
