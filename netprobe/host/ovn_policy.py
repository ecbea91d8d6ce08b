"""OVN's northbound database as far as policies go: ACLs, port groups, address sets, ports. Read once, never written to.

The tables that discovery follows are netprobe.host.ovn_databases' business; ACLs are many, and asked for only here.
"""

from netprobe.host.ovsdb import mapping, number, text, texts
from netprobe.host.ovsdb_idl import Database, Row, Tables, read_once
from netprobe.model.northbound import AclHolder, AclRow, AddressSetRow, LogicalPortRow, NorthboundPolicy

POLICY_TABLES = {
    "ACL": (
        *("name", "direction", "priority", "match", "action", "label", "options", "external_ids"),
        "tier",  # since OVN 23.06
    ),
    "Port_Group": ("name", "ports", "acls"),
    "Address_Set": ("name", "addresses"),
    "Logical_Switch": ("name", "ports", "acls", "external_ids"),
    "Logical_Switch_Port": (
        *("name", "type", "addresses", "dynamic_addresses", "port_security", "enabled", "external_ids"),
    ),
}
"""Columns of ovn-nb(5)."""

RULE_KEY, PORT_KEY, NETWORK_KEY = (
    "neutron:security_group_rule_id",
    "neutron:port_name",
    "neutron:network_name",
)
"""Where Neutron's driver writes down what a row stands for."""

READ_TIMEOUT_S = 30.0
"""A large cloud's ACLs take a while to come."""


def read_northbound(remote: str, netns: str = "") -> NorthboundPolicy:
    """The rows of `POLICY_TABLES` as they are now. Blocks.

    Args:
        remote: `unix:PATH`, `tcp:IP:PORT`, `ssl:IP:PORT`, or several of them with commas between.
        netns: network namespace to connect from, "" for the caller's own.

    Raises:
        HostNotReadyError: the database cannot be read.
        UsageError: the remote is of no known kind.
    """
    database = Database("OVN northbound", remote, "OVN_Northbound", POLICY_TABLES, netns)
    return policy_rows(read_once(database, READ_TIMEOUT_S))


def policy_rows(tables: Tables) -> NorthboundPolicy:
    """Rows of `POLICY_TABLES`, references resolved."""
    ports = {key: _port(row) for key, row in tables["Logical_Switch_Port"].items()}
    names = {key: port.name for key, port in ports.items()}
    acls = {key: _acl(key, row) for key, row in tables["ACL"].items()}
    sets = (
        AddressSetRow(text(row, "name"), tuple(sorted(texts(row, "addresses")))) for row in _rows(tables, "Address_Set")
    )
    return NorthboundPolicy(
        switches=_holders(tables, "Logical_Switch", names, acls),
        port_groups=_holders(tables, "Port_Group", names, acls),
        address_sets=tuple(sorted(sets, key=lambda row: row.name)),
        ports=tuple(sorted(ports.values(), key=lambda port: port.name)),
    )


def _rows(tables: Tables, table: str) -> list[Row]:
    return list(tables[table].values())


def _holders(tables: Tables, table: str, ports: dict[str, str], acls: dict[str, AclRow]) -> tuple[AclHolder, ...]:
    found = (
        AclHolder(
            name=text(row, "name"),
            ports=tuple(sorted(ports[key] for key in texts(row, "ports") if key in ports)),
            acls=tuple(sorted((acls[key] for key in texts(row, "acls") if key in acls), key=_order)),
            label=mapping(row, "external_ids").get(NETWORK_KEY, "") or text(row, "name"),
        )
        for row in _rows(tables, table)
    )
    return tuple(sorted(found, key=lambda holder: holder.name))


def _order(acl: AclRow) -> tuple[int, str, str, str]:
    """The same each time, whatever UUIDs the database gave."""
    return (-acl.priority, acl.way, acl.match, acl.id)


def _acl(key: str, row: Row) -> AclRow:
    return AclRow(
        id=key,
        name=text(row, "name"),
        way=text(row, "direction"),
        priority=number(row, "priority"),
        match=text(row, "match"),
        action=text(row, "action"),
        label=number(row, "label"),
        rule=mapping(row, "external_ids").get(RULE_KEY, ""),
        is_late=mapping(row, "options").get("apply-after-lb", "false") == "true",
        tier=number(row, "tier"),
    )


def _port(row: Row) -> LogicalPortRow:
    return LogicalPortRow(
        name=text(row, "name"),
        label=mapping(row, "external_ids").get(PORT_KEY, ""),
        kind=text(row, "type"),
        addresses=texts(row, "addresses"),
        dynamic=text(row, "dynamic_addresses"),
        port_security=texts(row, "port_security"),
        is_enabled=text(row, "enabled") != "False",
    )
