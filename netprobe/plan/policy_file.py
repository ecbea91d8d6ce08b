"""A policy as a user writes it: TOML. Pure. docs/policy.md describes the file.

`parse_policy` reads a whole file, `read_policy` one that is loaded already and has other keys beside the policy's (the
labs' files); plan.policy_bind finds its guests among those that are attached somewhere.
"""

import tomllib
from collections.abc import Collection

from netprobe.errors import UsageError
from netprobe.model.policy import (
    ACL_PRIORITY_MAX,
    AclMatch,
    Action,
    AddressGroup,
    AddressPair,
    Group,
    GroupRule,
    IPNetwork,
    NetworkAcl,
    Policy,
    PolicyPort,
    Way,
)
from netprobe.plan.fields import Fields
from netprobe.plan.policy_checks import acl_matches, check_policy, checked_rule
from netprobe.plan.policy_values import (
    ICMP_MAX,
    read_address,
    read_mac,
    read_ports,
    read_prefix,
    read_protocol,
)

POLICY_SCHEMA = 1
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "both": (4, 6)}
LAB_GUEST_KEYS = ("host", "floating", "agent", "machine")
LAB_TOP_KEYS = ("bypass",)
"""Where a lab puts its guests: its file is a policy's too, and these keys say nothing of that."""


