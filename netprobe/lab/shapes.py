"""What is fixed about each lab, whatever its configuration says: hypervisors, networks, router, underlay. Pure.

netprobe.lab.config chooses guests and groups within it, netprobe.lab.topology makes points out of both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

BRIDGE = "br-int"
"""Where guests are plugged in, on every hypervisor."""

NIC = "und"
"""A hypervisor's own NIC, in labs where hypervisors are joined; a port of UNDERLAY_BRIDGE."""
UNDERLAY_BRIDGE = "br-und"
"""It has the tunnel's address on its own port; a userspace vswitch routes tunnels through such a bridge."""
UNDERLAY_MTU = 1600
"""Room for 1500 octets of a guest, Ethernet, Geneve with OVN's option, UDP and IPv4."""

FABRIC = "fabric"
FABRIC_BRIDGE = "br-fab"

CENTRAL = "central"
MANAGEMENT_BRIDGE = "mgmt"
MANAGEMENT_IP = "172.31.0.1"
MANAGEMENT_PREFIX = 24
MANAGEMENT_DEVICE = "mgmt0"

ROUTER = "r1"
_FLOATING_FIRST = 100


@dataclass(frozen=True, slots=True)
class Network:
    """A logical switch.

    Attributes:
        name: empty where there is only one.
        offset: added to an endpoint's number to make its address.
        router_mac, router_ipv4, router_ipv6: the router's port on it; empty where nothing is routed.
        vlan: it is a provider network with this VLAN on the underlay; 0 for networks that are tunnelled.
    """

    name: str
    ipv4: IPv4Network
    ipv6: IPv6Network
    offset: int = 0
    router_mac: str = ""
    router_ipv4: str = ""
    router_ipv6: str = ""
    vlan: int = 0

    def addresses(self, number: int) -> tuple[str, str]:
        """The addresses of an endpoint; the IPv6 one shows the decimal number too."""
        last = self.offset + number
        return str(self.ipv4[last]), str(self.ipv6[int(str(last), 16)])


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A host with a vswitch, in a namespace of its own name.

    Attributes:
        number: counted from 1.
        zone: the conntrack zone of its one network, as Neutron gives it; None where each port has its own.
        encap_ip: where its tunnels end, empty where hosts are not joined.
        management_ip: where it can be reached apart from the underlay; empty where hosts are not joined.
    """

    name: str
    number: int
    zone: int | None = None
    encap_ip: str = ""
    management_ip: str = ""

    @property
    def netns(self) -> str:
        """Its namespace."""
        return self.name

    @property
    def fabric_port(self) -> str:
        """The switch port that it is plugged into."""
        return f"port{self.number}"

    @property
    def underlay_mac(self) -> str:
        """The MAC of its tunnel address."""
        return f"fa:16:3e:01:00:{self.number:02x}"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed about a lab.

    Attributes:
        gateway: hypervisor through which traffic to and from the provider network goes, empty without OVN.
        is_hybrid: a Linux bridge with iptables stands between each guest and the vswitch.
        is_virtual: guests are virtual machines, with a tap behind each one's NIC, and no namespaces.
        is_kernel: the kernel's module openvswitch forwards, and the kernel tracks connections.
        is_dpdk: the vswitch is one with DPDK: a vhost-user port behind each virtual machine's NIC, in place of a tap.
    """

    name: str
    hypervisors: tuple[Hypervisor, ...]
    networks: tuple[Network, ...]
    gateway: str = ""
    is_hybrid: bool = False
    is_virtual: bool = False
    is_dpdk: bool = False
    is_kernel: bool = False

    @property
    def has_ovn(self) -> bool:
        """Whether OVN makes the flows, and a router joins the networks."""
        return bool(self.gateway)

    @property
    def provider(self) -> str:
        """The name of the network that the outside is on, empty where there is none."""
        return next((network.name for network in self.networks if network.vlan), "")

    @property
    def others(self) -> tuple[str, ...]:
        """Namespaces that are neither a hypervisor's nor an endpoint's."""
        return (FABRIC, CENTRAL) if self.has_ovn else ()

    def network(self, name: str) -> Network:
        """A network by name; it is known to exist."""
        return _named(self.networks, name)

    def hypervisor(self, name: str) -> Hypervisor:
        """A hypervisor by name; it is known to exist."""
        return next(host for host in self.hypervisors if host.name == name)

    def nat_address(self, network: str, floating: str) -> dict[str, str]:
        """What the router makes of a source address, by the network that it goes to.

        Measured on OVN 23.03: the floating address where there is one, since the longest prefix wins.
        """
        if not self.provider or network == self.provider:
            return {}
        return {self.provider: floating or self.network(self.provider).router_ipv4}

    def floating_address(self, number: int) -> str:
        """The floating address of the guest with this number."""
        return str(self.network(self.provider).ipv4[_FLOATING_FIRST + number])


def _named(networks: Iterable[Network], name: str) -> Network:
    return next(network for network in networks if network.name == name)


def _routed(number: int, name: str, ipv4: str, ipv6: str, last: tuple[int, int], *, vlan: int = 0) -> Network:
    four, six = IPv4Network(ipv4), IPv6Network(ipv6)
    router = f"fa:16:3e:00:01:{number:02x}", str(four[last[0]]), str(six[last[1]])
    return Network(name, four, six, 10 if vlan else 0, *router, vlan=vlan)


_FLAT = Network("", IPv4Network("10.0.0.0/24"), IPv6Network("fd00:10::/64"))

SHAPES = {
    "single": Shape(
        "single", (Hypervisor("hv1", 1, zone=1),), (_FLAT,)
    ),  # one conntrack zone a network, as Neutron does
    "vm": Shape("vm", (Hypervisor("hv1", 1, zone=1),), (_FLAT,), is_virtual=True),
    "dpdk": Shape("dpdk", (Hypervisor("hv1", 1, zone=1),), (_FLAT,), is_virtual=True, is_dpdk=True),
    "ovs-kernel": Shape("ovs-kernel", (Hypervisor("hv1", 1, zone=1),), (_FLAT,), is_kernel=True),
    "bridge": Shape("bridge", (Hypervisor("hv1", 1),), (_FLAT,), is_hybrid=True),
    "pair": Shape(
        "pair",
        tuple(Hypervisor(f"hv{n}", n, encap_ip=f"172.30.0.{n}", management_ip=f"172.31.0.{10 + n}") for n in (1, 2)),
        (
            _routed(1, "net1", "10.1.0.0/24", "fd00:1::/64", (254, 0xFE)),
            _routed(2, "net2", "10.2.0.0/24", "fd00:2::/64", (254, 0xFE)),
            _routed(3, "ext", "172.24.0.0/24", "fd00:24::/64", (1, 1), vlan=24),
        ),
        gateway="hv1",
    ),
}
