"""A policy as Neutron's API has it, from what `openstack … -f json` prints. Pure. docs/policy.md has the commands.

Each file holds one JSON document or several one after another: what `list` prints (titles: "IP Protocol"), what `show`
prints (snake case: "ether_type"), or the API's own answer (`{"security_groups": […]}`). Columns were renamed over the
years: plan.neutron_rows knows the names.
"""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network

from netprobe.errors import UsageError, unknown_name
from netprobe.model.policy import (
    ICMP,
    ICMPV6,
    AddressGroup,
    AddressPair,
    Group,
    GroupRule,
    IPNetwork,
    Policy,
    PolicyPort,
    Way,
)
from netprobe.plan.neutron_rows import NeutronRow, merged, rows_of
from netprobe.plan.policy_checks import check_policy, checked_rule
from netprobe.plan.policy_values import ICMP_MAX, PORT_MAX, read_address, read_mac, read_ports, read_protocol

GROUPS, RULES, PORTS = "security-groups.json", "security-group-rules.json", "ports.json"
ADDRESS_GROUPS, NETWORKS = "address-groups.json", "networks.json"

COMMANDS = {
    GROUPS: "openstack security group list -f value -c ID | xargs -n1 openstack security group show -f json",
    RULES: "openstack security group rule list --long -f json",
    PORTS: "openstack port list -f value -c ID | xargs -n1 openstack port show -f json",
    ADDRESS_GROUPS: "openstack address group list -f json",
    NETWORKS: "openstack network list -f json",
}
"""What makes each file. RULES is not needed where GROUPS has the rules, the last two where nothing refers to them."""

_MORE_PROTOCOLS = {"hopopt": 0, "ipv6-encap": 41, "ipv6-route": 43, "ipv6-frag": 44, "ipv6-nonxt": 59, "ipv6-opts": 60}
"""Neutron's names for what is no protocol of its own in a user's policy."""

_FAMILIES = {"ipv4": 4, "ipv6": 6}
_CLOUDS_OWN = "network:"
"""Prefix of the owners of ports that are no guests': routers, DHCP. Neutron trusts them."""


def parse_neutron(files: Mapping[str, str], where: str) -> Policy:
    """A policy from an export of Neutron's API.

    Args:
        files: text by name, the keys of COMMANDS.
        where: the folder, for messages.

    Raises:
        UsageError: a file or a column is missing, is of a version that is not known, or contradicts itself; a
            reference to a group that was not exported.
    """
    for name in files:
        if name not in COMMANDS:
            raise unknown_name(where, name, COMMANDS, kind="file")
    for name in (GROUPS, PORTS):
        if name not in files:
            raise UsageError(where, f"has no {name}", advice=f"make it: {COMMANDS[name]} > {name}")
    rows = {name: rows_of(files[name], f"{where}/{name}", COMMANDS[name]) for name in files}
    remarks: list[str] = []
    groups = _groups(rows[GROUPS], rows.get(RULES), f"{where}/{GROUPS}", remarks)
    networks = _Networks(rows.get(NETWORKS, []))
    ports = _ports(rows[PORTS], networks, remarks)
    address_groups = tuple(_address_group(row) for row in merged(rows.get(ADDRESS_GROUPS, [])))
    _check_exported(groups, ports, address_groups, where)
    return check_policy(Policy(groups, ports, address_groups, remarks=tuple(remarks)), where)


def _groups(
    rows: list[NeutronRow], rule_rows: list[NeutronRow] | None, where: str, remarks: list[str]
) -> tuple[Group, ...]:
    rows = merged(rows)
    inner = [row.rows("rules") for row in rows]
    if rule_rows is None:
        if rows and not any(row.has("rules") for row in rows):
            make = f"{COMMANDS[RULES]} > {RULES}"
            raise UsageError(where, f"has no rules, and there is no {RULES}", advice=f"make it: {make}")
        rule_rows = []
    by_group: dict[str, dict[str, GroupRule]] = {row.id: {} for row in rows}
    for row, own in zip(rows, inner, strict=True):
        by_group[row.id].update({rule.id: _rule(rule) for rule in own})
    for rule in rule_rows:
        group = rule.text("security_group_id")
        if group not in by_group:
            raise _not_exported(f"{rule.where}.security_group_id", "group", group, GROUPS)
        by_group[group].setdefault(rule.id, _rule(rule))  # what a list prints of ICMP types may be less than all
    unknown = [row.title for row in rows if not row.has("stateful")]
    if unknown:
        remarks.append(f"{GROUPS} does not say whether {_some(unknown)} are stateful: taken for stateful")
    return tuple(
        Group(row.id, tuple(by_group[row.id].values()), row.name, row.boolean("stateful", default=True)) for row in rows
    )


