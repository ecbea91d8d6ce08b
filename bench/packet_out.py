"""Packet-outs by the block through a userspace Open vSwitch of our own, beside `ovs-ofctl packet-out`, one by one.

The switch has one processor, we the other. All frames are counted at the guest's end of the destination's port.
"""

import math
import time
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.harness import Bench, Figure, at_least, benchmark, compare, measure, pinned
from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, process
from netprobe.host.netns import in_netns
from netprobe.host.openflow import MAX_OUTSTANDING, OpenFlowClient
from netprobe.host.ovs import PortSpec, PrivateSwitch
from netprobe.inject.pacer import BURST_FRAMES
from netprobe.inject.packet_out_blocks import PacketOutBlocks
from netprobe.inject.templates import build_template
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.wire.frames import FrameEncoder

BRIDGE, NETNS = "br-bench", "switch"
SOURCE, TARGET = 1, 2
PLAIN = (
    "table=0,priority=10,in_port=1,udp,actions=resubmit(,1)",
    "table=1,priority=10,udp,tp_dst=9000,actions=output:2",
)
CONNTRACK = (
    "table=0,priority=10,in_port=1,udp,actions=ct(table=1,zone=5)",
    "table=1,priority=10,ct_state=+trk+new,udp,actions=ct(commit,zone=5),output:2",
    "table=1,priority=10,ct_state=+trk+est,udp,actions=output:2",
)
SETTLE_S = 2.0


@contextmanager
def running_switch(cpu: int):
    """A switch with guests a (port 1) and b (port 2) on veth; it and its daemons have one processor."""
    iproute.add_namespaces([NETNS])
    with TemporaryDirectory() as place, pinned(cpu):
        switch = PrivateSwitch(NETNS, Path(place) / "run")
        iproute.set_sysctls(NETNS, {"ipv6/conf/default/disable_ipv6": "1"})
        for guest in "ab":
            link = f"link add tap{guest} type veth peer name eth{guest}"
            iproute.batch([link, f"link set tap{guest} up", f"link set eth{guest} up"], netns=NETNS)
        switch.create_database()
        records = [switch.start_server()]
        try:
            records[:0] = switch.start_switch()
            ports = [
                PortSpec("tapa", SOURCE, "a", "02:00:00:00:00:01"),
                PortSpec("tapb", TARGET, "b", "02:00:00:00:00:99"),
            ]
            switch.add_bridge(BRIDGE, ports)
            yield switch
        finally:
            process.end(records)


def frames(count: int) -> np.ndarray:
    type_p = TypeP(Protocol.RAW_UDP, 4, 92, 3, 61000, 9000, Flow.SAME)
    macs = (bytes.fromhex("020000000001"), bytes.fromhex("020000000099"))
    addresses = (ip_address("10.77.0.1"), ip_address("10.77.0.2"))
    session = ProbeSession(0x5EED_0002, bytes(range(16)), type_p, *macs, *addresses, count)
    return FrameEncoder(session, build_template(session)).encode(0, count).frames


def received() -> int:
    """Frames that came in at guest b so far."""

    def read() -> int:
        rows = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        (row,) = (row for row in rows if row.strip().startswith("ethb:"))
        return int(row.split(":")[1].split()[1])

    return in_netns(NETNS, read)


class Counted:
    """Sends and counts what arrives."""

    def __init__(self, switch: PrivateSwitch) -> None:
        self.switch = switch
        self.sent = self.lost = 0

    def slice(self, block: np.ndarray, *, burst_frames: int | None = None) -> float:
        """By the block: packets a second, from the first write to the last barrier's answer."""
        before = received()
        with OpenFlowClient(self.switch.run_dir, BRIDGE) as client:
            sender = PacketOutBlocks(client, SOURCE, cap_pps=math.inf, burst_frames=burst_frames)
            began = time.perf_counter()
            sender.send(block)
            sender.finish()
            took = time.perf_counter() - began
        if sender.failure is not None:
            raise sender.failure
        self.count(before, len(block))
        return len(block) / took

    def one_by_one(self, block: np.ndarray) -> float:
        before, began = received(), time.perf_counter()
        for row in block:
            order = f"in_port={SOURCE} packet={row.tobytes().hex()} actions=table"
            process.run(["ovs-ofctl", "-OOpenFlow15", "packet-out", self.switch.management(BRIDGE), order])
        took = time.perf_counter() - began
        self.count(before, len(block))
        return len(block) / took

    def count(self, before: int, sent: int) -> None:
        deadline = time.monotonic() + SETTLE_S
        while received() - before < sent and time.monotonic() < deadline:
            time.sleep(0.005)
        self.sent += sent
        self.lost += sent - (received() - before)


def wait_for_pipeline(counted: Counted, block: np.ndarray) -> None:
    """A new switch's ports are not up at once: until packets come through. What was lost on the way does not count."""
    deadline = time.monotonic() + 10
    while True:
        counted.slice(block[:1])
        if not counted.lost:
            return
        counted.lost = 0
        if time.monotonic() > deadline:
            raise HostNotReadyError("Open vSwitch", "lets no packet through")


@benchmark("packet_out")
def packet_out(bench: Bench) -> Figure:
    block = frames(2_000 if bench.short else 40_000)
    few = block[: bench.rounds(40, 5)]
    with running_switch(bench.cpus[1]) as switch, pinned(bench.cpus[0]):
        counted = Counted(switch)
        switch.replace_flows(BRIDGE, PLAIN)
        wait_for_pipeline(counted, block)
        slices = bench.alternate(
            {
                "own": lambda: counted.slice(block),
                "ofctl": lambda: counted.one_by_one(few),
                "limited": lambda: counted.slice(block, burst_frames=BURST_FRAMES),
            },
            rounds=12,
        )
        switch.replace_flows(BRIDGE, CONNTRACK)
        tracked = bench.alternate({"own": lambda: counted.slice(block)}, rounds=6)["own"]
    broken = f"{counted.lost} of {counted.sent} packets lost" if counted.lost else ""
    peer = "ovs-ofctl packet-out, one by one"
    note = f"all {counted.sent} counted at the guest; never more than {MAX_OUTSTANDING} in the switch"
    main = compare(
        slices["own"], slices["ofctl"], unit="packets/s", peer=peer, target=at_least(500), broken=broken, note=note
    )
    limited = f"{BURST_FRAMES} a millisecond"
    return main.also(
        measure(slices["own"], unit="packets/s", target=at_least(50_000), label="a second"),
        measure(slices["limited"], unit="packets/s", target=None, label=limited),
        measure(tracked, unit="packets/s", target=None, label="conntrack"),
    )
