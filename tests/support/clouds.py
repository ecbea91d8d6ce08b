"""A small topology for pure tests: vm1, vm2, vm3 and a bypass NIC with vm1's groups on hv1; vm9 on hv2."""

from ipaddress import IPv4Address, IPv6Address

from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Attachment, Host, Topology


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
            attachment("vm9", 9, host="hv2"),
        ),
        bypasses=(attachment("bypass", 100, copy_of="vm1"),),
        vswitches={"hv1": Point("hv1.vswitch", PointKind.VSWITCH, "hv1")},
    )
