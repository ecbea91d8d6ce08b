"""`netprobe bench harm`: what probing does to tenants on this machine's vswitch, measured.

Slices with and without probing alternate; probing is the real thing, a run with all its rings and agents. The tenants
are processes of their own (service.tenants). What the numbers say is judge.harm's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.signals import StopRequest, stop_on_signals
from netprobe.judge.harm import METHOD, Arm, Shift, TenantSlice, Verdict, order_of_arms, shifts_of, verdict_of
from netprobe.model.load import DEFAULT_LIMITS, LoadLimits
from netprobe.model.results import Json
from netprobe.model.topology import Topology
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.governing import limits_here
from netprobe.service.run import RunOutcome, run_plan
from netprobe.service.tenants import Tenants, open_tenants

WARM_S = 0.1
"""Requests before each slice that are not counted: whatever went before, the tenant is warm."""

SPARE_S = 0.3
"""Probing goes on for so much longer than the slice."""

BULK_SHARE = 0.3
"""Of a slice's time, what throughput gets: it needs fewer samples than a 99th percentile."""

TMAX_NS = 200_000_000
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HarmOrder:
    """What is measured.

    Attributes:
        session: the probes; its count is set for each slice.
        tenants: names of the guests that talk, the client first.
        port: TCP port of the tenant's server.
        rounds: slices of each kind.
        slice_s: length of one.
        limit: the largest shift that is fine, as a share.
        limits: of the host's load, beyond which probing backs off.
        tenant_cpus: processors that the tenants run on; empty for any.
    """

    session: SessionPlan
    tenants: tuple[str, str]
    port: int
    rounds: int
    slice_s: float
    limit: float
    seed: int = 1
    limits: LoadLimits = DEFAULT_LIMITS
    tenant_cpus: frozenset[int] = frozenset()

    @property
    def plan(self) -> RunPlan:
        """Of one slice with probing."""
        count = int((WARM_S + self.slice_s + SPARE_S) * self.session.rate_pps)
        return RunPlan(
            "bench harm", (replace(self.session, count=count),), seed=self.seed, tmax_ns=TMAX_NS, governor=self.limits
        )


@dataclass(slots=True)
class Probing:
    """What was probed in all slices together."""

    planned: int = 0
    unsent: int = 0
    delivered: int = 0
    lost: int = 0
    unobserved: int = 0
    held_back: int = 0
    lowest_share: float = 1.0

    def add(self, outcome: RunOutcome) -> None:
        """One slice's run."""
        for result in outcome.results:
            leg = result.forward
            self.planned += leg.planned
            self.unsent += leg.unsent
            self.delivered += leg.delivered
            self.lost += leg.lost
            self.unobserved += leg.unobserved
            if result.governor is not None:
                self.held_back += int(str(result.governor["held_back"]))
                self.lowest_share = min(self.lowest_share, float(str(result.governor["lowest_share"])))

    def to_json(self) -> Json:
        """As in docs/json.md."""
        sent = self.planned - self.unsent
        return {
            "planned": self.planned,
            "unsent": self.unsent,
            "sent_share": sent / self.planned if self.planned else None,
            "delivered": self.delivered,
            "lost": self.lost,
            "unobserved": self.unobserved,
            "held_back": self.held_back,
            "lowest_share": self.lowest_share,
        }


@dataclass(frozen=True, slots=True)
class HarmResult:
    """What came of it."""

    order: HarmOrder
    rounds: tuple[dict[Arm, TenantSlice], ...]
    shifts: tuple[Shift, ...]
    probing: Probing
    stopped: str

    @property
    def verdict(self) -> Verdict:
        """Of all metrics; open where nothing could be compared."""
        return verdict_of(self.shifts) if self.shifts else Verdict.OPEN

    def to_json(self) -> Json:
        """As in docs/json.md."""
        order, session = self.order, self.order.session
        return {
            "src": session.src,
            "dst": session.dst,
            "vantage": session.vantage.value,
            "rate_pps": session.rate_pps,
            "tenants": list(order.tenants),
            "tenant_cpus": sorted(order.tenant_cpus),
            "rounds": len(self.rounds),
            "slice_s": order.slice_s,
            "limit": order.limit,
            "governor": "on" if limits_here(order.limits).is_on else "off",
            "method": METHOD,
            "requests": sum(one.requests for turn in self.rounds for one in turn.values()),
            "probing": self.probing.to_json(),
            "metrics": [_metric_json(shift) for shift in self.shifts],
            "verdict": self.verdict.value,
            "stopped": self.stopped or None,
        }


def _metric_json(shift: Shift) -> Json:
    return {
        "name": shift.metric.name,
        "unit": shift.metric.unit,
        "quiet": shift.quiet,
        "probing": shift.probing,
        "shift": shift.shift.value,
        "interval_95": [shift.shift.low, shift.shift.high],
        "aa_shift": shift.noise.value,
        "aa_interval_95": [shift.noise.low, shift.noise.high],
        "verdict": shift.verdict.value,
    }


async def measure_harm(order: HarmOrder, topology: Topology, progress: Progress = lambda _: None) -> HarmResult:
    """Measure. Ctrl-C ends it early: rounds that are complete are the result.

    Args:
        order: what.
        topology: where things are; tenants' namespaces are on this machine.
        progress: is told in words what happens.

    Raises:
        UsageError, RefusedError: the guests or the probes cannot be had.
        HostNotReadyError: a tenant does not reach the other, or a run's needs are not met.
    """
    source, target = (topology.guest(name, "bench harm") for name in order.tenants)
    rounds: list[dict[Arm, TenantSlice]] = []
    probing = Probing()
    with stop_on_signals() as stop, open_tenants(source, target, order.port, order.tenant_cpus) as tenants:
        bench = _Slices(order, topology, tenants, probing, stop)
        for number, arms in enumerate(order_of_arms(order.rounds), 1):
            slices = {}
            for arm in arms:
                if not stop.asked():
                    slices[arm] = await bench.measure(arm)
            if stop.asked():
                break
            rounds.append(slices)
            progress(f"round {number} of {order.rounds}")
        shifts = shifts_of(rounds, limit=order.limit) if len(rounds) > 1 else []
        return HarmResult(order, tuple(rounds), tuple(shifts), probing, stop.why)


@dataclass(frozen=True, slots=True)
class _Slices:
    order: HarmOrder
    topology: Topology
    tenants: Tenants
    probing: Probing
    stop: StopRequest

    async def measure(self, arm: Arm) -> TenantSlice:
        if arm is not Arm.PROBING:
            return await self._tenant_slice()
        found: list[TenantSlice] = []
        is_sending = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe, is_sending)
            await is_sending.wait()
            found.append(await self._tenant_slice())
        return found[0]

    async def _probe(self, is_sending: trio.Event) -> None:
        """A whole run; its first word of progress is said when it begins to send."""
        try:
            outcome = await run_plan(self.order.plan, self.topology, lambda _: is_sending.set())
        finally:
            is_sending.set()
        self.probing.add(outcome)
        if outcome.stopped and not self.stop.asked():
            if outcome.stopped.startswith("stopped by"):  # the run had the signal's handler, we are told here
                self.stop.ask(outcome.stopped)
            else:
                raise HostNotReadyError("bench harm", f"a run ended early: {outcome.stopped}")

    async def _tenant_slice(self) -> TenantSlice:
        bulk_s = BULK_SHARE * self.order.slice_s
        measure = partial(self.tenants.measure, warm_s=WARM_S, rr_s=self.order.slice_s - bulk_s, bulk_s=bulk_s)
        return await trio.to_thread.run_sync(measure)
