"""What devices of looked-at backends drop behind their rings while a part is under way: to leave is not to arrive.

The kernel's own counters (host.device_drops) before and after; they become a part of each point's tally.
"""

from collections.abc import Mapping

from netprobe.host.device_drops import tx_dropped
from netprobe.model.points import Point, PointKind
from netprobe.service.looking import Looker


class BehindCounts:
    """Counts from when a place is added."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Point, int]] = {}

    def add(self, places: Mapping[int, Point]) -> None:
        """Count at the backends among these points, by their index in the run, from now on."""
        backends = {
            i: point
            for i, point in places.items()
            if point.kind is PointKind.BACKEND and point.device and i not in self._before
        }
        for netns in {point.netns for point in backends.values()}:
            dropped = tx_dropped(netns)
            self._before |= {
                i: (point, dropped[point.device])
                for i, point in backends.items()
                if point.netns == netns and point.device in dropped
            }

    def tell(self, looker: Looker) -> None:
        """Write the counts into the tallies of the points."""
        for netns in {point.netns for point, _ in self._before.values()}:
            dropped = tx_dropped(netns)
            for index, (point, before) in self._before.items():
                if point.netns == netns:
                    looker.decoding(index).tally.behind = max(dropped.get(point.device, before) - before, 0)
