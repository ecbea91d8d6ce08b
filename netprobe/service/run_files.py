"""What a collector writes down of a run, so that one that was killed takes up where it was: order, blocks, result.

One folder a run: `order.msgpack` is written before the first probe goes, `blocks.log` (host.block_log) grows, and
`result.json` ends it. Root's own; a file that is not of this version is said to be so.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from netprobe.errors import HostNotReadyError
from netprobe.model.points import Direction, Point, PointKind, Stamp, Stop
from netprobe.model.points import Path as ProbePath
from netprobe.model.results import Json
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.wire.orders import ProbeSpec

SCHEMA = 1
ORDER = "order.msgpack"
RESULT = "result.json"


class SavedStop(msgspec.Struct, frozen=True, array_like=True):
    """One stop of a path."""

    id: str
    kind: str
    host: str
    netns: str
    device: str
    direction: int
    stamp: str
    socket: str = ""


class SavedEpoch(msgspec.Struct, frozen=True):
    """A time in which a session had one path."""

    forward: list[SavedStop]
    returned: list[SavedStop]
    from_ns: int
    because: str
    noticed_ns: int


class SavedSession(msgspec.Struct, frozen=True):
    """One session: what was planned, what is sent, and where it passes."""

    plan: SessionPlan
    probe: ProbeSpec
    seed: int
    source: str
    target: str
    sender: str
    epochs: list[SavedEpoch]


class SavedPart(msgspec.Struct, frozen=True):
    """An agent's part: which life of its program has it, what it may report and what it sends."""

    agent: str
    boot: str
    host: str
    points: list[int]
    sessions: list[int]


class SavedRun(msgspec.Struct, frozen=True):
    """A run under way.

    Attributes:
        started_ns, went_ns: when it was begun, and when its first probe was let go; CLOCK_REALTIME.
        unreported: why nobody looks at a point, by its index.
        points: places of all points, in the order of their indices.
    """

    schema: int
    run: str
    name: str
    seed: int
    tmax_ns: int
    started_ns: int
    went_ns: int
    sessions: list[SavedSession]
    parts: list[SavedPart]
    points: list[SavedStop]
    unreported: dict[int, str]


def save_point(point: Point) -> SavedStop:
    """A point without a direction."""
    return SavedStop(
        point.id, point.kind.value, point.host, point.netns, point.device, 0, point.stamp.value, point.socket
    )


def load_point(saved: SavedStop) -> Point:
    """The point of a stop."""
    stamp = Stamp.UPROBE if saved.socket else Stamp.KERNEL_RX
    return Point(saved.id, PointKind(saved.kind), saved.host, saved.netns, saved.device, saved.socket, stamp)


def save_stops(stops: tuple[Stop, ...]) -> list[SavedStop]:
    """One leg of a path."""
    return [
        SavedStop(
            s.point.id,
            s.point.kind.value,
            s.point.host,
            s.point.netns,
            s.point.device,
            int(s.direction),
            s.stamp.value,
            s.point.socket,
        )
        for s in stops
    ]


def load_path(forward: list[SavedStop], returned: list[SavedStop]) -> ProbePath:
    """The path of an epoch."""
    there, back = (
        tuple(Stop(load_point(s), Direction(s.direction), Stamp(s.stamp)) for s in leg) for leg in (forward, returned)
    )
    return ProbePath(there, back)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def blocks(self) -> Path:
        """Its block log."""
        return self.path / "blocks.log"

    def save(self, run: SavedRun) -> None:
        """Write the order down, for good before it returns.

        Raises:
            HostNotReadyError: the disk does not take it.
        """
        self._write(ORDER, msgspec.msgpack.encode(run))

    def finish(self, document: Json) -> None:
        """Write the result down: the run is over.

        Raises:
            HostNotReadyError: the disk does not take it.
        """
        self._write(RESULT, msgspec.json.encode(document))

    def _write(self, name: str, data: bytes) -> None:
        new = self.path / f"{name}.new"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self.path / name)
        except OSError as error:
            raise HostNotReadyError(
                str(new), f"cannot be written: {error.strerror}", advice="is the disk full?"
            ) from error

    def load(self) -> SavedRun | None:
        """The order, None where the run had not begun.

        Raises:
            HostNotReadyError: it is damaged, or of another version.
        """
        path = self.path / ORDER
        try:
            run = msgspec.msgpack.decode(path.read_bytes(), type=SavedRun)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise HostNotReadyError(str(path), f"cannot be taken up: {error}", advice="remove its folder") from error
        if run.schema != SCHEMA:
            raise HostNotReadyError(
                str(path), f"has schema {run.schema}", allowed=str(SCHEMA), advice="remove its folder"
            )
        return run

    def result(self) -> Json | None:
        """The result, None while there is none."""
        try:
            document: Json = msgspec.json.decode((self.path / RESULT).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        return document


def run_plan_of(saved: SavedRun) -> RunPlan:
    """The plan of a saved run."""
    sessions = tuple(s.plan for s in saved.sessions)
    return RunPlan(saved.name, sessions, seed=saved.seed, tmax_ns=saved.tmax_ns)


def unfinished_runs(folder: Path) -> list[RunFolder]:
    """Runs that began and have no result, the oldest first."""
    if not folder.is_dir():
        return []
    found = [RunFolder(p) for p in folder.iterdir() if (p / ORDER).exists() and not (p / RESULT).exists()]
    return sorted(found, key=lambda f: (f.path / ORDER).stat().st_mtime_ns)
