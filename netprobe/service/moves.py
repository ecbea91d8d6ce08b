"""Which sessions have another path than before, because a guest moved or the points on the way changed. Pure."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from netprobe.collect.epochs import Epoch
from netprobe.errors import NetprobeError, UsageError
from netprobe.model.points import Path
from netprobe.model.topology import Topology
from netprobe.service.prepare import Prepared, path_of


def moved_sessions(
    prepared: Sequence[Prepared], epochs: Mapping[int, Sequence[Epoch]], before: Topology, now: Topology
) -> list[tuple[Prepared, Path, str]]:
    """The sessions whose path is another one in a new topology: with that path, and why.

    Args:
        prepared: the sessions of a run.
        epochs: their paths so far.
        before: the topology until now.
        now: the new one.
    """
    found = []
    for one in prepared:
        with suppress(UsageError):  # a guest that is gone has no path: its probes are lost, or nobody can say
            path = path_of(one, now)
            if _places(path) != _places(epochs[one.probe.session][-1].path):
                found.append((one, path, _what_moved(one, before, now)))
    return found


def are_ports_known(moved: Sequence[tuple[Prepared, Path, str]]) -> bool:
    """Whether a ring can look at every point of the new paths; else what was read of the new host is older yet."""
    return all(s.point.device for _, path, _ in moved for s in (*path.forward, *path.returned) if s.is_observed_by_ring)


def _places(path: Path) -> list[str]:
    return [s.point.place for s in (*path.forward, *path.returned)]


def _what_moved(one: Prepared, before: Topology, now: Topology) -> str:
    moves = []
    for guest in (one.source, one.target):
        with suppress(NetprobeError):
            old, new = before.guest(guest.name, "run").host, now.guest(guest.name, "run").host
            if old != new:
                moves.append(f"{guest.name} moved from {old} to {new}")
    return "; ".join(moves) or "the points on its way changed"
