"""92-byte raw UDP by the transmit ring, flat out, beside trafgen and scapy; every frame of ours is counted and proved.

All senders have processor 0, which trafgen takes for itself, and the same headers. The destination MAC is nobody's:
the other end of the cable drops what comes in at once, alike for all.
"""

import re
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from bench.harness import Bench, Figure, MissingToolError, at_least, benchmark, compare, pinned, run
from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.inject.ring_sender import RingSender
from netprobe.inject.templates import build_template
from netprobe.model.points import Direction
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.observe.ring import RxRing
from netprobe.wire.decode import Decoder
from netprobe.wire.mark import min_frame_size

RAW_BYTES = 92
HEADERS = """
 0x02,0x00,0x00,0x00,0x00,0x99, 0x02,0,0,0,0,1, 0x08,0x00,
 0x45, 0x0c, const16(78), const16(0), const16(0x4000), 64, 17, csumip(14,33), 10,77,0,1, 10,77,0,2,
 const16(862), const16(862), const16(58),
"""
CONSTANT = "{" + HEADERS + "const16(0), fill(0, 50) }"
COUNTERS = "{" + HEADERS + "csumudp(14,34), " + "dinc(0,255), " * 8 + "drnd(8), fill(0, 34) }"
TRAFGEN_TOLD = re.compile(r"(\d+) sec, (\d+) usec on CPU0 \((\d+) packets\)")
PASS_ALL = bytes.fromhex("06000000ffffff00")
PROVED = 20_000  # frames that fit into a receive ring that nobody reads meanwhile


def session(protocol: Protocol, size_bytes: int, count: int) -> ProbeSession:
    return ProbeSession(
        session=0x5EED_0001,
        key=bytes(range(16)),
        type_p=TypeP(protocol, 4, size_bytes, 3, 862, 862, Flow.SAME),
        src_mac=bytes.fromhex("020000000001"),
        dst_mac=bytes.fromhex("020000000099"),
        src_ip=ip_address("10.77.0.1"),
        dst_ip=ip_address("10.77.0.2"),
        count=count,
    )


def received(netns: str) -> int:
    """Frames that came in at the far end so far."""

    def read() -> int:
        rows = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        (row,) = (row for row in rows if row.strip().startswith("eth0:"))
        return int(row.split(":")[1].split()[1])

    return in_netns(netns, read)


class Own:
    """netprobe's sender on the left, flat out; knows whether all that it sent came in at the right."""

    def __init__(self, left: str, right: str, probes: ProbeSession) -> None:
        self.probes, self.right = probes, right
        self.sender = RingSender.open(probes, build_template(probes), left, "eth0")
        self.lost = 0

    def slice(self) -> float:
        before, began = received(self.right), time.perf_counter()
        done = self.sender.send(0, self.probes.count, burst_frames=None)
        took = time.perf_counter() - began
        if done.failure:
            raise HostNotReadyError("transmit ring", done.failure)
        self.lost += done.sent - (received(self.right) - before)
        return done.sent / took

    def unproved(self) -> int:
        """Flat out into a receive ring: frames of PROVED that did not come, or not with the right identity and tag."""
        count = min(PROVED, self.probes.count)
        ring = RxRing(self.right, "eth0", PASS_ALL)
        try:
            self.sender.send(0, count, burst_frames=None)
            time.sleep(0.1)  # longer than a block waits for being full
            decoder, seen = Decoder([self.probes]), []
            for block in ring.blocks():
                incoming = block.direction == int(Direction.IN)
                decoded = decoder.decode(block.buffer, block.offsets[incoming], block.lengths[incoming])
                seen.append(decoded.seq.astype(np.int64))
        finally:
            ring.close()
        return count - int(np.array_equal(np.concatenate(seen), np.arange(count))) * count


def trafgen(netns: str, text: str, count: int) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(text)
        config.flush()
        # -q: through the queueing discipline, as ours; without it frames are hidden from rings on the device.
        argv = ["trafgen", "-i", config.name, "-o", "eth0", "--cpus", "1", "-q", "-Q", "-n", str(count)]
        told = TRAFGEN_TOLD.search(run(argv, netns=netns).stdout)
    if told is None:
        raise MissingToolError("trafgen", "netsniff-ng")
    seconds, microseconds, sent = (int(word) for word in told.groups())
    return sent / (seconds + microseconds / 1e6)


def scapy(netns: str, seconds: float) -> float:
    script = Path(__file__).parent / "peers" / "scapy_sender.py"
    return float(run([sys.executable, str(script), "eth0", str(seconds)], cpu=0, netns=netns).stdout)


@benchmark("inject_raw_udp")
def inject_raw_udp(bench: Bench) -> Figure:
    count = 20_000 if bench.short else 700_000
    stamp_bytes = min_frame_size(Protocol.UDP, 4)
    with bench.pair("left", "right") as (left, right), pinned(0):
        raw = Own(left, right, session(Protocol.RAW_UDP, RAW_BYTES, count))
        stamp = Own(left, right, session(Protocol.UDP, stamp_bytes, count))
        slices = bench.alternate(
            {
                "raw": raw.slice,
                "counters": lambda: trafgen(left, COUNTERS, count),
                "constant": lambda: trafgen(left, CONSTANT, count),
                "scapy": lambda: scapy(left, bench.seconds(0.4)),
                "stamp": stamp.slice,
            },
            rounds=14,
        )
        unproved = raw.unproved() + stamp.unproved()
    lost = raw.lost + stamp.lost
    broken = f"{lost} frames lost, {unproved} not as they should be" if lost or unproved else ""
    own = slices["raw"]
    main = compare(
        own,
        slices["counters"],
        unit="frames/s",
        peer="trafgen, counters and csumudp",
        target=at_least(1.0),
        broken=broken,
        note=f"{RAW_BYTES} bytes, one processor; identity, keyed tag and checksum of their own; all counted",
    )
    return main.also(
        compare(
            own,
            slices["constant"],
            unit="frames/s",
            peer="trafgen, one constant frame",
            target=at_least(0.9),
            label="constant",
        ),
        compare(
            own,
            slices["scapy"],
            unit="frames/s",
            peer="scapy, built and sent one by one",
            target=at_least(300),
            label="scapy",
        ),
        compare(
            slices["stamp"],
            slices["counters"],
            unit="frames/s",
            peer=f"trafgen as above; ours STAMP, {stamp_bytes} bytes, with T1",
            target=None,
            label="stamp",
        ),
    )
