"""What OVN's northbound database says of policies, as plain rows: ACLs and what they refer to.

Filled by host.ovn_policy, read by plan.policy_ovn.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AclRow:
    """One row of ACL.

    Attributes:
        id: its UUID.
        name: its own, "" where it has none.
        way: "to-lport" or "from-lport".
        label: conntrack's label of what it let pass, 0 for none.
        rule: external_ids:neutron:security_group_rule_id, "" where Neutron did not make it.
        is_late: options:apply-after-lb; it is asked in a stage of its own.
        tier: 0 where the schema has none.
    """

    id: str
    name: str
    way: str
    priority: int
    match: str
    action: str
    label: int = 0
    rule: str = ""
    is_late: bool = False
    tier: int = 0


@dataclass(frozen=True, slots=True)
class LogicalPortRow:
    """One row of Logical_Switch_Port.

    Attributes:
        name: the cloud's UUID of the port, its iface-id.
        label: external_ids:neutron:port_name, what users call it.
        kind: column `type`: "" for a guest's.
        addresses: as in the database: "MAC IP…", "unknown", "dynamic"; `dynamic` is what OVN made of the latter.
        port_security: "MAC IP…"; empty: anything may be sent.
    """

    name: str
    label: str = ""
    kind: str = ""
    addresses: tuple[str, ...] = ()
    dynamic: str = ""
    port_security: tuple[str, ...] = ()
    is_enabled: bool = True


@dataclass(frozen=True, slots=True)
class AclHolder:
    """A logical switch or a port group: names of its ports, and its ACLs.

    Attributes:
        label: of a switch: what users call it (external_ids:neutron:network_name), else its name.
    """

    name: str
    ports: tuple[str, ...] = ()
    acls: tuple[AclRow, ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class AddressSetRow:
    """One row of Address_Set."""

    name: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NorthboundPolicy:
    """All that matters for what may pass, each table sorted by name."""

    switches: tuple[AclHolder, ...] = ()
    port_groups: tuple[AclHolder, ...] = ()
    address_sets: tuple[AddressSetRow, ...] = ()
    ports: tuple[LogicalPortRow, ...] = ()
