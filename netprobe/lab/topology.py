"""Who is in a lab and where: guests and bypass NICs, with their addresses, ports and hypervisors. Pure.

What it is made of: netprobe.lab.config (groups, guests) and netprobe.lab.shapes (hypervisors, networks). The points and
segments between them are netprobe.lab.layout's.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from netprobe.errors import UsageError
from netprobe.lab.config import Bypass, LabConfig
from netprobe.lab.shapes import Shape
from netprobe.model.policy import NetworkAcl, Policy, PolicyPort

_SINGLE_BYPASS_NUMBER = 100
_BYPASS_NUMBER = 240
"""Bypass NICs are numbered from here on; guests from 1 (at most config.GUESTS_MAX)."""
_OVN_PORTS = 100
"""With OVN, requested OpenFlow numbers lie above those that it lets the switch choose for tunnels and patch ports."""
_IFACE_IDS = uuid.UUID("6c1b2f6e-7d0a-4f2b-9c55-6e7470726f62")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A guest, or a bypass NIC: a host in a namespace, or a virtual machine, behind a port of a hypervisor's bridge.

    Attributes:
        netns: empty for a virtual machine.
        device: its NIC, in `netns`.
        host: the hypervisor that it is on.
        network: its logical switch.
        mac, ipv4, ipv6: its addresses; the only ones that it may send from.
        ofport: OpenFlow number of its port, the same on every hypervisor.
        iface_id: the cloud's UUID of its port.
        copy_of: the guest whose groups a bypass NIC has; empty for guests.
        floating: its address on the provider network, empty where it has none.
        has_agent: a guest agent is to run in it.
    """

    name: str
    netns: str
    device: str
    host: str
    network: str
    mac: str
    ipv4: str
    ipv6: str
    groups: tuple[str, ...]
    ofport: int
    iface_id: str
    copy_of: str = ""
    floating: str = ""
    has_agent: bool = True

    @property
    def is_machine(self) -> bool:
        """Whether it is a virtual machine."""
        return not self.netns

    @property
    def tap(self) -> str:
        """The other end of its NIC, on the hypervisor."""
        return f"tap{self.name}" if not self.copy_of else f"tap{self.name.replace('bypass', 'byp')}"

    @property
    def qbr(self) -> str:
        """In the lab `bridge`: the Linux bridge that its tap is in."""
        return f"qbr{self.tap.removeprefix('tap')}"

    @property
    def qvb(self) -> str:
        """In the lab `bridge`: the end of the veth pair that is in that Linux bridge."""
        return f"qvb{self.tap.removeprefix('tap')}"

    @property
    def qvo(self) -> str:
        """In the lab `bridge`: the end of the veth pair that is in Open vSwitch."""
        return f"qvo{self.tap.removeprefix('tap')}"

    @property
    def vhost(self) -> str:
        """In the lab `dpdk`: the port of a virtual machine on the vswitch. There is no such device."""
        return f"vhu{self.name}"

    def is_vhost(self, shape: Shape) -> bool:
        """Whether its port is a vhost-user socket, and no device."""
        return shape.is_dpdk and self.is_machine

    def plug(self, shape: Shape) -> str:
        """The device, or name, of its port on the vswitch, unless a relay stands there."""
        if self.is_vhost(shape):
            return self.vhost
        return self.qvo if shape.is_hybrid else self.tap


def endpoints(config: LabConfig) -> tuple[Endpoint, ...]:
    """The guests in the order of the configuration, then the bypass NICs."""
    shape = config.shape
    made = []
    for number, guest in enumerate(config.guests, start=1):
        ofport = number + (_OVN_PORTS if shape.has_ovn else 0)
        end = _endpoint(shape, guest.name, (guest.host, guest.network), (number, ofport))
        floating = shape.floating_address(number) if guest.floating else ""
        netns = "" if guest.is_machine else guest.name
        made.append(replace(end, netns=netns, groups=guest.groups, floating=floating, has_agent=guest.has_agent))
    return (*made, *(_bypass(config, bypass) for bypass in config.bypasses))


