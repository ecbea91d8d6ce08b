"""What the cloud's own databases say, as plain rows: a host's Open vSwitch, OVN's southbound and northbound.

Filled by netprobe.host (OVSDB, OVN), read by plan.topology_merge. A host's inventory is also what its agent reports to
the collector, so everything in it is text, numbers, lists and maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class InterfaceRow:
    """One row of Open vSwitch's table Interface, and the bridge that its port is on.

    Attributes:
        kind: column `type`: "" for a device of the kernel, "geneve", "dpdkvhostuserclient" ...
        ofport: OpenFlow port number; 0 while there is none, negative when the switch could not open the device.
        iface_id: external_ids:iface-id, the cloud's name of the port; "" where it is no guest's.
        mac: external_ids:attached-mac, the guest's own; "" where the cloud does not write it down.
        driver: status:driver_name, "" where not told.
        remote_ip: options:remote_ip of a tunnel, "" of others.
        socket: options:vhost-server-path, the socket behind a vhost-user port; "" of others.
        packet_device: the kernel's device that all frames of a DPDK port pass, where packet rings see them: af_packet
            that does not go past its qdisc; "" of others.
        is_up: column `link_state`.
        error: why the switch could not open it, "".
    """

    name: str
    bridge: str
    kind: str
    ofport: int
    iface_id: str = ""
    mac: str = ""
    driver: str = ""
    remote_ip: str = ""
    socket: str = ""
    packet_device: str = ""
    is_up: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class HostInventory:
    """What one host's Open vSwitch has.

    Attributes:
        host: its name, as the topology has it.
        chassis: external_ids:system-id, its name in OVN's southbound database; "" without OVN.
        encap_ips: external_ids:ovn-encap-ip, where tunnels start and end.
        is_offload_on: other_config:hw-offload.
        offloaded: why packet rings do not see what passes a device, by its name; only devices where that is so.
    """

    host: str
    chassis: str = ""
    encap_ips: tuple[str, ...] = ()
    is_offload_on: bool = False
    interfaces: tuple[InterfaceRow, ...] = ()
    offloaded: Mapping[str, str] = field(default_factory=dict)

    @property
    def ports(self) -> dict[str, InterfaceRow]:
        """Guests' ports by iface-id; of several of one (a migration on one host) the one that the switch has opened."""
        rows = sorted(self.interfaces, key=lambda row: (row.ofport > 0, row.name))
        return {row.iface_id: row for row in rows if row.iface_id}


@dataclass(frozen=True, slots=True)
class ChassisRow:
    """One row of OVN's table Chassis, with the addresses of its Encap rows."""

    name: str
    hostname: str
    encap_ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatapathRow:
    """One row of Datapath_Binding: a logical switch or router.

    Attributes:
        id: its UUID.
        name: what users call it (external_ids:name2 where OpenStack gave one, else external_ids:name).
        tunnel_key: the VNI that it has in tunnels.
        is_router: of the two.
        northbound_id: UUID of its row in the northbound database.
    """

    id: str
    name: str
    tunnel_key: int
    is_router: bool
    northbound_id: str = ""


@dataclass(frozen=True, slots=True)
class PortBindingRow:
    """One row of Port_Binding.

    Attributes:
        kind: column `type`: "" for a guest's port, "patch", "l3gateway", "chassisredirect", "localport" ...
        datapath: UUID of its logical switch or router.
        chassis: name of the chassis that has claimed it, "" while none has.
        addresses: column `mac`: each "MAC IP IP…"; of a router's port the IPs have prefix lengths.
        label: external_ids:name (OpenStack's name of the port), "".
        peer: options:peer of a patch or l3gateway port.
        redirected: options:distributed-port of a chassisredirect port: whose gateway it is.
        is_up: False while the chassis has not yet installed its flows; True where the database does not tell.
    """

    logical_port: str
    kind: str
    datapath: str
    chassis: str = ""
    addresses: tuple[str, ...] = ()
    label: str = ""
    peer: str = ""
    redirected: str = ""
    tunnel_key: int = 0
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Southbound:
    """OVN's southbound database: what is where."""

    chassis: tuple[ChassisRow, ...] = ()
    datapaths: tuple[DatapathRow, ...] = ()
    bindings: tuple[PortBindingRow, ...] = ()


@dataclass(frozen=True, slots=True)
class NatRow:
    """One row of the northbound table NAT.

    Attributes:
        router: UUID of its logical router.
        kind: "snat", "dnat" or "dnat_and_snat".
        logical_ip: an address or a prefix.
        external_mac, logical_port: both set where the guest's own host translates.
    """

    router: str
    kind: str
    external_ip: str
    logical_ip: str
    external_mac: str = ""
    logical_port: str = ""


@dataclass(frozen=True, slots=True)
class PortGroupRow:
    """One row of Port_Group: its name, and its ports' names."""

    name: str
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SwitchRow:
    """One row of Logical_Switch: its UUID, its name, its subnets (other_config:subnet and :ipv6_prefix)."""

    id: str
    name: str
    subnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Northbound:
    """OVN's northbound database: what was wanted. Only read."""

    nats: tuple[NatRow, ...] = ()
    groups: tuple[PortGroupRow, ...] = ()
    switches: tuple[SwitchRow, ...] = ()
