"""What uprobes at vrings cost the polling thread of an Open vSwitch with DPDK that never sleeps, idle and saturated.

Idle: how many rounds the thread makes a second, each with a look into a machine's empty ring, which costs two traps
while uprobes are on. Saturated: how many frames a second it forwards from a probe NIC (af_packet) to the machine,
offered more than it can. The machine does not take them all, so what the switch put in and what it found no room for
count alike, and the price of looking at one that was put in is a figure of its own: the time that the program at the
return ran, as the kernel counts it, for each. Nothing is judged, and the host's allowlist decides on it (docs/harm.md).
It is there where a lab of virtual machines has been up before: it needs their image (`make guest-image`).
"""

import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, Figure, MissingToolError, benchmark, compare, measure
from netprobe.host.libbpf import counted_run_times
from netprobe.host.ovs import PrivateSwitch
from netprobe.lab import control
from netprobe.lab.machines import IMAGE
from netprobe.lab.state import Places
from netprobe.observe.observer import Decoding
from netprobe.observe.vring import VringPlace, VringWatch
from netprobe.service.discovery import read_topology
from netprobe.wire.decode import Decoder

ROOT = Path(__file__).parents[1]
HOUR_NS = 3600 * 1_000_000_000
ONE_MACHINE = """
[[group]]
name = "open"
[[group.rule]]
direction = "egress"
[[group.rule]]
direction = "ingress"
[[guest]]
name = "vm1"
groups = ["open"]
agent = false
[bypass]
copy_of = "vm1"
"""
MACS = "fa163e000001fa163e0000640800"
IPV4 = "4500002e000040004011265b0a0000640a000001"  # 10.0.0.100 to 10.0.0.1, 46 octets, UDP
UDP = "9c402328001a0000"
FRAME = "{ " + ", ".join(f"0x{octet:02x}" for octet in bytes.fromhex(MACS + IPV4 + UDP).ljust(60, b" ")) + " }\n"
"""Of no session, so that a filter has to look at each one and lets none through."""

ITERATIONS = re.compile(r"Iterations:\s+(\d+)")
SENT = re.compile(r"TX packets:(\d+) errors:\S+ dropped:(\d+)")


class Switch:
    """The lab's switch: its counters, and uprobes on it."""

    def __init__(self) -> None:
        self.switch = PrivateSwitch("hv1", Places.from_environment().switch("hv1"))
        self.socket = read_topology().guests[0].chain[1].socket

    def rounds(self) -> int:
        text = self.switch.appctl("dpif-netdev/pmd-perf-show", "-nh")
        found = ITERATIONS.search(text)
        assert found is not None, text
        return int(found[1])

    def forwarded(self) -> int:
        text = self.switch.appctl("dpctl/show", "-s").partition(": vhuvm1 ")[2]
        found = SENT.search(text)
        assert found is not None, text
        return int(found[1]) + int(found[2])

    @contextmanager
    def watched(self) -> Iterator[VringWatch]:
        place = VringPlace(self.switch.run_dir / "ovs-vswitchd.pid", HOUR_NS)
        watch = VringWatch(place, (), {self.socket: Decoding(0, Decoder([]), {})})
        try:
            yield watch
        finally:
            watch.close()

    def looks(self, seconds: float) -> float:
        """Ns that the program at the return of an enqueue runs for each packet that was put into the ring."""
        with counted_run_times(), self.watched() as watch:
            counts, times = [], []
            for pause in (0.0, seconds):
                time.sleep(pause)
                watch.drain()
                counts.append(watch.counters["packets"])
                times.append(watch.run_time_ns("np_enqueued"))
        return (times[1] - times[0]) / max(counts[1] - counts[0], 1)

    def with_uprobes(self, slice_: Callable[[], float]) -> float:
        with self.watched():
            return slice_()


def rate(count: Callable[[], int], seconds: float) -> float:
    before, began = count(), time.perf_counter()
    time.sleep(seconds)
    return (count() - before) / (time.perf_counter() - began)


@contextmanager
def flood() -> Iterator[None]:
    """More frames than the thread can forward, from the probe NIC."""
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(FRAME)
        config.flush()
        argv = ["ip", "netns", "exec", "byp1", "trafgen", "-i", config.name, "-o", "byp0", "--cpus", "1", "-q", "-Q"]
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.3)
            if child.poll() is not None:
                raise MissingToolError("trafgen", "netsniff-ng")
            yield
        finally:
            child.kill()
            child.wait()


def images() -> list[Path]:
    """Guest images that were made before, the newest last: a benchmark has no network to make one."""
    cache = runpy.run_path(str(ROOT / "agents/guest-image/build.py"))["cache_folder"]()
    made = (manifest for manifest in (cache / "guest-image").glob("*/manifest.json"))
    return [manifest.parent for manifest in sorted(made, key=lambda path: path.stat().st_mtime)]


def vring(bench: Bench) -> Figure:
    seconds = bench.seconds(0.6)
    with tempfile.TemporaryDirectory() as place:
        policy = Path(place) / "one.toml"
        policy.write_text(ONE_MACHINE)
        os.environ[IMAGE] = str(images()[-1])
        control.up("dpdk", config_path=policy)
    try:
        switch = Switch()
        switch.switch.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-maxsleep=0")

        def idle() -> float:
            return rate(switch.rounds, seconds)

        def busy() -> float:
            return rate(switch.forwarded, seconds)

        empty = bench.alternate({"on": lambda: switch.with_uprobes(idle), "off": idle}, rounds=6)
        with flood():
            full = bench.alternate({"on": lambda: switch.with_uprobes(busy), "off": busy}, rounds=6)
            looks = bench.alternate({"looks": lambda: switch.looks(seconds)}, rounds=6)["looks"]
    finally:
        control.down()
    trap_ns = [1e9 / on - 1e9 / off for on, off in zip(empty["on"], empty["off"], strict=True)]
    note = f"{sorted(trap_ns)[len(trap_ns) // 2]:.0f} ns more for each round of the idle thread, which has one ring"
    main = compare(full["on"], full["off"], unit="frames/s", peer="without uprobes", target=None, note=note)
    return main.also(
        compare(empty["on"], empty["off"], unit="rounds/s", peer="without uprobes", target=None, label="idle"),
        measure(looks, unit="ns/frame", target=None, label="look", note="for each frame that is put in"),
    )


if images():
    benchmark("vring")(vring)
else:
    print("bench: vring is left out: there is no guest image yet (make guest-image)", file=sys.stderr)
