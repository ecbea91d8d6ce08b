"""The mutation score of one backend: mutants are enforced one after the other, and `netprobe verify` looks for each."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.policy_texts import forty, forty_file

from mutation.enforcement import BACKENDS
from mutation.explain import explanation
from mutation.hunt import Hunter
from mutation.mutants import Mutant, chosen
from mutation.replay import Replay
from netprobe.lab import config, control

EQUIVALENT_MAX = 0.1
KILLED_MIN = 0.99
PACKETS = 20_000


@dataclass(frozen=True, slots=True)
class Survivor:
    """A mutant that no finding gave away.

    Attributes:
        difference: the packet that shows it, by the real datapath; "" where none of `packets` did: it is equivalent.
        why: why it is equivalent, or what the probes lack.
    """

    mutant: Mutant
    packets: int
    difference: str
    why: str

    def to_json(self) -> dict[str, object]:
        """As in mutation.json."""
        return {
            "mutant": self.mutant.name,
            "level": self.mutant.level,
            "kind": self.mutant.kind,
            "equivalent": not self.difference,
            "packets": self.packets,
            "difference": self.difference,
            "why": self.why,
        }


@dataclass(slots=True)
class Score:
    """What became of the mutants of one backend.

    Attributes:
        seconds: all together; `hunt_s` of it for verifying.
    """

    mutants: int = 0
    killed: int = 0
    survivors: list[Survivor] = field(default_factory=list)
    by_kind: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    hunt_s: float = 0.0

    @property
    def equivalent(self) -> int:
        """Survivors that no packet tells from the original."""
        return sum(not one.difference for one in self.survivors)

    def problems(self) -> list[str]:
        """Why this score is not good enough."""
        found = []
        real = self.mutants - self.equivalent
        if self.killed < KILLED_MIN * real:
            found.append(f"{self.killed} of {real} mutants were found, less than {KILLED_MIN:.0%}")
        if self.equivalent > EQUIVALENT_MAX * self.mutants:
            found.append(f"{self.equivalent} of {self.mutants} are equivalent, more than {EQUIVALENT_MAX:.0%}")
        return found

    def to_json(self) -> dict[str, object]:
        """As in mutation.json."""
        return {
            "mutants": self.mutants,
            "equivalent": self.equivalent,
            "killed": self.killed,
            "survivors": [one.to_json() for one in self.survivors],
            "kinds": {kind: {"mutants": n, "killed": k} for kind, (n, k) in sorted(self.by_kind.items())},
            "seconds": round(self.seconds, 1),
            "seconds_a_verification": round(self.hunt_s / max(self.mutants, 1), 2),
        }


def score(
    backend: str,
    place: Path,
    *,
    count: int,
    seed: int,
    packets: int = PACKETS,
    only: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Score:
    """Bring a backend's lab up, try mutants, take it down again.

    Args:
        backend: one of BACKENDS.
        place: a directory for files.
        count: how many mutants.
        seed: of their choice, and of the packets for those that survive.
        packets: what a survivor is sent at the least.
        only: of those chosen try the ones with this in their names.
        tell: takes a line a mutant.
    """
    made = BACKENDS[backend]
    path = forty_file(place, made.lab)
    control.up(made.lab, config_path=path, with_agents=False)
    try:
        enforcement = made(config.load(made.lab, path))
        hunter = Hunter.of(forty(made.lab), str(path))
        _check_original(enforcement, hunter)
        replay = Replay(enforcement, hunter.plan, hunter.topology, packets=packets, seed=seed)
        found = Score()
        began = time.monotonic()
        for mutant in (each for each in chosen(enforcement.mutants(), count, seed) if only in each.name):
            _try(found, mutant, enforcement, hunter, replay, tell)
        found.seconds = time.monotonic() - began
        _check_original(enforcement, hunter)
        return found
    finally:
        control.down()


def _check_original(enforcement, hunter) -> None:
    """Nothing is wrong without a mutant: else it would be found for another reason."""
    enforcement.apply(enforcement.original)
    findings = hunter.findings(is_thorough=True)
    assert not findings, f"{enforcement.backend}: the original is not as the policy says: {findings[0]}"


def _try(found: Score, mutant: Mutant, enforcement, hunter, replay, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    enforcement.apply(mutant.state)
    findings = hunter.findings()
    hunt_s = time.monotonic() - began
    found.mutants += 1
    found.hunt_s += hunt_s
    kind = found.by_kind.setdefault(f"{mutant.level}: {mutant.kind}", [0, 0])
    kind[0] += 1
    title = f"{found.mutants:4d} {hunt_s:5.1f} s  {mutant.level}, {mutant.kind}: {mutant.name}"
    if findings:
        found.killed += 1
        kind[1] += 1
        tell(f"{title}  -> {findings[0].kind.value}: {findings[0].key or findings[0].detail}")
        return
    difference = replay.difference(mutant.state)
    why = explanation(mutant, hunter.plan, difference)
    found.survivors.append(Survivor(mutant, replay.packets, difference, why))
    tell(f"{title}  -> SURVIVED: {difference or f'equivalent ({why})'}")
