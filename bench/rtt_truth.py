"""netprobe's round trip beside a capture at the other end of the sender's veth pair, and beside fping and irtt.

On the lab `single`, from vm1 to vm3 through Open vSwitch. The round trip is the one of a part of a run (service.part):
from the sender's stamp of a probe to the kernel's of its answer, without the reflector's own time where the answer
tells it (RFC 8762's T3 - T2; irtt leaves its server's time out, too). The capture, on vm1's port of the switch, parses
frames with code of its own. fping's probes and ours are echo requests that the same kernel answers; irtt's are UDP.

The switch has one processor, whoever sends and answers the other: where the scheduler may place them, the switch's
thread is woken now beside its waker, now on a sleeping processor, and a round trip is what that takes. The same with
nothing pinned is reported.
"""

import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import trio

from bench.harness import Bench, Figure, Target, at_most, benchmark, compare, measure, pin_processes, pinned
from bench.harness.context import run
from netprobe.host.clock import realtime_ns
from netprobe.host.netns import in_netns
from netprobe.host.signals import StopRequest
from netprobe.lab import control
from netprobe.model.observations import Hops, SentReport, Sightings
from netprobe.model.probes import Protocol
from netprobe.plan.plans import RunPlan, SessionPlan, checked
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.injecting import OwnPoint
from netprobe.service.part import PartOrder, open_part
from netprobe.service.permits import permit_run, port_source
from netprobe.service.prepare import prepare_run

RATE_PPS = 200
ROUNDS, UNPINNED_ROUNDS = 10, 6
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33
BUFFER_BYTES = 16 << 20
NTP_TO_UNIX_S = 2_208_988_800
OWN, ICMP, UDP = 0, 1, 17
Table = dict[int, int]


