"""`python -m bench.peers.chain ORDER`: one stream over a path of devices, in a process of its own; JSON on stdout.

An order: {"sender": {netns, device, mac, ip}, "target": {mac, ip}, "rings": [[kind, netns, device, direction], ...],
"pps", "seconds", "burst", "cpu", "template" (hex)}; 0 pps is flat out, 0 burst no limit; without rings it only sends.
"""

import json
import sys
from ipaddress import ip_address
from typing import Any

import numpy as np
import trio

from netprobe.collect.windows import ClosedWindow
from netprobe.host.signals import stop_on_signals
from netprobe.model.points import Direction, Point, PointKind, Stamp, Stop
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.service.stream_sender import Sending
from netprobe.service.streaming import StreamOrder, StreamOutcome, stream

FRAME_BYTES = 92
FLAT_OUT_PPS = 700_000  # more than the kernel takes; so many are planned a second
GATHER_NS = 200_000
TMAX_NS = 500_000_000
Order = dict[str, Any]


def session(order: Order) -> ProbeSession:
    sender, target = order["sender"], order["target"]
    return ProbeSession(
        session=0x5EED_0002,
        key=bytes(range(16)),
        type_p=TypeP(Protocol.RAW_UDP, 4, FRAME_BYTES, 3, 61_000, 862, Flow.SAME),
        src_mac=bytes.fromhex(sender["mac"].replace(":", "")),
        dst_mac=bytes.fromhex(target["mac"].replace(":", "")),
        src_ip=ip_address(sender["ip"]),
        dst_ip=ip_address(target["ip"]),
        count=int((order["pps"] or FLAT_OUT_PPS) * order["seconds"]),
    )


def stops_of(rings: list[tuple[str, str, str, int]]) -> tuple[Stop, ...]:
    """The sender, and then the rings in the order of travel."""
    sender = Stop(Point("sender", PointKind.GUEST, "bench"), Direction.OUT, Stamp.SENDER)
    found = [sender]
    for kind, netns, device, direction in rings:
        point = Point(device, PointKind(kind), "bench", netns, device)
        found.append(Stop(point, Direction(direction), Stamp.KERNEL_RX))
    return tuple(found)


def delivered_by_second(windows: list[ClosedWindow]) -> list[float]:
    """Probes that were delivered in each whole second of the stream; a window's are spread until the next begins."""
    if not windows:
        return []
    at_s = [(window.from_ns - windows[0].from_ns) / 1e9 for window in windows]
    reached = np.cumsum([0, *(window.result.delivered for window in windows[:-1])])
    by_second: list[float] = np.diff(np.interp(np.arange(0, int(at_s[-1]) + 1), at_s, reached)).tolist()
    return by_second


def told(outcome: StreamOutcome, windows: list[ClosedWindow]) -> Order:
    """The outcome in numbers."""
    leg, sent = outcome.result, outcome.sent
    assert sent is not None, outcome.failure
    seen = sum(segment.received for segment in leg.segments)
    return {
        "planned": leg.planned,
        "sent": sent.sent,
        "unsent": leg.unsent,
        "lost": leg.lost,
        "lost_at": {segment.id: segment.lost for segment in leg.segments if segment.lost},
        "unobserved": leg.unobserved,
        "missed": sum(leg.missed.values()),
        "missing": sent.sent * len(leg.segments) - seen,
        "residue": outcome.residue,
        "dropped": sum(tally.dropped for tally in outcome.tallies.values()),
        "shed": sum(outcome.counters.values()),
        "by_second": delivered_by_second(windows),
        "pps": sent.sent / ((sent.end_ns - sent.start_ns) / 1e9),
        "pacing_p99_ns": sent.pacing.p99_ns if sent.pacing else 0,
        "max_rss_bytes": outcome.max_rss_bytes,
        "cpu_s": outcome.cpu_s,
    }


async def main(order: Order) -> None:
    probe, sender = session(order), order["sender"]
    sending = Sending(
        probe,
        bytes.fromhex(order["template"]),
        sender["netns"],
        sender["device"],
        order["pps"],
        burst_frames=order["burst"],
        gather_ns=GATHER_NS,
        cpu=order["cpu"],
    )
    windows: list[ClosedWindow] = []
    with stop_on_signals() as stop:
        outcome = await stream(StreamOrder(sending, stops_of(order["rings"]), TMAX_NS), stop, windows.append)
    print(json.dumps(told(outcome, windows)))


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
