"""From a leg's outcome to the values that are shown and stored. Pure."""

from collections import Counter

from netprobe.collect.ledger import Fate
from netprobe.collect.session import LegOutcome
from netprobe.model.results import LegResult


def leg_result(outcome: LegOutcome, *, is_return: bool = False) -> LegResult:
    """The ledger of one leg as a value.

    Args:
        outcome: the leg.
        is_return: answers are planned only for probes that were delivered; none is ever unsent.
    """
    ledger, ids = outcome.ledger, [s.point.id for s in outcome.stops]
    spans = ledger.lost_spans()
    delivered = ledger.count(Fate.DELIVERED)
    missed: Counter[str] = Counter()  # a leg may pass a point on the way in and on the way out
    for point, n in zip(ids, ledger.missed.tolist(), strict=True):
        missed[point] += n
    last_seen, first_missing = (ids[spans[0][0]], ids[spans[0][1]]) if spans else (None, None)
    if not spans and ledger.sent:
        # Nothing is known to be lost: the furthest point that any probe was seen at.
        last_seen = ids[int(ledger.last_stop.max())]
    return LegResult(
        planned=ledger.sent if is_return else ledger.planned,
        unsent=0 if is_return else ledger.count(Fate.UNSENT),
        delivered=delivered,
        lost=ledger.count(Fate.LOST),
        unobserved=ledger.count(Fate.UNOBSERVED),
        pending=ledger.count(Fate.PENDING),
        late=ledger.late,
        segments=outcome.segments,
        end_to_end=outcome.end_to_end,
        last_seen=last_seen,
        first_missing=first_missing,
        missed={point: n for point, n in missed.items() if n},
        is_complete=bool(outcome.arrivals.seen[1:, ledger.fate == Fate.DELIVERED].all()),
    )