def _rule(row: NeutronRow) -> GroupRule:
    direction = row.text("direction").lower()
    if direction not in {way.value for way in Way}:
        raise row.wrong("direction", direction, "ingress, egress")
    family = _FAMILIES.get(row.text("ethertype").lower())
    if family is None:
        raise row.wrong("ethertype", row.text("ethertype"), "IPv4, IPv6")
    protocol = _protocol(row)
    remote_group = row.optional_text("remote_group_id")
    remote_address_group = row.optional_text("remote_address_group_id")
    rule = GroupRule(
        id=row.id,
        way=Way(direction),
        families=(family,),
        protocol=protocol,
        remote_prefix=_remote_prefix(row, is_repeated=bool(remote_group or remote_address_group)),
        remote_group=remote_group,
        remote_address_group=remote_address_group,
    )
    low, high = _port_range(row, is_icmp=protocol in (ICMP, ICMPV6))
    if protocol in (ICMP, ICMPV6):
        rule = replace(rule, icmp_type=low, icmp_code=high)
    elif low is not None or high is not None:
        first, last = (high if low is None else low), (low if high is None else high)
        rule = replace(rule, ports=read_ports(f"{first}-{last}", f"{row.where}.port_range"))
    return checked_rule(rule, row.where)


def _protocol(row: NeutronRow) -> int | None:
    value = row.value("protocol")
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.lower() in _MORE_PROTOCOLS:
        return _MORE_PROTOCOLS[value.lower()]
    return read_protocol(value, f"{row.where}.protocol")


def _remote_prefix(row: NeutronRow, *, is_repeated: bool) -> IPNetwork | None:
    """None for all: clients since 5.0 print 0.0.0.0/0 and ::/0 for it, beside a remote group too."""
    text = row.optional_text("remote_ip_prefix")
    if not text:
        return None
    try:
        prefix = ip_network(text, strict=False)  # Neutron takes 10.0.0.1/24, and means 10.0.0.0/24
    except ValueError:
        raise row.wrong("remote_ip_prefix", text, "a prefix such as 10.0.0.0/24") from None
    if "%" in text:
        raise row.wrong("remote_ip_prefix", text, "a prefix such as 10.0.0.0/24")
    is_of_family = prefix.version == _FAMILIES.get(row.text("ethertype").lower())
    return None if prefix.prefixlen == 0 and (is_of_family or is_repeated) else prefix


def _port_range(row: NeutronRow, *, is_icmp: bool) -> tuple[int | None, int | None]:
    """Lowest and highest port, or ICMP type and code, from two numbers or from `type=3:code=0`, `80:90`."""
    if not row.has("port_range"):
        bound = ICMP_MAX if is_icmp else PORT_MAX
        return row.optional_integer("port_range_min", bound), row.optional_integer("port_range_max", bound)
    text = row.optional_text("port_range")
    words = dict(word.partition("=")[::2] for word in text.split(":")) if "=" in text else {}
    if not words:
        low, _, high = text.partition(":")
        words = {"type": low, "code": high or low} if text else {}
    numbers = [_number(row, words.pop(key, ""), text) for key in ("type", "code")]
    if words or (is_icmp and text and "type=" not in text):
        raise row.wrong("port_range", text, "80:80, 22:24, type=3 or type=3:code=0")
    return numbers[0], numbers[1]


def _number(row: NeutronRow, word: str, text: str) -> int | None:
    if not word:
        return None
    if not (word.isascii() and word.isdigit() and len(word) <= 5 and int(word) <= PORT_MAX):
        raise row.wrong("port_range", text, "80:80, 22:24, type=3 or type=3:code=0")
    return int(word)


