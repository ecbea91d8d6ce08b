"""Random policies and packets, from a seed: small, so that rules overlap and boundaries touch."""

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from netprobe.model.conntrack_rules import ANSWERS
from netprobe.model.packets import ACK, SYN, Packet
from netprobe.model.policy import (
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    WITH_PORTS,
    AclMatch,
    Action,
    AddressGroup,
    AddressPair,
    Group,
    GroupRule,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)

PORTS = (1, 22, 53, 79, 80, 81, 443, 1000, 1001, 1023, 1024, 5000, 5007, 8080, 60000, 65535)
PREFIXES_4 = ("0.0.0.0/0", "10.0.0.0/24", "10.0.0.0/29", "10.0.0.8/30", "10.0.0.3/32", "10.0.1.0/24", "10.0.0.0/8")
PREFIXES_6 = ("::/0", "fd00::/64", "fd00::/125", "fd00::8/126", "fd00::3/128", "fd00:1::/64")


def prefixes(family):
    return PREFIXES_4 if family == 4 else PREFIXES_6


def mac(number):
    return f"02:00:00:00:00:{number:02x}"


def random_ports(rng):
    first, last = sorted(rng.choices(PORTS, k=2))
    return (first, first) if rng.random() < 0.5 else (first, last)


def random_rule(rng, id_, groups, address_groups):
    families = rng.choice(((4,), (6,), (4, 6)))
    protocol = rng.choice((None, TCP, TCP, TCP, UDP, UDP, ICMP, SCTP, 47))
    icmp_type = icmp_code = ports = None
    if protocol == ICMP and rng.random() < 0.6:
        icmp_type = rng.choice((0, 3, 8, 8, 8, 13, 128, 128))
        icmp_code = rng.choice((None, 0, 0, 1))
    if protocol in WITH_PORTS and rng.random() < 0.9:
        ports = random_ports(rng)
    rule = GroupRule(id_, rng.choice(tuple(Way)), families, protocol, ports, icmp_type, icmp_code)
    kind = rng.random()
    if kind < 0.3:
        return replace(rule, remote_group=rng.choice(groups))
    if kind < 0.4 and address_groups:
        return replace(rule, remote_address_group=rng.choice(address_groups))
    if kind < 0.7:
        family = rng.choice(families)
        return replace(rule, families=(family,), remote_prefix=ip_network(rng.choice(prefixes(family))))
    return rule


def random_match(rng):
    family = rng.choice((4, 6))
    families = rng.choice(((4, 6), (family,)))
    protocol = rng.choice((None, TCP, TCP, UDP, ICMP))
    sources = destinations = ()
    if len(families) == 1:
        sources = tuple(map(ip_network, rng.sample(prefixes(family), rng.choice((0, 0, 1, 2)))))
        destinations = tuple(map(ip_network, rng.sample(prefixes(family), rng.choice((0, 0, 0, 1)))))
    has_ports = protocol in WITH_PORTS
    return AclMatch(
        families,
        protocol,
        sources,
        destinations,
        src_ports=random_ports(rng) if has_ports and rng.random() < 0.2 else None,
        dst_ports=random_ports(rng) if has_ports and rng.random() < 0.7 else None,
        icmp_type=8 if protocol == ICMP and families == (4,) else None,
    )


def random_acl(rng, id_, ports):
    action = rng.choice(
        (Action.ALLOW, Action.ALLOW_RELATED, Action.DROP, Action.DROP, Action.REJECT, Action.ALLOW_STATELESS)
    )
    on = {"network": "net"} if rng.random() < 0.5 else {"ports": tuple(rng.sample(ports, rng.randint(1, 2)))}
    matches = tuple(random_match(rng) for _ in range(rng.choice((1, 1, 2))))
    return NetworkAcl(
        id_, rng.choice(tuple(Way)), rng.choice((900, 1001, 1002, 1100, 1200, 2000)), action, matches, **on
    )


def random_policy(rng: random.Random, *, ports=5, groups=3, rules=6, acls=2, stateless=0.15) -> Policy:
    """Guests g0.. in one network, of which some have no port security and some an allowed pair."""
    names = [f"g{n}" for n in range(ports)]
    ids = [f"sg{n}" for n in range(groups)]
    address_groups = (AddressGroup("ag", tuple(map(ip_network, ("10.0.0.1/32", "10.0.0.4/31", "fd00::2/128")))),)
    is_stateful = rng.random() >= stateless
    made = tuple(
        Group(
            id_,
            tuple(random_rule(rng, f"{id_}[{n}]", ids, ["ag"]) for n in range(rng.randint(1, rules))),
            "",
            is_stateful,
        )
        for id_ in ids
    )
    found = []
    for number, name in enumerate(names, 1):
        pairs = ()
        if rng.random() < 0.2:
            pairs = (AddressPair(ip_network(f"10.0.0.{64 + 8 * number}/29"), rng.choice(("", mac(100 + number)))),)
        found.append(
            PolicyPort(
                name,
                "net",
                mac(number),
                (IPv4Address(f"10.0.0.{number}"), IPv6Address(f"fd00::{number:x}")),
                tuple(rng.sample(ids, rng.choice((0, 1, 1, 2)))),
                has_port_security=rng.random() > 0.15,
                allowed_pairs=pairs,
            )
        )
    lists = tuple(random_acl(rng, f"acl{n}", names) for n in range(rng.randint(0, acls)))
    return Policy(made, tuple(found), address_groups, lists)


def _address(rng, policy, port, family):
    """One that a port has, or, without port security, one near an edge that is no other port's."""
    if port.has_port_security or rng.random() < 0.5:
        return port.ip(family)
    edges = [int(e) for p in map(ip_network, prefixes(family)) for e in (p.network_address, p.broadcast_address)]
    number = min(max(rng.choice(edges) + rng.choice((-1, 0, 0, 1)), 1), 2 ** (32 if family == 4 else 128) - 2)
    found = IPv4Address(number) if family == 4 else IPv6Address(number)
    return port.ip(family) if any(found in other.ips for other in policy.ports) else found


def random_packet(rng: random.Random, policy: Policy, src: str, dst: str) -> Packet:
    """A packet that opens a connection, near the boundaries above; both may use its addresses."""
    sender, receiver = policy.port(src), policy.port(dst)
    family = rng.choice((4, 6))
    source, destination = _address(rng, policy, sender, family), _address(rng, policy, receiver, family)
    protocol = rng.choice((TCP, TCP, UDP, UDP, ICMP, SCTP, 47, 50))
    packet = Packet(sender.mac, receiver.mac, source, destination, protocol)
    if protocol == ICMP:
        icmp_type = rng.choice((*ANSWERS[family], *ANSWERS[family], 0, 3, 9))
        return replace(
            packet, protocol=ICMP if family == 4 else ICMPV6, icmp_type=icmp_type, icmp_code=rng.choice((0, 0, 1, 2))
        )
    if protocol not in WITH_PORTS:
        return packet
    port = min(max(rng.choice(PORTS) + rng.choice((-1, 0, 0, 1)), 1), 65535)
    packet = replace(packet, src_port=rng.choice((None, None, None, rng.choice(PORTS))), dst_port=port)
    return replace(packet, tcp_flags=rng.choice((SYN, SYN, SYN, ACK))) if protocol == TCP else packet