def _bypass(config: LabConfig, bypass: Bypass) -> Endpoint:
    shape, guest = config.shape, config.guest(bypass.copy_of)
    host = shape.hypervisor(bypass.host).number
    if shape.has_ovn:
        name, number, ofport = f"bypass{host}", _BYPASS_NUMBER + host, _OVN_PORTS + _BYPASS_NUMBER + host
    else:
        name, number, ofport = "bypass", _SINGLE_BYPASS_NUMBER, len(config.guests) + 1
    end = _endpoint(shape, name, (bypass.host, guest.network), (number, ofport))
    return replace(end, netns=f"byp{host}", device="byp0", groups=guest.groups, copy_of=guest.name)


def _endpoint(shape: Shape, name: str, place: tuple[str, str], numbers: tuple[int, int]) -> Endpoint:
    host, network = place
    number, ofport = numbers
    ipv4, ipv6 = shape.network(network).addresses(number)
    return Endpoint(
        name=name,
        netns=name,
        device="eth0",
        host=host,
        network=network,
        mac=f"fa:16:3e:00:00:{number:02x}",
        ipv4=ipv4,
        ipv6=ipv6,
        groups=(),
        ofport=ofport,
        iface_id=str(uuid.uuid5(_IFACE_IDS, name)),
    )


def bound_policy(config: LabConfig, ends: Sequence[Endpoint]) -> Policy:
    """The configuration's policy for the ports that the lab has: with addresses, and with a port a bypass NIC.

    A bypass NIC stands in for a guest: it has its groups and ACLs, and is a member where it is one.

    Args:
        config: whose policy.
        ends: guests and bypass NICs; they may have moved.

    Raises:
        UsageError: the file gives a guest other addresses than the lab does.
    """
    policy = config.policy
    copies: dict[str, list[str]] = {}
    for end in ends:
        if end.copy_of:
            copies.setdefault(end.copy_of, []).append(end.name)
    ports = tuple(_bound_port(policy.port(end.copy_of or end.name), end) for end in ends)
    return replace(policy, ports=ports, acls=tuple(_with_copies(acl, copies) for acl in policy.acls))


def _bound_port(port: PolicyPort, end: Endpoint) -> PolicyPort:
    ips = ip_address(end.ipv4), ip_address(end.ipv6)
    if not end.copy_of and (set(port.ips) - set(ips) or port.mac not in ("", end.mac)):
        said = ", ".join(filter(None, (port.mac, *map(str, port.ips))))
        given = f"{end.mac}, {end.ipv4}, {end.ipv6}"
        raise UsageError(f"guest {end.name}", f"has {said}, and the lab gives it {given}", advice="leave them out")
    # What a pair says of the guest itself is its own business: the NIC beside it does not speak for it.
    pairs = () if end.copy_of else port.allowed_pairs
    return replace(port, name=end.name, network=end.network, mac=end.mac, ips=ips, allowed_pairs=pairs, id=end.iface_id)


def _with_copies(acl: NetworkAcl, copies: dict[str, list[str]]) -> NetworkAcl:
    return replace(acl, ports=(*acl.ports, *(copy for port in acl.ports for copy in copies.get(port, ()))))


def leaves_host(shape: Shape, source: Endpoint, target: Endpoint, *, by_floating: bool = False) -> bool:
    """Whether what one endpoint sends to another leaves its hypervisor.

    What crosses between the provider network and the others goes through the gateway's hypervisor, wherever its ends
    are; so does what is sent to a floating address.

    Args:
        shape: of their lab.
        source: who sends.
        target: to whom.
        by_floating: sent to the target's floating address.
    """
    if source.host != target.host:
        return True
    crosses_gateway = by_floating or (
        source.network != target.network and shape.provider in (source.network, target.network)
    )
    return crosses_gateway and source.host != shape.gateway
