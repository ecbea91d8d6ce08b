"""The lab's TOML: security groups and guests, checked to the last key.

Groups mean what they mean in Neutron: rules only allow, what no rule allows is dropped, both ways. Pure apart from
`load`; netprobe.lab.flows and netprobe.lab.acls turn the result into flows and ACLs, netprobe.lab.topology into points.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from netprobe.errors import UsageError, unknown_name
from netprobe.lab.shapes import CENTRAL, FABRIC, NIC, SHAPES, Shape

LABS = tuple(SHAPES)

DIRECTIONS = ("ingress", "egress")
ETHERTYPES = {"ipv4": (4,), "ipv6": (6,), "both": (4, 6)}
PROTOCOLS = ("any", "tcp", "udp", "icmp")
PORT_MAX = 65535
GUESTS_MAX = 50

GUEST_NAME = re.compile(r"[a-z][a-z0-9]{0,10}")
"""Eleven characters leave room for `tap` in front (IFNAMSIZ is 16 with the final zero)."""
RESERVED_NAMES = ("hv1", "hv2", "byp", "byp1", "byp2", "bypass", "bypass1", "bypass2", FABRIC, CENTRAL, NIC, "relay")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a security group. It allows; nothing else.

    Attributes:
        families: 4, 6 or both.
        ports: first and last destination port, None for all.
        remote_prefix: the other side's addresses, None for all.
        remote_group: the other side is a member of this group, empty for anyone.
    """

    direction: str
    families: tuple[int, ...]
    protocol: str = "any"
    ports: tuple[int, int] | None = None
    remote_prefix: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    remote_group: str = ""

    def text(self) -> str:
        """The rule for people: `ingress tcp dport 80 from any`."""
        words = [self.direction]
        if len(self.families) == 1:
            words.append(f"ipv{self.families[0]}")
        words.append("any protocol" if self.protocol == "any" else self.protocol)
        if self.ports:
            first, last = self.ports
            words.append(f"dport {first}" if first == last else f"dport {first}-{last}")
        remote = f"group {self.remote_group}" if self.remote_group else str(self.remote_prefix or "any")
        return f"{' '.join(words)} {'from' if self.direction == 'ingress' else 'to'} {remote}"


@dataclass(frozen=True, slots=True)
class Group:
    """A security group."""

    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: its groups, and where it is.

    Attributes:
        network: name of the logical switch.
        floating: it has an address of its own on the provider network, through the router's NAT.
    """

    name: str
    groups: tuple[str, ...]
    host: str
    network: str
    floating: bool = False


@dataclass(frozen=True, slots=True)
class Bypass:
    """A probe NIC outside any guest, on `host`, with network and groups of the guest `copy_of`."""

    host: str
    copy_of: str


@dataclass(frozen=True, slots=True)
class LabConfig:
    """Everything that a lab's TOML says, and the name of the lab that it is for."""

    lab: str
    groups: tuple[Group, ...]
    guests: tuple[Guest, ...]
    bypasses: tuple[Bypass, ...]

    @property
    def shape(self) -> Shape:
        """What is fixed about this lab."""
        return SHAPES[self.lab]

    def group(self, name: str) -> Group:
        """A group by name; it is known to exist."""
        return next(group for group in self.groups if group.name == name)

    def guest(self, name: str) -> Guest:
        """A guest by name; it is known to exist."""
        return next(guest for guest in self.guests if guest.name == name)


def load(name: str, path: Path | None = None) -> LabConfig:
    """The configuration of a lab.

    Args:
        name: the lab, one of LABS.
        path: a file to use instead of the one that ships with the lab.

    Raises:
        UsageError: an unknown lab, an unreadable file, or anything in it that is not as documented (docs/lab.md).
    """
    if name not in LABS:
        raise unknown_name("lab", name, LABS, kind="lab")
    if path is None:
        return parse(files("netprobe.lab").joinpath(f"{name}.toml").read_text(), where=f"{name}.toml", lab=name)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(str(path), f"cannot be read: {error}") from error
    return parse(text, where=str(path), lab=name)


