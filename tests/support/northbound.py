"""Rows of OVN's northbound database, as Neutron's driver makes them of a policy."""

from netprobe.model.northbound import AclHolder, AclRow, AddressSetRow, LogicalPortRow, NorthboundPolicy
from netprobe.model.policy import ICMP, ICMPV6, Policy, Way

DROP_GROUP = "neutron_pg_drop"
_WAYS = {Way.INGRESS: ("to-lport", "outport", "src"), Way.EGRESS: ("from-lport", "inport", "dst")}
_TRANSPORTS = {6: "tcp", 17: "udp", 132: "sctp"}


def group_name(group):
    return "pg_" + group.replace("-", "_")


def match_of(rule, group):
    _, field, side = _WAYS[rule.way]
    (family,) = rule.families
    words = [f"{field} == @{group_name(group)}", f"ip{family}"]
    if rule.remote_prefix is not None:
        words.append(f"ip{family}.{side} == {rule.remote_prefix}")
    elif rule.remote_group:
        words.append(f"ip{family}.{side} == ${group_name(rule.remote_group)}_ip{family}")
    elif rule.remote_address_group:
        words.append(f"ip{family}.{side} == $ag_{rule.remote_address_group.replace('-', '_')}_ip{family}")
    if rule.protocol in (ICMP, ICMPV6):
        words.append(f"icmp{family}")
        words += [f"icmp{family}.type == {rule.icmp_type}"] if rule.icmp_type is not None else []
        words += [f"icmp{family}.code == {rule.icmp_code}"] if rule.icmp_code is not None else []
    elif rule.protocol in _TRANSPORTS:
        name = _TRANSPORTS[rule.protocol]
        words.append(name)
        if rule.ports and rule.ports[0] == rule.ports[1]:
            words.append(f"{name}.dst == {rule.ports[0]}")
        elif rule.ports:
            words += [f"{name}.dst >= {rule.ports[0]}", f"{name}.dst <= {rule.ports[1]}"]
    elif rule.protocol is not None:
        words.append(f"ip.proto == {rule.protocol}")
    return " && ".join(words)


def northbound(policy: Policy) -> NorthboundPolicy:
    """Rules must be of one family each, as Neutron's are."""
    guarded = [port for port in policy.ports if port.has_port_security]
    groups = [
        AclHolder(
            group_name(group.id),
            tuple(sorted(port.id for port in guarded if group.id in port.groups)),
            tuple(
                AclRow(
                    id=f"row of {rule.id}",
                    name="",
                    way=_WAYS[rule.way][0],
                    priority=1002,
                    match=match_of(rule, group.id),
                    action="allow-related" if group.is_stateful else "allow-stateless",
                    rule=rule.id,
                )
                for rule in group.rules
            ),
        )
        for group in policy.groups
    ]
    drops = tuple(
        AclRow(f"drop {way}", "", way, 1001, f"{field} == @{DROP_GROUP} && ip", "drop")
        for way, field, _ in _WAYS.values()
    )
    groups.append(AclHolder(DROP_GROUP, tuple(sorted(port.id for port in guarded)), drops))
    sets = [
        AddressSetRow(
            f"ag_{group.id.replace('-', '_')}_ip{family}", tuple(str(p) for p in group.prefixes if p.version == family)
        )
        for group in policy.address_groups
        for family in (4, 6)
    ]
    networks = sorted({port.network for port in policy.ports})
    switches = [
        AclHolder(f"neutron-{n}", tuple(p.id for p in policy.ports if p.network == n), label=n) for n in networks
    ]
    return NorthboundPolicy(tuple(switches), tuple(groups), tuple(sets), tuple(map(_port, policy.ports)))


def _port(port):
    own = " ".join([port.mac, *map(str, port.ips)])
    mine = [str(pair.prefix).removesuffix("/32").removesuffix("/128") for pair in port.allowed_pairs if not pair.mac]
    others = [pair for pair in port.allowed_pairs if pair.mac]
    security = (" ".join([own, *mine]), *(f"{pair.mac} {pair.prefix}" for pair in others))
    return LogicalPortRow(
        name=port.id,
        label=port.name,
        addresses=(own, *(pair.mac for pair in others)) if port.has_port_security else (own, "unknown"),
        port_security=security if port.has_port_security else (),
    )
