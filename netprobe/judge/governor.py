"""The governor: whether probing backs off, from samples of a host's load. Pure: time comes in with each sample.

Half as many probes at each step down, and twice as many again when all has been well for a while.
service.governing takes the samples and tells the senders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from netprobe.model.load import Backoff, LoadLimits

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""What is sent of what is due, step by step. Never nothing: a host where something is wrong must still be measured."""

PATIENCE = 2
"""So many samples in a row must be beyond a limit: a short peak is nobody's harm. Drops are not waited for."""

RECOVER_NS = 2_000_000_000
"""After so long without any trouble there is a step back up."""

RELIEF = 0.9
"""All is well below this part of each limit; in between nothing changes, or probing would swing."""

BUSY_PPS = 1_000
"""A port with fewer packets of tenants is not crowded by ours, whatever their share."""


@dataclass(frozen=True, slots=True)
class PortLoad:
    """Packets a second through one port, both ways.

    Attributes:
        ours: probes and their answers.
        tenants: all others.
    """

    ours: float
    tenants: float

    @property
    def share(self) -> float:
        """Of the packets, which part is ours; 0 where tenants send too little to be crowded."""
        return self.ours / (self.ours + self.tenants) if self.tenants >= BUSY_PPS else 0.0


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One look at a host, about the time since the last one.

    Attributes:
        now_ns: CLOCK_REALTIME.
        cpu: share of all processors' time that was busy.
        pressure: share of the time in which somebody waited for a processor, None where the kernel does not tell.
        drops_pps: frames a second that our rings and agents dropped.
        ports: by the port's name.
    """

    now_ns: int
    cpu: float
    pressure: float | None = None
    drops_pps: float = 0.0
    ports: Mapping[str, PortLoad] = field(default_factory=dict)


class Governor:
    """Decides for one host."""

    def __init__(self, limits: LoadLimits) -> None:
        self._limits = limits
        self._step = 0
        self._beyond = 0
        self._fine_since_ns: int | None = None

    @property
    def share(self) -> float:
        """What is sent of what is due."""
        return SHARES[self._step]

    def take(self, sample: LoadSample) -> Backoff | None:
        """A sample. Returns the new share and why, or None where it stays as it is."""
        if not self._limits.is_on:
            return None
        trouble = self._trouble(sample, 1.0)
        if trouble:
            self._fine_since_ns = None
            self._beyond += 1
            if self._step + 1 < len(SHARES) and (self._beyond >= PATIENCE or self._drops(sample)):
                self._beyond = 0
                self._step += 1
                return Backoff(sample.now_ns, self.share, trouble)
            return None
        self._beyond = 0
        if self._trouble(sample, RELIEF):
            self._fine_since_ns = None
            return None
        return self._recover(sample.now_ns)

    def _recover(self, now_ns: int) -> Backoff | None:
        if self._fine_since_ns is None:
            self._fine_since_ns = now_ns
        if not self._step or now_ns - self._fine_since_ns < RECOVER_NS:
            return None
        self._fine_since_ns = now_ns
        self._step -= 1
        return Backoff(now_ns, self.share, f"all limits kept for {RECOVER_NS / 1e9:g} s")

    def _drops(self, sample: LoadSample) -> bool:
        return sample.drops_pps > self._limits.drops

    def _trouble(self, sample: LoadSample, part: float) -> str:
        """Which limit, or `part` of it, was passed; "" for none."""
        limits = self._limits
        if self._drops(sample):
            return f"our rings dropped {sample.drops_pps:.0f} frames/s (limit {limits.drops:g})"
        for what, value, limit in (
            ("the host's processors were busy", sample.cpu, limits.cpu),
            ("somebody waited for a processor", sample.pressure, limits.pressure),
        ):
            if value is not None and value > part * limit:
                return f"{what} {100 * value:.0f} % of the time (limit {100 * limit:g} %)"
        for name, port in sample.ports.items():
            if port.share > part * limits.share:
                allowed = f"limit {100 * limits.share:g} %"
                return f"{100 * port.share:.0f} % of the packets at {name} were ours ({allowed})"
        return ""
