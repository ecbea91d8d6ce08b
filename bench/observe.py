"""What it costs to observe: receive, decode, and prove by the keyed tag; beside tshark, which dissects the same frames.

The sender has the first processor, the observer the last. An observer's cost is its process' time on the processor;
what the kernel does to put a frame into the ring is the sender's time, and in no figure here.
"""

import resource
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.harness import Bench, Figure, at_least, benchmark, measure, run
from bench.peers import load, watching
from bench.peers.load import Kind
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.observe.ring import RxRing, blocks_for

PPS = 500_000
SECONDS = 10.0
SLOW_PPS = 5_000
PASS_ALL = bytes.fromhex("06000000ffffff00")
DISSECTED = 40_000
FIELDS = ("frame.time_epoch", "ip.dsfield", "udp.srcport", "udp.dstport", "udp.payload")


class Watch:
    """A sender on the left, an observer on the right. Whatever is sent must be seen."""

    def __init__(self, bench: Bench, left: str, right: str, kinds: Sequence[Kind], *, tunnels: bool) -> None:
        self.sessions: list[ProbeSession] = list({kind.session.session: kind.session for kind in kinds}.values())
        self.right = right
        self.sender = load.start(left, "eth0", kinds, bench.cpus[0])
        blocks = blocks_for(PPS, frame_bytes=300 if len(kinds) > 1 else kinds[0].session.type_p.size_bytes, seconds=1.0)
        self.watcher = watching.start(
            right, ["eth0"], self.sessions, cpu=bench.cpus[-1], blocks=blocks, tunnels=tunnels
        )
        self.memory_bytes = 0
        self.sent = self.lost = self.dropped = self.others = 0
        self.slowest_pps = float(PPS)

    def watch(self, seconds: float, pps: float) -> float:
        """Frames per second of the observer's processor time."""
        self.watcher.send("begin")
        self.watcher.recv()
        self.sender.send((int(seconds * pps), pps))
        sent, took, _ = self.sender.recv()
        self.watcher.send("end")
        cost: watching.Cost = self.watcher.recv()
        self.sent += sent
        self.lost += sent - cost.hops
        self.dropped += cost.dropped
        self.others += cost.others
        self.memory_bytes = cost.memory_bytes
        if pps == PPS:
            self.slowest_pps = min(self.slowest_pps, sent / took)
        return cost.hops / cost.cpu_s

    def capture(self, count: int) -> bytes:
        """Some of the frames as a pcap file."""
        ring = RxRing(self.right, "eth0", PASS_ALL, blocks=256)
        try:
            self.sender.send((count, 100_000))
            self.sender.recv()
            time.sleep(0.1)  # longer than a block waits for being full
            block = ring.frames(count)
            assert block is not None, "no frame came"
            parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)]  # nanoseconds, Ethernet
            for start, length, t_ns in zip(block.offsets, block.lengths, block.t_ns, strict=True):
                parts.append(struct.pack("<IIII", t_ns // 10**9, t_ns % 10**9, length, length))
                parts.append(block.buffer[start : start + length].tobytes())
        finally:
            ring.close()
        return b"".join(parts)


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Tshark:
    """The peer: dissects a file, prints what a hop record needs. Its start is not counted; it verifies no tag."""

    def __init__(self, capture: bytes, cpu: int) -> None:
        self.cpu = cpu
        self._folder = tempfile.TemporaryDirectory()
        self._whole, self._nothing = (Path(self._folder.name) / name for name in ("whole.pcap", "nothing.pcap"))
        self._whole.write_bytes(capture)
        self._nothing.write_bytes(capture[:24])
        self._start_s = min(self._dissect(self._nothing)[1] for _ in range(2))

    def _dissect(self, file: Path) -> tuple[int, float]:
        argv = ["tshark", "-n", "-r", str(file), "-T", "fields", *(f"-e{field}" for field in FIELDS)]
        before = children_cpu_s()
        told = run(argv, cpu=self.cpu)
        return told.stdout.count("\n"), children_cpu_s() - before

    def slice(self) -> float:
        frames, cpu_s = self._dissect(self._whole)
        return frames / (cpu_s - self._start_s)


def observe(bench: Bench, kinds: Sequence[Kind], target: float, *, tunnels: bool) -> Figure:
    with bench.pair() as (left, right):
        watch = Watch(bench, left, right, kinds, tunnels=tunnels)
        pps = bench.rounds(PPS, 100_000)
        tshark = Tshark(watch.capture(bench.rounds(DISSECTED, 4096)), bench.cpus[-1])
        slices = bench.alternate(
            {"own": lambda: watch.watch(bench.seconds(1.0), pps), "tshark": tshark.slice}, rounds=8
        )
        slow = [watch.watch(bench.seconds(2.0, 0.8), SLOW_PPS) for _ in range(bench.rounds(4))]
        watch.sent = watch.lost = watch.dropped = 0
        watch.slowest_pps = float(PPS)  # the pace of the long slice is told, not that of a short one
        long = watch.watch(bench.seconds(SECONDS, 0.2), pps)
    seconds, rate = bench.seconds(SECONDS, 0.2), min(watch.slowest_pps, pps)
    main = measure(
        slices["own"],
        unit="frames/CPU-s",
        target=at_least(target),
        peer="tshark (its start taken off; no tag verified)",
        peer_values=slices["tshark"],
        note=f"{watch.sent} frames in {seconds:g} s at {rate:,.0f}/s: {watch.lost} lost ({watch.dropped} by the ring), "
        f"{long / 1e6:.2f} M per CPU-s; ring {watch.memory_bytes >> 20} MiB",
        broken=f"{watch.lost} frames lost, {watch.others} not recognised" if watch.lost or watch.others else "",
    )
    return main.also(measure(slow, unit="frames/CPU-s", target=None, label=f"at {SLOW_PPS:,}/s: small blocks"))


@benchmark("observe_plain")
def observe_plain(bench: Bench) -> Figure:
    raw = observe(bench, load.plain(Protocol.RAW_UDP, 92), 2.5e6, tunnels=False)
    if bench.short:
        return raw
    return raw.also(replace(observe(bench, load.plain(Protocol.UDP, 128), 2.5e6, tunnels=False), label="STAMP"))


@benchmark("observe_mixed")
def observe_mixed(bench: Bench) -> Figure:
    return observe(bench, load.mixed(), 1e6, tunnels=True)