def parse_policy(text: str, where: str) -> Policy:
    """The text of a policy file.

    Args:
        text: TOML.
        where: the file's name, for errors.

    Raises:
        UsageError: not TOML, an unknown key, a value out of bounds, fields that contradict each other, a reference to
            nothing, two guests with one address, or no guest.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number too long, tables too deep
        raise UsageError(where, f"is no TOML: {error}", advice="see docs/policy.md") from error
    policy = read_policy(document, where, guest_keys=LAB_GUEST_KEYS, top_keys=LAB_TOP_KEYS)
    if not policy.ports:
        raise UsageError(where, "names no guest", advice="add a [[guest]] with a name and its groups")
    return policy


def read_policy(
    document: dict[str, object], where: str, *, guest_keys: Collection[str] = (), top_keys: Collection[str] = ()
) -> Policy:
    """The policy in a TOML document.

    Args:
        document: as tomllib gives it.
        where: the file's name, for errors.
        guest_keys: keys of guests that somebody else reads.
        top_keys: keys of the document that somebody else reads.

    Raises:
        UsageError: as `parse_policy`; no guest is fine.
    """
    top = Fields(document, where)
    top.accept(top_keys)
    top.integer("schema", POLICY_SCHEMA, POLICY_SCHEMA, POLICY_SCHEMA)
    groups = tuple(_group(table, place) for place, table in top.tables("group"))
    address_groups = tuple(_address_group(table, place) for place, table in top.tables("address_group"))
    ports = tuple(_guest(table, place, guest_keys) for place, table in top.tables("guest"))
    names = tuple(port.name for port in ports)
    acls = tuple(_acl(table, place, names) for place, table in top.tables("acl"))
    top.finish()
    return check_policy(Policy(groups, ports, address_groups, acls), where)


def _group(table: dict[str, object], where: str) -> Group:
    fields = Fields(table, where)
    name = fields.text("name")
    is_stateful = fields.boolean("stateful", default=True)
    rules = tuple(_rule(rule, place, f"{name}[{i}]") for i, (place, rule) in enumerate(fields.tables("rule")))
    fields.finish()
    return Group(name, rules, is_stateful=is_stateful)


def _rule(table: dict[str, object], where: str, default_id: str) -> GroupRule:
    fields = Fields(table, where)
    rule = GroupRule(
        id=fields.text("id", default_id),
        way=_way(fields, where),
        families=_families(fields, where),
        protocol=_protocol(fields, where),
        ports=_ports(fields, "port", where),
        icmp_type=fields.optional_integer("icmp_type", 0, ICMP_MAX),
        icmp_code=fields.optional_integer("icmp_code", 0, ICMP_MAX),
        remote_prefix=read_prefix(fields.any("remote_prefix"), f"{where}.remote_prefix")
        if fields.has("remote_prefix")
        else None,
        remote_group=fields.text("remote_group", ""),
        remote_address_group=fields.text("remote_address_group", ""),
    )
    fields.finish()
    return checked_rule(rule, where)


def _way(fields: Fields, where: str) -> Way:
    fields.text("direction")
    way = fields.choice("direction", Way, None)
    assert way is not None, where
    return way


def _families(fields: Fields, where: str) -> tuple[int, ...]:
    name = fields.text("ethertype", "both").lower()
    if name not in FAMILIES:
        raise UsageError(f"{where}.ethertype", f"got {name!r}", allowed=", ".join(FAMILIES))
    return FAMILIES[name]


def _protocol(fields: Fields, where: str) -> int | None:
    return read_protocol(fields.any("protocol"), f"{where}.protocol") if fields.has("protocol") else None


def _ports(fields: Fields, key: str, where: str) -> tuple[int, int] | None:
    return read_ports(fields.any(key), f"{where}.{key}") if fields.has(key) else None


def _address_group(table: dict[str, object], where: str) -> AddressGroup:
    fields = Fields(table, where)
    name = fields.text("name")
    prefixes = fields.texts("prefixes", may_be_empty=True)
    fields.finish()
    return AddressGroup(name, tuple(dict.fromkeys(read_prefix(p, f"{where}.prefixes") for p in prefixes)))


def _acl(table: dict[str, object], where: str, guests: tuple[str, ...]) -> NetworkAcl:
    fields = Fields(table, where)
    name, way = fields.text("name"), _way(fields, where)
    priority = fields.integer("priority", None, 0, ACL_PRIORITY_MAX)
    fields.text("action")
    action = fields.choice("action", Action, Action.DROP)
    network, ports = fields.text("network", ""), fields.texts("ports")
    if network and ports:
        raise UsageError(where, "has network and ports", allowed="one of them, or none for all guests")
    match = AclMatch(
        families=_families(fields, where),
        protocol=_protocol(fields, where),
        sources=_prefixes(fields, "source", where),
        destinations=_prefixes(fields, "destination", where),
        src_ports=_ports(fields, "source_port", where),
        dst_ports=_ports(fields, "port", where),
        icmp_type=fields.optional_integer("icmp_type", 0, ICMP_MAX),
        icmp_code=fields.optional_integer("icmp_code", 0, ICMP_MAX),
    )
    fields.finish()
    where_it_is = ports if network or ports else guests
    return NetworkAcl(name, way, priority, action, acl_matches(match, where), network, where_it_is)


def _prefixes(fields: Fields, key: str, where: str) -> tuple[IPNetwork, ...]:
    """One prefix or an array of them."""
    value = fields.any(key)
    texts = fields.texts(key) if isinstance(value, list) else () if value is None else (value,)
    return tuple(dict.fromkeys(read_prefix(text, f"{where}.{key}") for text in texts))


def _guest(table: dict[str, object], where: str, others_keys: Collection[str]) -> PolicyPort:
    fields = Fields(table, where)
    fields.accept(others_keys)
    port = PolicyPort(
        name=fields.text("name"),
        network=fields.text("network", ""),
        mac=read_mac(fields.any("mac"), f"{where}.mac") if fields.has("mac") else "",
        ips=tuple(dict.fromkeys(read_address(ip, f"{where}.ips") for ip in fields.texts("ips", may_be_empty=True))),
        groups=tuple(dict.fromkeys(fields.texts("groups", may_be_empty=True))),
        has_port_security=fields.boolean("port_security", default=True),
        allowed_pairs=tuple(_pair(pair, place) for place, pair in fields.tables("allowed_address_pairs")),
    )
    fields.finish()
    return port


def _pair(table: dict[str, object], where: str) -> AddressPair:
    fields = Fields(table, where)
    if fields.has("prefix") == fields.has("ip"):
        raise UsageError(where, "has prefix and ip" if fields.has("ip") else "has no address", allowed="prefix or ip")
    key = "ip" if fields.has("ip") else "prefix"
    prefix = read_prefix(fields.any(key), f"{where}.{key}")
    if key == "ip" and prefix.num_addresses > 1:
        raise UsageError(f"{where}.ip", f"got {str(prefix)!r}", allowed="one address, or use prefix")
    mac = read_mac(fields.any("mac"), f"{where}.mac") if fields.has("mac") else ""
    fields.finish()
    return AddressPair(prefix, mac)
