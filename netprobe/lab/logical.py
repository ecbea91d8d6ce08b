"""A lab's logical network as one ovn-nbctl transaction: switches, router, NAT, ports, port groups, ACLs. Pure.

The router's port on the provider network is a distributed gateway port. That network is on the underlay with a VLAN of
its own: OVN 23.03 does not carry frames for a gateway port through tunnels, so that without a localnet port a guest on
another hypervisor than the gateway's could not reach it (measured).
"""

from collections.abc import Iterable, Sequence

from netprobe.lab.acls import CompiledAcls
from netprobe.lab.shapes import ROUTER, UNDERLAY_BRIDGE, Network, Shape
from netprobe.lab.topology import Endpoint
from netprobe.model.policy import Policy, PolicyPort

PROVIDER = "provider"
"""The provider network's name in bridge mappings."""

MAPPINGS = f"{PROVIDER}:{UNDERLAY_BRIDGE}"

Command = list[str]


def commands(shape: Shape, ends: Sequence[Endpoint], policy: Policy, acls: CompiledAcls) -> list[str]:
    """The words of the transaction, for netprobe.host.ovn_central.

    Args:
        shape: networks and router.
        ends: guests and bypass NICs.
        policy: bound to them.
        acls: what it was compiled to.
    """
    parts: list[Command] = [["lr-add", ROUTER]]
    for network in shape.networks:
        parts += _switch(network)
    parts += _gateway(shape, ends)
    for end in ends:
        parts += _port(end, policy.port(end.name))
    for name, prefixes in acls.address_sets.items():
        addresses = ",".join(f'"{prefix}"' for prefix in prefixes) or "[]"
        parts.append(["create", "Address_Set", f"name={name}", f"addresses={addresses}"])
    for name, members in acls.port_groups.items():
        parts.append(["pg-add", name, *(end.iface_id for end in members)])
    parts += [acl.words for acl in acls.acls]
    return joined(parts)


def joined(parts: Iterable[Command]) -> list[str]:
    """Commands as the words of one transaction."""
    words: list[str] = []
    for part in parts:
        words += [*(["--"] if words else []), *part]
    return words


def _switch(network: Network) -> list[Command]:
    """A logical switch, joined to the router."""
    inner, outer = f"{network.name}-{ROUTER}", f"{ROUTER}-{network.name}"
    addresses = f"{network.router_ipv4}/{network.ipv4.prefixlen}", f"{network.router_ipv6}/{network.ipv6.prefixlen}"
    made: list[Command] = [
        ["ls-add", network.name],
        ["lrp-add", ROUTER, outer, network.router_mac, *addresses],
        ["lsp-add", network.name, inner],
        ["lsp-set-type", inner, "router"],
        ["lsp-set-addresses", inner, "router"],
        ["lsp-set-options", inner, f"router-port={outer}"],
    ]
    if network.vlan:
        local = f"{network.name}-{PROVIDER}"
        made += [
            ["lsp-add", network.name, local, "", str(network.vlan)],
            ["lsp-set-type", local, "localnet"],
            ["lsp-set-addresses", local, "unknown"],
            ["lsp-set-options", local, f"network_name={PROVIDER}"],
        ]
    return made


def _gateway(shape: Shape, ends: Sequence[Endpoint]) -> list[Command]:
    """Where the provider network is reached, and as whom."""
    address = shape.network(shape.provider).router_ipv4
    made: list[Command] = [["lrp-set-gateway-chassis", f"{ROUTER}-{shape.provider}", shape.gateway]]
    made += [["lr-nat-add", ROUTER, "snat", address, str(n.ipv4)] for n in shape.networks if not n.vlan]
    made += [["lr-nat-add", ROUTER, "dnat_and_snat", end.floating, end.ipv4] for end in ends if end.floating]
    return made


def _port(end: Endpoint, port: PolicyPort) -> list[Command]:
    """A guest's port: it may only send from its own addresses. Named as Neutron names ports, by UUID."""
    addresses = f"{end.mac} {end.ipv4} {end.ipv6}"
    made = [["lsp-add", end.network, end.iface_id]]
    if port.has_port_security:
        others = [pair.mac for pair in port.allowed_pairs if pair.mac not in ("", end.mac)]
        made.append(["lsp-set-addresses", end.iface_id, addresses, *dict.fromkeys(others)])
        made.append(["lsp-set-port-security", end.iface_id, *_guarded(end, port)])
    else:
        made.append(["lsp-set-addresses", end.iface_id, addresses, "unknown"])
    return [*made, ["set", "logical_switch_port", end.iface_id, f'external_ids:"neutron:port_name"="{end.name}"']]


def _guarded(end: Endpoint, port: PolicyPort) -> list[str]:
    """What a port may send from: a word a MAC, with its addresses and the prefixes of its allowed pairs."""
    words = {end.mac: [end.mac, end.ipv4, end.ipv6]}
    for pair in port.allowed_pairs:
        mac = pair.mac or end.mac
        words.setdefault(mac, [mac]).append(str(pair.prefix))
    return [" ".join(each) for each in words.values()]
