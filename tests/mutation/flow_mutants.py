"""Mutants of compiled OpenFlow flows, as text. Pure.

They say where the guards are: tables that only forward are not a policy's, and whoever breaks them breaks everything.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from mutation.mutants import COMPILED, Mutant, adds_a_tenant

_DROPS = ("drop", "resubmit(,93)")
_PROTOCOLS = {"tcp": "udp", "udp": "tcp", "tcp6": "udp6", "udp6": "tcp6", "sctp": "tcp", "sctp6": "tcp6"}
_STATES = {"+est-rel-rpl": "-est-rel-rpl", "+new-est": "-new-est", "+inv+trk": "-inv+trk", "-est": "+est"}
_PREFIXES = ("nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "arp_spa", "nd_target")
_SENDERS = ("dl_src", "arp_sha", "nd_sll", "nd_tll")


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow's parts.

    Attributes:
        words: its match, a word each, in order.
    """

    cookie: str
    table: int
    priority: int
    words: tuple[str, ...]
    actions: str

    def text(self) -> str:
        """As ovs-ofctl reads it."""
        match = "".join(f",{word}" for word in self.words)
        return f"cookie={self.cookie},table={self.table},priority={self.priority}{match},actions={self.actions}"

    def word(self, name: str) -> str:
        """The value of a field, "" where it is not matched."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), "")

    def with_word(self, old: str, new: str) -> "Flow":
        """With one word exchanged; "" takes it away."""
        words = (new if word == old else word for word in self.words)
        return replace(self, words=tuple(word for word in words if word))


def parse_flow(text: str) -> Flow:
    """A flow as netprobe.lab writes it."""
    match, _, actions = text.partition(",actions=")
    cookie, table, priority, *words = match.split(",")
    numbers = (int(word.partition("=")[2]) for word in (table, priority))
    return Flow(cookie.partition("=")[2], *numbers, tuple(words), actions)


def flow_mutants(
    texts: Sequence[str],
    tables: Sequence[int],
    passes: dict[int, str],
    names: dict[str, str],
    own: dict[str, tuple[str, ...]],
) -> Iterator[Mutant]:
    """One flow changed in one respect; `state` is all flows.

    Args:
        texts: all flows.
        tables: those that guard.
        passes: by table: the actions that let a packet go on; `{port}` is the port's number.
        names: what cookies stand for.
        own: addresses by register 5.
    """
    flows = [parse_flow(text) for text in texts]
    regs = sorted({flow.word("reg5") for flow in flows if flow.table in tables} - {""})
    blocks, taken = _blocks(flows), {ip for ips in own.values() for ip in ips}
    for number, flow in enumerate(flows):
        if flow.table in tables and not _is_idle(flow, own):
            title = f"[{names.get(flow.cookie, '')}] table {flow.table} {','.join(flow.words)}"
            for what, kind, changed in _changes(flow, passes, regs):
                if changed is not None and (
                    _is_held(flow, changed, blocks) or _is_unreached(flow, changed) or _is_theirs(flow, changed, taken)
                ):
                    continue
                made = list(texts)
                made[number : number + 1] = [changed.text()] if changed is not None else []
                yield Mutant(f"{title}: {what}", COMPILED, kind, tuple(made))


def _is_idle(flow: Flow, own: dict[str, tuple[str, ...]]) -> bool:
    """Whether nothing that a guest sends can show it, so that all of its mutants are equivalent.

    Drops of established connections: none was admitted that would be dropped, unless its permit was revoked since,
    which is not what one policy is about. Rules about a port's own address as the other side: nobody speaks to itself.
    Discovery and listener reports that anti-spoofing drops: conntrack calls them invalid, so that the next table drops
    them too.
    """
    if flow.table == 71 and flow.actions in _DROPS and "icmp6" in flow.words:
        return True
    if flow.actions in _DROPS and "+est" in flow.word("ct_state"):
        return True
    if "ct_mark=0x1" in flow.words or flow.actions.endswith("exec(load:0x1->NXM_NX_CT_MARK[])),resubmit(,93)"):
        return True
    remote = {72: ("nw_dst", "ipv6_dst"), 82: ("nw_src", "ipv6_src")}.get(flow.table, ())
    return any(flow.word(name) in own.get(flow.word("reg5"), ()) for name in remote)


def _blocks(flows: Sequence[Flow]) -> dict[tuple[object, ...], list[tuple[int, int]]]:
    """Blocks of ports that flows match which are alike otherwise: first and last port."""
    found: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for flow in flows:
        if flow.word("tp_dst"):
            found.setdefault(_beside_port(flow), []).append(_span(flow))
    return found


def _beside_port(flow: Flow) -> tuple[object, ...]:
    words = tuple(word for word in flow.words if not word.startswith("tp_dst="))
    return flow.table, flow.priority, words, flow.actions


def _span(flow: Flow) -> tuple[int, int]:
    number, _, mask = flow.word("tp_dst").partition("/")
    first, bits = int(number, 0), int(mask, 0) if mask else 0xFFFF
    return first, first | ~bits & 0xFFFF


def _is_held(flow: Flow, changed: Flow, blocks: dict[tuple[object, ...], list[tuple[int, int]]]) -> bool:
    """Whether a wider block of ports only adds what other blocks of the same rule have: equivalent by construction."""
    if not changed.word("tp_dst") or _beside_port(changed) != _beside_port(flow):
        return False
    (low, high), (first, last) = _span(changed), _span(flow)
    if (high - low) <= (last - first):
        return False
    others = blocks[_beside_port(flow)]
    return all(any(a <= port <= b for a, b in others) for port in range(low, high + 1))


def _is_unreached(flow: Flow, changed: Flow) -> bool:
    """Whether what a flow got wider by is nothing that reaches it.

    A flow for established connections only: what it adds was never admitted as a new one.
    """
    state = flow.word("ct_state")
    if state == "+new-est" and not changed.word("ct_state"):
        # What it adds are invalid packets; but only TCP and ICMP have such. Established ones pass by another flow.
        return not any(word.startswith(("tcp", "icmp")) for word in flow.words if "=" not in word)
    if not state.startswith("+est"):
        return False
    if not changed.word("ct_state") or (flow.word("icmp_type") and not changed.word("icmp_type")):
        return True  # new ones have a flow of their own, of the same priority
    if flow.word("tp_dst") != changed.word("tp_dst"):
        (low, high), (first, last) = _span(changed), _span(flow)
        return low <= first and last <= high
    for name in _PREFIXES:
        old, new = flow.word(name), changed.word(name)
        if old != new and (not new or ip_network(old).subnet_of(ip_network(new))):
            return True
    return False


def _is_theirs(flow: Flow, changed: Flow, taken: set[str]) -> bool:
    """Whether anti-spoofing only lets another guest's own address pass besides."""
    for name in _PREFIXES if flow.table in (24, 71) else ():
        if flow.word(name) != changed.word(name) and changed.word(name):
            return adds_a_tenant(ip_network(flow.word(name)), taken)
    return False


