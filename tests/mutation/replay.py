"""The same packets to the original and to a mutant, by the real datapath: whether anything differs at all.

They go in and come out by the taps, as those of a verification do, but they are not its packets, and nobody evaluates
a policy here: what arrives is compared with what arrived. A difference counts when it comes again and again.
"""

import secrets
from collections.abc import Sequence
from functools import partial

import trio

from mutation.enforcement import Enforcement
from mutation.replay_packets import conversations
from netprobe.host.signals import StopRequest
from netprobe.model.packets import Scenario
from netprobe.service.backends import is_tracked_by_kernel
from netprobe.service.verify import VerifyPlan
from netprobe.service.verify_attempts import Attempts, levels, waves
from netprobe.service.verify_wire import VerifyWire, WireOrder, new_mark, open_wire

AT_ONCE = 3000
TRIES = 3
"""How often what differs is sent again to either; loss does not come every time."""

Fates = dict[int, tuple[bool, ...]]


class Replay:
    """Conversations, and what became of them under the original.

    Args:
        enforcement: of the lab that is up.
        plan: of a verification there, for its ports.
        topology: of the lab.
        packets: at least so many.
        seed: of all draws.
    """

    def __init__(self, enforcement: Enforcement, plan: VerifyPlan, topology, *, packets: int, seed: int) -> None:
        self._enforcement = enforcement
        self._plan = plan
        self._topology = topology
        self.scenarios = conversations(plan.policy, packets, seed)
        self._names = {port.name: i for i, port in enumerate(plan.ports)}
        self._original: Fates = {}

    @property
    def packets(self) -> int:
        """How many are sent to each side."""
        return sum(len(scenario.steps) for scenario in self.scenarios)

    def difference(self, mutant: object) -> str:
        """A packet that fares otherwise under a mutant, for people; "" where all of them fare alike.

        The mutant is enforced when this is called, and the original may be afterwards.
        """
        if not self._original:
            self._enforcement.apply(self._enforcement.original)
            self._original = self._fates(self.scenarios)
            self._enforcement.apply(mutant)
        there = self._fates(self.scenarios)
        suspects = [s for s in self.scenarios if there[s.number] != self._original[s.number]]
        if not suspects:
            return ""
        seen = self._again(suspects)
        self._enforcement.apply(self._enforcement.original)
        wanted = self._again(suspects)
        for scenario in suspects:
            mutated, original = seen[scenario.number], wanted[scenario.number]
            if mutated.isdisjoint(original):
                was, now = min(original), min(mutated)
                step = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a is not b)
                word = "arrives now" if now[step] else "arrives no more"
                return f"{scenario.key}: step {step} ({scenario.steps[step].packet.text()}) {word}"
        return ""

    def _again(self, suspects: Sequence[Scenario]) -> dict[int, set[tuple[bool, ...]]]:
        """All that becomes of some of them in several tries."""
        found: dict[int, set[tuple[bool, ...]]] = {s.number: set() for s in suspects}
        for _ in range(TRIES):
            for number, fate in self._fates(suspects).items():
                found[number].add(fate)
        return found

    def _fates(self, scenarios: Sequence[Scenario]) -> Fates:
        self._enforcement.flush()
        return trio.run(partial(self._send, scenarios))

    async def _send(self, scenarios: Sequence[Scenario]) -> Fates:
        mark = new_mark()
        attempts = Attempts(mark, secrets.randbelow(4096))
        is_kernel = is_tracked_by_kernel(self._enforcement.backend)
        pps = self._enforcement.pace.replay_pps
        order = WireOrder(mark, self._plan.attachments, self._topology, "tap", pps, is_kernel)
        seqs: dict[int, list[int]] = {}
        seen: set[int] = set()
        async with open_wire(order, StopRequest()) as wire:
            assert len(await wire.confirm()) == len(self._plan.ports), wire.notes
            for wave in waves((attempts.attempt(scenario) for scenario in scenarios), AT_ONCE):
                await self._wave(wire, attempts, wave, seen)
                seqs |= {attempt.scenario.number: attempt.seqs for attempt in wave}
                await trio.to_thread.run_sync(self._enforcement.flush)
            await trio.sleep(self._enforcement.pace.last_wait_s)
            await self._listen(wire, attempts, seen)
        return {number: tuple(seq in seen for seq in sent) for number, sent in seqs.items()}

    async def _wave(self, wire: VerifyWire, attempts: Attempts, wave: Sequence, seen: set[int]) -> None:
        """All steps, also of those whose first ones did not arrive: both sides get the same."""
        parts = [(attempt, levels(attempt.scenario)) for attempt in wave]
        for level in range(max(len(steps) for _, steps in parts)):
            batch = [
                attempts.frame(attempt, step, 0, self._ends(attempt.scenario), 0)
                for attempt, steps in parts
                if level < len(steps)
                for step in steps[level]
            ]
            wire.write_down(batch)
            times = await wire.send(batch)
            assert all(times), "frames were not sent"
            await trio.sleep(self._enforcement.pace.wait_s)
            await self._listen(wire, attempts, seen)

    async def _listen(self, wire: VerifyWire, attempts: Attempts, seen: set[int]) -> None:
        for arrival in await wire.arrivals():
            if not arrival.is_rejection and attempts.sent[arrival.seq].receiver == arrival.port:
                seen.add(arrival.seq)

    def _ends(self, scenario: Scenario) -> tuple[int, int]:
        return self._names[scenario.src], self._names[scenario.dst]
