"""The lab's TOML: a policy (groups, rules, network ACLs, guests) and where its guests are, checked to the last key.

The policy is read by netprobe.plan.policy_file, as `netprobe verify` reads it, so that one file serves both; this file
reads the placement alone (host, network, floating, bypass). Pure apart from `load`. netprobe.lab.flows, acls and
iptables_rules turn the result into what the hypervisors enforce, netprobe.lab.topology into endpoints.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import cycle
from pathlib import Path

from netprobe.errors import UsageError, unknown_name
from netprobe.lab.shapes import CENTRAL, FABRIC, NIC, SHAPES, Shape
from netprobe.model.policy import Group, Policy, PolicyPort
from netprobe.plan.fields import Fields
from netprobe.plan.policy_file import read_policy

LABS = tuple(SHAPES)

GUESTS_MAX = 50
MACHINES_MAX = 8
"""Of virtual guests: each takes some 200 MB, and there is no KVM to run them."""

GUEST_NAME = re.compile(r"[a-z][a-z0-9]{0,10}")
"""Eleven characters leave room for `tap` in front (IFNAMSIZ is 16 with the final zero)."""
RESERVED_NAMES = (
    "hv1",
    "hv2",
    "byp",
    "byp1",
    "byp2",
    "bypass",
    "bypass1",
    "bypass2",
    FABRIC,
    CENTRAL,
    NIC,
    "relay",
    "template",
)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: its groups, and where it is.

    Attributes:
        network: name of the logical switch.
        floating: it has an address of its own on the provider network, through the router's NAT.
        has_agent: a guest agent runs in it; a virtual machine may have none.
        is_machine: it is a virtual machine.
    """

    name: str
    groups: tuple[str, ...]
    host: str
    network: str
    floating: bool = False
    has_agent: bool = True
    is_machine: bool = False


@dataclass(frozen=True, slots=True)
class Bypass:
    """A probe NIC outside any guest, on `host`, with network and groups of the guest `copy_of`."""

    host: str
    copy_of: str


@dataclass(frozen=True, slots=True)
class LabConfig:
    """Everything that a lab's TOML says, and the name of the lab that it is for.

    Attributes:
        policy: groups, rules, ACLs and guests; its ports know their networks and, until they are bound
            (netprobe.lab.topology), no addresses.
    """

    lab: str
    policy: Policy
    guests: tuple[Guest, ...]
    bypasses: tuple[Bypass, ...]

    @property
    def shape(self) -> Shape:
        """What is fixed about this lab."""
        return SHAPES[self.lab]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The security groups, in the file's order."""
        return self.policy.groups

    def group(self, name: str) -> Group:
        """A group by name; it is known to exist."""
        return self.policy.group(name)

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
    return _config(document, where, lab)


def _config(document: dict[str, object], where: str, lab: str) -> LabConfig:
    shape = SHAPES[lab]
    policy = read_policy(document, where, guest_keys=_placing_keys(shape), top_keys=("bypass",))
    _check_names(policy.ports, shape, where)
    tables = Fields(document, where).tables("guest")
    hosts = cycle(host.name for host in shape.hypervisors)
    guests = tuple(
        _guest(port, Fields(table, place), next(hosts), shape)
        for port, (place, table) in zip(policy.ports, tables, strict=True)
    )
    _check_networks(policy, shape, where)
    networks = {guest.name: guest.network for guest in guests}
    ports = tuple(replace(port, network=networks[port.name]) for port in policy.ports)
    return LabConfig(lab, replace(policy, ports=ports), guests, _bypasses(document, where, guests, shape))


def _placing_keys(shape: Shape) -> tuple[str, ...]:
    """Where there is nothing to choose, there is no key to choose it with."""
    choices = {"host": len(shape.hypervisors) > 1, "floating": shape.has_ovn, "agent": shape.is_virtual}
    choices["machine"] = shape.is_dpdk
    return tuple(key for key, has_choice in choices.items() if has_choice)


