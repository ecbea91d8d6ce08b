"""The mutation score of one backend: mutants are enforced one after the other, and `netprobe verify` looks for each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.policy_texts import forty, forty_file

from mutation.enforcement import ALL, Enforcement
from mutation.explain import explanation
from mutation.hunt import Hunter
from mutation.mutants import Mutant, shuffled
from mutation.replay import Replay
from netprobe.lab import config, control

EQUIVALENT_MAX = 0.1
KILLED_MIN = 0.99
PACKETS = 20_000
BATCH = 25
"""Mutants between two looks at the original."""

LABS_MAX = 5


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

    def add(self, other: "Score") -> None:
        """Count others' mutants too."""
        self.mutants += other.mutants
        self.killed += other.killed
        self.survivors += other.survivors
        self.hunt_s += other.hunt_s
        for kind, counts in other.by_kind.items():
            self.by_kind[kind] = [a + b for a, b in zip(self.by_kind.get(kind, (0, 0)), counts, strict=True)]

    @property
    def equivalent(self) -> int:
        """Survivors that no packet tells from the original."""
        return sum(not one.difference for one in self.survivors)

    @property
    def real(self) -> int:
        """Those that are not equivalent: what the score is of."""
        return self.mutants - self.equivalent

    def problems(self) -> list[str]:
        """Why this score is not good enough."""
        found = []
        if self.killed < KILLED_MIN * self.real:
            found.append(f"{self.killed} of {self.real} mutants were found, less than {KILLED_MIN:.0%}")
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


@dataclass(frozen=True, slots=True)
class _Bench:
    """A lab that is up, and what is needed to try mutants in it."""

    enforcement: Enforcement
    hunter: Hunter
    replay: Replay

    @classmethod
    def set_up(cls, made: type[Enforcement], path: Path, packets: int, seed: int) -> "_Bench":
        """Bring the lab up."""
        control.up(made.lab, config_path=path, with_agents=False)
        enforcement = made(config.load(made.lab, path))
        hunter = Hunter.of(forty(made.lab), str(path), made.pace)
        replay = Replay(enforcement, hunter.plan, hunter.topology, packets=packets, seed=seed)
        return cls(enforcement, hunter, replay)

    def wrong(self) -> str:
        """What is wrong without a mutant; "" where all is as the policy says."""
        self.enforcement.apply(self.enforcement.original)
        findings = self.hunter.findings(is_thorough=True)
        return f"{findings[0].kind.value}: {findings[0].key or findings[0].detail}" if findings else ""


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

    After every few of them the original must be as the policy says: else they were found for what an earlier one had
    left behind, and are tried again in a new lab.

    Args:
        backend: one of ALL.
        place: a directory for files.
        count: how many mutants, those that turn out equivalent not counted: for each another one is tried.
        seed: of their choice, and of the packets for those that survive.
        packets: what a survivor is sent at the least.
        only: try those with this in their names.
        tell: takes a line a mutant.
    """
    made = ALL[backend]
    path = forty_file(place, made.lab)
    found, began, labs = Score(), time.monotonic(), 0
    try:
        while True:
            labs += 1
            bench = _Bench.set_up(made, path, packets, seed)
            wrong = bench.wrong()
            assert not wrong, f"{backend}: the original is not as the policy says: {wrong}"
            assert labs <= LABS_MAX, f"{backend}: {LABS_MAX} labs were spoiled"
            mutants = [one for one in shuffled(bench.enforcement.mutants(), seed) if only in one.name]
            if _is_done(found, mutants, count, bench, tell):
                found.seconds = time.monotonic() - began
                return found
            control.down()
    finally:
        control.down()


def _is_done(found: Score, mutants: Sequence[Mutant], count: int, bench: _Bench, tell: Callable[[str], None]) -> bool:
    """Try what is left of the mutants, until `count` were no equivalent ones; False where the lab is spoiled."""
    while found.real < count and found.mutants < len(mutants):
        part = Score()
        for number, mutant in enumerate(mutants[found.mutants : found.mutants + BATCH], found.mutants + 1):
            if found.real + part.real == count:
                break
            _try(part, mutant, bench, lambda line, number=number: tell(f"{number:4d} {line}"))
        wrong = bench.wrong()
        if wrong:
            tell(f"afterwards the original is not as the policy says ({wrong}): a new lab, and these again")
            return False
        found.add(part)
    return True


def _try(found: Score, mutant: Mutant, bench: _Bench, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    bench.enforcement.apply(mutant.state)
    findings = bench.hunter.findings()
    hunt_s = time.monotonic() - began
    found.mutants += 1
    found.hunt_s += hunt_s
    kind = found.by_kind.setdefault(f"{mutant.level}: {mutant.kind}", [0, 0])
    kind[0] += 1
    title = f"{hunt_s:5.1f} s  {mutant.level}, {mutant.kind}: {mutant.name}"
    if findings:
        found.killed += 1
        kind[1] += 1
        tell(f"{title}  -> {findings[0].kind.value}: {findings[0].key or findings[0].detail}")
        return
    difference = bench.replay.difference(mutant.state)
    why = explanation(mutant, bench.hunter.plan, difference)
    found.survivors.append(Survivor(mutant, bench.replay.packets, difference, why))
    tell(f"{title}  -> SURVIVED: {difference or f'equivalent ({why})'}")
