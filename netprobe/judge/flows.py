"""Which flows of one path differ: a leg of a bundle (ECMP, bond, receive queue) that fails shows in its flows. Pure.

A flow differs when it lost so much more than all others together that chance does not do it: Fisher's exact test
("The logic of inductive inference", J. R. Stat. Soc. 98, 1935), one-sided, its level shared among the flows
(Bonferroni). service.spreading, above, makes the counts out of a run's results.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

LEVEL = 0.05
"""Probability that any of the flows is said to differ while all are alike, at most."""


class FlowState(Enum):
    """What one flow says; a closed set."""

    PASSES = "passes"
    LOSSY = "lossy"  # some arrive, and it loses more than the others
    FAILS = "fails"  # none arrives, and that is not chance
    SUSPECT = "suspect"  # none arrives, and it were too few to tell that from chance
    UNKNOWN = "unknown"  # nobody can say


@dataclass(frozen=True, slots=True)
class FlowCount:
    """What became of one flow's probes. `undecided`: sent ones of which nobody can say."""

    received: int
    lost: int
    undecided: int


def chance(lost: int, total: int, other_lost: int, other_total: int) -> float:
    """Probability that `total` drawn out of all have `lost` or more of all the lost ones among them.

    Args:
        lost: of the flow's.
        total: the flow's, lost or received.
        other_lost: of all others' together.
        other_total: all others', lost or received.
    """
    all_lost, everything = lost + other_lost, total + other_total
    ways = math.comb(everything, total)
    worse = range(lost, min(total, all_lost) + 1)
    return sum(math.comb(all_lost, k) * math.comb(everything - all_lost, total - k) for k in worse) / ways


def states_of(flows: Sequence[FlowCount], level: float = LEVEL) -> tuple[FlowState, ...]:
    """The state of each flow, held against all others.

    Args:
        flows: of one path, sent together.
        level: of all comparisons together.
    """
    lost, total = sum(f.lost for f in flows), sum(f.lost + f.received for f in flows)
    is_any_received = any(f.received for f in flows)
    found = []
    for flow in flows:
        own = flow.lost + flow.received
        differs = chance(flow.lost, own, lost - flow.lost, total - own) < level / len(flows)
        if not own or (not flow.received and flow.lost <= flow.undecided):
            found.append(FlowState.UNKNOWN)
        elif flow.received:
            found.append(FlowState.LOSSY if flow.lost and differs else FlowState.PASSES)
        else:
            found.append(FlowState.FAILS if differs or not is_any_received else FlowState.SUSPECT)
    return tuple(found)
