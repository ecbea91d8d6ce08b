"""Results: what a run says, and how sure it is. Plain values; show and store read them, collect and judge make them.

`to_json` follows docs/json.md, which is a contract.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Delay:
    """One-way delay of a segment, ns. A quantile of None is infinite: lost probes never arrive (RFC 7679 §4).

    Attributes:
        min: the smallest and max the largest delay among probes that did arrive.
        samples: how many delays stand behind the quantiles.
        p50_interval_95: order-statistic interval of the median, its upper bound None where infinite; None: too few.
        histogram: (lower edge in ns, count) of each bucket that is not empty, ascending; eight buckets an octave
            (collect.histogram). Lost probes are in none.
        p99_interval_95: likewise of the 99th percentile; None between two clocks, whose bounds say more.
    """

    min: int
    p50: int | None
    p90: int | None
    p99: int | None
    max: int
    samples: int
    p50_interval_95: tuple[int, int | None] | None
    histogram: tuple[tuple[int, int], ...] = ()
    p99_interval_95: tuple[int, int | None] | None = None

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Delay":
        """The inverse of `to_json`; results of before there were histograms have none, nor an interval of p99."""
        interval, of_p99 = table["p50_interval_95"], table.get("p99_interval_95")
        figures = {k: table[k] for k in ("min", "p50", "p90", "p99", "max", "samples")}
        return cls(
            **figures,
            p50_interval_95=None if interval is None else (interval[0], interval[1]),
            histogram=tuple((low, count) for low, count in table.get("histogram", ())),
            p99_interval_95=None if of_p99 is None else (of_p99[0], of_p99[1]),
        )

    def to_json(self) -> Json:
        """As in docs/json.md; null is infinite."""
        return {
            "min": self.min,
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "max": self.max,
            "samples": self.samples,
            "p50_interval_95": list(self.p50_interval_95) if self.p50_interval_95 else None,
            "p99_interval_95": list(self.p99_interval_95) if self.p99_interval_95 else None,
            "histogram": [list(bucket) for bucket in self.histogram],
        }


Bounds = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True)
class DelayBounds:
    """Between what the figures of a delay across two clocks lie, ns: (low, high) each.

    A low of None: nothing above zero is known. A high of None is infinite, as in Delay.
    """

    min: Bounds
    p50: Bounds
    p90: Bounds
    p99: Bounds
    max: Bounds

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "DelayBounds":
        """The inverse of `to_json`."""
        return cls(**{name: (low, high) for name, (low, high) in table.items()})

    def to_json(self) -> Json:
        """As in docs/json.md."""
        names = ("min", "p50", "p90", "p99", "max")
        return {name: list(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Pdv:
    """Packet delay variation, ns: quantiles of delay minus the smallest delay (RFC 5481 §4.2)."""

    p50: int | None
    p90: int | None
    p99: int | None
    max: int

    def to_json(self) -> Json:
        """As in docs/json.md; null is infinite."""
        return {"p50": self.p50, "p90": self.p90, "p99": self.p99, "max": self.max}


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """Statistics of one segment of one leg.

    Attributes:
        sent: probes known to have reached the first point; received: the second.
        undecided: probes that reached the first point and of which nothing more can be said (unobserved, pending, or
            part of a wider span).
        loss_ratio: lost / (received + lost); None where no probe was decided, or too many were not.
        loss_interval_95: holds whatever became of the undecided probes.
        negative: delays that came out below zero, beyond the clocks' error: a clock problem, left out of the figures.
        duplicated: extra copies that this segment made.
        reordered: probes that this segment reordered (RFC 4737).
        clock_error_ns: by how much any delay here may be off either way, since two clocks stamped it; None where one
            clock stamps both ends.
        clock_problem: why delays, or some of them, are not stated, "" where all are.
        delay_bounds: between what the figures lie; None where one clock stamps both ends, or nothing is known.
    """

    id: str
    first: str
    second: str
    kind: str
    sent: int
    received: int
    lost: int
    undecided: int
    loss_ratio: float | None
    loss_interval_95: tuple[float, float]
    delay: Delay | None
    pdv: Pdv | None
    negative: int
    reordered: int
    duplicated: int
    stamp: str
    clock_error_ns: int | None = None
    clock_problem: str = ""
    delay_bounds: DelayBounds | None = None

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "SegmentResult":
        """The inverse of `to_json`; results of before there were several clocks do not have their fields."""
        bounds = table.get("delay_bounds_ns")
        names = ("id", "kind", "sent", "received", "lost", "undecided", "loss_ratio", "negative", "reordered")
        low, high = table["loss_interval_95"]
        return cls(
            **{name: table[name] for name in (*names, "duplicated", "stamp")},
            first=table["from"],
            second=table["to"],
            loss_interval_95=(low, high),
            delay=None if table["delay_ns"] is None else Delay.from_json(table["delay_ns"]),
            pdv=None if table["pdv_ns"] is None else Pdv(**table["pdv_ns"]),
            clock_error_ns=table.get("clock_error_ns"),
            clock_problem=table.get("clock_problem") or "",
            delay_bounds=None if bounds is None else DelayBounds.from_json(bounds),
        )

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "id": self.id,
            "from": self.first,
            "to": self.second,
            "kind": self.kind,
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "undecided": self.undecided,
            "loss_ratio": self.loss_ratio,
            "loss_interval_95": list(self.loss_interval_95),
            "delay_ns": self.delay.to_json() if self.delay else None,
            "delay_bounds_ns": self.delay_bounds.to_json() if self.delay_bounds else None,
            "clock_error_ns": self.clock_error_ns,
            "clock_problem": self.clock_problem or None,
            "pdv_ns": self.pdv.to_json() if self.pdv else None,
            "negative": self.negative,
            "reordered": self.reordered,
            "duplicated": self.duplicated,
            "stamp": self.stamp,
        }


@dataclass(frozen=True, slots=True)
class Pacing:
    """Send-time error |actual - planned| of the probes that were sent, ns."""

    p50_ns: int
    p99_ns: int
    max_ns: int

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {"p50_ns": self.p50_ns, "p99_ns": self.p99_ns, "max_ns": self.max_ns}


@dataclass(frozen=True, slots=True)
class LegResult:
    """The ledger of one leg: planned = unsent + delivered + lost + unobserved + pending, exactly.

    Attributes:
        last_seen, first_missing: of the largest group of lost probes; without loss the destination and None.
        missed: probes that a point missed though they were seen further on, by point.
        is_complete: every delivered probe was seen at every point.
    """

    planned: int
    unsent: int
    delivered: int
    lost: int
    unobserved: int
    pending: int
    late: int
    segments: tuple[SegmentResult, ...]
    end_to_end: SegmentResult
    last_seen: str | None
    first_missing: str | None
    missed: dict[str, int]
    is_complete: bool

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "planned": self.planned,
            "unsent": self.unsent,
            "delivered": self.delivered,
            "lost": self.lost,
            "unobserved": self.unobserved,
            "pending": self.pending,
            "late": self.late,
            "segments": [s.to_json() for s in self.segments],
            "end_to_end": self.end_to_end.to_json(),
            "last_seen": self.last_seen,
            "first_missing": self.first_missing,
            "missed": self.missed,
            "complete": self.is_complete,
        }


@dataclass(frozen=True, slots=True)
class SessionResult:
    """Everything that a run says of one session.

    Attributes:
        type_p: as asked for and as sent.
        forged: records that claimed to be ours and were not, or were off the path.
        remarked_at: first point where the class mark was not what was sent, None where it was kept.
        reason: judge.reason's answer as JSON, None where nothing was lost.
        overflowed: points on the way where a ring, channel or queue shed frames, and what: there the result is less
            complete than it looks.
        counters: everything that was shed, refused or odd, by name.
        notes: what this vantage does not prove, in sentences.
        changes: segments that differ from the baseline, None where there was none to compare with.
        contexts: what was around the probes at each point: VLAN, tunnel, addresses behind a NAT.
        governor: by how much sending backed off and why, None where it did not.
        epoch: which of several paths this is about, where a guest moved during the run; else None.
    """

    name: str
    src: str
    dst: str
    vantage: str
    type_p: Json
    seed: int
    tmax_ms: float
    schedule: str
    rate_pps: float
    pacing: Pacing | None
    forward: LegResult
    returned: LegResult | None
    forged: int
    remarked_at: str | None
    reason: Json | None
    overflowed: dict[str, str]
    counters: dict[str, int]
    notes: tuple[str, ...]
    changes: tuple[Json, ...] | None = None
    contexts: tuple[Json, ...] = ()
    epoch: Json | None = None
    governor: Json | None = None

    @property
    def overflow(self) -> bool:
        """Whether something was shed anywhere on the way."""
        return bool(self.overflowed)

    @property
    def is_delivered(self) -> bool:
        """Whether any probe arrived."""
        return self.forward.delivered > 0

    def to_json(self) -> Json:
        """The document of `trace`, and one element of `run`'s `sessions` (docs/json.md)."""
        leg = self.forward
        return {
            "name": self.name,
            "src": self.src,
            "dst": self.dst,
            "vantage": self.vantage,
            "type_p": self.type_p,
            "delivered": self.is_delivered,
            "planned": leg.planned,
            "sent": leg.planned - leg.unsent,
            "unsent": leg.unsent,
            "received": leg.delivered,
            "lost": leg.lost,
            "unobserved": leg.unobserved,
            "pending": leg.pending,
            "late": leg.late,
            "forged": self.forged,
            "tmax_ms": self.tmax_ms,
            "seed": self.seed,
            "schedule": self.schedule,
            "rate_pps": self.rate_pps,
            "pacing": self.pacing.to_json() if self.pacing else None,
            "segments": [s.to_json() for s in leg.segments],
            "end_to_end": leg.end_to_end.to_json(),
            "missed": leg.missed,
            "complete": leg.is_complete,
            "return": self.returned.to_json() if self.returned else None,
            "last_seen": leg.last_seen,
            "first_missing": leg.first_missing,
            "reason": self.reason,
            "remarked_at": self.remarked_at,
            "changes": list(self.changes) if self.changes is not None else None,
            "contexts": list(self.contexts),
            "epoch": self.epoch,
            "governor": self.governor,
            "overflow": bool(self.overflowed),
            "overflowed": self.overflowed,
            "counters": self.counters,
            "notes": list(self.notes),
        }
