"""Mutants of what is in OVN's northbound database: ACLs, port groups, address sets, port security. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from mutation.mutants import COMPILED, Mutant, adds_a_tenant

Words = tuple[str, ...]
AclKey = tuple[str, str, str, str]
"""Port group, direction, priority, match: what ovn-nbctl names an ACL by."""


@dataclass(frozen=True, slots=True)
class Northbound:
    """The part of the database that is a policy's, and flows that are taken away behind OVN's back.

    Attributes:
        acls: action and options (name, label) by key.
        groups: ports by port group.
        sets: addresses by address set.
        addresses, security: of logical switch ports, in the words of lsp-set-addresses and lsp-set-port-security.
        gone: flows that are deleted from switches: a host, the logical flow's match and the flow's text each.
    """

    acls: Mapping[AclKey, tuple[str, Words]]
    groups: Mapping[str, frozenset[str]]
    sets: Mapping[str, frozenset[str]]
    addresses: Mapping[str, Words]
    security: Mapping[str, Words]
    gone: tuple[tuple[str, str, str], ...] = field(default=())


def parse_commands(words: Sequence[str]) -> Northbound:
    """What a transaction of netprobe.lab.logical makes."""
    acls: dict[AclKey, tuple[str, Words]] = {}
    groups: dict[str, frozenset[str]] = {}
    sets: dict[str, frozenset[str]] = {}
    addresses: dict[str, Words] = {}
    security: dict[str, Words] = {}
    for command in _split(words):
        options = tuple(word for word in command if word.startswith("--"))
        name, *rest = [word for word in command if not word.startswith("--")]
        if name == "acl-add":
            *key, action = rest
            acls[tuple(key)] = (action, options)
        elif name == "pg-add":
            groups[rest[0]] = frozenset(rest[1:])
        elif name == "create":
            found = rest[2].partition("=")[2]
            sets[rest[1].partition("=")[2]] = frozenset(re.findall(r'"([^"]+)"', found))
        elif name == "lsp-set-addresses":
            addresses[rest[0]] = tuple(rest[1:])
        elif name == "lsp-set-port-security":
            security[rest[0]] = tuple(rest[1:])
    guests = {port for ports in groups.values() for port in ports} | set(security)
    kept = {port: words for port, words in addresses.items() if port in guests or "unknown" in words}
    return Northbound(acls, groups, sets, kept, {port: security.get(port, ()) for port in kept})


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in (*words, "--"):
        if word == "--":
            if command:
                yield command
            command = []
        else:
            command.append(word)


def changes(old: Northbound, new: Northbound) -> tuple[list[list[str]], list[list[str]]]:
    """The commands that make one of the other: ACLs that go, and everything else.

    Two transactions: in one, ovn-nbctl takes an ACL that it has just deleted for a duplicate of the one that comes.
    """
    made: list[list[str]] = []
    gone: list[list[str]] = []
    for name in sorted(new.sets.keys() | old.sets.keys()):
        made += _set_change(name, old.sets.get(name), new.sets.get(name))
    for name in sorted(new.groups.keys() - old.groups.keys()):
        made.append(["pg-add", name, *sorted(new.groups[name])])
    for name in sorted(new.groups.keys() & old.groups.keys()):
        if new.groups[name] != old.groups[name]:
            ports = sorted(new.groups[name])
            made.append(["pg-set-ports", name, *ports] if ports else ["clear", "Port_Group", name, "ports"])
    actions = {key: action for key, (action, _) in old.acls.items()}
    for key, action in actions.items():
        if key not in new.acls or new.acls[key][0] != action:
            gone.append(["acl-del", *key])
    for key, (action, options) in new.acls.items():
        if actions.get(key) != action:
            kept = [word for word in options if action == "allow-related" or not word.startswith("--label")]
            made.append([*kept, "acl-add", *key, action])
    made += [["pg-del", name] for name in sorted(old.groups.keys() - new.groups.keys())]
    for command, before, after in (
        ("lsp-set-addresses", old.addresses, new.addresses),
        ("lsp-set-port-security", old.security, new.security),
    ):
        made += [[command, port, *words] for port, words in after.items() if before.get(port) != words]
    return gone, made


def _set_change(name: str, old: frozenset[str] | None, new: frozenset[str] | None) -> list[list[str]]:
    if old == new:
        return []
    if new is None:
        return [["destroy", "Address_Set", name]]
    addresses = ",".join(f'"{prefix}"' for prefix in sorted(new)) or "[]"
    if old is None:
        return [["create", "Address_Set", f"name={name}", f"addresses={addresses}"]]
    return [["set", "Address_Set", name, f"addresses={addresses}"]]


def ovn_mutants(rows: Northbound, names: Mapping[str, str]) -> Iterator[Mutant]:
    """One row changed in one respect.

    Args:
        rows: the original.
        names: guests by their ports' ids.
    """
    for key, (action, options) in rows.acls.items():
        for what, kind, new_key, new_action in _acl_changes(key, action):
            if new_key != key and new_key in rows.acls:
                continue  # two changes in one: it takes another's place
            acls = {k: v for k, v in rows.acls.items() if k != key}
            if new_key is not None:
                acls[new_key] = (new_action, options)
            title = next((word.partition("=")[2] for word in options if word.startswith("--name")), key[3])
            yield Mutant(f"ACL {title}: {what}", COMPILED, kind, replace(rows, acls=acls))
    yield from _group_mutants(rows, names)
    yield from _security_mutants(rows, names)


def _acl_changes(key: AclKey, action: str) -> Iterator[tuple[str, str, AclKey | None, str]]:
    group, way, priority, match = key
    yield "deleted", "ACL deleted", None, ""
    other = "drop" if action != "drop" else "allow-related"
    yield f"{action} -> {other}", "ACL action", key, other
    if action == "allow-related":
        yield "allow-stateless", "ACL state", key, "allow-stateless"
    for new in _priorities(priority, match):
        yield f"priority {priority} -> {new}", "ACL priority", (group, way, new, match), action
    ways = {"to-lport": "from-lport", "from-lport": "to-lport"}
    ports = {"to-lport": ("outport", "inport"), "from-lport": ("inport", "outport")}[way]
    turned = match.replace(*ports, 1)
    yield f"{way} -> {ways[way]}", "ACL direction", (group, ways[way], priority, turned), action
    for what, kind, new in _match_changes(match):
        yield what, kind, (group, way, priority, new), action


def _priorities(priority: str, match: str) -> tuple[str, ...]:
    """Below the default deny, or above all others: only where something else stands in between."""
    if priority == "1001":
        return ("1100", "3000")
    found = re.search(r"(\d+) <= tcp\.dst <= (\d+)", match)
    is_cut = found is not None and int(found[1]) <= 1024 <= int(found[2])
    return ("900", "3000") if priority != "1002" or is_cut else ("900",)


def _match_changes(match: str) -> Iterator[tuple[str, str, str]]:
    found = re.search(r"(\d+) <= (\w+\.(?:dst|src)) <= (\d+)", match)
    if found:
        first, last = int(found[1]), int(found[3])
        for low, high in ((first - 1, last), (first, last + 1), (first + 1, last), (first, last - 1)):
            if 1 <= low <= high <= 65535:
                new = f"{low} <= {found[2]} <= {high}"
                yield new, "ACL port", match.replace(found[0], new)
    for found in re.finditer(r"((?:tcp|udp|sctp)\.(?:dst|src)) == (\d+)", match):
        port = int(found[2])
        for low, high in ((port - 1, port), (port, port + 1)):
            new = f"{low} <= {found[1]} <= {high}"
            yield new, "ACL port", match.replace(found[0], f"({new})")
    for old, new in (("tcp", "udp"), ("udp", "tcp"), ("sctp", "tcp")):
        if re.search(rf"\b{old}\b", match) and "||" not in match.partition(f"{old}")[0]:
            yield f"protocol {new}", "ACL protocol", re.sub(rf"\b{old}\b", new, match)
    found = re.search(r"ip\.proto == (\d+)", match)
    if found:
        new = f"ip.proto == {int(found[1]) + 1}"
        yield new, "ACL protocol", match.replace(found[0], new)
    found = re.search(r" && icmp[46]\.type == (\d+)", match)
    if found and found[1] != "128":  # no other type of ICMPv6 opens a connection
        yield "any type", "ACL icmp", match.replace(found[0], "")
    found = re.search(r"(ip[46]\.(?:src|dst)) == (\S+/\d+)", match)
    if found:
        prefix = ip_network(found[2])
        for new in (prefix.supernet(), list(prefix.subnets())[1]):
            yield str(new), "ACL prefix", match.replace(found[2], str(new))
        yield "any address", "ACL remote", match.replace(f" && {found[0]}", "")
    found = re.search(r" && \(ip4\.\w+ == \$\w+ \|\| ip6\.\w+ == \$\w+\)| && ip[46]\.\w+ == \$\w+", match)
    if found:
        yield "any address", "ACL remote", match.replace(found[0], "")


def _group_mutants(rows: Northbound, names: Mapping[str, str]) -> Iterator[Mutant]:
    guarded = rows.groups["pg_all"]
    for name, members in rows.groups.items():
        for port in sorted(members):
            state = replace(rows, groups={**rows.groups, name: members - {port}})
            yield Mutant(f"port group {name}: without {names[port]}", COMPILED, "port group", state)
        for port in sorted(guarded - members):
            state = replace(rows, groups={**rows.groups, name: members | {port}})
            yield Mutant(f"port group {name}: {names[port]} too", COMPILED, "port group", state)
    for name, prefixes in rows.sets.items():
        for text in sorted(prefixes):
            prefix = ip_network(text)
            rest = prefixes - {text}
            others = [("removed", rest), (f"-> {prefix.supernet()}", rest | {str(prefix.supernet())})]
            if prefix.prefixlen < prefix.max_prefixlen:
                half = str(list(prefix.subnets())[1])
                others.append((f"-> {half}", rest | {half}))
            for what, new in others:
                state = replace(rows, sets={**rows.sets, name: frozenset(new)})
                yield Mutant(f"address set {name}: {text} {what}", COMPILED, "address set", state)


def _security_mutants(rows: Northbound, names: Mapping[str, str]) -> Iterator[Mutant]:
    taken = {word for words in rows.security.values() for each in words for word in each.split()}
    taken |= {word for words in rows.addresses.values() for each in words for word in each.split()}
    for port, words in rows.security.items():
        if not words:
            continue
        others: list[tuple[str, Words]] = [("cleared", ())]
        mac, *addresses = words[0].split()
        for place, address in enumerate(addresses):
            prefix = ip_network(address)
            rest = [*addresses[:place], str(prefix.supernet()), *addresses[place + 1 :]]
            if not adds_a_tenant(prefix, taken):
                others.append((f"{address} -> {prefix.supernet()}", (" ".join([mac, *rest]), *words[1:])))
            if len(addresses) > 1:
                rest = [*addresses[:place], *addresses[place + 1 :]]
                others.append((f"without {address}", (" ".join([mac, *rest]), *words[1:])))
        for what, new in others:
            state = replace(rows, security={**rows.security, port: new})
            yield Mutant(f"port security of {names.get(port, port)}: {what}", COMPILED, "port security", state)
