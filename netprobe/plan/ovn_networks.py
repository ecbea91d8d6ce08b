"""OVN's logical networks: which router joins which, who serves a gateway's port, and what NAT makes of a guest. Pure.

Reads the rows of model.inventory; plan.topology_merge asks it about each guest. The words: a network is a logical
switch; a link is a router's port on one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface

from netprobe.model.inventory import DatapathRow, NatRow, Northbound, PortBindingRow, Southbound
from netprobe.model.probes import IPAddress
from netprobe.model.topology import RouterLink

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class RouterPort:
    """A router's port on a network.

    Attributes:
        router: UUID of the router's datapath.
        prefixes: the network's, as the router has them.
        link: what the topology says of it.
    """

    router: str
    name: str
    mac: str
    prefixes: tuple[Prefix, ...]
    link: RouterLink


@dataclass(frozen=True, slots=True)
class NatOfGuest:
    """What routers make of a guest's IPv4 address.

    Attributes:
        floating: where others reach it, None where they cannot.
        floating_mac: who answers for that where the guest's own host translates, else "".
        behind: what it is seen as on other networks, by their name.
    """

    floating: IPv4Address | None = None
    floating_mac: str = ""
    behind: Mapping[str, IPv4Address] = field(default_factory=dict)


def addresses_in(texts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The MAC and the IPs of a column of addresses ("MAC IP IP…"): of its first entry that begins with a MAC."""
    for text in texts:
        words = text.split()
        if words and words[0].count(":") == 5:
            return words[0].lower(), tuple(words[1:])
    return "", ()


