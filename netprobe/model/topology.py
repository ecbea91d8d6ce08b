"""What is attached where: hosts, guests and their points. Filled by service.discovery, read by plan.paths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from netprobe.errors import UsageError, unknown_name
from netprobe.model.points import Point


@dataclass(frozen=True, slots=True)
class Host:
    """A hypervisor: where its bridge is managed, and the file that says what may be ordered there.

    Attributes:
        zone: the conntrack zone that all its ports share; None where each port and router has one of its own (OVN).
        uplink: points from its own NIC toward the fabric, as far as one can look; empty where hosts are not joined.
        encap_ips: addresses that its tunnels start and end at.
        chassis: its name in OVN's southbound database, "" without OVN.
        management_ip: where its agent is reached by others' clock exchanges, "" where none is.
    """

    name: str
    netns: str
    bridge: str
    ovs_rundir: str
    allowlist: str
    zone: int | None
    uplink: tuple[Point, ...] = ()
    encap_ips: tuple[IPv4Address | IPv6Address, ...] = ()
    chassis: str = ""
    management_ip: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A guest, or a bypass NIC that stands in for one (`copy_of` names it then).

    Attributes:
        agent: path of its agent's control socket, "" where there is none.
        chain: points from its own NIC toward the vswitch.
        network: the logical switch that it is on, "" where there is only one.
        prefixes: of that network, one a family.
        gateway_mac: the router's MAC on that network, "" where nothing is routed.
        floating: address under which others reach it through the router's NAT, None where it has none.
        behind_nat: address that the router's SNAT gives it toward other networks, by their name.
        unobserved: why no packet ring can see its port (hardware offload, SR-IOV), "" where one can.
    """

    name: str
    host: str
    netns: str
    device: str
    mac: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    groups: tuple[str, ...]
    agent: str
    iface_id: str
    ofport: int
    port_device: str
    chain: tuple[Point, ...]
    copy_of: str = ""
    network: str = ""
    prefixes: tuple[IPv4Network | IPv6Network, ...] = ()
    gateway_mac: str = ""
    floating: IPv4Address | None = None
    behind_nat: Mapping[str, IPv4Address] = field(default_factory=dict)
    unobserved: str = ""

    def address(self, family: int) -> IPv4Address | IPv6Address:
        """Its address of a family, 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6

    @property
    def names(self) -> frozenset[str]:
        """Everything a user may call it by: name, addresses, MAC, UUID of its port."""
        return frozenset({self.name, str(self.ipv4), str(self.ipv6), self.mac, self.iface_id})


@dataclass(frozen=True, slots=True)
class OvnPlaces:
    """OVN's databases as OVSDB remotes (`unix:…`, `tcp:…`, `ssl:…`); only the collector reads them."""

    northbound: str
    southbound: str


@dataclass(frozen=True, slots=True)
class Topology:
    """One cloud as far as netprobe knows it.

    Attributes:
        rules: the user's rule behind each OpenFlow cookie ("0x…"), where the enforcement tells.
        vswitches: point of each host where a packet-out enters.
        ovn: where OVN's databases are, None without OVN.
    """

    hosts: tuple[Host, ...]
    guests: tuple[Attachment, ...]
    bypasses: tuple[Attachment, ...]
    vswitches: dict[str, Point]
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    ovn: "OvnPlaces | None" = None

    def host(self, name: str) -> Host:
        """The host of this name."""
        return next(h for h in self.hosts if h.name == name)

    def guest(self, name: str, where: str) -> Attachment:
        """The guest that a user means by a name, an IP, a MAC or a port's UUID.

        Raises:
            UsageError: there is none; the nearest known name is offered.
        """
        wanted = _normal(name)
        for guest in self.guests:
            if wanted in {_normal(n) for n in guest.names}:
                return guest
        if any(wanted in {_normal(n) for n in bypass.names} for bypass in self.bypasses):
            raise UsageError(
                where, f"{name!r} is a bypass NIC, not a guest", advice="probe from it with --vantage bypass"
            )
        raise unknown_name(where, name, (g.name for g in self.guests), kind="guest")

    def bypass_on(self, host: str, source: Attachment) -> Attachment:
        """The bypass NIC on a host that carries a copy of `source`'s groups.

        Raises:
            UsageError: the host has none, or it carries other groups, which would prove another policy.
        """
        there = [b for b in self.bypasses if b.host == host]
        if not there:
            raise UsageError(f"vantage bypass on {host}", "the host has no bypass NIC", advice="use another vantage")
        for bypass in there:
            if set(bypass.groups) == set(source.groups):
                return bypass
        carried = "; ".join(f"{b.name}: {', '.join(b.groups)}" for b in there)
        raise UsageError(
            f"vantage bypass for {source.name}",
            f"no bypass NIC on {host} carries its groups ({', '.join(source.groups)})",
            allowed=carried,
            advice="use a source with those groups, or another vantage",
        )

    @property
    def attachments(self) -> Iterable[Attachment]:
        """Guests and bypass NICs."""
        return (*self.guests, *self.bypasses)


def _normal(name: str) -> str:
    """A name in one spelling: addresses as they are printed, everything else in lower case."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()
