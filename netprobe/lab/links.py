"""The lab's links: veth pairs of guests, the underlay through the fabric's switch, the management network."""

from collections.abc import Sequence

from netprobe.host import iproute
from netprobe.lab import hybrid
from netprobe.lab.shapes import (
    CENTRAL,
    FABRIC,
    FABRIC_BRIDGE,
    MANAGEMENT_BRIDGE,
    MANAGEMENT_DEVICE,
    MANAGEMENT_IP,
    MANAGEMENT_PREFIX,
    NIC,
    UNDERLAY_BRIDGE,
    UNDERLAY_MTU,
    Hypervisor,
    Network,
    Shape,
)
from netprobe.lab.topology import Endpoint

UNDERLAY_PREFIX = 24

QUIET_SYSCTLS = {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}
GUEST_SYSCTLS = {
    f"ipv6/conf/default/{name}": value
    for name, value in {
        "accept_ra": "0",
        "autoconf": "0",
        "router_solicitations": "0",
        "dad_transmits": "0",
        "addr_gen_mode": "1",  # no link-local address, so nothing is announced for one
    }.items()
}
OVN_SYSCTLS = {
    # Linux 5.16. A veth loses its carrier when its other end moves, and the guest would ask for its neighbours anew,
    # into the void and again a second later; a virtual machine's NIC keeps its carrier in a live migration.
    "ipv4/conf/default/arp_evict_nocarrier": "0",
    "ipv6/conf/default/ndisc_evict_nocarrier": "0",
    # Listener reports, which no ACL can drop (ms): they are all sent before `up` ends.
    "ipv6/conf/default/mldv2_unsolicited_report_interval": "1",
}

_KERNEL_BRIDGE = "type bridge forward_delay 0 mcast_snooping 0"


def make_endpoints(shape: Shape, ends: Sequence[Endpoint]) -> None:
    """A veth pair for each endpoint, quiet, with its addresses and routes, without offloads; a tap for a machine."""
    sysctls = GUEST_SYSCTLS | (OVN_SYSCTLS if shape.has_ovn else {})
    for host in shape.hypervisors:
        here = [end for end in ends if end.host == host.name and not end.is_vhost(shape)]
        pairs = [
            f"tuntap add dev {e.tap} mode tap"
            if e.is_machine
            else f"link add {e.tap} type veth peer name {e.device} netns {e.netns} address {e.mac}"
            for e in here
        ]
        for end in here:
            if not end.is_machine:
                iproute.set_sysctls(end.netns, sysctls)
        iproute.batch([*pairs, *(f"link set {end.tap} up" for end in here)], netns=host.netns)
        iproute.offloads_off(host.netns, [end.tap for end in here])
        if shape.is_hybrid:
            iproute.set_sysctls(host.netns, hybrid.SYSCTLS)
            iproute.batch(hybrid.link_commands(here), netns=host.netns)
            iproute.offloads_off(host.netns, [device for end in here for device in (end.qvb, end.qvo)])
    for end in ends:
        if end.is_machine:
            continue  # its own kernel's business
        iproute.offloads_off(end.netns, [end.device])
        iproute.batch(_guest_commands(end, shape.network(end.network)), netns=end.netns)


def _guest_commands(end: Endpoint, network: Network) -> list[str]:
    commands = [
        "link set lo up",
        f"addr add {end.ipv4}/{network.ipv4.prefixlen} dev {end.device}",
        f"addr add {end.ipv6}/{network.ipv6.prefixlen} dev {end.device} nodad",
        f"link set {end.device} up",
    ]
    if network.router_mac:
        commands += [f"route add default via {address}" for address in (network.router_ipv4, network.router_ipv6)]
    return commands


def make_hosts(shape: Shape) -> None:
    """Quiet hypervisors and, where they are joined, the fabric's switch and the management network between them."""
    for name in (*(host.netns for host in shape.hypervisors), *shape.others):
        iproute.set_sysctls(name, QUIET_SYSCTLS)
        iproute.batch(["link set lo up"], netns=name)
    if shape.has_ovn:
        _make_management(shape)
        _make_underlay(shape)


def _make_management(shape: Shape) -> None:
    """A network of its own, so that faults on the underlay never cut a controller off; one link a hypervisor."""
    bridge = MANAGEMENT_BRIDGE
    commands = [f"link add {bridge} {_KERNEL_BRIDGE}", f"addr add {MANAGEMENT_IP}/{MANAGEMENT_PREFIX} dev {bridge}"]
    commands.append(f"link set {bridge} up")
    for host in shape.hypervisors:
        peer = f"name {MANAGEMENT_DEVICE} netns {host.netns}"
        commands += [f"link add {host.name} type veth peer {peer}", f"link set {host.name} master {bridge} up"]
    iproute.batch(commands, netns=CENTRAL)
    for host in shape.hypervisors:
        address = f"{host.management_ip}/{MANAGEMENT_PREFIX}"
        iproute.batch(
            [f"addr add {address} dev {MANAGEMENT_DEVICE}", f"link set {MANAGEMENT_DEVICE} up"], netns=host.netns
        )


def _make_underlay(shape: Shape) -> None:
    commands = [f"link add {FABRIC_BRIDGE} mtu {UNDERLAY_MTU} {_KERNEL_BRIDGE}", f"link set {FABRIC_BRIDGE} up"]
    for host in shape.hypervisors:
        pair = f"link add {host.fabric_port} mtu {UNDERLAY_MTU} type veth peer name {NIC} mtu {UNDERLAY_MTU}"
        commands += [f"{pair} netns {host.netns}", f"link set {host.fabric_port} master {FABRIC_BRIDGE} up"]
    iproute.batch(commands, netns=FABRIC)
    iproute.offloads_off(FABRIC, [host.fabric_port for host in shape.hypervisors])
    for host in shape.hypervisors:
        iproute.batch([f"link set {NIC} up"], netns=host.netns)
        iproute.offloads_off(host.netns, [NIC])


def give_tunnel_address(host: Hypervisor) -> None:
    """The address that tunnels end at, on the underlay bridge's own port, which is there now."""
    device = UNDERLAY_BRIDGE
    iproute.batch(
        [f"addr add {host.encap_ip}/{UNDERLAY_PREFIX} dev {device}", f"link set {device} up"], netns=host.netns
    )
    iproute.offloads_off(host.netns, [device])
