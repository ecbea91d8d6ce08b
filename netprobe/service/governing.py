"""The governor at work: looks at the host's load while a part is under way, and lets its senders back off.

One for a part, which is one machine's: judge.governor decides, service.injecting carries it out, and every step is a
report (model.load.Backoff). NETPROBE_GOVERNOR=off switches it off, for machines whose load is nobody's harm, such as
those that run netprobe's own tests.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns
from netprobe.host.device_counters import DeviceCounters
from netprobe.host.load import MachineTimes, machine_times
from netprobe.host.signals import StopRequest
from netprobe.judge.governor import Governor, LoadSample, PortLoad
from netprobe.model.load import Backoff, LoadLimits
from netprobe.model.topology import Attachment, Topology
from netprobe.service.injecting import Injector
from netprobe.service.looking import Looker
from netprobe.service.prepare import Prepared

SAMPLE_S = 0.5
"""Long enough for /proc/stat, which counts in ticks of 10 ms; twice that passes until a passed limit has an effect."""

VARIABLE = "NETPROBE_GOVERNOR"
STREAM_ENDS_AT = 0.25
LEGS = 2  # a probe and its answer


def limits_here(limits: LoadLimits) -> LoadLimits:
    """The limits that hold on this machine."""
    return replace(limits, is_on=False) if os.environ.get(VARIABLE) == "off" else limits


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the switch that probes pass.

    Attributes:
        netns, device: its device.
        due_ns: shape (n,), int64; when probes that pass it are due, from the beginning of sending.
    """

    name: str
    netns: str
    device: str
    due_ns: npt.NDArray[np.int64]

    def planned(self, start_ns: int, end_ns: int) -> int:
        """Probes that were due in a time, from the beginning of sending."""
        first, last = np.searchsorted(self.due_ns, (start_ns, end_ns))
        return int(last - first)


def ports_of(prepared: Iterable[Prepared], topology: Topology) -> list[Port]:
    """The ports within reach at both ends of some sessions; ports without a device of the kernel are not counted."""
    netns = {host.name: host.netns for host in topology.hosts}
    ends: dict[str, Attachment] = {}
    due: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
    for one in prepared:
        for end in (one.source, one.target, one.sender):
            if end.host in netns and end.port_device:
                ends[end.name] = end
                due.setdefault(end.name, {})[one.probe.session] = one.due_ns
    return [
        Port(name, netns[end.host], end.port_device, np.sort(np.concatenate(list(due[name].values()))))
        for name, end in ends.items()
    ]


class LoadProbe:
    """Looks at the machine, one look after the other.

    Args:
        ports: whose packets are counted.
        dropped: how many frames our rings and agents have dropped so far.
        stack: closes what is kept open.
    """

    def __init__(self, ports: Sequence[Port], dropped: Callable[[], int], stack: ExitStack) -> None:
        self._dropped = dropped
        self._ports: list[Port] = []
        self._counters: dict[str, DeviceCounters] = {}
        for port in ports:
            try:
                if port.netns not in self._counters:
                    self._counters[port.netns] = stack.enter_context(DeviceCounters(port.netns))
                self._ports.append(port)
            except HostNotReadyError:
                continue  # a run says itself that a namespace is gone
        self._began_ns = time.monotonic_ns()
        self._before = self._look()

    def _look(self) -> tuple[MachineTimes, int, Mapping[str, Mapping[str, int]]]:
        packets: dict[str, Mapping[str, int]] = {}
        for netns, counters in self._counters.items():
            try:
                packets[netns] = counters.packets()
            except HostNotReadyError:
                packets[netns] = {}
        return machine_times(time.monotonic_ns()), self._dropped(), packets

    def sample(self, share: float) -> LoadSample:
        """The time since the last look.

        Args:
            share: of the probes that were due, which part was sent.
        """
        (before, dropped_before, packets_before), now = self._before, self._look()
        self._before = now
        times, dropped, packets = now
        seconds = (times.now_ns - before.now_ns) / 1e9
        loads = {}
        for port in self._ports:
            here, there = (p[port.netns].get(port.device, 0) for p in (packets, packets_before))
            start, end = before.now_ns - self._began_ns, times.now_ns - self._began_ns
            passed = max(here - there, 0)
            ours = min(LEGS * share * port.planned(start, end), passed)
            loads[port.name] = PortLoad(ours / seconds, (passed - ours) / seconds)
        return LoadSample(
            now_ns=realtime_ns(),
            cpu=times.cpu_since(before),
            pressure=times.pressure_since(before),
            drops_pps=max(dropped - dropped_before, 0) / seconds,
            ports=loads,
        )


Sampler = Callable[[float], LoadSample]


async def govern(
    governor: Governor,
    sample: Sampler,
    act: Callable[[float], Awaitable[None]],
    tell: Callable[[Backoff], None],
) -> None:
    """Look at the load again and again, until cancelled.

    Args:
        governor: decides.
        sample: looks; takes the present share.
        act: lets the senders send this part only; awaited.
        tell: takes each step.
    """
    while True:
        await trio.sleep(SAMPLE_S)
        step = governor.take(sample(governor.share))
        if step is not None:
            await act(step.share)
            tell(step)


def is_ended_by_governor(steps: Sequence[Backoff]) -> bool:
    """Whether these steps end a stream."""
    return any(step.share <= STREAM_ENDS_AT for step in steps)


async def govern_stream(limits: LoadLimits, stop: StopRequest, tell: Callable[[Backoff], None]) -> None:
    """Govern a stream until cancelled. It is too fast to be thinned: where a quarter would be left, it is ended.

    Args:
        limits: of the load; a stream's ports are not looked at.
        stop: is asked to.
        tell: takes each step.
    """
    limits = limits_here(limits)
    if not limits.is_on:
        return

    def end_or_tell(step: Backoff) -> None:
        tell(step)
        if is_ended_by_governor([step]):
            stop.ask(f"the governor ended it: {step.why}")

    async def nothing(_share: float) -> None:
        """The next step may be the last."""
        await trio.lowlevel.checkpoint()

    with ExitStack() as stack:
        await govern(Governor(limits), LoadProbe((), lambda: 0, stack).sample, nothing, end_or_tell)


@dataclass(frozen=True, slots=True)
class Governing:
    """What one part needs for its governor."""

    limits: LoadLimits
    prepared: Sequence[Prepared]
    topology: Topology
    injector: Injector
    looker: Looker

    async def run(self, tell: Callable[[Backoff], None]) -> None:
        """Govern until cancelled.

        Args:
            tell: takes each step, with what could not be done about it.
        """
        limits = limits_here(self.limits)
        if not limits.is_on or not self.prepared:
            return
        with ExitStack() as stack:
            probe = LoadProbe(ports_of(self.prepared, self.topology), self._dropped, stack)
            await govern(Governor(limits), probe.sample, self.injector.thin, tell)

    def _dropped(self) -> int:
        return self.looker.dropped() + self.injector.dropped()
