"""What a switch makes of a packet on its way: new addresses behind routers and NAT, a tunnel or a tag to another host.

Pure and total, out of a trace's datapath actions: the tuple that conntrack looks up at each pass, and the packet as the
next host's switch gets it. What it cannot follow it says. host.tracing, above, asks the next question.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from netprobe.judge.conntrack import ConntrackEntry, CtState, FiveTuple, state_for
from netprobe.judge.ofproto_trace import MAX_NESTING, NO_PORT, Trace, split_actions
from netprobe.model.probes import IPAddress

_FIELD = re.compile(r"(?:^|,)(dl_src|dl_dst|nw_src|nw_dst|ipv6_src|ipv6_dst|nw_tos|nw_ttl|tp_src|tp_dst)=([^,\s]+)")
"""Headers that a switch may rewrite on the way, by their names in a flow."""

_SET = re.compile(r"set\((eth|ipv4|ipv6|tcp|udp)\(([^()]*)\)\)")
_SET_FIELDS = {
    "eth": {"src": "dl_src", "dst": "dl_dst"},
    "ipv4": {"src": "nw_src", "dst": "nw_dst", "ttl": "nw_ttl", "tos": "nw_tos"},
    "ipv6": {"src": "ipv6_src", "dst": "ipv6_dst", "hlimit": "nw_ttl", "tclass": "nw_tos"},
    "tcp": {"src": "tp_src", "dst": "tp_dst"},
    "udp": {"src": "tp_src", "dst": "tp_dst"},
}
"""Keys of the datapath's set actions (odp-util.c) as flows name them."""

_NUMBER = r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,10})"
_OUTER = re.compile(r"ipv[46]\(src=([0-9a-fA-F.:]+),dst=([0-9a-fA-F.:]+)")
_VNI = re.compile(rf"vni={_NUMBER}")
_KERNEL_SRC = re.compile(r"[(,](?:ipv6_)?src=([0-9a-fA-F.:]+)")
_KERNEL_DST = re.compile(r"[(,](?:ipv6_)?dst=([0-9a-fA-F.:]+)")
_KERNEL_ID = re.compile(rf"tun_id={_NUMBER}")
_OVN_OPTION = re.compile(rf"\{{class=0x102,type=0x80,len=4,{_NUMBER}\}}")
"""The Geneve option that OVN's ports travel in: class and type by ovn-architecture(7)."""

_PUSH_VLAN = re.compile(r"push_vlan\((?:[^()]*,)?vid=([0-9]{1,4})(?:,|\))")
_TRANSLATES = re.compile(r"nat\((?:src|dst)=")
_WHOLE = frozenset({"255", "65535", "255.255.255.255"})
_WHOLE_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,2}|[1-9]?[0-9]{1,2}")
DSCP_BITS = 0xFC


def _fields_of(flow: str) -> Iterator[tuple[str, str]]:
    """The headers of a flow as OVS prints it."""
    return ((found[1], found[2]) for found in _FIELD.finditer(flow))


