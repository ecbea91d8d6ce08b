"""The whole chain on a bridge of the kernel: transmit ring, four receive rings, decoder, windows, ledger.

    sender -> tap1 (out) -> port1 (in) -> bridge -> port2 (out) -> tap2 (in)

The sender has one processor, the half that looks the other. What the bridge forwards, the sender's processor pays for.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.harness import Bench, Figure, at_least, at_most, benchmark, measure, run
from bench.peers.chain import session
from netprobe.host import iproute
from netprobe.inject.templates import build_template
from netprobe.model.points import Direction

PPS = 250_000
SECONDS = 60
MAX_RSS_BYTES = 500_000_000
NETNS = "chain"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
PATH = {
    "sender": {"netns": NETNS, "device": "tap1", "mac": MACS[0], "ip": "10.77.0.1"},
    "target": {"mac": MACS[1], "ip": "10.77.0.2"},
    "rings": [
        ("backend", NETNS, "tap1", int(Direction.OUT)),
        ("bridge", NETNS, "port1", int(Direction.IN)),
        ("bridge", NETNS, "port2", int(Direction.OUT)),
        ("backend", NETNS, "tap2", int(Direction.IN)),
    ],
    "burst": 0,
}


@contextmanager
def bridge() -> Iterator[None]:
    """A namespace with two veth pairs, whose near ends are ports of one bridge."""
    iproute.add_namespaces((NETNS,))
    try:
        run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], netns=NETNS)
        iproute.batch(
            [
                "link add br0 type bridge",
                *(f"link add tap{i} type veth peer name port{i}" for i in (1, 2)),
                *(f"link set tap{i} address {mac}" for i, mac in enumerate(MACS, 1)),
                *(f"link set port{i} master br0" for i in (1, 2)),
                *(f"link set {device} up" for device in ("br0", "tap1", "port1", "tap2", "port2")),
            ],
            netns=NETNS,
        )
        run(["bridge", "fdb", "replace", MACS[1], "dev", "port2", "master", "static"], netns=NETNS)
        yield
    finally:
        iproute.delete_namespaces((NETNS,))


def chain(path: Mapping[str, object], pps: int, seconds: float, cpus: Sequence[int]) -> dict[str, Any]:
    """One stream, in a process of its own, whose memory nothing else has touched."""
    order = {**path, "pps": pps, "seconds": seconds, "cpu": cpus[0]}
    order["template"] = build_template(session(order)).hex()  # here once: importing scapy takes a second each time
    told = run([sys.executable, "-m", "bench.peers.chain", json.dumps(order)], cpu=cpus[-1], timeout_s=seconds + 60)
    return dict(json.loads(told.stdout))


def rates(one: Mapping[str, Any]) -> list[float]:
    """Probes a second, second by second."""
    by_second: list[float] = one["by_second"]
    return by_second if len(by_second) > 1 else [one["pps"]] * 2


def problems(one: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What must be 0 and is not."""
    return ", ".join(f"{one[key]} {key}" for key in keys if one[key])


@benchmark("chain_bridge")
def chain_bridge(bench: Bench) -> Figure:
    with bridge():
        one = chain(PATH, bench.rounds(PPS, 20_000), bench.seconds(SECONDS, 1), bench.cpus)
        flat = [chain(PATH, 0, bench.seconds(3, 0.2), bench.cpus)["pps"] for _ in range(bench.rounds(3, 1))]
    late_us = one["pacing_p99_ns"] / 1e3
    main = measure(
        rates(one),
        unit="probes/s",
        target=at_least(0.99 * PPS),
        note=f"{one['sent']} probes, 4 rings, ledger on; slices of 1 s; p99 sent {late_us:.0f} us late",
        broken=problems(one, ("missing", "unsent", "residue", "dropped", "shed")),
    )
    memory, cpu = one["max_rss_bytes"] / 1e6, one["cpu_s"] / max(one["sent"] / one["pps"], 1e-9)
    return main.also(
        measure([memory] * 2, unit="MB", target=at_most(MAX_RSS_BYTES / 1e6), label="memory of the looking half, most"),
        measure([cpu] * 2, unit="processors", target=None, label="the looking half"),
        measure(flat if len(flat) > 1 else flat * 2, unit="probes/s", target=None, label="flat out, 4 rings open"),
    )
