"""A run as a collector keeps it: what was ordered, what agents delivered, on disk and in memory.

A block is on the disk before it is acknowledged, and what it says is in the collection; a collector that was killed
reads both again. How the run goes is service.spread_run's, above; the files are service.run_files'.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import trio

from netprobe.collect.epochs import Epoch
from netprobe.errors import HostNotReadyError, WireError
from netprobe.host.block_log import BlockLog, LoggedBlock, Outcome, Source
from netprobe.host.clock import realtime_ns
from netprobe.model.observations import FOR_EVER_NS, Blind
from netprobe.model.topology import Topology
from netprobe.plan.plans import RunPlan
from netprobe.plan.schedule import session_due_ns
from netprobe.service.collection import ROWS_A_PROBE, Collection
from netprobe.service.part_orders import lasts_s
from netprobe.service.prepare import Prepared
from netprobe.service.run_files import (
    SCHEMA,
    RunFolder,
    SavedEpoch,
    SavedPart,
    SavedRun,
    SavedSession,
    load_path,
    load_point,
    save_point,
    save_stops,
)
from netprobe.wire.blocks import each_report_untrusted
from netprobe.wire.frames import FrameBlock
from netprobe.wire.orders import probe_of_untrusted, probe_spec

SLICE_S = 0.005

MIN_ROOM_BYTES = 64 << 20
ROW_BYTES = 64
"""What one record of a point takes: a hop and an answer."""

FLUSHES_A_SECOND = 10
FLUSH_BYTES = 512
"""What a point and a part report besides: tallies, watermarks, exchanges."""


class Taken(Enum):
    """What became of a block."""

    NEW = "new"  # acknowledged when it is on the disk
    AGAIN = "again"  # it was there already
    UNWANTED = "unwanted"  # nobody waits for it: the agent may forget it
    IMPOSSIBLE = "impossible"  # the agent breaks the protocol, or has used up its room


@dataclass(slots=True)
class Part:
    """An agent's part of the run.

    Attributes:
        is_lost: the program that had it is gone, and all that it left has come.
        away_since_ns: when its agent was last seen, 0 while it is connected.
        heard_ns: when its last block came.
        turn: held while one of its blocks is taken.
    """

    agent: str
    boot: str
    points: list[int]
    sessions: list[int]
    is_lost: str = ""
    away_since_ns: int = 0
    heard_ns: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)

    @property
    def key(self) -> Source:
        """As in the block log."""
        return Source(self.agent, self.boot)


@dataclass(slots=True)
class KeptRun:
    """What is known of a run.

    Attributes:
        epochs: the paths of each session, in order of time.
        parts: by the agent's name.
        hosts: the host of each agent.
        unreported: why nobody looks at a point, by its index.
        started_ns, went_ns: when it was begun, and when its first probe was let go.
        log: its blocks; None before there are any, and when it is over.
        refused: what agents delivered and may not, or lost, by kind.
        is_settling: nothing that comes now counts any more.
        is_broken: the disk failed.
    """

    folder: RunFolder
    plan: RunPlan
    topology: Topology
    prepared: tuple[Prepared, ...] = ()
    collection: Collection = field(default_factory=lambda: Collection(()))
    epochs: dict[int, list[Epoch]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    unreported: dict[int, str] = field(default_factory=dict)
    started_ns: int = 0
    went_ns: int = 0
    log: BlockLog | None = None
    refused: dict[str, int] = field(default_factory=dict)
    is_settling: bool = False
    is_broken: bool = False

    @property
    def run(self) -> str:
        """Its id."""
        return self.folder.run

    def begin_epoch(self, one: Prepared, epoch: Epoch) -> None:
        """A session has this path from now on: its points get an index each."""
        path, session = epoch.path, one.probe.session
        self.collection.add_points(s.point for leg in (path.forward, path.returned) for s in leg)
        self.collection.expect(session, path)
        self.epochs.setdefault(session, []).append(epoch)

    def begin_collection(self) -> None:
        """Begin to collect, for the sessions that are prepared."""
        self.collection = Collection(one.probe for one in self.prepared)
        self.collection.lasts_s = lasts_s(self.plan, self.prepared)
        ends = [end for one in self.prepared for end in (one.sender, one.target)]
        self.collection.peers = frozenset(end.chain[0].id for end in ends)  # virtual machines' clocks

    def add_part(self, part: Part, host: str) -> None:
        """An agent takes part."""
        self.parts[part.agent], self.hosts[part.agent] = part, host
        self.collection.add_part(part.agent, part.points, part.sessions)
        self.collection.peers |= {host}

    def open_log(self) -> None:
        """Begin to keep blocks. Raises HostNotReadyError where the disk does not take them."""
        self.folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = BlockLog.open(self.folder.blocks, self._room_bytes())

    def _room_bytes(self) -> int:
        """What each agent may write of this run: far more than it has to report, and far less than a disk."""
        rows = sum(one.probe.count * len(one.stops) for one in self.prepared)
        flushes = FLUSHES_A_SECOND * self.collection.lasts_s * (1 + len(self.collection.points))
        return MIN_ROOM_BYTES + ROWS_A_PROBE * ROW_BYTES * rows + int(FLUSH_BYTES * flushes)

    def replay(self) -> None:
        """Take up what an earlier life of the collector kept. Raises HostNotReadyError where it cannot be read."""
        self.log = BlockLog.open(self.folder.blocks, self._room_bytes())
        by_source = {part.key: part for part in self.parts.values()}
        for record in self.log.records():
            part = by_source.get(record.source)
            if part is None:
                continue
            if isinstance(record, LoggedBlock):
                deque(self._apply(part, record.octets), maxlen=0)
            else:
                deque(self._apply_shed(part, record.end - record.first, record.span_ns), maxlen=0)

    async def take_block(self, agent: str, boot: str, number: int, octets: bytes) -> Taken:
        """A block of an agent."""
        part, source = self.parts.get(agent), Source(agent, boot)
        if part is None or self.log is None or self.is_settling or part.key != source:
            self._refuse("blocks_of_no_part")
            return Taken.UNWANTED
        async with part.turn:  # a connection that takes the place of another one may bring the next block already
            if self.log is None or self.is_settling:
                return Taken.UNWANTED
            if self.is_broken:
                return Taken.IMPOSSIBLE
            try:
                outcome = self.log.append(source, number, octets).outcome
            except HostNotReadyError:
                self.give_up_log()
                return Taken.IMPOSSIBLE
            if outcome is Outcome.NEW:
                part.heard_ns = realtime_ns()
                await _in_slices(self._apply(part, octets, realtime_ns()))
        return self._taken(outcome)

    async def take_shed(self, agent: str, boot: str, first: int, end: int, span_ns: tuple[int, int]) -> Taken:
        """Blocks that an agent lost: its points were blind in that time."""
        part, source = self.parts.get(agent), Source(agent, boot)
        if part is None or self.log is None or self.is_settling or part.key != source:
            self._refuse("blocks_of_no_part")
            return Taken.UNWANTED
        async with part.turn:
            if self.log is None or self.is_settling:
                return Taken.UNWANTED
            if self.is_broken:
                return Taken.IMPOSSIBLE
            try:
                outcome = self.log.append_shed(source, first, end, span_ns).outcome
            except HostNotReadyError:
                self.give_up_log()
                return Taken.IMPOSSIBLE
            if outcome is Outcome.NEW:
                await _in_slices(self._apply_shed(part, end - first, span_ns))
        return self._taken(outcome)

    def _taken(self, outcome: Outcome) -> Taken:
        if outcome is not Outcome.NEW:
            self._refuse(f"blocks_{outcome.value}")
        return {Outcome.NEW: Taken.NEW, Outcome.DUPLICATE: Taken.AGAIN}.get(outcome, Taken.IMPOSSIBLE)

    def durable(self, agent: str) -> int:
        """All blocks of an agent's part below this number are on the disk."""
        part = self.parts.get(agent)
        return self.log.durable(part.key) if self.log is not None and part is not None else 0

    def give_up_log(self) -> None:
        """The disk failed: nothing more is taken, so that agents keep what was not acknowledged."""
        self.is_broken = True

    def _refuse(self, what: str) -> None:
        self.refused[what] = self.refused.get(what, 0) + 1

    def _apply(self, part: Part, octets: bytes, now_ns: int | None = None) -> Iterator[None]:
        """Take what a block says, report by report; of one that is damaged nothing."""
        reports = []
        try:
            for report in each_report_untrusted(octets):
                reports.append(report)
                yield
        except WireError:
            self._refuse("garbage_blocks")
            return
        for report in reports:
            if not self.is_settling:
                self.collection.take(part.agent, report, now_ns)
            yield

    def _apply_shed(self, part: Part, blocks: int, span_ns: tuple[int, int]) -> Iterator[None]:
        self._refuse("shed_blocks")
        start, end = max(span_ns[0], 0), min(max(span_ns[1], 0), FOR_EVER_NS)
        for point in part.points:
            if not self.is_settling:
                self.collection.take(part.agent, Blind(point, start, end, f"its agent had no room for {blocks} blocks"))
            yield

    def save(self) -> None:
        """Write the order down. Raises HostNotReadyError where the disk does not take it."""
        sessions = []
        for i, one in enumerate(self.prepared):
            epochs = self.epochs[one.probe.session]
            sessions.append(
                SavedSession(
                    plan=one.plan,
                    probe=probe_spec(one.probe),
                    seed=self.plan.seed + i,
                    source=one.source.name,
                    target=one.target.name,
                    sender=one.sender.name,
                    epochs=[
                        SavedEpoch(
                            save_stops(e.path.forward),
                            save_stops(e.path.returned),
                            e.from_ns,
                            e.because,
                            e.noticed_ns,
                        )
                        for e in epochs
                    ],
                )
            )
        parts = [SavedPart(p.agent, p.boot, self.hosts[p.agent], p.points, p.sessions) for p in self.parts.values()]
        self.folder.save(
            SavedRun(
                schema=SCHEMA,
                run=self.run,
                name=self.plan.name,
                seed=self.plan.seed,
                tmax_ns=self.plan.tmax_ns,
                started_ns=self.started_ns,
                went_ns=self.went_ns,
                sessions=sessions,
                parts=parts,
                points=[save_point(p) for p in self.collection.points],
                unreported=self.unreported,
            )
        )

    def load(self, saved: SavedRun, topology: Topology) -> None:
        """Be the run that was saved.

        Raises:
            HostNotReadyError: a guest that it is about is gone.
        """
        self.prepared = tuple(_prepared(s, topology) for s in saved.sessions)
        self.begin_collection()
        self.collection.add_points(load_point(p) for p in saved.points)
        for one, session in zip(self.prepared, saved.sessions, strict=True):
            for e in session.epochs:
                path = load_path(e.forward, e.returned)
                self.begin_epoch(one, Epoch(path, e.from_ns, e.because, e.noticed_ns))
        for p in saved.parts:
            self.add_part(Part(p.agent, p.boot, p.points, p.sessions), p.host)
        self.unreported = dict(saved.unreported)
        self.started_ns, self.went_ns = saved.started_ns, saved.went_ns


async def _in_slices(steps: Iterator[None]) -> None:
    """Do work step by step, and let others have their turn every SLICE_S: a large block must not keep them waiting."""
    until = trio.current_time() + SLICE_S
    for _ in steps:
        if trio.current_time() > until:
            await trio.lowlevel.checkpoint()
            until = trio.current_time() + SLICE_S


def _prepared(saved: SavedSession, topology: Topology) -> Prepared:
    """A session as it was prepared, without frames: they are sent already."""
    found = {a.name: a for a in topology.attachments}
    missing = [n for n in (saved.source, saved.target, saved.sender) if n not in found]
    if missing:
        raise HostNotReadyError(f"run of {saved.plan.name}", f"{missing[0]} is gone, so the run cannot be taken up")
    return Prepared(
        plan=saved.plan,
        probe=probe_of_untrusted(saved.probe),
        path=load_path(saved.epochs[0].forward, saved.epochs[0].returned),
        sender=found[saved.sender],
        source=found[saved.source],
        target=found[saved.target],
        block=FrameBlock(np.empty((0, 0), np.uint8), 0, None, None),
        due_ns=session_due_ns(saved.plan, saved.seed),
    )
