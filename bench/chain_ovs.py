"""The whole chain through a userspace Open vSwitch with its security groups, at half of what the switch bears.

    bypass NIC -> its veth (out) -> tap (in) -> vswitch, conntrack -> tap of vm2 (out) -> vm2 (in)

How much the switch bears without loss is searched first, with no ring open (RFC 2544 section 26.1, by halving; the
generator is the same transmit ring). Then the chain runs at half of that, between runs without rings that say what the
switch loses by itself.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.chain_bridge import chain, problems, rates
from bench.harness import Bench, Figure, at_least, benchmark, measure
from netprobe.host.netns import in_netns
from netprobe.model.points import Direction

MOST_PPS = 400_000
STEPS = 7
BURST_FRAMES = 0  # the rate alone is searched; frames go in gatherings of 200 us


@contextmanager
def lab() -> Iterator[dict[str, Any]]:
    netprobe = (sys.executable, "-m", "netprobe.cli.main")
    subprocess.run([*netprobe, "lab", "up", "single", "--json"], check=True, stdout=subprocess.DEVNULL)
    try:
        state = json.loads(Path("/run/netprobe/lab/state.json").read_text(encoding="utf-8"))
        (bypass,) = state["bypasses"]
        vm2 = next(guest for guest in state["guests"] if guest["name"] == "vm2")
        yield {
            "sender": {key: bypass[key] for key in ("netns", "device", "mac")} | {"ip": bypass["ipv4"]},
            "target": {key: vm2[key] for key in ("netns", "device", "mac")} | {"ip": vm2["ipv4"]},
            "rings": [
                ("guest", bypass["netns"], bypass["device"], int(Direction.OUT)),
                ("backend", "hv1", bypass["port"]["device"], int(Direction.IN)),
                ("backend", "hv1", vm2["port"]["device"], int(Direction.OUT)),
                ("guest", vm2["netns"], vm2["device"], int(Direction.IN)),
            ],
            "burst": BURST_FRAMES,
        }
    finally:
        subprocess.run([*netprobe, "lab", "down", "--json"], check=True, stdout=subprocess.DEVNULL)


def received(target: dict[str, str]) -> int:
    """Frames that came in at the target's own device so far."""

    def read() -> int:
        rows = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        (row,) = (row for row in rows if row.strip().startswith(f"{target['device']}:"))
        return int(row.split(":")[1].split()[1])

    return in_netns(target["netns"], read)


def lost_without(path: dict[str, Any], pps: int, seconds: float, cpus: tuple[int, ...]) -> tuple[int, int]:
    """Frames sent and lost with no ring open; other frames (ARP, agents) may hide a few of the lost."""
    before = received(path["target"])
    sent = chain({**path, "rings": []}, pps, seconds, cpus)["sent"]
    return sent, max(sent - (received(path["target"]) - before), 0)


def lossless_pps(path: dict[str, Any], bench: Bench) -> int:
    """The highest rate found without loss."""
    low, high = 1_000, MOST_PPS
    for _ in range(bench.rounds(STEPS, 1)):
        middle = (low + high) // 2
        _, lost = lost_without(path, middle, bench.seconds(2, 0.2), bench.cpus)
        low, high = (middle, high) if not lost else (low, middle)
    return low


@benchmark("chain_ovs")
def chain_ovs(bench: Bench) -> Figure:
    with lab() as path:
        best = lossless_pps(path, bench)
        pps = best // 2
        seconds = bench.seconds(10, 0.5)
        quiet = [lost_without(path, pps, seconds, bench.cpus)]
        one = chain(path, pps, seconds, bench.cpus)
        if not bench.short:
            quiet.append(lost_without(path, pps, seconds, bench.cpus))
    baseline = sum(lost for _, lost in quiet) / max(sum(sent for sent, _ in quiet), 1)
    share = one["lost"] / max(one["sent"], 1)
    broken = problems(one, ("unsent", "residue", "dropped", "shed", "missed", "unobserved"))
    if share > baseline:
        broken += f" {one['lost']} probes lost at {one['lost_at']}; {100 * baseline:.4f} % without rings"
    main = measure(
        rates(one),
        unit="probes/s",
        target=at_least(0.99 * pps),
        note=f"half of what the switch bears, 4 rings; it lost {one['lost']} of {one['sent']} probes",
        broken=broken.strip(),
    )
    return main.also(
        measure([best] * 2, unit="probes/s", target=None, label="lossless, no ring open (RFC 2544)"),
        measure([100 * share] * 2, unit="%", target=None, label="lost by the switch"),
        measure([100 * baseline] * 2, unit="%", target=None, label="lost by the switch, no ring open"),
    )
