"""Reordering between two stops (RFC 4737 §3.3), of a whole session or window by window. Pure.

The order at the first stop takes the place of the sequence number: in order of arrival at the second, a probe is
reordered when one that passed the first stop after it has arrived before. First arrivals only. Used by
collect.segments and collect.windows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Passings:
    """Probes that were seen with a time at both stops: columns of shape (n,).

    Attributes:
        first_ns, second_ns: int64; when they passed the two stops, each by the stop's own clock.
        first, second: int32; which of two at the same time, at the same stop, came first has the smaller number.
    """

    first_ns: Times
    first: Numbers
    second_ns: Times
    second: Numbers

    def __len__(self) -> int:
        return len(self.first_ns)

    @classmethod
    def concat(cls, parts: "list[Passings]") -> "Passings":
        """All of several, one behind the other."""
        return cls(
            np.concatenate([p.first_ns for p in parts]),
            np.concatenate([p.first for p in parts]),
            np.concatenate([p.second_ns for p in parts]),
            np.concatenate([p.second for p in parts]),
        )

    def where(self, chosen: "Flags | slice") -> "Passings":
        """Some of them."""
        return Passings(self.first_ns[chosen], self.first[chosen], self.second_ns[chosen], self.second[chosen])


def _ascending(values: Times | Numbers) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _in_order(t_ns: Times, number: Numbers) -> npt.NDArray[np.int64]:
    """Indices in order of arrival. Two stable sorts, each of what is nearly in order and therefore quick."""
    if _ascending(number):
        return np.argsort(t_ns, kind="stable")
    by_number = np.argsort(number, kind="stable")
    return by_number[np.argsort(t_ns[by_number], kind="stable")]


def reordered(probes: Passings) -> Flags:
    """Which probes were reordered: shape (n,). What is in order at both stops, as nearly always, is not sorted."""
    flags = np.zeros(len(probes), np.bool_)
    if len(probes) < 2 or (_ascending(probes.first_ns) and _ascending(probes.second_ns)):
        return flags
    rank = np.empty(len(probes), np.int64)
    rank[_in_order(probes.first_ns, probes.first)] = np.arange(len(probes))
    arrived = _in_order(probes.second_ns, probes.second)
    position = rank[arrived]
    newest = np.maximum.accumulate(position)
    flags[arrived[1:][position[1:] < newest[:-1]]] = True
    return flags


class Overtaking:
    """Reordering between two stops, window by window; closed probes are kept as long as they can have overtaken others.

    Exact as long as no probe is seen before it was sent, or at a stop before the one before it, and later windows are
    sent later: what passed the second stop before a later window was sent has not overtaken any of it.
    """

    def __init__(self) -> None:
        nothing = np.empty(0, np.int64)
        self._open = Passings(nothing, nothing.astype(np.int32), nothing, nothing.astype(np.int32))

    def count(self, here: Passings, later: Passings, horizon_ns: int) -> int:
        """How many probes of the next window were reordered.

        Args:
            here: the window's probes, in the order of their numbers.
            later: probes of later windows; at least those that passed the second stop before the last one of `here`.
            horizon_ns: no probe of a later window was sent before.
        """
        together = Passings.concat([self._open, here, later]) if len(self._open) or len(later) else here
        closed = len(self._open) + len(here)
        flags = reordered(together)[len(self._open) : closed]
        self._open = together.where(slice(closed)).where(together.second_ns[:closed] >= horizon_ns)
        return int(np.count_nonzero(flags))

    def renumber(self, first: int, second: int) -> None:
        """Numbers that are to come are smaller by this much at either stop."""
        probes = self._open
        self._open = Passings(
            probes.first_ns, probes.first - np.int32(first), probes.second_ns, probes.second - np.int32(second)
        )
