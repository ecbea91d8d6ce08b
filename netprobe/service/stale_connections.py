"""Connections that live on after their rule is gone, found without sending anything.

Conntrack's tables are read once a host; what the policy would not open any more is asked about in the enforcement's
own model: only where the rules let packets of the established connection pass is it a leak.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from netprobe.errors import NetprobeError
from netprobe.host.iptables import read_rules
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import ConntrackEntry, parse_dump
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.iptables_rules import parse_rules, zones_by_device
from netprobe.judge.stale_connections import StaleConnection, find_stale
from netprobe.model.conntrack_rules import answer_to
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import ACK, ConnState
from netprobe.model.policy import TCP, Policy
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.service.bridge_models import is_behind_bridge
from netprobe.service.policy_models import ModelAsker


@dataclass(frozen=True, slots=True)
class LivingConnection:
    """A connection that no rule would open any more.

    Attributes:
        host: whose conntrack table has it.
        onward: what the model says of its next packet from the side that began it.
        back: what it says of the next answer.
    """

    host: str
    stale: StaleConnection
    onward: ModelAnswer
    back: ModelAnswer

    @property
    def is_leak(self) -> bool:
        """Whether packets still pass, one way or the other."""
        return bool(self.onward.is_allowed) or bool(self.back.is_allowed)

    @property
    def text(self) -> str:
        """For people."""
        if not self.is_leak:
            passes = "the rules stop its next packet"
        elif self.onward.is_allowed:
            passes = "its packets still pass"
        else:
            passes = "its answers still pass until its beginner sends again"
        stale = self.stale
        return f"{stale.packet.text()} is in conntrack of {self.host}, {stale.check.point} permits it no more; {passes}"


def read_entries(host: Host, *, is_hybrid: bool) -> tuple[ConntrackEntry, ...]:
    """All connections of a host: the kernel's where bridges track them, else the switch's.

    Raises:
        HostNotReadyError: neither tells.
    """
    if is_hybrid:
        with KernelConntrack(host.netns) as kernel:
            return kernel.dump()
    with UnixctlClient(host.ovs_rundir) as switch:
        return parse_dump(switch.call("dpctl/dump-conntrack")).entries


def zones_of(host: Host, attachments: Sequence[Attachment], *, is_hybrid: bool) -> dict[int, str]:
    """Whose each conntrack zone is, by the port's name; empty where all ports share one, or nobody tells."""
    zones: dict[int, str] = {}
    with suppress(NetprobeError):
        if is_hybrid:
            taps = {end.chain[1].device: end.name for end in attachments if len(end.chain) > 1}
            by_device = zones_by_device(parse_rules(read_rules(host.netns)))
            return {zone: taps[device] for device, zone in by_device.items() if device in taps}
        if host.zone is None:
            names = {end.iface_id: end.name for end in attachments}
            with UnixctlClient(host.ovs_rundir, program="ovn-controller") as controller:
                for line in controller.call("ct-zone-list").splitlines():
                    port, _, zone = line.strip().rpartition(" ")
                    if port in names and zone.isascii() and zone.isdigit():
                        zones[int(zone)] = names[port]
    return zones


async def living_connections(policy: Policy, topology: Topology, asker: ModelAsker) -> list[LivingConnection]:
    """All connections between the policy's ports that it permits no more.

    Args:
        policy: bound to the topology.
        topology: where its ports are; a port is a guest of the same name.
        asker: asked whether their packets still pass.

    Raises:
        HostNotReadyError: a host's conntrack table cannot be read.
    """
    found = await trio.to_thread.run_sync(_stale_of_all, policy, topology)
    guests = {guest.name: guest for guest in topology.guests}
    known = [(host, stale) for host, stale in found if stale.src in guests and stale.dst in guests]
    answers = await asker.ask([q for _, stale in known for q in _questions(stale, guests)], topology)
    pairs = zip(answers[::2], answers[1::2], strict=True)
    return [LivingConnection(host, stale, *pair) for (host, stale), pair in zip(known, pairs, strict=True)]


def _stale_of_all(policy: Policy, topology: Topology) -> list[tuple[str, StaleConnection]]:
    decide = Evaluator(policy).decide
    found: list[tuple[str, StaleConnection]] = []
    for host in topology.hosts:
        here = [end for end in topology.attachments if end.host == host.name]
        is_hybrid = any(map(is_behind_bridge, here))
        zones = zones_of(host, here, is_hybrid=is_hybrid)
        entries = read_entries(host, is_hybrid=is_hybrid)
        found += [(host.name, stale) for stale in find_stale(entries, policy, decide, zones)]
    return found


def _questions(stale: StaleConnection, guests: Mapping[str, Attachment]) -> list[ModelQuestion]:
    """The next packet of each direction."""
    src, dst = guests[stale.src], guests[stale.dst]
    onward = replace(stale.packet, tcp_flags=ACK) if stale.packet.protocol == TCP else stale.packet
    return [
        ModelQuestion(onward, src, dst, ConnState.ESTABLISHED),
        ModelQuestion(answer_to(stale.packet), dst, src, ConnState.REPLY),
    ]
