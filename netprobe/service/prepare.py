"""From a plan and a topology to sessions that are ready to be sent: addresses, keys, frames, due times.

Nothing is injected here. service.permits says whether the host allows it; service.run sends.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

import numpy as np
import numpy.typing as npt

from netprobe.errors import UsageError
from netprobe.inject.templates import build_template
from netprobe.model.points import Path, Stop, Vantage
from netprobe.model.probes import Flow, IPAddress, ProbeSession, Protocol, TypeP
from netprobe.model.results import Json
from netprobe.model.topology import Attachment, Topology
from netprobe.plan.paths import build_path, next_hop, translations
from netprobe.plan.plans import RunPlan, SessionPlan, checked
from netprobe.plan.schedule import session_due_ns
from netprobe.wire.control import MAX_MESSAGE_BYTES
from netprobe.wire.frames import FrameBlock, FrameEncoder
from netprobe.wire.mark import min_frame_size

MAX_ORDER_BYTES = MAX_MESSAGE_BYTES // 2
DUE_BYTES = 8
STAGGER_NS = 50_000
"""Sessions begin one after the other: a hundred of them at one instant would be a burst into the vswitch."""

PortSource = Callable[[Attachment, IPAddress, SessionPlan, int], Sequence[int]]
"""(sender, destination address, session, how many) -> source ports that nobody uses."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One session, ready to be sent.

    Attributes:
        sender: who sends: the source guest, the bypass NIC that stands in for it, or the guest that the vswitch plays.
        source, target: the guests that the user named.
        due_ns: shape (count,), int64; offsets from the start of the run.
    """

    plan: SessionPlan
    probe: ProbeSession
    path: Path
    sender: Attachment
    source: Attachment
    target: Attachment
    block: FrameBlock
    due_ns: npt.NDArray[np.int64]

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts on its way, both ends' among them."""
        return frozenset({self.sender.host, self.target.host, *(s.point.host for s in self.stops)})

    @property
    def stops(self) -> tuple[Stop, ...]:
        """The stops of both legs."""
        return (*self.path.forward, *self.path.returned)

    @property
    def is_sent_by_agent(self) -> bool:
        """Whether an agent at the sender's own NIC sends; else the vswitch plays the sender."""
        return self.plan.vantage is not Vantage.VSWITCH


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ports(plan: SessionPlan, sender: Attachment, dst: IPAddress, port_source: PortSource) -> tuple[int, ...]:
    """Source ports: one for the session, or one for each probe; none for ICMP."""
    if plan.protocol is Protocol.ICMP:
        return ()
    wanted = plan.count if plan.flow is Flow.NEW_PER_PROBE else 1
    if plan.src_port is None:
        return tuple(port_source(sender, dst, plan, wanted))
    if plan.src_port + wanted - 1 > 65_535:
        raise UsageError(
            f"session {plan.name}: sport",
            f"{plan.src_port} leaves {65_536 - plan.src_port} ports for {wanted} probes",
            advice="start lower, or send fewer probes",
        )
    return tuple(range(plan.src_port, plan.src_port + wanted))


def _type_p(plan: SessionPlan, ports: tuple[int, ...]) -> TypeP:
    smallest = min_frame_size(plan.protocol, plan.family)
    size = smallest if plan.size_bytes is None else plan.size_bytes
    if size < smallest:
        raise UsageError(
            f"session {plan.name}: size",
            f"{size} bytes cannot carry the mark of IPv{plan.family} {plan.protocol.value}",
            allowed=f"{smallest} bytes and more, without FCS",
        )
    return TypeP(
        protocol=plan.protocol,
        family=plan.family,
        size_bytes=size,
        dscp=plan.dscp,
        src_port=ports[0] if ports else 0,
        dst_port=plan.dst_port or 0,
        flow=plan.flow or Flow.SAME,
        ttl=plan.ttl,
    )


def _frame_bytes(plan: SessionPlan) -> int:
    return max(plan.size_bytes or 0, min_frame_size(plan.protocol, plan.family))


def max_order_count(plan: SessionPlan) -> int:
    """How many probes of a session go to their sender as one order."""
    return MAX_ORDER_BYTES // (_frame_bytes(plan) + DUE_BYTES)