def _is_last(flow: Flow) -> bool:
    """A drop with nothing below it: what it misses falls through the table, which drops it too."""
    return flow.actions in _DROPS and flow.priority in (1, 10, 40)


def _changes(flow: Flow, passes: dict[int, str], regs: list[str]) -> Iterator[tuple[str, str, Flow | None]]:
    yield from _actions(flow, passes)
    if _is_last(flow):
        return
    yield "deleted", "flow deleted", None
    if "ipv6_src=::" in flow.words:
        return  # whom it asks about, and for what, is the guest's business: the policy lets it
    for word in flow.words:
        for new, kind in _words(word, flow.table, flow.priority, regs):
            yield f"{word} -> {new or 'any'}", kind, flow.with_word(word, new)


def _actions(flow: Flow, passes: dict[int, str]) -> Iterator[tuple[str, str, Flow | None]]:
    is_drop = flow.actions in _DROPS
    if is_drop and flow.table in passes:
        port = flow.word("reg5") or flow.word("in_port")
        yield "passes on", "flow action", replace(flow, actions=passes[flow.table].format(port=int(port or "0", 0)))
    if not is_drop:
        yield "drops", "flow action", replace(flow, actions="drop")
        if flow.table != 81:  # where nothing stands between
            yield f"priority {flow.priority} -> 0", "flow priority", replace(flow, priority=0)
    elif _is_last(flow):
        yield f"priority {flow.priority} -> 200", "flow priority", replace(flow, priority=200)
    else:
        yield f"priority {flow.priority} -> 0", "flow priority", replace(flow, priority=0)


def _is_twice(table: int, priority: int, name: str) -> bool:
    """Whether a sender's MAC is looked at elsewhere too, or need not be.

    The hybrid bridge does so in tables 24 and 25, and in iptables: none of them is missed alone. Who asks for an
    address by DHCP (table 71, priority 80) may do so from any MAC, by the policy's words.
    """
    return name == "dl_src" and (table in (24, 25) or (table, priority) == (71, 80))


def _words(word: str, table: int, priority: int, regs: list[str]) -> Iterator[tuple[str, str]]:
    name, _, value = word.partition("=")
    if word in _PROTOCOLS:
        yield _PROTOCOLS[word], "flow protocol"
    elif name == "nw_proto":
        yield f"nw_proto={int(value) + 1}", "flow protocol"
    elif name in ("tp_dst", "tp_src", "icmp_type", "icmp_code"):
        yield from _ports(name, value)
    elif name in _PREFIXES and not (table == 24 and name == "ipv6_src"):  # iptables look at the source too
        prefix = ip_network(value)
        if prefix.prefixlen > 0:
            yield f"{name}={prefix.supernet()}", "flow prefix bit"
    elif name in _SENDERS and not _is_twice(table, priority, name):
        yield "", "flow anti-spoofing"
    elif name == "reg5":
        others = [reg for reg in regs if reg != value]
        yield from ((f"reg5={reg}", "flow port") for reg in others[:1])
    elif name == "ct_state":
        yield "", "flow state"
        if value in _STATES:
            yield f"ct_state={_STATES[value]}", "flow state"
        if "+rpl" in value:
            yield f"ct_state={value.replace('+rpl', '')}", "flow state"


def _ports(name: str, value: str) -> Iterator[tuple[str, str]]:
    number, _, mask = value.partition("/")
    port, bits = int(number, 0), int(mask, 0) if mask else 0xFFFF
    if name.startswith("icmp"):
        if port != 128:  # no other type of ICMPv6 opens a connection, so any type is that one
            yield "", "flow icmp"
        yield f"{name}={port + 1}", "flow icmp"
        return
    lowest = bits & -bits
    wider = bits & ~lowest
    yield f"{name}={port & wider:#x}/{wider:#x}", "flow port bit"
    if bits == 0xFFFF:
        yield f"{name}={(port + 1) % 65536}", "flow port bit"


def strip_dump(line: str) -> str:
    """A line of `ovs-ofctl dump-flows --no-stats` as add-flow reads it."""
    return re.sub(r"^\s+", "", line).replace(" actions=", ",actions=").replace(", ", ",")
