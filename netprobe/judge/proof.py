"""What probes prove of each step of a policy's cover: passed, dropped, or not decided. Pure.

One authentic arrival proves that a packet passes. A miss proves little by itself: it may be loss. So misses are judged
by a sequential test (judge.sequential): "it passes, and was lost as others are" against "it is dropped". How much is
lost is measured with what is known to pass: packets that arrived in the end, and neighbour discovery, which every
policy lets through. A round in which nothing at all came through at a port counts for nothing there.

service.verify sends and feeds; judge.findings compares with what should be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from netprobe.errors import UsageError
from netprobe.model.packets import Scenario

I64 = npt.NDArray[np.int64]

LOSS_CONFIDENCE = 1e-3
"""The probability that a bound of the loss is too low."""

LEAST_LOSS = 0.002
"""No path is taken for better than this, however few losses were seen: a switch may shed a burst at any time."""

MAX_LOSS = 0.5
"""Where more than this may be lost, nothing is called dropped."""


class Outcome(Enum):
    """What is proved of one step."""

    OPEN = "open"  # not decided
    PASSED = "passed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class StepRef:
    """One step of a scenario."""

    scenario: int
    step: int


@dataclass(frozen=True, slots=True)
class LossBound:
    """What is known about the loss of packets that pass.

    Attributes:
        trials, misses: packets that are known to pass, and those of them that did not arrive.
        upper: with probability 1 - LOSS_CONFIDENCE the loss is below this; exact (Clopper and Pearson, Biometrika 26
            (1934)).
    """

    trials: int
    misses: int
    upper: float


def loss_bound(trials: int, misses: int) -> LossBound:
    """The bound of a loss of which so much was seen."""
    assert 0 <= misses <= trials, f"{misses} of {trials}"
    if misses == trials:
        return LossBound(trials, misses, 1.0)
    upper = float(betaincinv(misses + 1, trials - misses, 1 - LOSS_CONFIDENCE))
    return LossBound(trials, misses, max(upper, LEAST_LOSS))


class Proofs:
    """The tests of all steps of a cover, under way.

    Args:
        scenarios: dense in `number`.
        ports: names of all ports.
        hosts: the number of each port's host; what lies between two hosts loses for itself. None: all on one.
        alpha: bound of the probability that any step at all is called dropped though it passes (Bonferroni).

    Raises:
        UsageError: alpha is no probability.
    """

    def __init__(
        self, scenarios: Sequence[Scenario], ports: Sequence[str], *, alpha: float, hosts: Sequence[int] | None = None
    ) -> None:
        if not 0 < alpha < 1:
            raise UsageError("--alpha", f"got {alpha:g}", allowed="between 0 and 1")
        self._scenarios = scenarios
        self._first = np.cumsum([0, *(len(s.steps) for s in scenarios)])
        n = int(self._first[-1])
        self.alpha = alpha
        self.alpha_a_step = alpha / max(n, 1)
        self.sent = np.zeros(n, np.int64)
        self.arrived = np.zeros(n, np.int64)
        self.rejected = np.zeros(n, np.int64)
        number = {name: i for i, name in enumerate(ports)}
        ends = [(number[s.src], number[s.dst]) for s in scenarios]
        pairs = [
            (a, b) if step.is_forward else (b, a) for (a, b), s in zip(ends, scenarios, strict=True) for step in s.steps
        ]
        both = np.array(pairs, np.int64).reshape(n, 2)
        self.sender, self.receiver = both[:, 0], both[:, 1]
        self._host = np.array(hosts or [0] * len(ports), np.int64)
        self._hosts = int(self._host.max(initial=0)) + 1
        self.path = self.path_of(self.sender, self.receiver)
        self._control_sent = np.zeros((2, len(ports)), np.int64)
        self._control_missed = np.zeros((2, len(ports)), np.int64)
        self._path_sent = np.zeros(self._hosts**2, np.int64)
        self._path_missed = np.zeros(self._hosts**2, np.int64)

    def __len__(self) -> int:
        return len(self.sent)

    def path_of(self, senders: I64, receivers: I64) -> I64:
        """The number of the way from the one's host to the other's, shape (n,)."""
        found: I64 = self._host[senders] * self._hosts + self._host[receivers]
        return found

    def host_of(self, port: int) -> int:
        """The number of a port's host."""
        return int(self._host[port])

    @property
    def paths(self) -> int:
        """How many ways there are between hosts, both directions, and within each."""
        return self._hosts**2

    def index(self, scenario: int, step: int) -> int:
        """The place of a step in the columns."""
        return int(self._first[scenario]) + step

    def ref(self, index: int) -> StepRef:
        """The step at a place in the columns."""
        scenario = int(np.searchsorted(self._first, index, side="right")) - 1
        return StepRef(scenario, index - int(self._first[scenario]))

    def feed(
        self,
        steps: I64,
        arrived: npt.NDArray[np.bool_],
        alive: npt.NDArray[np.bool_],
        paths_alive: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Take the results of one round.

        Args:
            steps: shape (n,), places of the steps that were sent; each once a round.
            arrived: shape (n,), whether it arrived at its receiver.
            alive: shape (2, ports), whether in this round anything at all came through that each port sent (row 0), and
                to each port (row 1). What was sent from or to one that was not alive counts for nothing, unless it
                arrived.
            paths_alive: shape (paths,), likewise for the ways between hosts; None: all are.
        """
        is_alive = alive[0, self.sender[steps]] & alive[1, self.receiver[steps]]
        if paths_alive is not None:
            is_alive &= paths_alive[self.path[steps]]
        counts = arrived | is_alive
        self.sent[steps[counts]] += 1
        self.arrived[steps[arrived]] += 1

    def feed_controls(self, senders: I64, receivers: I64, arrived: npt.NDArray[np.bool_]) -> None:
        """Take the controls of one round: what every policy lets pass.

        Args:
            senders: shape (n,), numbers of ports.
            receivers: likewise.
            arrived: shape (n,).
        """
        for row, ports in ((0, senders), (1, receivers)):
            np.add.at(self._control_sent[row], ports, 1)
            np.add.at(self._control_missed[row], ports[~arrived], 1)
        paths = self.path_of(senders, receivers)
        np.add.at(self._path_sent, paths, 1)
        np.add.at(self._path_missed, paths[~arrived], 1)

    def feed_rejections(self, steps: I64) -> None:
        """Take note that the senders of these steps were told of a rejection."""
        self.rejected[steps] += 1

    def late(self, steps: I64) -> None:
        """Take arrivals of an earlier round: late, but they passed."""
        self.arrived[steps] = np.minimum(self.arrived[steps] + 1, np.maximum(self.sent[steps], 1))
        self.sent[steps] = np.maximum(self.sent[steps], 1)

    def loss(self) -> tuple[LossBound, tuple[LossBound, ...]]:
        """The bound for all that passes, and for each port; a port's own where it is surely worse than the rest."""
        passes = self.arrived > 0
        sent, missed = self._control_sent.copy(), self._control_missed.copy()
        for row, ports in ((0, self.sender), (1, self.receiver)):
            np.add.at(sent[row], ports[passes], self.sent[passes])
            np.add.at(missed[row], ports[passes], (self.sent - self.arrived)[passes])
        missed = np.clip(missed, 0, sent)
        common = loss_bound(int(sent[0].sum()), int(missed[0].sum()))
        return common, tuple(_worse(common, sent[:, i], missed[:, i]) for i in range(sent.shape[1]))

    def _path_bounds(self) -> npt.NDArray[np.float64]:
        """The bound of each way between hosts, shape (paths,): its own where it surely loses more than all do."""
        passes = self.arrived > 0
        sent, missed = self._path_sent.copy(), self._path_missed.copy()
        np.add.at(sent, self.path[passes], self.sent[passes])
        np.add.at(missed, self.path[passes], (self.sent - self.arrived)[passes])
        common = self.loss()[0]
        missed = np.clip(missed, 0, sent)
        return np.array([_worse(common, sent[i : i + 1], missed[i : i + 1]).upper for i in range(len(sent))])

    def outcomes(self) -> list[Outcome]:
        """What is proved of each step by now."""
        bounds = np.array([bound.upper for bound in self.loss()[1]])
        loss = np.maximum(bounds[self.sender], bounds[self.receiver]) if len(bounds) else np.ones(len(self.sent))
        loss = np.maximum(loss, self._path_bounds()[self.path])
        # The likelihood ratio of n misses in a row, "passes" to "dropped", is loss ** n (judge.sequential.ShareTest
        # with bad = 1, written out for columns).
        with np.errstate(divide="ignore"):
            log_ratio = self.sent * np.log(np.maximum(loss, 1e-300))
        is_dropped = (self.arrived == 0) & (log_ratio <= math.log(self.alpha_a_step)) & (loss <= MAX_LOSS)
        return [
            Outcome.PASSED if passed else Outcome.DROPPED if dropped else Outcome.OPEN
            for passed, dropped in zip((self.arrived > 0).tolist(), is_dropped.tolist(), strict=True)
        ]

    def misses_needed(self) -> int:
        """Misses in a row that prove a drop where the common bound holds; 0 where nothing proves it."""
        upper = self.loss()[0].upper
        return 0 if upper > MAX_LOSS else math.ceil(math.log(self.alpha_a_step) / math.log(upper))


def _worse(common: LossBound, sent: I64, missed: I64) -> LossBound:
    """A port's own bound where it loses surely more than all do on the average, else the common one."""
    worst = common
    for trials, misses in zip(sent.tolist(), missed.tolist(), strict=True):
        if misses == 0:
            continue
        lower = float(betaincinv(misses, trials - misses + 1, LOSS_CONFIDENCE))
        own = loss_bound(trials, misses)
        if lower > common.misses / max(common.trials, 1) and own.upper > worst.upper:
            worst = own
    return worst
