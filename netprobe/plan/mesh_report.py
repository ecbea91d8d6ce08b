"""What became of a mesh: classes of guests, which path stands for which, and what a budget did. Values only.

plan.mesh fills it in; `run --json` and a line on stderr show it.
"""

from dataclasses import dataclass

from netprobe.model.results import Json


@dataclass(frozen=True, slots=True)
class GuestClass:
    """Guests that are alike.

    Attributes:
        id: `c0`, `c1`, ... within the mesh.
        members: names, sorted.
        reason: in what they are alike, in words.
    """

    id: str
    members: tuple[str, ...]
    reason: str

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {"id": self.id, "members": list(self.members), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class StandIn:
    """One path that stands for all from one class to another.

    Attributes:
        first, second: ids of the classes.
        src, dst: the guests that were chosen.
        stands_for: how many pairs of guests, itself among them.
    """

    first: str
    second: str
    src: str
    dst: str
    stands_for: int

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "from": self.first,
            "to": self.second,
            "src": self.src,
            "dst": self.dst,
            "stands_for": self.stands_for,
        }


@dataclass(frozen=True, slots=True)
class NoPath:
    """Two guests between which probes cannot go in this direction, and why; nothing is sent for them."""

    src: str
    dst: str
    why: str

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {"src": self.src, "dst": self.dst, "why": self.why}


@dataclass(frozen=True, slots=True)
class HostLoad:
    """Probes a second that a host sends and receives: as the rate of each path asks, and as planned."""

    host: str
    wanted_pps: float
    planned_pps: float


@dataclass(frozen=True, slots=True)
class MeshReport:
    """What became of a mesh.

    Attributes:
        guests: how many it is about.
        all_pairs: sessions that all pairs would be.
        sessions: sessions that remain, flows of one path counted once.
        pairs: which path stands for which; empty where nothing was pruned.
        without_path: pairs, or pairs that stand for others, that have no path.
        stretched: the largest factor by which a path is slower than asked for; 1 where none is.
    """

    name: str
    guests: int
    all_pairs: int
    sessions: int
    classes: tuple[GuestClass, ...]
    pairs: tuple[StandIn, ...]
    budget_pps: int | None
    loads: tuple[HostLoad, ...]
    stretched: float
    without_path: tuple[NoPath, ...] = ()

    @property
    def saved(self) -> int:
        """Pairs that need no session of their own, because another one stands for them."""
        return self.all_pairs - self.sessions - len(self.without_path)

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "name": self.name,
            "guests": self.guests,
            "all_pairs": self.all_pairs,
            "sessions": self.sessions,
            "saved": self.saved,
            "classes": [c.to_json() for c in self.classes],
            "pairs": [p.to_json() for p in self.pairs],
            "budget_pps": self.budget_pps,
            "hosts": {
                load.host: {"wanted_pps": load.wanted_pps, "planned_pps": load.planned_pps} for load in self.loads
            },
            "stretched": self.stretched,
            "without_path": [pair.to_json() for pair in self.without_path],
        }

    def line(self) -> str:
        """The same for people, in one line."""
        text = f"mesh {self.name}: {self.guests} guests, {self.all_pairs} pairs, {self.sessions} sessions"
        if self.classes:
            text += f", {self.saved} saved: {len(self.classes)} classes of guests that are alike"
        if self.without_path:
            first = self.without_path[0]
            text += f"; {len(self.without_path)} have no path, such as {first.src} -> {first.dst}: {first.why}"
        if self.stretched > 1:
            most = max(self.loads, key=lambda load: load.wanted_pps)
            text += (
                f"; slowed up to {self.stretched:.3g} times: {most.host} would have {most.wanted_pps:g} probes/s,"
                f" its budget is {self.budget_pps}"
            )
        return text
