"""Probes at the vrings of a DPDK vswitch: BPF programs at its vhost library, decoded a block at a time into reports.

One watch for one vswitch, whatever the number of its ports. The programs (`bpf/vring.bpf.c`) filter in the kernel and
stamp with CLOCK_MONOTONIC: what comes from a guest when it is out of the guest's ring, what goes to one when the
vswitch hands it over. netprobe.host.libbpf loads them, netprobe.host.vhost_devices says whose ring is whose, the
decoding is that of packet rings (netprobe.observe.observer). service.looking drains it.
"""

import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError
from netprobe.host.clock import realtime_ns, realtime_of_monotonic
from netprobe.host.libbpf import BpfObject, RingBuffer
from netprobe.host.process import start_ticks
from netprobe.host.vhost_devices import VhostLibrary, device_sockets, find_library
from netprobe.model.observations import FOR_EVER_NS, Blind, Report, Unwatched
from netprobe.model.probes import ProbeSession
from netprobe.observe.observer import Decoding
from netprobe.wire.mark import MAGIC_WORD
from netprobe.wire.vring_filter import class_marks, filter_entries

OBJECT = f"bpf/vring.{os.uname().machine}.bpf.o"
"""Compiled for one kind of processor: where a function's arguments are differs."""

RING_BYTES = 1 << 22
"""Holds 16,000 probes of 200 octets: 3 s of 5,000 a second."""

EVENT_HEADER_BYTES = 24  # struct event: t_ns 0, vid 8, length 12, queue 16, captured 18, direction 20, data 24
CONFIG = struct.Struct("=4IQ2I")
MBUF_FIELDS = (0, 16, 36, 40)
"""Where struct rte_mbuf has buf_addr, data_off, pkt_len, data_len: DPDK 20.11 to 24.11 (vhost_devices.KNOWN_ABIS)."""

PROGRAMS = (
    ("np_dequeue", "rte_vhost_dequeue_burst", False),
    ("np_dequeued", "rte_vhost_dequeue_burst", True),
    ("np_enqueue", "rte_vhost_enqueue_burst", False),
    ("np_enqueued", "rte_vhost_enqueue_burst", True),
)
COUNTERS = ("calls_dequeue", "calls_enqueue", "packets", "passed", "lost", "unread")
LOOK_NS = 1_000_000_000
"""How often it is asked whose ring is whose while nothing comes.

Where probes come it is asked each time: the number of a guest that has gone is given to the next one that connects.
"""

OTHER = ""


