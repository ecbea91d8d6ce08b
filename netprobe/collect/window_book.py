"""The windows of several legs of several sessions: batches with anything in them are cut up and handed on. Pure."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from netprobe.collect.windows import ClosedWindow, Windows
from netprobe.model.records import HopBatch

Key = tuple[int, int]
"""Number of the session, and leg (model.points.Leg)."""


class WindowBook:
    """All windows of a run.

    Args:
        windows: by session and leg.

    Attributes:
        strange: records that are of none of them.
    """

    def __init__(self, windows: Mapping[Key, Windows]) -> None:
        self.windows = dict(windows)
        self.strange = 0

    @property
    def counters(self) -> Counter[str]:
        """Records that were not kept, by why, of all together."""
        total: Counter[str] = Counter()
        for one in self.windows.values():
            total += one.counters
        return total

    def feed(self, hops: HopBatch) -> None:
        """More records, those of one point in the order in which they came."""
        if not len(hops):
            return
        session, leg = hops.session, hops.leg
        if (session == session[0]).all() and (leg == leg[0]).all():
            self._hand_on((int(session[0]), int(leg[0])), hops)
            return
        keys = session.astype(np.int64) << np.int64(8) | leg
        order = np.argsort(keys, kind="stable")
        _, starts = np.unique(keys[order], return_index=True)
        for mine in np.split(order, starts[1:]):
            self._hand_on((int(session[mine[0]]), int(leg[mine[0]])), HopBatch(hops.rows[mine]))

    def _hand_on(self, key: Key, hops: HopBatch) -> None:
        if key in self.windows:
            self.windows[key].feed(hops)
        else:
            self.strange += len(hops)

    def advance(self, watermark_ns: int) -> list[tuple[Key, ClosedWindow]]:
        """Settle all windows whose waiting time is over; see Windows.advance."""
        return [(key, one) for key, windows in self.windows.items() for one in windows.advance(watermark_ns)]

    def finish(self, now_ns: int, *, is_sender_lost: bool = False) -> list[tuple[Key, ClosedWindow]]:
        """Settle all that is left; see Windows.finish."""
        return [
            (key, one)
            for key, windows in self.windows.items()
            for one in windows.finish(now_ns, is_sender_lost=is_sender_lost)
        ]
