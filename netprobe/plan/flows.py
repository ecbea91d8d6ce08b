"""One session as several flows: the same path with other source ports, so that every leg of a bundle is tried. Pure.

ECMP, bonds and receive-side scaling choose a leg by the 5-tuple, so one 5-tuple proves one leg. plan.mesh calls this
for every session with `flows`; judge.flows says which of them differ.
"""

import math
from dataclasses import dataclass, replace

from netprobe.model.probes import Protocol
from netprobe.plan.plans import SessionPlan

FINE = 10
"""Rates are fractions of integers; this numerator keeps what rounding down takes below a tenth."""


@dataclass(frozen=True, slots=True)
class FlowGroup:
    """Sessions that are flows of one: `count` of them from index `first` of the compiled plan on."""

    name: str
    first: int
    count: int


def slowed(session: SessionPlan, factor: float) -> SessionPlan:
    """The session at 1/`factor` of its mean rate, rounded down, never up.

    Args:
        session: what to slow down; its count stays, so it takes longer.
        factor: 1 and more.
    """
    wanted = session.mean_pps / factor
    if factor <= 1:
        return session
    if wanted >= FINE**2:
        return replace(session, rate_pps=math.floor(wanted), stretch=1)
    stretch = math.ceil(FINE / wanted)
    return replace(session, rate_pps=max(1, math.floor(wanted * stretch)), stretch=stretch)


def spread_flows(session: SessionPlan) -> tuple[SessionPlan, ...]:
    """The flows of a session: together they have its rate, one after the other in turn; each has its count.

    Each SYN has a source port of its own, so a flow of TCP is one probe.
    """
    total = session.flows
    if total == 1:
        return (session,)
    gap_ns = session.stretch * 1_000_000_000 // session.rate_pps
    each = replace(slowed(session, total), flows=1)
    if session.protocol is Protocol.TCP:
        each = replace(each, count=1)
    return tuple(
        replace(each, name=f"{session.name}#{i}", start_ns=session.start_ns + i * gap_ns) for i in range(total)
    )