def parse(text: str, *, where: str, lab: str = "single") -> LabConfig:
    """Check a lab's TOML.

    Args:
        text: the document.
        where: its name, for messages.
        lab: the lab that it is for, one of LABS.

    Raises:
        UsageError: something is not as documented (docs/lab.md).
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(where, f"is not TOML: {error}") from error
    top = _Table(document, where, ("group", "guest", "bypass"))
    groups = tuple(_group(table) for table in top.tables("group", ("name", "rule")))
    names = _distinct([group.name for group in groups], where, "group")
    shape = SHAPES[lab]
    guests = tuple(_guest(table, names, shape) for table in top.tables("guest", _guest_keys(shape)))
    _distinct([guest.name for guest in guests], where, "guest")
    if not 1 <= len(guests) <= GUESTS_MAX:
        raise UsageError(where, f"has {len(guests)} guests", allowed=f"1-{GUESTS_MAX}")
    for group in groups:
        for rule in group.rules:
            if rule.remote_group and rule.remote_group not in names:
                raise unknown_name(f"{where}: group {group.name}.remote_group", rule.remote_group, names, kind="group")
    return LabConfig(lab, groups, guests, _bypasses(top, guests, shape))


class _Table:
    """A TOML table whose keys are known; anything else is refused with the nearest known one."""

    def __init__(self, values: object, where: str, known: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(where, f"is {values!r}", allowed="a table")
        self.values: Mapping[str, object] = values
        self.where = where
        for key in values:
            if key not in known:
                raise unknown_name(where, key, known, kind="key")

    def table(self, key: str, known: tuple[str, ...]) -> "_Table":
        return _Table(self.values[key], f"{self.where}: {key}", known)

    def tables(self, key: str, known: tuple[str, ...]) -> list["_Table"]:
        entries = self.values.get(key, [])
        if not isinstance(entries, list):
            raise UsageError(f"{self.where}: {key}", "is not an array of tables", allowed=f"[[{key}]]")
        return [_Table(entry, f"{self.where}: {key}[{number}]", known) for number, entry in enumerate(entries)]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise UsageError(self.where, f"has no {key!r}", advice=f"give it a {key}")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{self.where}.{key}", f"is {value!r}", allowed="a string")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}.{key}", f"is {value!r}", allowed="true or false")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise unknown_name(f"{self.where}.{key}", value, allowed, kind="value")
        return value


def _distinct(names: list[str], where: str, what: str) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(where, f"has two {what}s named {name!r}", advice=f"name each {what} once")
    return names


def _group(table: _Table) -> Group:
    keys = ("direction", "ethertype", "protocol", "port", "remote_prefix", "remote_group")
    rules = tuple(_rule(entry) for entry in table.tables("rule", keys))
    return Group(table.text("name"), rules)


def _guest_keys(shape: Shape) -> tuple[str, ...]:
    """Where there is nothing to choose, there is no key to choose it with."""
    host = ("host",) if len(shape.hypervisors) > 1 else ()
    return ("name", "groups", *host, *(("network", "floating") if shape.has_ovn else ()))


def _guest(table: _Table, groups: list[str], shape: Shape) -> Guest:
    name = table.text("name")
    if not GUEST_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise UsageError(
            f"{table.where}.name",
            f"is {name!r}",
            allowed=f"{GUEST_NAME.pattern}, and none of {', '.join(RESERVED_NAMES)}",
        )
    members = table.values.get("groups", [])
    if not isinstance(members, list):
        raise UsageError(f"{table.where}.groups", f"is {members!r}", allowed="a list of group names")
    for group in members:
        if group not in groups:
            raise unknown_name(f"{table.where}.groups", str(group), groups, kind="group")
    network = _only(table, "network", [each.name for each in shape.networks])
    floating = table.flag("floating")
    if floating and network == shape.provider:
        raise UsageError(
            f"{table.where}.floating", f"{name} is on {network} itself", allowed="guests on networks behind the router"
        )
    host = _only(table, "host", [each.name for each in shape.hypervisors])
    return Guest(name, tuple(dict.fromkeys(members)), host, network, floating)


def _only(table: _Table, key: str, names: list[str]) -> str:
    """The one name that there is, or the one that the table chooses."""
    return names[0] if len(names) == 1 else table.choice(key, tuple(names))


def _bypasses(top: _Table, guests: tuple[Guest, ...], shape: Shape) -> tuple[Bypass, ...]:
    """One probe NIC a hypervisor; by default a copy of the first guest there, or of the first of all."""
    first = {host.name: next((g for g in guests if g.host == host.name), guests[0]).name for host in shape.hypervisors}
    if "bypass" in top.values:
        names = [guest.name for guest in guests]
        alone = len(shape.hypervisors) == 1
        tables = [top.table("bypass", ("copy_of",))] if alone else top.tables("bypass", ("host", "copy_of"))
        for table in tables:
            host = _only(table, "host", list(first))
            copy_of = table.text("copy_of", first[host])
            if copy_of not in names:
                raise unknown_name(f"{table.where}.copy_of", copy_of, names, kind="guest")
            first[host] = copy_of
        _distinct([_only(table, "host", list(first)) for table in tables], top.where, "bypass NIC")
    return tuple(Bypass(host, copy_of) for host, copy_of in first.items())


def _rule(table: _Table) -> Rule:
    protocol = table.choice("protocol", PROTOCOLS, "any")
    families = ETHERTYPES[table.choice("ethertype", tuple(ETHERTYPES), "both")]
    ports = _ports(table)
    if ports and protocol not in ("tcp", "udp"):
        raise UsageError(f"{table.where}.port", f"goes with protocol {protocol!r}", allowed="protocol tcp or udp")
    group = table.text("remote_group") if "remote_group" in table.values else ""
    prefix = None
    if "remote_prefix" in table.values:
        if group:
            raise UsageError(table.where, "has both remote_prefix and remote_group", allowed="one of them")
        prefix = _prefix(table)
        families = tuple(family for family in families if family == prefix.version)
        if not families:
            raise UsageError(f"{table.where}.remote_prefix", f"{prefix} is not of the rule's ethertype")
    return Rule(table.choice("direction", DIRECTIONS), families, protocol, ports, prefix, group)


def _ports(table: _Table) -> tuple[int, int] | None:
    if "port" not in table.values:
        return None
    value = table.values["port"]
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text) if isinstance(text, str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= PORT_MAX:
        raise UsageError(
            f"{table.where}.port", f"is {value!r}", allowed=f'0-{PORT_MAX}, or a range such as "5000-5009"'
        )
    return first, last


def _prefix(table: _Table) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    text = table.text("remote_prefix")
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"{table.where}.remote_prefix", f"{error}", allowed="a prefix such as 10.0.0.0/24") from error