def _address(found: re.Match[str] | None, group: int = 1) -> IPAddress | None:
    try:
        return ip_address(found[group]) if found else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel that a packet is put into.

    Attributes:
        dst: where the tunnel ends.
        src: where it starts, None where the datapath leaves that to the kernel.
        vni: its network identifier.
        option: data of the Geneve option that the other end reads into tun_metadata0 (OVN: in and out port), or None.
    """

    dst: IPAddress
    src: IPAddress | None
    vni: int
    option: int | None


@dataclass(frozen=True, slots=True)
class Output:
    """How a packet leaves a switch for another host.

    Attributes:
        tunnel: the tunnel; None where it leaves as it is.
        device: the NIC that it leaves by as it is, "" in a tunnel.
        vlans: ids of the tags that the switch put on, the outermost first.
        fields: its headers by then, by their names in a flow.
        doubts: what could not be read of how it was rewritten; empty when everything was.
    """

    tunnel: Tunnel | None = None
    device: str = ""
    vlans: tuple[int, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Rewriting:
    """Follows a packet through datapath actions. Total: what it does not know of it doubts.

    Attributes:
        devices: NICs toward other hosts.
        wrapped: the kernel's tunnel action that is in force, "" without one.
    """

    fields: dict[str, str]
    devices: frozenset[str] = frozenset()
    vlans: list[int] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    wrapped: str = ""

    def run(self, actions: str, depth: int = 0) -> Output | None:
        """Carry actions out until the packet leaves for another host; None when it does not."""
        for raw in split_actions(actions):
            action = raw.strip()
            found: Output | None = None
            if action.startswith("clone(") and depth < MAX_NESTING:
                inner = replace(self, fields=dict(self.fields), vlans=list(self.vlans), doubts=list(self.doubts))
                found = inner.run(action[len("clone(") : -1], depth + 1)
            elif action.startswith("tnl_push("):
                found = self._leave(_tunnel(action, _OUTER.search(action), _VNI.search(action)))
            elif action.startswith("set(tunnel("):
                self.wrapped = action
            elif self.wrapped and "(" not in action and action not in NO_PORT:
                found = self._leave(_tunnel(self.wrapped, None, _KERNEL_ID.search(self.wrapped)))
            elif action in self.devices:
                found = self._leave(None, action)
            else:
                self._rewrite(action)
            if found is not None:
                return found
        return None

    def _leave(self, tunnel: Tunnel | None, device: str = "") -> Output | None:
        if tunnel is None and not device:
            return None
        return Output(tunnel, device, tuple(self.vlans), tuple(self.fields.items()), tuple(self.doubts))

    def _rewrite(self, action: str) -> None:
        found = _SET.fullmatch(action)
        tag = _PUSH_VLAN.match(action)
        if found is not None:
            for word in found[2].split(","):
                self._set(found[1], word, action)
        elif tag is not None:
            self.vlans.insert(0, int(tag[1]))
        elif action == "pop_vlan" and self.vlans:
            self.vlans.pop(0)
        elif action.startswith(("set(", "push_", "pop_")) or _TRANSLATES.search(action):
            self.doubts.append(action)

    def _set(self, header: str, word: str, action: str) -> None:
        key, _, given = word.partition("=")
        value, _, mask = given.partition("/")
        name = _SET_FIELDS[header].get(key)
        is_whole = not mask or mask in _WHOLE or set(mask.removeprefix("0x")) <= {"f", ":"}
        if name == "nw_tos" and _WHOLE_NUMBER.fullmatch(value):
            self.fields[name] = str(int(value, 0) & DSCP_BITS)
        elif name and name != "nw_tos" and is_whole:
            self.fields[name] = value
        else:
            self.doubts.append(action)


def _tunnel(action: str, outer: re.Match[str] | None, vni: re.Match[str] | None) -> Tunnel | None:
    """The tunnel of a datapath action: the userspace datapath's with an outer header, or the kernel's."""
    src = _address(outer) if outer else _address(_KERNEL_SRC.search(action))
    dst = _address(outer, 2) if outer else _address(_KERNEL_DST.search(action))
    if dst is None:
        return None
    option = _OVN_OPTION.search(action)
    return Tunnel(dst, src, int(vni[1], 0) if vni else 0, int(option[1], 0) if option else None)


def output_of(trace: Trace, devices: Collection[str] = ()) -> Output | None:
    """How a packet leaves a switch for another host; None where it does not.

    Args:
        trace: what the switch does with it.
        devices: the host's NICs toward others.
    """
    ways_out = ("tnl_push(", "set(tunnel(", *devices)
    for one in trace.passes:
        if not any(way in one.datapath for way in ways_out):
            continue  # most packets of a policy: to follow how they are rewritten would be in vain
        found = _Rewriting(dict(_fields_of(one.flow)), frozenset(devices)).run(one.datapath)
        if found is not None:
            return found
    return None


def tuples_behind(trace: Trace, tuple_: FiveTuple) -> tuple[FiveTuple, ...]:
    """The 5-tuple that a packet has at the end of each pass: routers and NAT may have rewritten it.

    Args:
        trace: of the packet, or of one that differs from it in nothing that the tables look at.
        tuple_: the packet's own where the trace begins.
    """
    begin = dict(_fields_of(trace.passes[0].flow)) if trace.passes else {}
    found = []
    for one in trace.passes:
        packet = _Rewriting(dict(_fields_of(one.flow)))
        packet.run(one.datapath)
        found.append(_rewritten(tuple_, {k: v for k, v in packet.fields.items() if begin.get(k) != v}))
    return tuple(found)


def _rewritten(tuple_: FiveTuple, fields: dict[str, str]) -> FiveTuple:
    """A tuple with the fields that changed; an echo's identifier is in no flow."""
    try:
        src = ip_address(fields.get("nw_src") or fields.get("ipv6_src") or str(tuple_.src))
        dst = ip_address(fields.get("nw_dst") or fields.get("ipv6_dst") or str(tuple_.dst))
        ports = (tuple_.src_port, tuple_.dst_port)
        if not tuple_.is_icmp:
            ports = (int(fields.get("tp_src", ports[0])), int(fields.get("tp_dst", ports[1])))
    except ValueError:
        return tuple_
    return FiveTuple(tuple_.protocol, src, dst, *ports, tuple_.icmp_type, tuple_.icmp_code)