def _check_names(ports: tuple[PolicyPort, ...], shape: Shape, where: str) -> None:
    """Names of guests are names of namespaces and devices here."""
    most = MACHINES_MAX if shape.is_virtual else GUESTS_MAX
    if not 1 <= len(ports) <= most:
        raise UsageError(where, f"has {len(ports)} guests", allowed=f"1-{most}")
    for number, port in enumerate(ports):
        if not GUEST_NAME.fullmatch(port.name) or port.name in RESERVED_NAMES:
            raise UsageError(
                f"{where}: guest[{number}].name",
                f"is {port.name!r}",
                allowed=f"{GUEST_NAME.pattern}, and none of {', '.join(RESERVED_NAMES)}",
            )


def _check_networks(policy: Policy, shape: Shape, where: str) -> None:
    names = [network.name for network in shape.networks]
    for acl in policy.acls:
        if acl.network and acl.network not in names:
            raise _no_network(f"{where}: acl {acl.id}.network", acl.network, names)


def _no_network(where: str, name: str, names: list[str]) -> UsageError:
    if names == [""]:
        return UsageError(where, f"is {name!r}", advice="leave it out: this lab has one network, without a name")
    return unknown_name(where, name, names, kind="value")


def _guest(port: PolicyPort, fields: Fields, usual_host: str, shape: Shape) -> Guest:
    """Where a guest is. Without a word about it: on the first network, and hypervisors take turns."""
    where = f"guest {port.name}"
    networks = [each.name for each in shape.networks]
    network = port.network or networks[0]
    if network not in networks:
        raise _no_network(f"{where}.network", network, networks)
    floating = fields.boolean("floating", default=False)
    if floating and network == shape.provider:
        raise UsageError(
            f"{where}.floating", f"{port.name} is on {network} itself", allowed="guests on networks behind the router"
        )
    host = _choice(where, fields.text("host", usual_host), (each.name for each in shape.hypervisors))
    has_agent = fields.boolean("agent", default=True) if shape.is_virtual else True
    is_machine = fields.boolean("machine", default=True) if shape.is_dpdk else shape.is_virtual
    return Guest(port.name, port.groups, host, network, floating, has_agent, is_machine)


def _choice(where: str, host: str, names: Iterable[str]) -> str:
    allowed = list(names)
    if host not in allowed:
        raise unknown_name(f"{where}.host", host, allowed, kind="value")
    return host


def _bypasses(document: dict[str, object], where: str, guests: tuple[Guest, ...], shape: Shape) -> tuple[Bypass, ...]:
    """One probe NIC a hypervisor; by default a copy of the first guest there, or of the first of all."""
    first = {host.name: next((g for g in guests if g.host == host.name), guests[0]).name for host in shape.hypervisors}
    names = [guest.name for guest in guests]
    said: set[str] = set()
    for place, fields, is_for_all in _bypass_tables(document, where, shape):
        hosts = list(first) if is_for_all else [_choice(place, fields.text("host"), first)]
        if not said.isdisjoint(hosts):
            raise UsageError(where, f"has two bypass NICs on {hosts[0]!r}", advice="name each hypervisor once")
        said.update(hosts)
        for host in hosts:
            first[host] = fields.text("copy_of", first[host])
            if first[host] not in names:
                raise unknown_name(f"{place}.copy_of", first[host], names, kind="guest")
        fields.finish()
    return tuple(Bypass(host, copy_of) for host, copy_of in first.items())


def _bypass_tables(document: dict[str, object], where: str, shape: Shape) -> list[tuple[str, Fields, bool]]:
    """`[bypass]` means every hypervisor; where there are more than one, each may have a `[[bypass]]` of its own."""
    top = Fields(document, where)
    if isinstance(document.get("bypass"), dict) or len(shape.hypervisors) == 1:
        one = top.table("bypass")
        return [] if one is None else [(f"{where}: bypass", one, True)]
    return [(place, Fields(table, place), False) for place, table in top.tables("bypass")]