class OvnNetworks:
    """The networks and routers of a cloud.

    Args:
        south: what is where.
        north: NAT and subnets; None while it is not known.
        host_of: name of a chassis's host.
    """

    def __init__(self, south: Southbound, north: Northbound | None, host_of: Callable[[str], str]) -> None:
        self._host_of = host_of
        self._datapaths = {row.id: row for row in south.datapaths}
        self._bindings = {row.logical_port: row for row in south.bindings}
        self._gateways = {row.redirected: row for row in south.bindings if row.kind == "chassisredirect"}
        self._subnets = {s.id: s.subnets for s in north.switches} if north else {}
        self._nats = self._nat_rows(north) if north else {}
        self._names: dict[str, str] = {}
        self._ports: dict[str, list[RouterPort]] = {}  # by network
        self._of_router: dict[str, list[RouterPort]] = {}
        for binding in south.bindings:
            port = self._router_port(binding)
            if port is not None:
                self._ports.setdefault(port.link.network, []).append(port)
                self._of_router.setdefault(port.router, []).append(port)
        self._outer: dict[str, list[RouterPort]] = {}

    @property
    def links(self) -> tuple[RouterLink, ...]:
        """All routers' ports, sorted."""
        found = {port.link for ports in self._ports.values() for port in ports}
        return tuple(sorted(found, key=lambda link: (link.router, link.network, link.gateway)))

    def network_of(self, binding: PortBindingRow) -> str:
        """Name of the network that a guest's port is on."""
        row = self._datapaths.get(binding.datapath)
        return row.name or row.id if row else ""

    def gateway_macs(self, network: str) -> tuple[str, ...]:
        """MACs of the routers on a network, the first router by name first."""
        return tuple(p.mac for p in sorted(self._ports.get(network, ()), key=lambda p: (p.link.router, p.name)))

    def prefixes(self, binding: PortBindingRow) -> tuple[Prefix, ...]:
        """Of the network that a guest's port is on: as its routers have them, else as it was configured."""
        found = {prefix for port in self._ports.get(self.network_of(binding), ()) for prefix in port.prefixes}
        if not found:
            row = self._datapaths.get(binding.datapath)
            subnets = self._subnets.get(row.northbound_id, ()) if row else ()
            found = {prefix for prefix in map(_network, subnets) if prefix is not None}
        return tuple(sorted(found, key=lambda prefix: (prefix.version, prefix)))

    def nat_of(self, binding: PortBindingRow, address: IPv4Address) -> NatOfGuest:
        """What routers make of a guest's address; nothing where the northbound database is not known."""
        floating, floating_mac, behind = None, "", {}
        for port in self._outer_ports(self.network_of(binding)):
            row = _translating(self._nats.get(port.router, ()), address)
            if row is None:
                continue
            external = IPv4Address(row.external_ip)
            behind[port.link.network] = external
            if row.kind == "dnat_and_snat":
                floating = external
                floating_mac = row.external_mac if row.logical_port == binding.logical_port else ""
        return NatOfGuest(floating, floating_mac, behind)

    def _router_port(self, binding: PortBindingRow) -> RouterPort | None:
        """The router's side of a pair of patch or l3gateway ports, or None for what is no such thing."""
        if binding.kind not in {"patch", "l3gateway"} or not binding.peer:
            return None
        here, peer = self._datapaths.get(binding.datapath), self._bindings.get(binding.peer)
        there = self._datapaths.get(peer.datapath) if peer else None
        if here is None or not here.is_router or there is None:
            return None
        mac, ips = addresses_in(binding.addresses)
        prefixes = tuple(prefix for prefix in map(_network, ips) if prefix is not None)
        # Two routers joined directly share no switch: the pair of ports is the network between them.
        network = "--".join(sorted((binding.logical_port, binding.peer))) if there.is_router else there.name or there.id
        return RouterPort(here.id, binding.logical_port, mac, prefixes, self._link(here, binding, network))

    def _link(self, router: DatapathRow, binding: PortBindingRow, network: str) -> RouterLink:
        name = router.name or router.id
        redirect = self._gateways.get(binding.logical_port)
        if redirect is None and binding.kind != "l3gateway":
            return RouterLink(name, network)
        chassis = redirect.chassis if redirect else binding.chassis
        return RouterLink(name, network, is_central=True, gateway=self._host_of(chassis) if chassis else "")

    def _nat_rows(self, north: Northbound) -> dict[str, list[NatRow]]:
        """NAT rows by the router's datapath."""
        of_router = {row.northbound_id: row.id for row in self._datapaths.values() if row.is_router}
        rows: dict[str, list[NatRow]] = {}
        for row in north.nats:
            rows.setdefault(of_router.get(row.router, ""), []).append(row)
        return rows

    def _outer_ports(self, network: str) -> list[RouterPort]:
        """The central ports through which one gets out of a network, without having passed another one before."""
        if network not in self._outer:
            self._outer[network] = self._find_outer(network)
        return self._outer[network]

    def _find_outer(self, network: str) -> list[RouterPort]:
        outer: list[RouterPort] = []
        seen, queue = {network}, [network]
        for here in queue:
            for into in self._ports.get(here, ()):
                for out in self._of_router[into.router]:
                    if out.link.network in seen:
                        continue
                    if out.link.is_central:
                        outer.append(out)
                    elif not into.link.is_central:  # else we come from outside: what is behind it is not outer to us
                        seen.add(out.link.network)
                        queue.append(out.link.network)
        return outer


def _network(text: str) -> Prefix | None:
    """The prefix that "10.1.0.254/24" is in; one address alone, or a /64 of IPv6 (RFC 4291); None for other text."""
    try:
        return ip_interface(text if "/" in text else f"{text}/{64 if ':' in text else 32}").network
    except ValueError:
        return None


def _translating(rows: Sequence[NatRow], address: IPAddress) -> NatRow | None:
    """The row that a router applies to a guest's address: its own, else the longest prefix (ovn-nb(5), NAT)."""
    best: tuple[int, NatRow] | None = None
    for row in rows:
        prefix = _network(row.logical_ip)
        if row.kind == "dnat" or prefix is None or address not in prefix or not _is_ipv4(row.external_ip):
            continue
        rank = prefix.prefixlen + (row.kind == "dnat_and_snat")
        if best is None or rank > best[0]:
            best = (rank, row)
    return best[1] if best else None


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