def next_flow(flow: str, output: Output, in_port: int) -> str:
    """A probe as `ofproto/trace` wants it on the host that it was sent on to.

    Args:
        flow: the probe where the trace began (probe_flow).
        output: how it left.
        in_port: OpenFlow number there of the tunnel's port, or of the NIC.
    """
    now = dict(output.fields)
    words = [f"in_port={in_port}", *_tunnel_words(output.tunnel)]
    words += [f"dl_vlan={vlan}" for vlan in output.vlans[:1]]
    for word in flow.split(","):
        name, is_field, _old = word.partition("=")
        known = name.replace("tcp_", "tp_").replace("udp_", "tp_")
        if is_field and known in now:
            words.append(f"{name}={now[known]}")
        elif name != "dl_vlan" and not name.startswith(("in_port", "tun_")):
            words.append(word)
    return ",".join(words)


def _tunnel_words(tunnel: Tunnel | None) -> Iterator[str]:
    if tunnel is None:
        return
    v6 = "ipv6_" if tunnel.dst.version == 6 else ""
    yield f"tun_id={tunnel.vni:#x}"
    yield f"tun_{v6}dst={tunnel.dst}"
    if tunnel.src is not None:
        yield f"tun_{v6}src={tunnel.src}"
    if tunnel.option is not None:
        yield f"tun_metadata0={tunnel.option:#x}"


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A port as `dpif/show` lists it.

    Attributes:
        is_tunnel: whether packets go through it in a tunnel.
        remote: where the tunnel ends; None where it is none, or where flows choose it.
    """

    bridge: str
    device: str
    ofport: int
    is_tunnel: bool = False
    remote: IPAddress | None = None


_SHOWN_BRIDGE = re.compile(r"  (\S+):")
_SHOWN_PORT = re.compile(r"    (\S+) (\d{1,5})/\S+ \((\w+)(?:: (.*))?\)")
_TUNNELS = frozenset({"geneve", "vxlan", "stt"})
_REMOTE = re.compile(r"(?:^|[ ,])remote_ip=([0-9a-fA-F.:]+)(?:,|$)")


def parse_ports(text: str) -> tuple[SwitchPort, ...]:
    """The ports in an answer of `dpif/show`. Never raises."""
    found: list[SwitchPort] = []
    bridge = ""
    for line in text.splitlines():
        if (name := _SHOWN_BRIDGE.fullmatch(line)) is not None:
            bridge = name[1]
        elif (port := _SHOWN_PORT.fullmatch(line)) is not None:
            is_tunnel = port[3] in _TUNNELS
            remote = _address(_REMOTE.search(port[4] or "")) if is_tunnel else None
            found.append(SwitchPort(bridge, port[1], int(port[2]), is_tunnel, remote))
    return tuple(found)


def next_states(
    trace: Trace,
    tuple_: FiveTuple,
    entries: Sequence[ConntrackEntry],
    *,
    is_answered: bool = False,
) -> tuple[CtState, ...]:
    """The `--ct-next` states that a trace of one probe needs, one for each of its passes through conntrack.

    Ask without states first, then with these, until they don't change: another state may lead another way. Conntrack
    looks a packet up as it comes, so it is the tuple at the end of the pass before that counts.

    Args:
        trace: the last answer.
        tuple_: the probe's tuple where the trace begins.
        entries: conntrack entries of all zones before the probe was sent.
        is_answered: whether probes of this tuple had been answered before.
    """
    return tuple(
        state_for(before, entries, is_answered=is_answered, zone=one.zone or 0)
        for before, one in zip(tuples_behind(trace, tuple_), trace.passes[1:], strict=False)
        if one.ct_state
    )
