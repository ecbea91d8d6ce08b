"""Who does what in a spread run: the order of each agent, from sessions, points and what agents may. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netprobe.model.points import Point
from netprobe.plan.plans import RunPlan
from netprobe.service.agents import AgentConn
from netprobe.service.prepare import Prepared
from netprobe.wire.orders import PartSpec, PeerSpec, SendSpec, governor_spec, place_spec, probe_spec

UNTIL_GRACE_S = 120.0
"""A part that hears no more from the collector ends by itself, so long after its last probe could arrive."""


def lasts_s(plan: RunPlan, prepared: Sequence[Prepared]) -> float:
    """How long the parts of a run go on at most, in seconds."""
    return max(one.plan.duration_ns for one in prepared) / 1e9 + plan.tmax_ns / 1e9 + UNTIL_GRACE_S


@dataclass(frozen=True, slots=True)
class Orders:
    """What the orders of one run are made from.

    Attributes:
        points, index: all points, and the index of each place.
        agents: those that take part, by name.
    """

    run: str
    plan: RunPlan
    prepared: Sequence[Prepared]
    points: Sequence[Point]
    index: Mapping[str, int]
    agents: Mapping[str, AgentConn]

    def spec(self, name: str, mine: Sequence[int], sent: Sequence[Prepared]) -> PartSpec:
        """The order of one agent.

        Args:
            name: of the agent.
            mine: indices of the points that it reports.
            sent: the sessions that it sends.
        """
        own = {one.sender.chain[0].place for one in sent if one.is_sent_by_agent}
        rings = {s.point.place for one in self.prepared for s in one.stops if s.is_observed_by_ring} - own
        passing = [one for one in self.prepared if one in sent or not set(mine).isdisjoint(self._indices(one))]
        ends = [end for one in passing for end in (one.sender, one.target)]
        return PartSpec(
            run=self.run,
            places=[place_spec(i, self.points[i]) for i in mine if self.points[i].place in rings],
            probes=[probe_spec(one.probe) for one in passing],
            sends=[self._send(one) for one in sent],
            peers=[peer for other, agent in self.agents.items() if other != name for peer in _peers(agent)],
            until_s=lasts_s(self.plan, self.prepared),
            machines=sorted({end.name for end in ends if end.host == self.agents[name].host}),
            governor=governor_spec(self.plan.governor),
        )

    def _send(self, one: Prepared) -> SendSpec:
        return SendSpec(
            session=one.probe.session,
            name=one.plan.name,
            sender=one.sender.name,
            iface_id=one.sender.iface_id,
            vantage=one.plan.vantage.value,
            rate_pps=one.plan.rate_pps,
            stretch=one.plan.stretch,
            start_ns=one.plan.start_ns,
            schedule=one.plan.schedule.value,
            seed=self.plan.seed + self.prepared.index(one),
            own=self.index[one.sender.chain[0].place] if one.is_sent_by_agent else -1,
        )

    def _indices(self, one: Prepared) -> set[int]:
        return {self.index[stop.point.place] for stop in one.stops}


def sender_names(one: Prepared) -> tuple[str, ...]:
    """Everything that a sender's port is called."""
    return (one.sender.name, one.sender.port_device, one.sender.iface_id, one.sender.mac)


def _peers(agent: AgentConn) -> list[PeerSpec]:
    """Where an agent's clock can be compared, if anywhere."""
    address, port = agent.report.exchange
    return [PeerSpec(agent.host, address, port, b"")] if address else []
