"""Points at 1,000 a second into a real influxd that is killed meanwhile and started again; then they are counted.

`python -m support.outage SECONDS` in tests/ does it by hand, with an outage as long as one likes.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio
from support.influx import Influx

from netprobe.host.clock import realtime_ns
from netprobe.model.metrics import Reading
from netprobe.service.sink import SinkConfig, open_sink
from netprobe.store.influx import InfluxTarget

PPS = 1_000
EVERY_S = 0.05
AROUND_S = 1.0  # before the outage and after it


@dataclass
class Told:
    """What came of it."""

    put: list
    put_meanwhile: int = 0
    most_waiting: int = 0
    worst_put_s: float = 0.0
    failures: int = 0
    shed: int = 0
    drained_s: float = 0.0


async def outage(server, folder, seconds):
    """Put readings all the while; returns the times of all that were put."""
    told = Told([])
    config = SinkConfig(InfluxTarget(server.url, "netprobe"), folder)
    is_down = trio.Event()
    putting = trio.CancelScope()
    async with open_sink(config) as sink, trio.open_nursery() as nursery:

        async def put_all():
            with putting:
                due = trio.current_time()
                while True:
                    first = realtime_ns()
                    batch = [Reading("outage", {"path": f"p{n % 10}"}, {"n": n}, first + n) for n in range(50)]
                    began = trio.current_time()
                    sink.put(batch)
                    told.worst_put_s = max(told.worst_put_s, trio.current_time() - began)
                    told.put += [r.t_ns for r in batch]
                    told.put_meanwhile += len(batch) * is_down.is_set()
                    told.most_waiting = max(told.most_waiting, sink.waiting)
                    due += EVERY_S
                    await trio.sleep_until(due)

        nursery.start_soon(put_all)
        await trio.sleep(AROUND_S)
        server.kill()
        is_down.set()
        await trio.sleep(seconds)
        is_down = trio.Event()
        await trio.to_thread.run_sync(server.start)
        await trio.sleep(AROUND_S)
        putting.cancel()
        began = trio.current_time()
        while sink.waiting:  # noqa: ASYNC110  the sink tells nobody
            await trio.sleep(0.01)
        told.drained_s = trio.current_time() - began
        told.failures, told.shed = sink.counters.failures, sink.shed
    return told


def found(server):
    """Times of all points that are there, ascending."""
    return sorted(row["time"] for row in server.rows("SELECT n FROM outage"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        server = Influx(Path(place) / "influx")
        server.start()
        try:
            told = trio.run(outage, server, Path(place) / "spool", float(sys.argv[1]))
            there = found(server)
        finally:
            server.close()
    told_put, told.put = told.put, []
    print(told, f"put={len(told_put)} there={len(there)} equal={there == sorted(told_put)}")
