"""A mutant of what is enforced, and a fair choice among many. Pure."""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import zip_longest

POLICY, COMPILED = "policy", "compiled"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of what is enforced.

    Attributes:
        name: what was changed, for people.
        level: POLICY where the policy was changed and compiled anew, COMPILED where what it compiles to was.
        kind: which sort of change: "deleted", "port", "priority" ...
        state: what is enforced then, as mutation.enforcement applies it.
    """

    name: str
    level: str
    kind: str
    state: object


def adds_a_tenant(prefix: IPv4Network | IPv6Network, taken: Collection[str]) -> bool:
    """Whether one bit less makes it hold one address more, and that is another guest's own.

    netprobe never sends from another tenant's address (it does no harm), so no probe of it shows such a mutant.
    """
    wider = prefix.supernet()
    return prefix.num_addresses == 1 and any(str(each) in taken for each in wider if each not in prefix)


def shuffled(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """In an order by chance: levels in turn, and within a level sorts, so that any first part has some of each."""
    rng = random.Random(seed)
    sorts: dict[str, dict[str, list[Mutant]]] = {POLICY: {}, COMPILED: {}}
    for mutant in mutants:
        sorts[mutant.level].setdefault(mutant.kind, []).append(mutant)
    lines = []
    for level in sorts.values():
        for found in level.values():
            rng.shuffle(found)
        kinds = sorted(level)
        rng.shuffle(kinds)
        lines.append([one for turn in zip_longest(*(level[kind] for kind in kinds)) for one in turn if one is not None])
    return [one for turn in zip_longest(*lines) for one in turn if one is not None]
