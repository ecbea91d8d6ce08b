"""An observer in a process of its own: rings of one namespace, drained as service.looking does, and what that cost."""

import multiprocessing
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from netprobe.model.observations import Hops
from netprobe.model.points import Point, PointKind
from netprobe.model.probes import ProbeSession
from netprobe.observe.observer import Decoding, Observer
from netprobe.observe.ring import RETIRE_MS
from netprobe.wire.bpf import probe_filter
from netprobe.wire.decode import Decoder

IDLE_S = 5 * RETIRE_MS / 1e3  # after which nothing more is on its way
GATHER_S = 0.01


@dataclass(frozen=True, slots=True)
class Cost:
    """Since the last time: hop records, what was dropped or not ours, and the process' time on the processor."""

    hops: int
    dropped: int
    others: int
    cpu_s: float
    memory_bytes: int


def start(
    netns: str, devices: Sequence[str], sessions: Sequence[ProbeSession], *, cpu: int, blocks: int, tunnels: bool
) -> Connection:
    """A process that observes; it answers each message with the Cost since the last one. None ends it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        os.sched_setaffinity(0, {cpu})
        decoder, program = Decoder(sessions), probe_filter(sessions, tunnels=tunnels)
        watchers = [
            Observer(
                Point(device, PointKind.NIC, "bench", netns, device),
                program,
                Decoding(number, decoder, {s.session: s.type_p.dscp or 0 for s in sessions}, tunnels=tunnels),
                blocks=blocks,
            )
            for number, device in enumerate(devices)
        ]
        theirs.send("ready")
        _serve(theirs, watchers)

    context.Process(target=serve, daemon=True).start()
    ours.recv()
    return ours


def _serve(orders: Connection, watchers: Sequence[Observer]) -> None:
    poll = select.poll()
    for file in (orders, *watchers):
        poll.register(file, select.POLLIN)
    hops = dropped = others = 0
    began = time.process_time()

    def drain() -> int:
        return sum(len(r.hops) for w in watchers for r in w.drain() if isinstance(r, Hops))

    while True:
        poll.poll()
        if orders.poll():
            if orders.recv() is None:
                return
            while found := _after(IDLE_S, drain):
                hops += found
            tallies = [watcher.decoding.tally for watcher in watchers]
            now = sum(t.dropped for t in tallies), sum(t.forged + t.foreign for t in tallies)
            used = time.process_time()
            memory = sum(watcher.memory_bytes for watcher in watchers)
            orders.send(Cost(hops, now[0] - dropped, now[1] - others, used - began, memory))
            (dropped, others), hops, began = now, 0, time.process_time()
            continue
        hops += _after(GATHER_S, drain)


def _after(seconds: float, drain: Callable[[], int]) -> int:
    time.sleep(seconds)
    return drain()