def _check_order(plan: SessionPlan) -> None:
    """All probes of a session go to their sender as one order, which must fit."""
    frame, most = _frame_bytes(plan), max_order_count(plan)
    if plan.count > most:
        raise UsageError(
            f"session {plan.name}: count",
            f"{plan.count} probes of {frame} bytes are more than one order can hold",
            allowed=f"up to {most}",
            advice="send smaller probes, or several runs; a single session of evenly sent raw UDP from a bypass NIC "
            "may be of any length",
        )


def _ip_version(name: str) -> int:
    """4 or 6 for an address, 0 for another name."""
    try:
        return ip_address(name).version
    except ValueError:
        return 0


def resolve(plan: SessionPlan, topology: Topology) -> tuple[Attachment, Attachment, Attachment]:
    """(source, target, sender) of a session.

    Raises:
        UsageError: an unknown guest, or no bypass NIC that could stand in.
    """
    where = f"session {plan.name}"
    source, target = topology.guest(plan.src, f"{where}: src"), topology.guest(plan.dst, f"{where}: dst")
    for name in (plan.src, plan.dst):
        version = _ip_version(name)
        if version not in {0, plan.family}:
            raise UsageError(
                where, f"{name} is no IPv{plan.family} address", advice=f"ask for family {version}, or name the guest"
            )
    sender = topology.bypass_on(source.host, source) if plan.vantage is Vantage.BYPASS else source
    return source, target, sender


def path_of(one: Prepared, topology: Topology) -> Path:
    """The path of a session in a topology that may have changed meanwhile; its sender stays the one that sends.

    Raises:
        UsageError: an end is gone.
    """
    _, target, _ = resolve(one.plan, topology)
    sender = next((a for a in topology.attachments if a.name == one.sender.name), None)
    if sender is None:
        raise UsageError(f"session {one.plan.name}", f"{one.sender.name} is gone")
    return build_path(topology, sender, target, one.plan.vantage, one.plan.protocol)


def prepare_session(
    plan: SessionPlan, topology: Topology, *, seed: int, session: int, port_source: PortSource
) -> Prepared:
    """One session, ready to be sent.

    Args:
        plan: what the user wants.
        topology: where things are.
        seed: of its schedule.
        session: its number in this run.
        port_source: gives source ports where the user named none.

    Raises:
        UsageError: a name, an address family, a size or a port does not fit.
    """
    plan = checked(plan, f"session {plan.name}")
    source, target, sender = resolve(plan, topology)
    path = build_path(topology, sender, target, plan.vantage, plan.protocol)
    _check_order(plan)
    dst_ip, translated = translations(topology, sender, target, plan.family)
    ports = _ports(plan, sender, dst_ip, port_source)
    probe = ProbeSession(
        session=session,
        key=secrets.token_bytes(16),
        type_p=_type_p(plan, ports),
        src_mac=_mac(sender.mac),
        dst_mac=_mac(next_hop(sender, target, plan.family)),
        src_ip=sender.address(plan.family),
        dst_ip=dst_ip,
        count=plan.count,
        src_ports=ports if plan.flow is Flow.NEW_PER_PROBE else (),
        translations=translated,
    )
    block = FrameEncoder(probe, build_template(probe)).encode(0, plan.count)
    due_ns = session_due_ns(plan, seed)
    return Prepared(plan, probe, path, sender, source, target, block, due_ns)


def prepare_run(plan: RunPlan, topology: Topology, port_source: PortSource) -> tuple[Prepared, ...]:
    """All sessions of a run; their numbers are random, so that a record of an earlier run is recognised as stale."""
    first = secrets.randbits(32)
    return tuple(
        prepare_session(
            replace(session, start_ns=session.start_ns + i * STAGGER_NS),
            topology,
            seed=plan.seed + i,
            session=(first + i) % (1 << 32),
            port_source=port_source,
        )
        for i, session in enumerate(plan.sessions)
    )


def type_p_json(probe: ProbeSession) -> Json:
    """Type-P as in docs/json.md."""
    t = probe.type_p
    return {
        "proto": t.protocol.value,
        "family": t.family,
        "size_bytes": t.size_bytes,
        "dscp": t.dscp,
        "src_port": t.src_port,
        "src_ports": len(probe.src_ports),
        "dst_port": t.dst_port,
        "flow": t.flow.value,
        "ttl": t.ttl,
    }