class Capture:
    """What passes a device, by kernel stamps: requests and answers by sequence number.

    Nobody reads while probes are under way, so that the capture takes no processor from what it captures: the kernel
    stamps frames and keeps them. Knows nothing of netprobe's code: Ethernet, IPv4, then ICMP echo or STAMP.
    """

    def __init__(self, netns: str, device: str) -> None:
        self._socket = in_netns(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        in_netns(netns, lambda: self._socket.bind((device, 3)))
        self.requests: Table = {}
        self.answers: Table = {}

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                frame, control_data, _, _ = self._socket.recvmsg(2048, 128)
                seconds, ns = struct.unpack("qq", control_data[0][2])
                self._take(frame, seconds * 10**9 + ns)

    def _take(self, frame: bytes, t_ns: int) -> None:
        at = 14 + (frame[14] & 15) * 4
        if frame[12:14] != b"\x08\x00":
            return
        if frame[23] == ICMP:
            kind, seq = frame[at], struct.unpack_from("!H", frame, at + 6)[0]
            if kind in {0, 8}:
                (self.requests if kind == 8 else self.answers).setdefault(seq, t_ns)
        elif frame[23] == UDP:
            ports = struct.unpack_from("!HH", frame, at)
            if ports[1] == 862:
                self.requests.setdefault(struct.unpack_from("!I", frame, at + 8)[0], t_ns)
            elif ports[0] == 862:
                t3, t2 = (_ntp_ns(frame, at + 8 + offset) for offset in (4, 16))
                self.answers.setdefault(struct.unpack_from("!I", frame, at + 8 + 24)[0], t_ns - (t3 - t2))

    def round_trips(self) -> Table:
        return {seq: t - self.requests[seq] for seq, t in self.answers.items() if seq in self.requests}


def _ntp_ns(frame: bytes, at: int) -> int:
    seconds, fraction = struct.unpack_from("!II", frame, at)
    return (seconds - NTP_TO_UNIX_S) * 10**9 + (fraction * 10**9 >> 32)


async def _probe(protocol: Protocol, count: int) -> Table:
    """Round trips of a part of a run, ns, by sequence number."""
    topology = read_topology(state_path())
    session = SessionPlan("rtt", "vm1", "vm3", protocol=protocol, count=count, rate_pps=RATE_PPS)
    plan = RunPlan("rtt", (checked(session, "rtt"),))
    prepared = tuple(prepare_run(plan, topology, port_source(topology)))
    lists = permit_run(prepared, topology, realtime_ns())
    probes = tuple(one.probe for one in prepared)
    own = {prepared[0].sender.name: OwnPoint(OWN, frozenset(p.session for p in probes))}
    reports: list[object] = []
    async with open_part(PartOrder(prepared, probes, {}, own), topology, lists, reports.append, StopRequest()) as part:
        await part.send(reports.append)
        await part.finish()
    sent = next(r for r in reports if isinstance(r, SentReport)).stamps_ns
    seen, reflector = {}, {}
    for report in reports:
        if isinstance(report, Hops):
            seen |= dict(zip(report.hops.seq.tolist(), report.hops.t_ns.tolist(), strict=True))
        elif isinstance(report, Sightings) and protocol is Protocol.UDP:
            reflector |= dict(zip(report.seq.tolist(), (report.t3_ns - report.t2_ns).tolist(), strict=True))
    return {seq: t - int(sent[seq]) - reflector.get(seq, 0) for seq, t in seen.items() if sent[seq]}


class Path:
    """The path of all arms; each arm's slice gives a median in us."""

    def __init__(self, bench: Bench) -> None:
        topology = read_topology(state_path())
        self.source, self.target = (topology.guest(name, "rtt_truth") for name in ("vm1", "vm3"))
        self.host = topology.host(self.source.host)
        self.count = int(bench.seconds(1.5, 0.1) * RATE_PPS)
        self.errors: list[float] = []

    def own(self, protocol: Protocol) -> float:
        with Capture(self.host.netns, self.source.port_device) as capture:
            ours = trio.run(_probe, protocol, self.count)
        truth = capture.round_trips()
        both = ours.keys() & truth.keys()
        assert len(both) > self.count / 2, f"{len(ours)} of ours and {len(truth)} captured have {len(both)} in common"
        self.errors.append(float(np.median([abs(ours[seq] - truth[seq]) for seq in both])) / 1e3)
        return float(np.median(list(ours.values()))) / 1e3

    def fping(self) -> float:
        words = ("fping", "-q", "-C", str(self.count), "-p", str(1000 // RATE_PPS), str(self.target.ipv4))
        done = run(words, netns=self.source.netns, check=False)
        times_ms = [float(word) for word in re.findall(r"\d+\.\d+(?= |$)", done.stderr.partition(" : ")[2])]
        return float(np.median(times_ms)) * 1e3

    def wait_for_irtt(self) -> None:
        for _ in range(100):
            if not run(
                ["irtt", "client", "-Q", "-n", str(self.target.ipv4)], netns=self.source.netns, check=False
            ).returncode:
                return
            time.sleep(0.05)

    def irtt(self) -> float:
        gap_ms = 1000 // RATE_PPS
        words = ("irtt", "client", "-Q", "-i", f"{gap_ms}ms", "-d", f"{self.count * gap_ms}ms", "-o", "-", "-l", "68")
        done = run([*words, str(self.target.ipv4)], netns=self.source.netns)
        trips = json.loads(done.stdout[done.stdout.index("{") :])["round_trips"]
        return float(np.median([trip["delay"]["rtt"] for trip in trips if "rtt" in trip["delay"]])) / 1e3


@contextlib.contextmanager
def _lab(bench: Bench):
    control.up("single")
    try:
        path = Path(bench)
        server = in_netns(
            path.target.netns,
            lambda: subprocess.Popen(
                ["irtt", "server", "-b", str(path.target.ipv4), "-i", "1ms"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ),
        )
        try:
            path.wait_for_irtt()
            yield path
        finally:
            server.kill()
            server.wait()
    finally:
        control.down()


def _slices(bench: Bench, path: Path, rounds: int) -> dict[str, list[float]]:
    arms = {
        "icmp": lambda: path.own(Protocol.ICMP),
        "fping": path.fping,
        "stamp": lambda: path.own(Protocol.UDP),
        "irtt": path.irtt,
    }
    return bench.alternate(arms, rounds=rounds)


def _beside_peers(slices: dict[str, list[float]], target: Target | None, where: str = "") -> list[Figure]:
    pairs = (("icmp", "fping", "echo, same kernel answers"), ("stamp", "irtt", "STAMP beside irtt's UDP"))
    return [
        compare(slices[own], slices[peer], unit="us", peer=peer, target=target, label=f"{where}{label}")
        for own, peer, label in pairs
    ]


@benchmark("rtt_truth")
def rtt_truth(bench: Bench) -> Figure:
    switch, guests = bench.cpus[:2]
    with _lab(bench) as path:
        pin_processes({"ovs-vswitchd": {switch}, "netprobe_agents.guest": {guests}, "irtt": {guests}})
        with pinned(guests):
            apart = _slices(bench, path, ROUNDS)
        pin_processes({word: set(bench.cpus) for word in ("ovs-vswitchd", "netprobe_agents.guest", "irtt")})
        together = None if bench.short else _slices(bench, path, UNPINNED_ROUNDS)
    truth = measure(
        path.errors,
        unit="us",
        target=at_most(5.0),
        note="median distance from a capture at the other end of the sender's veth pair, of both kinds of probes",
    )
    unpinned = _beside_peers(together, None, "unpinned: ") if together else ()
    return truth.also(*_beside_peers(apart, at_most(1.0)), *unpinned)


if __name__ == "__main__":
    sys.exit("run it as: python -m bench --only rtt_truth")
