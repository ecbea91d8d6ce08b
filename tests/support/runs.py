"""Runs that never were: results of a simulated path, for what is built upon run_plan."""

from dataclasses import dataclass, field, replace

from support.results import segment

from netprobe.model.records import HopBatch
from netprobe.model.results import LegResult, SessionResult
from netprobe.plan.schedule import session_due_ns
from netprobe.service.run import RunOutcome

START_NS = 1_700_000_000_000_000_000


def leg(planned, delivered, lost=0, *, unsent=0, pending=0, last_seen="vm2.guest", first_missing=None, delay=None):
    end = replace(segment(1_000_000, total=max(planned, 1)), first="vm1.guest", second="vm2.guest", delay=delay)
    return LegResult(
        planned=planned,
        unsent=unsent,
        delivered=delivered,
        lost=lost,
        unobserved=planned - unsent - delivered - lost - pending,
        pending=pending,
        late=0,
        segments=(),
        end_to_end=end,
        last_seen=last_seen,
        first_missing=first_missing,
        missed={},
        is_complete=not lost,
    )


def session(name, forward, returned=None, *, reason=None, src_port=61_000, src="vm1", dst="vm2"):
    return SessionResult(
        name=name,
        src=src,
        dst=dst,
        vantage="guest",
        type_p={"proto": "udp", "family": 4, "src_port": src_port, "size_bytes": 110, "dst_port": 862, "dscp": 3},
        seed=1,
        tmax_ms=1000.0,
        schedule="periodic",
        rate_pps=100,
        pacing=None,
        forward=forward,
        returned=returned,
        forged=0,
        remarked_at=None,
        reason=reason,
        overflowed={},
        counters={},
        notes=(),
    )


def outcome(results, *, hops=None, points=(), started_ns=START_NS, stopped=""):
    return RunOutcome(
        started_ns=started_ns,
        results=tuple(results),
        hops=HopBatch.empty() if hops is None else hops,
        points=tuple(points),
        sessions=tuple(range(len(results))),
        stopped=stopped,
    )


@dataclass
class SizedPath:
    """A path that swallows sizes, and loses some frames whatever their size.

    Attributes:
        swallows: of a size, whether none of it passes.
        loss: share that is lost at random, by `rng`.
        is_silent: whether nobody sees where it is lost: in the last stretch.
        swallows_back: of a size of answers.
        outages: numbers of runs in which nothing passes.
    """

    swallows: object
    rng: object
    loss: float = 0.0
    is_silent: bool = False
    swallows_back: object = None
    outages: frozenset = frozenset()
    runs: int = 0
    plans: list = field(default_factory=list)

    async def run(self, plan, topology, progress):
        del topology, progress
        self.runs += 1
        self.plans.append(plan)
        assert all(session_due_ns(s, 1)[0] == s.start_ns for s in plan.sessions)
        return outcome([self._session(s) for s in plan.sessions])

    def _session(self, plan):
        count = plan.count
        swallowed = self.swallows(plan.size_bytes) or self.runs in self.outages
        passed = 0 if swallowed else int(self.rng.binomial(count, 1 - self.loss))
        missing = count - passed
        back = passed
        if self.swallows_back is not None and self.swallows_back(plan.size_bytes):
            back = 0
        returned = leg(passed, back, passed - back, last_seen="vm2.backend", first_missing="vm1.backend")
        if self.is_silent:
            forward = leg(count, passed, last_seen="vm2.backend" if missing == count else "vm2.guest")
        else:
            where = ("vm1.backend", "vm2.backend") if missing else ("vm2.guest", None)
            forward = leg(count, passed, missing, last_seen=where[0], first_missing=where[1])
        reason = {"code": "unknown"} if missing and not self.is_silent else None
        return session(plan.name, forward, returned, reason=reason)