@dataclass(frozen=True, slots=True)
class VringPlace:
    """A vswitch whose vrings are to be watched, and for how long.

    Attributes:
        pid_file: where it leaves its process id; another one there means that it was started again.
        limit_ns: after so long the programs are taken off, for each empty look into a ring costs the vswitch a trap.
    """

    pid_file: Path
    limit_ns: int


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at whose ring is whose.

    Attributes:
        began_ns: from before the ring was read.
        ended_ns: from after it was looked.
        now: by number, of watched ports.
        owners: whose was what had come by then, as far as it is known; OTHER for none of ours.
        unclear: ports of which nobody can say it since the look before.
    """

    began_ns: int
    ended_ns: int
    now: dict[int, str]
    owners: dict[int, str]
    unclear: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Attached:
    """The programs at one process."""

    pid: int
    ticks: int
    library: VhostLibrary
    program: BpfObject
    ring: RingBuffer
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return start_ticks(self.pid) == self.ticks

    def close(self) -> None:
        self.ring.close()
        self.program.close()


class VringWatch:
    """The watch of one vswitch, open until `close`. It comes back by itself when the vswitch was started again.

    Args:
        place: the vswitch.
        probes: the sessions to look for.
        decodings: where the frames of each port go, by the path of its socket.

    Attributes:
        failure: why nothing is seen any more, for good; "" while it is or may be again.
        counters: what the programs counted, by COUNTERS, since they were first attached.

    Raises:
        HostNotReadyError: no libbpf, no permission, no such process, no DPDK in it, or one that is not known.
    """

    def __init__(self, place: VringPlace, probes: Sequence[ProbeSession], decodings: Mapping[str, Decoding]) -> None:
        self.failure = ""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._place = place
        self._entries = filter_entries(probes)
        self._config = CONFIG.pack(*MBUF_FIELDS, class_marks(probes), MAGIC_WORD, 0)
        self._decodings = dict(decodings)
        self._look = _Look(0, 0, {}, {})
        self._attached: _Attached | None = self._attach()
        self._checked_ns = realtime_ns()
        self._until_ns = time.monotonic_ns() + place.limit_ns

    @property
    def points(self) -> frozenset[int]:
        """The points that it looks at."""
        return frozenset(decoding.point for decoding in self._decodings.values())

    def run_time_ns(self, program: str) -> int:
        """How long one of PROGRAMS ran since it was attached, where the kernel counts it (libbpf.counted_run_times)."""
        return self._attached.program.run_time_ns(program) if self._attached is not None else 0

    def add(self, socket: str, decoding: Decoding) -> None:
        """Look at one more port, from now on.

        Raises:
            HostNotReadyError: nothing is looked at any more, or the vswitch's memory cannot be read.
        """
        if self.failure:
            raise HostNotReadyError("vrings", self.failure)
        if self._attached is not None:
            device_sockets(self._attached.library, [socket])
        self._decodings[socket] = decoding  # whose its number was before, the next look tells

    def _attach(self) -> _Attached:
        pid = _pid(self._place.pid_file)
        ticks = start_ticks(pid)
        library = find_library(pid)
        program = BpfObject(Path(str(files("netprobe.observe").joinpath(OBJECT))), {"np_events": RING_BYTES})
        try:
            program.put("np_config", bytes(4), self._config)
            for key, value in self._entries:
                program.put("np_pairs", key, value)
            ring = RingBuffer(program.map_fd("np_events"), RING_BYTES)
            for name, function, at_return in PROGRAMS:
                program.attach_uprobe(name, pid=pid, binary=library.binary, function=function, at_return=at_return)
            began_ns = realtime_ns()
            now = device_sockets(library, self._decodings)
            self._look = _Look(began_ns, realtime_ns(), now, now)
        except BaseException:
            program.close()
            raise
        return _Attached(pid, ticks, library, program, ring)

    def drain(self) -> list[Report]:
        """Decode what has been seen since the last call.

        While the vswitch is gone, or when the ring had no room, its points were blind since then.
        """
        now_ns = realtime_ns()
        found = [] if self.failure else self._drain(now_ns)
        self._checked_ns = now_ns
        return found

    def _drain(self, now_ns: int) -> list[Report]:
        if self._attached is not None and not self._attached.is_alive:
            found = self._read(now_ns) + self._blind(now_ns, "the vswitch was started again")
            self._detach()
            return found
        if time.monotonic_ns() > self._until_ns:
            found = self._read(now_ns) if self._attached else []
            self._detach()
            limit_s = self._place.limit_ns / 1e9
            self.failure = f"uprobes may stay for {limit_s:g} s on this host (vring_uprobes_s in its allowlist)"
            for point in sorted(self.points):
                found += [Blind(point, now_ns, FOR_EVER_NS, self.failure), Unwatched(point, self.failure, now_ns)]
            return found
        if self._attached is None:
            why = ""
            try:
                self._attached = self._attach()
            except HostNotReadyError as error:
                why = str(error)
            # Blind until now in any case: what passed before the programs were there was not seen.
            return self._blind(realtime_ns(), f"the vswitch is gone: {why}" if why else "the vswitch was started again")
        return self._read(now_ns)

    def _blind(self, until_ns: int, why: str) -> list[Report]:
        return [Blind(point, self._checked_ns, until_ns, why) for point in sorted(self.points)]

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def _read(self, now_ns: int) -> list[Report]:
        assert self._attached is not None
        found: list[Report] = []
        with self._attached.ring.records() as (buffer, starts):
            if len(starts) or now_ns - self._look.began_ns >= LOOK_NS:
                found += self._decode(buffer, starts, now_ns)
        found += self._count()
        return found

    def _decode(self, buffer: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], now_ns: int) -> list[Report]:
        word = buffer.view(np.uint32)
        devices = word[(starts >> 2) + 2]
        last, look = self._look, self._look_up(np.unique(devices).tolist(), now_ns)
        self._look = look
        t_ns = realtime_of_monotonic(buffer.view(np.int64)[starts >> 3])
        captured = buffer.view(np.uint16)[(starts >> 1) + 9].astype(np.int64)
        direction = buffer[starts + 20]
        # A record that came between the last read of the ring and the last look is that look's to tell.
        known = look.owners | {device: path for device, path in last.owners.items() if path != OTHER}
        is_early = t_ns <= last.ended_ns
        found: list[Report] = []
        for chosen, owners, unclear in (
            (is_early, known, last.unclear | look.unclear),
            (~is_early, look.owners, look.unclear),
        ):
            for device, path in owners.items():
                own = np.flatnonzero((devices == device) & chosen)
                if len(own) and path != OTHER and path not in unclear:
                    data = starts[own] + EVENT_HEADER_BYTES
                    found += self._decodings[path].feed(buffer, data, captured[own], t_ns[own], direction[own])
        for path in sorted(look.unclear):
            point = self._decodings[path].point
            found.append(Blind(point, last.began_ns, look.ended_ns, "its guest connected anew to the vswitch"))
        return found

    def _look_up(self, seen: Iterable[int], now_ns: int) -> _Look:
        """Ask whose ring is whose. `now_ns` is from before the ring was read."""
        assert self._attached is not None
        before = dict.fromkeys(self._look.owners, OTHER) | self._look.now
        try:
            now = device_sockets(self._attached.library, self._decodings)
        except HostNotReadyError:
            return self._look  # the vswitch ended just now, which the next drain finds out
        # What has come by now from a number that is gone was its last owner's; what will come, anybody's.
        owners = dict.fromkeys(seen, OTHER) | before | now
        unclear = {p for d, path in now.items() if before.get(d, path) != path for p in (path, before[d])} - {OTHER}
        return _Look(now_ns, realtime_ns(), now, owners, frozenset(unclear))

    def _count(self) -> list[Report]:
        assert self._attached is not None
        now = dict(zip(COUNTERS, self._attached.program.per_cpu_sums("np_counters"), strict=True))
        before = self._attached.counters
        new = {name: value - before.get(name, 0) for name, value in now.items()}
        self._attached.counters = now
        for name, value in new.items():
            self.counters[name] += value
        missed = new["lost"] + new["unread"]
        if not missed:
            return []
        for decoding in self._decodings.values():
            decoding.tally.dropped += new["lost"]
        # The time is read after the counters: what was lost while the ring was being read is among it.
        return self._blind(realtime_ns(), f"{missed} packets at vrings could not be handed over or read")

    def close(self) -> None:
        """Take the programs off. Twice is fine."""
        self._detach()


def _pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise HostNotReadyError("vswitch", f"leaves no process id in {path}", advice="is it running?") from error
