"""Results: what a run says, and how sure it is. Plain values; show and store read them, collect and judge make them.

`*_json` fields follow docs/json.md, which is a contract.
"""

from dataclasses import dataclass, replace

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Delay:
    """One-way delay of a segment, ns. A quantile of None is infinite: lost probes never arrive (RFC 7679 §4).

    Attributes:
        min: the smallest and max the largest delay among probes that did arrive.
        samples: how many delays stand behind the quantiles.
        p50_interval_95: order-statistic interval of the median of the received; None where too few.
    """

    min: int
    p50: int | None
    p90: int | None
    p99: int | None
    max: int
    samples: int
    p50_interval_95: tuple[int, int] | None

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
        }


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
        loss_ratio: lost / (received + lost); None where no probe was decided.
        negative: delays that came out below zero: a clock problem, left out of the figures.
        duplicated: extra copies that this segment made.
        reordered: probes that this segment reordered (RFC 4737).
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

    def with_loss(self, lost: int, interval: tuple[float, float]) -> "SegmentResult":
        """The same segment with another number of lost probes."""
        known = self.received + lost
        return replace(
            self,
            lost=lost,
            undecided=self.sent - self.received - lost,
            loss_ratio=lost / known if known else None,
            loss_interval_95=interval,
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
            "pdv_ns": self.pdv.to_json() if self.pdv else None,
            "negative": self.negative,
            "reordered": self.reordered,
            "duplicated": self.duplicated,
            "stamp": self.stamp,
        }
