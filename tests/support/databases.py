"""Databases that say exactly what a topology says: the starting point of tests that then let one of the two change."""

from dataclasses import replace

from netprobe.model.inventory import (
    ChassisRow,
    DatapathRow,
    HostInventory,
    InterfaceRow,
    NatRow,
    Northbound,
    PortBindingRow,
    Southbound,
)
from netprobe.plan.topology_merge import Sources


def interface(one):
    return InterfaceRow(one.port_device, "br-int", "", one.ofport, one.iface_id, one.mac, "veth", is_up=True)


def inventory(host, attachments):
    rows = tuple(interface(one) for one in attachments if one.host == host.name)
    return HostInventory(host.name, host.chassis, tuple(map(str, host.encap_ips)), interfaces=rows)


def guest_binding(one):
    text = " ".join([one.mac, *(str(ip) for ip in (one.ipv4, one.ipv6) if not ip.is_unspecified)])
    return PortBindingRow(one.iface_id, "", f"dp-{one.network}", one.host, (text,))


def router_bindings(cloud, link):
    """Both sides of a router's port, and its chassisredirect port where it is central."""
    on = next(one for one in cloud.attachments if one.network == link.network)
    lrp, lsp = f"{link.router}-{link.network}", f"{link.network}-{link.router}"
    ips = [f"{next(iter(prefix.hosts()))}/{prefix.prefixlen}" for prefix in on.prefixes]
    addresses = (" ".join([on.gateway_mac, *ips]),)
    rows = [
        PortBindingRow(lrp, "patch", f"dp-{link.router}", addresses=addresses, peer=lsp),
        PortBindingRow(lsp, "patch", f"dp-{link.network}", addresses=("router",), peer=lrp),
    ]
    if link.is_central:
        redirect = PortBindingRow(f"cr-{lrp}", "chassisredirect", f"dp-{link.router}", link.gateway, redirected=lrp)
        rows.append(redirect)
    return rows


def northbound(cloud):
    nats = [
        NatRow("nb-r1", "dnat_and_snat", str(one.floating), str(one.ipv4)) for one in cloud.attachments if one.floating
    ]
    snat = {
        (str(prefix), str(one.behind_nat["ext"]))
        for one in cloud.attachments
        for prefix in one.prefixes
        if not one.floating and "ext" in one.behind_nat and prefix.version == 4
    }
    return Northbound(nats=(*nats, *(NatRow("nb-r1", "snat", external, prefix) for prefix, external in sorted(snat))))


def southbound(cloud):
    networks = sorted({one.network for one in cloud.attachments})
    datapaths = [DatapathRow(f"dp-{name}", name, i, is_router=False) for i, name in enumerate(networks, start=1)]
    routers = sorted({link.router for link in cloud.routers})
    datapaths += [DatapathRow(f"dp-{name}", name, 99, is_router=True, northbound_id=f"nb-{name}") for name in routers]
    chassis = [ChassisRow(h.chassis, h.name, tuple(map(str, h.encap_ips))) for h in cloud.hosts]
    bindings = [guest_binding(one) for one in cloud.attachments]
    bindings += [row for link in cloud.routers for row in router_bindings(cloud, link)]
    return Southbound(tuple(chassis), tuple(datapaths), tuple(bindings))


def sources(cloud):
    """Databases in which everything is as the topology has it."""
    inventories = {host.name: inventory(host, cloud.attachments) for host in cloud.hosts}
    return Sources(southbound(cloud), northbound(cloud), inventories, {})


def rebind(south, port, **changes):
    """The southbound database with one port binding changed."""
    rows = tuple(replace(row, **changes) if row.logical_port == port else row for row in south.bindings)
    return replace(south, bindings=rows)


def without_binding(south, port):
    return replace(south, bindings=tuple(row for row in south.bindings if row.logical_port != port))


def with_ports(given, host, *rows, gone=()):
    """The sources with ports added to a host, and others taken away (by iface-id)."""
    old = given.inventories[host]
    kept = tuple(row for row in old.interfaces if row.iface_id not in gone)
    return replace(given, inventories={**given.inventories, host: replace(old, interfaces=(*kept, *rows))})
