"""The topology as it is now: what was written down once, corrected by what the cloud's databases say. Pure.

What is written down comes from a lab's state file or a collector's configuration; the databases are OVN's and each
host's own (model.inventory). The databases win. What they do not know stays: agents, namespaces, groups, uplinks, and
a port's chain of points while the port is the same device on the same host. service.following calls it on each change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from netprobe.model.inventory import HostInventory, InterfaceRow, Northbound, PortBindingRow, Southbound
from netprobe.model.points import Point, PointKind, Stamp
from netprobe.model.probes import IPAddress
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.plan.ovn_networks import OvnNetworks, addresses_in

IpT = TypeVar("IpT", IPv4Address, IPv6Address)
NO_IPV4, NO_IPV6 = IPv4Address(0), IPv6Address(0)


@dataclass(frozen=True, slots=True)
class Sources:
    """What the databases say; None and missing hosts: not known (yet).

    Attributes:
        inventories: by the host's name.
        stale: sources that cannot be read at present, and why.
    """

    southbound: Southbound | None
    northbound: Northbound | None
    inventories: Mapping[str, HostInventory]
    stale: Mapping[str, str]


def merge(base: Topology, sources: Sources) -> Topology:
    """The topology as it is now.

    A guest is where OVN's port binding is claimed; without OVN, or where OVN does not know its port, where a host has
    a port with its iface-id. One that neither knows is gone. A port that is bound and belongs to nobody that was
    written down is a new guest, without an agent.

    Args:
        base: what was written down.
        sources: what the databases say.
    """
    return _Merge(base, sources).topology()


class _Merge:
    def __init__(self, base: Topology, sources: Sources) -> None:
        self._base = base
        self._inventories = sources.inventories
        self._ports = {name: found.ports for name, found in sources.inventories.items()}
        self._stale = sources.stale
        self._is_ovn_known = sources.southbound is not None
        self._north = sources.northbound
        south = sources.southbound or Southbound()
        self._chassis = {row.name: row for row in south.chassis}
        self._host_names = self._names_of_chassis()
        self._bindings = {row.logical_port: row for row in south.bindings if not row.kind}
        self._networks = OvnNetworks(south, sources.northbound, self._host_of)
        self._netns = {host.name: host.netns for host in base.hosts}

    def topology(self) -> Topology:
        """Everything, put together."""
        guests = [*self._kept(self._base.guests), *self._new_guests()]
        hosts = tuple(map(self._host, self._base.hosts))
        hosts += self._unknown_hosts({guest.host for guest in guests} - {host.name for host in hosts})
        here = {host.name: Point(f"{host.name}.vswitch", PointKind.VSWITCH, host.name) for host in hosts}
        return replace(
            self._base,
            hosts=hosts,
            guests=tuple(guests),
            bypasses=tuple(self._kept(self._base.bypasses)),
            vswitches=here | self._base.vswitches,
            routers=self._networks.links if self._is_ovn_known else self._base.routers,
            stale=dict(self._stale),
        )

    # -- hosts

    def _names_of_chassis(self) -> dict[str, str]:
        """The host behind each chassis: as it was written down, by its host name, or as a host's own OVSDB says.

        An agent reports what its OVSDB says, and may lie: it takes no chassis from a host that is known by another way.
        """
        known = {host.name for host in self._base.hosts}
        names = {found.chassis: name for name, found in self._inventories.items() if found.chassis}
        names |= {row.name: row.hostname for row in self._chassis.values() if row.hostname in known}
        return names | {host.chassis: host.name for host in self._base.hosts if host.chassis}

    def _host_of(self, chassis: str) -> str:
        row = self._chassis.get(chassis)
        return self._host_names.get(chassis) or (row.hostname if row and row.hostname else chassis)

    def _host(self, old: Host) -> Host:
        found = self._inventories.get(old.name)
        chassis = next((c for c, name in self._host_names.items() if name == old.name and c in self._chassis), "")
        told = self._chassis[chassis].encap_ips if chassis else found.encap_ips if found else ()
        ips = tuple(ip for ip in map(_address, told) if ip is not None)
        reasons = [found.offloaded[p.device] for p in old.uplink if p.device in found.offloaded] if found else []
        unobserved = reasons[0] if reasons else old.unobserved
        return replace(
            old,
            chassis=chassis or old.chassis,
            encap_ips=old.encap_ips if not ips or set(ips) == set(old.encap_ips) else ips,
            unobserved=unobserved,
            uplink=tuple(_blind(p) if unobserved and p.host == old.name else p for p in old.uplink),
        )

    def _unknown_hosts(self, names: Iterable[str]) -> tuple[Host, ...]:
        """Hosts that guests are on and that nobody wrote down: no agent, no switch that could be asked."""
        chassis = {self._host_of(row.name): row for row in self._chassis.values()}
        return tuple(
            Host(
                name=name,
                netns="",
                bridge="",
                ovs_rundir="",
                allowlist="",
                zone=None,
                encap_ips=tuple(ip for ip in map(_address, chassis[name].encap_ips) if ip is not None),
                chassis=chassis[name].name,
            )
            for name in sorted(names)
            if name in chassis
        )

    # -- guests

    def _kept(self, attachments: Iterable[Attachment]) -> list[Attachment]:
        """Those that still exist, as they are now."""
        return [self._now(one) for one in attachments if not self._is_gone(one)]

    def _is_gone(self, one: Attachment) -> bool:
        if one.iface_id in self._bindings or self._hosts_with(one.iface_id):
            return False
        return self._is_ovn_known or one.host in self._inventories

    def _hosts_with(self, iface_id: str) -> list[str]:
        """Hosts whose switch has a port with an iface-id; those that have opened it come first."""
        ports = {name: ports[iface_id] for name, ports in self._ports.items() if iface_id in ports}
        return sorted(ports, key=lambda name: (not _is_open(ports[name]), name))

    def _now(self, old: Attachment) -> Attachment:
        binding = self._bindings.get(old.iface_id)
        host = self._place(old, binding)
        placed = self._placed(old, host, is_claimed=binding is None or (bool(binding.chassis) and binding.is_up))
        return placed if binding is None else self._described(placed, binding)

    def _place(self, old: Attachment, binding: PortBindingRow | None) -> str:
        if binding is not None:
            return self._host_of(binding.chassis) if binding.chassis else old.host
        hosts = self._hosts_with(old.iface_id)
        return old.host if not hosts or (old.host in hosts and _is_open(self._port(old.host, old))) else hosts[0]

    def _port(self, host: str, one: Attachment) -> InterfaceRow | None:
        return self._ports.get(host, {}).get(one.iface_id)

    def _placed(self, old: Attachment, host: str, *, is_claimed: bool) -> Attachment:
        """On this host, behind the port that its switch has."""
        found, port = self._inventories.get(host), self._port(host, old)
        if found is None:
            if host == old.host:
                return replace(old, is_bound=is_claimed)
            reason = f"which port of {host} is its own is not known: nobody reports what that host has"
            return replace(self._moved(old, host, "", reason), is_bound=is_claimed)
        if port is None:  # on its way, or switched off
            one = old if host == old.host else self._moved(old, host, "", f"{host} has no port of its own yet")
            return replace(one, ofport=0, is_bound=False)
        # What no packet ring sees at a vhost-user port may be seen at its vring.
        reason = "" if port.socket else found.offloaded.get(port.name, "")
        unobserved = reason or (old.unobserved if host == old.host else "")
        is_same = host == old.host and port.name == old.port_device and not unobserved
        one = old if is_same else self._moved(old, host, port.name, unobserved, socket=port.socket)
        return replace(one, ofport=max(port.ofport, 0), is_bound=is_claimed and _is_open(port))

    def _moved(self, old: Attachment, host: str, device: str, unobserved: str, *, socket: str = "") -> Attachment:
        """Behind another device: the ids of its points stay, and their places change."""
        netns = self._netns.get(host, "")
        backend = Point(f"{old.name}.backend", PointKind.BACKEND, host, netns, device)
        if socket:
            backend = replace(_blind(backend), socket=socket, stamp=Stamp.UPROBE)
        chain = (old.chain[0], _blind(backend) if unobserved else backend)
        return replace(old, host=host, port_device=device, unobserved=unobserved, chain=chain)

    def _described(self, old: Attachment, binding: PortBindingRow) -> Attachment:
        """With the addresses, the network and the NAT that OVN has for it."""
        mac, ips = addresses_in(binding.addresses)
        addresses = [ip for ip in map(_address, ips) if ip is not None]
        ipv4 = _of_family(addresses, old.ipv4)
        prefixes = self._networks.prefixes(binding)
        macs = self._networks.gateway_macs(self._networks.network_of(binding))
        one = replace(
            old,
            mac=mac or old.mac,
            ipv4=ipv4,
            ipv6=_of_family(addresses, old.ipv6),
            network=self._networks.network_of(binding),
            prefixes=old.prefixes if not prefixes or set(prefixes) == set(old.prefixes) else prefixes,
            gateway_mac=old.gateway_mac if not macs or old.gateway_mac in macs else macs[0],
        )
        if self._north is None:
            return one
        nat = self._networks.nat_of(binding, ipv4)
        return replace(one, floating=nat.floating, floating_mac=nat.floating_mac, behind_nat=dict(nat.behind))

    # -- guests that nobody wrote down

    def _new_guests(self) -> list[Attachment]:
        known = {one.iface_id for one in self._base.attachments}
        names = {one.name for one in self._base.attachments}
        made = []
        for port, binding in sorted(self._bindings.items()):
            if port in known or not binding.chassis:
                continue
            mac, ips = addresses_in(binding.addresses)
            if not mac or not ips:
                continue  # nothing that a probe could be sent to
            name = binding.label if binding.label and binding.label not in names else port
            names.add(name)
            made.append(self._now(self._blank(name, port, mac, self._host_of(binding.chassis))))
        return made

    def _blank(self, name: str, port: str, mac: str, host: str) -> Attachment:
        """A guest of which only its port is known; where it is seen is added by `_placed`."""
        groups = [g.name for g in self._north.groups if port in g.ports] if self._north else []
        guest = Point(f"{name}.guest", PointKind.GUEST, name)
        return Attachment(
            name=name,
            host="",
            netns="",
            device="",
            mac=mac,
            ipv4=NO_IPV4,
            ipv6=NO_IPV6,
            groups=tuple(groups),
            agent="",
            iface_id=port,
            ofport=0,
            port_device="",
            chain=(guest, Point(f"{name}.backend", PointKind.BACKEND, host)),
        )


def _is_open(port: InterfaceRow | None) -> bool:
    """Whether the switch has opened the port's device."""
    return port is not None and port.ofport > 0


def _blind(point: Point) -> Point:
    """The point, without a device that anybody would look at."""
    return replace(point, netns="", device="")


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _of_family(addresses: list[IPAddress], old: IpT) -> IpT:
    """The address of the old one's family: the old one if it is still there, else the first; the old one if none."""
    found = [ip for ip in addresses if isinstance(ip, type(old))]
    return old if old in found or not found else found[0]
