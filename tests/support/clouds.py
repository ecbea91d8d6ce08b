"""Small topologies for pure tests.

`topology()`: vm1, vm2, vm3 and a bypass NIC with vm1's groups on hv1; vm9 on hv3, of which nothing is known.
`pair()`: two hosts under OVN, as docs/lab.md draws them: vm1, vm2 on net1, vm3, vm4 on net2, ext1, ext2 on ext; odd
ones on hv1, even ones on hv2; a router whose port on ext is served by hv1.
"""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Attachment, Host, OvnPlaces, RouterLink, Topology

NETS = {"net1": "10.1.0", "net2": "10.2.0", "ext": "172.24.0"}
FLOATING = IPv4Address("172.24.0.11")
SNAT = IPv4Address("172.24.0.100")


def attachment(name, number, *, host="hv1", groups=("default",), copy_of="", agent="/nowhere.sock"):
    points = (
        Point(f"{name}.guest", PointKind.GUEST, name, name, "eth0"),
        Point(f"{name}.backend", PointKind.BACKEND, host, host, f"tap{name}"),
    )
    return Attachment(
        name=name,
        host=host,
        netns=name,
        device="eth0",
        mac=f"fa:16:3e:00:00:{number:02x}",
        ipv4=IPv4Address(f"10.0.0.{number}"),
        ipv6=IPv6Address(f"fd00:10::{number:x}"),
        groups=groups,
        agent=agent,
        iface_id=f"00000000-0000-0000-0000-0000000000{number:02x}",
        ofport=number,
        port_device=f"tap{name}",
        chain=points,
        copy_of=copy_of,
    )


def topology():
    return Topology(
        hosts=(Host("hv1", "hv1", "br-int", "/nowhere", "/nowhere/allow.toml", 100),),
        guests=(
            attachment("vm1", 1),
            attachment("vm2", 2, groups=("default", "web")),
            attachment("vm3", 3),
            attachment("vm9", 9, host="hv3"),
        ),
        bypasses=(attachment("bypass", 100, copy_of="vm1"),),
        vswitches={"hv1": Point("hv1.vswitch", PointKind.VSWITCH, "hv1")},
    )


def host(name, number):
    return Host(
        name=name,
        netns=name,
        bridge="br-int",
        ovs_rundir=f"/run/netprobe/lab/{name}",
        allowlist="/nowhere/allow.toml",
        zone=None,
        uplink=(
            Point(f"{name}.nic", PointKind.NIC, name, name, "nic0"),
            Point(f"fabric.{name}", PointKind.FABRIC, "fabric", "fabric", f"to-{name}"),
        ),
        encap_ips=(ip_address(f"172.30.0.{number}"),),
        chassis=name,
        management_ip=f"172.31.0.{number}",
    )


def routed(name, number, network):
    net = list(NETS).index(network) + 1
    floating = FLOATING if name == "vm1" else None
    return replace(
        attachment(name, number, host=f"hv{2 - number % 2}"),
        ipv4=IPv4Address(f"{NETS[network]}.{number}"),
        ipv6=IPv6Address(f"fd00:10:{net}::{number}"),
        network=network,
        prefixes=(ip_network(f"{NETS[network]}.0/24"), ip_network(f"fd00:10:{net}::/64")),
        gateway_mac=f"00:00:00:0{net}:00:fe",
        floating=floating,
        behind_nat={} if network == "ext" else {"ext": floating or SNAT},
    )


def pair():
    return Topology(
        hosts=(host("hv1", 1), host("hv2", 2)),
        guests=(
            routed("vm1", 1, "net1"),
            routed("vm2", 2, "net1"),
            routed("vm3", 3, "net2"),
            routed("vm4", 4, "net2"),
            routed("ext1", 5, "ext"),
            routed("ext2", 6, "ext"),
        ),
        bypasses=(replace(routed("byp1", 101, "net1"), copy_of="vm1"),),
        vswitches={name: Point(f"{name}.vswitch", PointKind.VSWITCH, name) for name in ("hv1", "hv2")},
        ovn=OvnPlaces("unix:/nb.sock", "unix:/sb.sock"),
        routers=(
            RouterLink("r1", "ext", is_central=True, gateway="hv1"),
            RouterLink("r1", "net1"),
            RouterLink("r1", "net2"),
        ),
    )
