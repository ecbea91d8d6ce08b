"""How loaded a host may be while netprobe probes there, and what netprobe did about it. Plain values.

plan.plans reads the limits, judge.governor decides by them, service.governing measures and acts; docs/harm.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """Beyond any of these, probing backs off.

    Attributes:
        is_on: False: it never does.
        cpu: share of all processors' time that is busy, whoever is it.
        pressure: share of the time in which somebody waits for a processor (Linux PSI, "some"): what tenants feel.
        share: of a port's packets that are ours, where tenants send more than judge.governor's BUSY_PPS.
        drops: frames a second that our own rings and agents drop.
    """

    is_on: bool = True
    cpu: float = 0.95
    pressure: float = 0.8
    share: float = 0.5
    drops: float = 0.0


DEFAULT_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True)
class Backoff:
    """From `at_ns` (CLOCK_REALTIME of the host) on, only `share` of the probes that are due are sent.

    Attributes:
        share: 1 is all; judge.governor never goes below a sixteenth.
        why: which limit was passed, or that all is well again.
    """

    at_ns: int
    share: float
    why: str
