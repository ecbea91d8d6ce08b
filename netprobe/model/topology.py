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
        unobserved: why no packet ring can see its uplink (hardware offload), "" where one can.
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
    unobserved: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A guest, or a bypass NIC that stands in for one (`copy_of` names it then).

    Attributes:
        ipv4, ipv6: its addresses; the unspecified address (`0.0.0.0`, `::`) where it has none of that family.
        agent: path of its agent's control socket, "" where there is none.
        ofport: its OpenFlow port number, 0 while none is known.
        port_device: the device of its port on the vswitch, "" while none is known.
        chain: points from its own NIC toward the vswitch.
        network: the logical switch that it is on, "" where there is only one.
        prefixes: of that network, one a family.
        gateway_mac: the router's MAC on that network, "" where nothing is routed.
        floating: address under which others reach it through the router's NAT, None where it has none.
        floating_mac: who answers for `floating` where its own host translates; "" where the router's gateway does.
        behind_nat: address that the router's SNAT gives it toward other networks, by their name.
        unobserved: why no packet ring can see its port (hardware offload, SR-IOV), "" where one can.
        is_bound: its port is on `host`'s vswitch, as far as one knows; False while it moves, or is switched off.
        has_own_clock: it is a virtual machine, whose clock is not its host's.
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
    floating_mac: str = ""
    is_bound: bool = True
    has_own_clock: bool = False

    def address(self, family: int) -> IPv4Address | IPv6Address:
        """Its address of a family, 4 or 6.

        Raises:
            UsageError: it has none.
        """
        address = self.ipv4 if family == 4 else self.ipv6
        if address.is_unspecified:
            raise UsageError(self.name, f"has no IPv{family} address", advice="ask for the other family")
        return address

    @property
    def names(self) -> frozenset[str]:
        """Everything a user may call it by: name, addresses, MAC, UUID of its port."""
        addresses = {str(ip) for ip in (self.ipv4, self.ipv6) if not ip.is_unspecified}
        return frozenset({self.name, self.mac, self.iface_id} | addresses)


@dataclass(frozen=True, slots=True)
class OvnPlaces:
    """OVN's databases as OVSDB remotes (`unix:…`, `tcp:…`, `ssl:…`); only the collector reads them."""

    northbound: str
    southbound: str


@dataclass(frozen=True, slots=True)
class ManagementPlace:
    """The collector's place on the network that agents dial it over, and reach each other's clocks by."""

    netns: str
    ip: str


@dataclass(frozen=True, slots=True)
class RouterLink:
    """One router's port on one network.

    Attributes:
        is_central: one host serves this port for all, and translates there; else each host routes what begins on it.
        gateway: the host that serves it, "" where each does, or where none does at present.
    """

    router: str
    network: str
    is_central: bool = False
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """One cloud as far as netprobe knows it.

    Attributes:
        rules: the user's rule behind each OpenFlow cookie ("0x…"), where the enforcement tells.
        vswitches: point of each host where a packet-out enters.
        ovn: where OVN's databases are, None without OVN.
        management: the collector's place on the management network, None where there is no such network.
        routers: which router joins which networks; empty where nobody has told.
        stale: sources that cannot be read at present ("OVSDB of hv1", "OVN southbound") and why; what they said last
            stands.
    """

    hosts: tuple[Host, ...]
    guests: tuple[Attachment, ...]
    bypasses: tuple[Attachment, ...]
    vswitches: dict[str, Point]
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    ovn: "OvnPlaces | None" = None
    management: ManagementPlace | None = None
    routers: tuple[RouterLink, ...] = ()
    stale: Mapping[str, str] = field(default_factory=dict)

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
    def unobserved(self) -> dict[str, str]:
        """Why no ring may be opened on a point, by its id: a ring there would call what it cannot see lost."""
        ports = {p.id: a.unobserved for a in self.attachments if a.unobserved for p in a.chain[1:]}
        return ports | {p.id: h.unobserved for h in self.hosts if h.unobserved for p in h.uplink if p.host == h.name}

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
