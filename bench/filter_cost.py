"""What an observer costs those whose frames it does not want: kernel time a frame, which the sender of the frame pays.

Tenants' frames, none of a session, pass rings on the receiving device of a veth pair; plain ones, and ones in tunnels.
The peer is the same device without a ring: a figure is the difference, slice by slice.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address

import numpy as np

from bench.harness import Bench, Figure, at_most, benchmark, measure
from bench.peers import load
from bench.peers.load import Kind
from netprobe.model.probes import ProbeSession, Protocol
from netprobe.observe.ring import RxRing
from netprobe.wire.bpf import probe_filter

SESSIONS = 8
MANY_SESSIONS = 40
PPS = 500_000
LIMIT_NS = 200.0


def sessions(count: int) -> list[ProbeSession]:
    """Between as many pairs of hosts, of which none is the tenants'."""
    return [
        replace(
            load.session(number, Protocol.RAW_UDP, 92),
            src_ip=ip_address(0x0A010000 + number),
            dst_ip=ip_address(0x0A020000 + number),
        )
        for number in range(count)
    ]


def costs(
    bench: Bench, kinds: Sequence[Kind], arms: dict[str, list[bytes]]
) -> tuple[dict[str, list[float]], int, float]:
    """Processor time of the sender, ns a frame, with each arm's rings open; frames that they saw; the pace in the end.

    Flat out, for then no slice has pauses in it; then once at PPS, with all rings.
    """
    seen = 0
    with bench.pair() as (left, right):
        sender = load.start(left, "eth0", kinds, bench.cpus[0])

        def send(programs: list[bytes], count: int, pps: float) -> tuple[float, float]:
            nonlocal seen
            with ExitStack() as stack:
                rings = [RxRing(right, "eth0", program) for program in programs]
                for ring in rings:
                    stack.callback(ring.close)
                sender.send((count, pps, False))
                sent, took, cpu_s = sender.recv()
                seen += sum(len(block.offsets) for ring in rings for block in ring.blocks())
                seen += sum(ring.drops() for ring in rings)
            return cpu_s / sent * 1e9, sent / took

        count = bench.rounds(200_000, 8192)
        slices = bench.alternate(
            {name: lambda own=programs: send(own, count, 0)[0] for name, programs in arms.items()},  # type: ignore[misc]
            rounds=12,
        )
        _, pace = send(max(arms.values(), key=len), bench.rounds(2 * PPS, 8192), PPS)
    return slices, seen, pace


def added(slices: dict[str, list[float]], name: str, rings: int, *, over: str = "none", before: int = 0) -> list[float]:
    """What the rings of one arm add to another's, ns a frame and ring."""
    more = np.array(slices[name]) - np.array(slices[over])
    return (more / (rings - before)).tolist()


@benchmark("filter_cost")
def filter_cost(bench: Bench) -> Figure:
    one, many = (probe_filter(sessions(count), tunnels=True) for count in (SESSIONS, MANY_SESSIONS))
    plain, seen, pace = costs(
        bench,
        load.plain(Protocol.RAW_UDP, 92),
        {"none": [], "one": [one], "two": [one] * 2, "four": [one] * 4, "many": [many]},
    )
    tunnels = [kind for kind in load.mixed() if kind.outside and not kind.is_tag]
    inside, seen_inside, _ = costs(bench, tunnels, {"none": [], "one": [one]})
    seen += seen_inside
    target, unit = at_most(LIMIT_NS), "ns/frame"
    main = measure(
        added(plain, "one", 1),
        unit=unit,
        target=target,
        peer="a frame without an observer",
        peer_values=plain["none"],
        note=f"{SESSIONS} sessions, {len(one) // 8} instructions; at {pace:,.0f}/s past 4 observers, as flat out: "
        f"{seen} frames in user space",
        broken=f"{seen} unmarked frames came to user space" if seen else "",
    )
    return main.also(
        measure(added(inside, "one", 1), unit=unit, target=target, label="frames in tunnels"),
        measure(added(plain, "two", 2, over="one", before=1), unit=unit, target=target, label="a second adds"),
        measure(added(plain, "four", 4, over="two", before=2), unit=unit, target=target, label="third, fourth, each"),
        measure(added(plain, "many", 1), unit=unit, target=target, label=f"{MANY_SESSIONS} sessions"),
    )
