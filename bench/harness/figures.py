"""A figure: what was measured, against whom, how sure it is, and whether the target is met. Pure.

Keys in results.json:
    value, peer_value: medians over the slices, in `unit`; peer_value is null where there is no peer.
    ratio: median of the paired ratios own/peer; null without a peer.
    interval: 95 %, of what `judged` says: the ratio or the value.
    target, sense: the limit, and ">=" or "<=".
    met: false only if the whole interval lies on the wrong side, or something that must hold did not (`broken`).
    also: further figures of the same shape. met of the main figure includes theirs.
    slices: how many pairs. note, label: for people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from netprobe.judge.paired import bootstrap_median, paired_ratio


@dataclass(frozen=True, slots=True)
class Target:
    """A limit. `strict` asks the whole interval to lie on the right side, instead of a part of it."""

    limit: float
    sense: Literal[">=", "<="]
    strict: bool = False

    def is_met(self, low: float, high: float) -> bool:
        if self.sense == ">=":
            return (low if self.strict else high) >= self.limit
        return (high if self.strict else low) <= self.limit


def at_least(limit: float) -> Target:
    return Target(limit, ">=")


def at_most(limit: float) -> Target:
    return Target(limit, "<=")


@dataclass(frozen=True, slots=True)
class Figure:
    """See above; a figure without a target is reported only."""

    value: float
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None
    interval: tuple[float, float]
    target: Target | None
    judged: Literal["ratio", "value"]
    slices: int
    label: str = ""
    note: str = ""
    broken: str = ""
    others: tuple["Figure", ...] = field(default=())

    def also(self, *others: "Figure") -> "Figure":
        """With further figures under the same key."""
        return replace(self, others=(*self.others, *others))

    @property
    def met(self) -> bool:
        own = not self.broken and (self.target is None or self.target.is_met(*self.interval))
        return own and all(other.met for other in self.others)

    def document(self) -> dict[str, object]:
        """As in results.json."""
        document: dict[str, object] = {
            "value": _rounded(self.value),
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": _rounded(self.peer_value),
            "ratio": _rounded(self.ratio),
            "interval": [_rounded(end) for end in self.interval],
            "target": self.target.limit if self.target else None,
            "met": self.met,
            "judged": self.judged,
            "sense": self.target.sense if self.target else None,
            "slices": self.slices,
        }
        document |= {key: text for key in ("label", "note", "broken") if (text := getattr(self, key))}
        if self.others:
            document["also"] = [other.document() for other in self.others]
        return document


def compare(
    own: Sequence[float],
    peer_values: Sequence[float],
    *,
    unit: str,
    peer: str,
    target: Target | None,
    label: str = "",
    note: str = "",
    broken: str = "",
    seed: int = 0,
) -> Figure:
    """Judge the ratio own/peer, pair by pair."""
    ratio = paired_ratio(own, peer_values, seed=seed)
    medians = float(np.median(own)), float(np.median(peer_values))
    interval = (ratio.low, ratio.high)
    return Figure(
        medians[0], unit, peer, medians[1], ratio.value, interval, target, "ratio", len(own), label, note, broken
    )


def measure(
    own: Sequence[float],
    *,
    unit: str,
    target: Target | None,
    peer: str = "",
    peer_values: Sequence[float] = (),
    label: str = "",
    note: str = "",
    broken: str = "",
    seed: int = 0,
) -> Figure:
    """Judge own values; a peer's stand beside them, pair by pair, where there is one."""
    value = bootstrap_median(own, seed=seed)
    with_peer = len(peer_values) > 0
    ratio = paired_ratio(own, peer_values, seed=seed).value if with_peer else None
    peer_value = float(np.median(peer_values)) if with_peer else None
    interval = (value.low, value.high)
    return Figure(value.value, unit, peer, peer_value, ratio, interval, target, "value", len(own), label, note, broken)


def _rounded(number: float | None) -> float | None:
    """Six significant digits: more would be noise."""
    return None if number is None else float(f"{number:.6g}")