class _Networks:
    """Names of networks, and which subnet is on which."""

    def __init__(self, rows: list[NeutronRow]) -> None:
        rows = merged(rows)
        names = [row.name for row in rows]
        self._names = {row.id: row.name if names.count(row.name) == 1 and row.name else row.id for row in rows}
        self._of_subnet = {subnet: row.id for row in rows for subnet in row.texts("subnets")}

    def of_port(self, row: NeutronRow) -> str:
        """A name, else a UUID: the network's, or that of a subnet which stands for it; "" where nothing is said."""
        network = row.optional_text("network_id")
        if not network:
            subnets = sorted(ip.optional_text("subnet_id") for ip in _fixed_ips(row))
            network = next((self._of_subnet[s] for s in subnets if s in self._of_subnet), subnets[0] if subnets else "")
        return self._names.get(network, network)


def _fixed_ips(row: NeutronRow) -> list[NeutronRow]:
    return row.rows("fixed_ips")


def _ports(rows: list[NeutronRow], networks: _Networks, remarks: list[str]) -> tuple[PolicyPort, ...]:
    rows = [row for row in merged(rows) if not row.optional_text("device_owner").startswith(_CLOUDS_OWN)]
    titles = [row.name for row in rows]
    names = {row.id: row.name if row.name and titles.count(row.name) == 1 else row.id for row in rows}
    ports = tuple(_port(row, names[row.id], networks) for row in rows)
    for key, what in (
        ("port_security_enabled", "whether port security is on: taken for on"),
        ("allowed_address_pairs", "allowed address pairs: taken for none"),
    ):
        unknown = [names[row.id] for row in rows if not row.has(key)]
        if unknown:
            remarks.append(f"{PORTS} does not say of {_some(unknown)} {what}; `openstack port show` does")
    down = [names[row.id] for row in rows if not row.boolean("admin_state_up", default=True)]
    if down:
        remarks.append(f"{_some(down)} switched off (admin_state_up): nothing passes there, whatever the policy says")
    return ports


def _port(row: NeutronRow, name: str, networks: _Networks) -> PolicyPort:
    ips = tuple(read_address(ip.value("ip_address"), f"{ip.where}.ip_address") for ip in _fixed_ips(row))
    mac = read_mac(row.text("mac_address"), f"{row.where}.mac_address")
    return PolicyPort(
        name=name,
        network=networks.of_port(row),
        mac=mac,
        ips=tuple(dict.fromkeys(ips)),
        groups=tuple(dict.fromkeys(row.texts("security_groups", must_exist=True))),
        has_port_security=row.boolean("port_security_enabled", default=True),
        allowed_pairs=tuple(_pair(pair, mac) for pair in row.rows("allowed_address_pairs")),
        id=row.id,
    )


def _pair(row: NeutronRow, own_mac: str) -> AddressPair:
    text = row.text("ip_address")
    try:
        prefix = ip_network(text, strict=False)
    except ValueError:
        raise row.wrong("ip_address", text, "an address or a prefix") from None
    mac = row.optional_text("mac_address")
    mac = read_mac(mac, f"{row.where}.mac_address") if mac else ""
    return AddressPair(prefix, "" if mac == own_mac else mac)


def _address_group(row: NeutronRow) -> AddressGroup:
    prefixes = []
    for text in row.texts("addresses", must_exist=True):
        try:
            prefixes.append(ip_network(text, strict=False))
        except ValueError:
            raise row.wrong("addresses", text, "addresses and prefixes") from None
    return AddressGroup(row.id, tuple(dict.fromkeys(prefixes)), row.name)


def _check_exported(
    groups: tuple[Group, ...], ports: tuple[PolicyPort, ...], address_groups: tuple[AddressGroup, ...], where: str
) -> None:
    """A reference to nothing in an export is most often an export of one project only."""
    ids, address_ids = {group.id for group in groups}, {group.id for group in address_groups}
    for port in ports:
        for group in port.groups:
            if group not in ids:
                raise _not_exported(f"{where}/{PORTS}: port {port.name}", "security group", group, GROUPS)
    for rule in (rule for group in groups for rule in group.rules):
        if rule.remote_group and rule.remote_group not in ids:
            raise _not_exported(f"{where}: rule {rule.id}", "remote group", rule.remote_group, GROUPS)
        if rule.remote_address_group and rule.remote_address_group not in address_ids:
            raise _not_exported(f"{where}: rule {rule.id}", "address group", rule.remote_address_group, ADDRESS_GROUPS)


def _not_exported(where: str, kind: str, name: str, file: str) -> UsageError:
    make = f"{COMMANDS[file]} > {file}"
    return UsageError(where, f"its {kind} {name!r} is not in {file}", advice=f"export it as an administrator: {make}")


def _some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
