"""A small world in which blocks are delivered: real spool, links and log, a pipe that breaks, programs that die."""

import shutil
import tempfile
from pathlib import Path

from support.links import COLLECTOR_BOOT, MS, hello

from netprobe.host.block_log import BlockLog, LoggedBlock, Source
from netprobe.host.spool import MIN_LIMIT_BYTES, Spool, pump
from netprobe.wire.flow_control import Limits
from netprobe.wire.link import AgentLink, CollectorLink
from netprobe.wire.link_events import Acked, BlockArrived, Closed, Ending, Greeted, ShedArrived, Welcomed
from netprobe.wire.report import PartKey, PartState

LIMITS = Limits(window_bytes=200_000, bytes_per_s=4_000_000)
RUN = "run-1"
MEMORY = Path("/dev/shm")  # a disk in memory: what is tested is what is in the files


class DeliveryWorld:
    """An agent and its spool, a collector and its log, and a pipe between them."""

    def __init__(self):
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.folders = 0
        self.boots = 0
        self.now = 0
        self.made = {}  # boot -> the blocks of that life, in order
        self.may_be_lost = set()  # boots that lost something, and may say so
        self.acked = {}
        self.links = None  # agent's, collector's
        self.pipes = (bytearray(), bytearray())
        self.committed_bytes = 0
        self.spool_folder = self.root / "spool-0"
        self.open_spool()
        self.log = BlockLog.open(self.root / "run.blocks")

    def open_spool(self):
        self.boots += 1
        self.boot = f"{self.boots:032x}"
        self.made[self.boot] = []
        self.spool = Spool.open(self.spool_folder, MIN_LIMIT_BYTES, self.boot)

    # --- the two programs ---

    def agent_takes(self, events):
        for event in events:
            if isinstance(event, Acked):
                self.agent_acked(event.part, event.next)
            elif not isinstance(event, Welcomed):
                raise TypeError(event)

    def agent_acked(self, part, number):
        assert number >= self.acked.get(part, 0), "an acknowledgement was taken back"
        self.acked[part] = number
        self.spool.ack(part, number)

    def collector_takes(self, events):
        for event in events:
            if isinstance(event, Greeted):
                parts = [PartKey(part.run, part.boot) for part in event.hello.parts]
                resume = {part: self.log.durable(Source("hv1", part.boot)) for part in parts}
                self.links[1].let_in(COLLECTOR_BOOT, 0, resume)
            elif isinstance(event, BlockArrived):
                self.log.append(Source("hv1", event.part.boot), event.number, event.octets)
            elif isinstance(event, ShedArrived):
                source = Source("hv1", event.part.boot)
                self.log.append_shed(source, event.first, event.next, (event.from_ns, event.to_ns))
            else:
                raise TypeError(event)

    # --- what happens ---

    def observe(self, sizes):
        for size in sizes:
            made = self.made[self.boot]
            octets = f"{self.boot} {len(made)} ".encode() + bytes(size)
            before = self.spool.counters().shed_blocks
            assert self.spool.append(RUN, octets, (len(made), len(made) + 1)) == len(made)
            made.append(octets)
            if self.spool.counters().shed_blocks > before:
                self.may_be_lost |= set(self.made)

    def connect(self):
        if self.links is not None:
            return
        parts = tuple(
            PartState(run=part.run, boot=part.boot, state="running", next_block=end)
            for part, end in self.spool.parts().items()
        )
        greeting = hello(boot=self.boot, parts=parts)
        self.links = AgentLink(greeting, self.now), CollectorLink(LIMITS, self.now)

    def carry(self, there, back):
        """Some octets arrive; a network cuts where it likes."""
        if self.links is None:
            return
        agent, collector = self.links
        pump(self.spool, agent, self.now)
        self.pipes[0].extend(agent.data_to_send())
        self.pipes[1].extend(collector.data_to_send())
        data = bytes(self.pipes[0][:there])
        del self.pipes[0][:there]
        self.collector_takes(collector.feed(data, self.now))
        data = bytes(self.pipes[1][:back])
        del self.pipes[1][:back]
        self.agent_takes(agent.feed(data, self.now))

    def commit(self):
        for source, number in self.log.commit().items():
            if self.links is not None:
                self.links[1].acknowledge(PartKey(RUN, source.boot), number)
        self.committed_bytes = self.log.size_bytes

    def wait(self, passed_ms):
        self.now += passed_ms * MS
        if self.links is not None:
            for link in self.links:
                link.tick(self.now)
            if any(link.is_closed for link in self.links):
                self.links = None
                self.pipes = (bytearray(), bytearray())

    def cut_the_link(self):
        if self.links is None:
            return
        for link in self.links:
            assert [event.ending for event in link.receive_eof() if isinstance(event, Closed)] == [Ending.PEER_CLOSED]
        self.links = None
        self.pipes = (bytearray(), bytearray())

    def kill_the_agent(self, torn):
        """`kill -9`, or a loss of power that takes the end of the newest file with it."""
        self.cut_the_link()
        self.spool.close()
        if torn is not None:
            self.folders += 1
            copy = self.root / f"spool-{self.folders}"
            shutil.copytree(self.spool_folder, copy)
            newest = max(copy.glob("*.spool"))
            data = newest.read_bytes()
            newest.write_bytes(data[: max(len(data) - torn, 0)])
            self.spool_folder = copy
            self.may_be_lost |= set(self.made)
        self.open_spool()

    def kill_the_collector(self, keep):
        """What was not committed may be gone, from anywhere on; what was committed is there."""
        self.cut_the_link()
        size = self.log.size_bytes
        self.log.close()
        path = self.root / "run.blocks"
        left = self.committed_bytes + int(keep * (size - self.committed_bytes))
        path.write_bytes(path.read_bytes()[:left])
        self.log = BlockLog.open(path)
        self.committed_bytes = self.log.size_bytes

    # --- what must hold ---

    def check(self):
        """All laws."""
        self.every_block_stands_once_in_order_or_is_told_as_lost()
        self.nothing_is_forgotten_before_it_is_on_the_collectors_disk()
        assert self.spool.counters().size_bytes <= MIN_LIMIT_BYTES + 20_000

    def every_block_stands_once_in_order_or_is_told_as_lost(self):
        at = {}
        for record in self.log.records():
            boot = record.source.boot
            first = record.number if isinstance(record, LoggedBlock) else record.first
            assert first == at.get(boot, 0), "a hole, a duplicate, or out of order"
            if isinstance(record, LoggedBlock):
                assert record.octets == self.made[boot][first], "a block was changed"
                at[boot] = first + 1
            else:
                assert boot in self.may_be_lost, "told as lost without a reason"
                at[boot] = record.end
            assert at[boot] <= len(self.made[boot])

    def nothing_is_forgotten_before_it_is_on_the_collectors_disk(self):
        for part, number in self.acked.items():
            assert self.log.durable(Source("hv1", part.boot)) >= number

    def end_in_peace(self):
        """Left in peace, everything that the spool still knows arrives."""
        self.cut_the_link()
        self.connect()
        for _ in range(2_000):
            self.carry(1 << 20, 1 << 20)
            self.commit()
            self.carry(1 << 20, 1 << 20)
            if all(self.log.durable(Source("hv1", p.boot)) >= end for p, end in self.spool.parts().items()):
                break
            self.now += 100 * MS
        for part, end in self.spool.parts().items():
            assert self.log.durable(Source("hv1", part.boot)) == end, "something never arrived"
        self.carry(1 << 20, 1 << 20)
        assert self.spool.counters().waiting == 0
        self.check()
        self.spool.close()
        self.log.close()
        shutil.rmtree(self.root)
