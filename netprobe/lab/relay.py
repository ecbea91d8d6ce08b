"""The relay process: two packet sockets, a clock, the truth log. Standard library only, so that it starts at once.

A copy's due time is the kernel's receive stamp plus its delay, so what it costs to wake up is inside the delay and not
on top of it: select() until just before, then a spin (an epoll timeout would be whole milliseconds). The decisions are
netprobe.lab.relay_core's. Run by netprobe.lab.faults in the host's namespace; ends on SIGTERM after writing its log.
"""

import argparse
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from netprobe.lab.relay_core import RelayCore, RelaySpec
from netprobe.lab.relay_rows import FROM_GUEST, TO_GUEST, pack

SPIN_NS = 150_000
"""How long before the due time the relay stops sleeping: more than a select() is late on a quiet machine."""

FLUSH_IDLE_NS = 20_000_000
FLUSH_ROWS = 256
IDLE_WAIT_S = 0.5
FRAMES_AT_ONCE = 32
FRAME_MAX = 65_600
SEND_WAIT_S = 0.001
STAMP_SANE_NS = 1_000_000_000
"""A receive stamp that is further off than this is from before a step of the wall clock."""

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
TP_STATUS_VLAN_VALID = 0x10  # linux/if_packet.h
TP_STATUS_VLAN_TPID_VALID = 0x40
AUXDATA = struct.Struct("=IIIHHHH")
"""struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid."""
ETH_P_8021Q = 0x8100
MAC_OCTETS = 12
CONTROL_OCTETS = 128
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
BUFFER_BYTES = 8 << 20
NICE = -10


@dataclass(frozen=True, slots=True)
class Side:
    """One packet socket: frames read from it travel in `direction` and leave through the other side."""

    socket: socket.socket
    direction: int
    kernel_drops: list[int]


def open_side(device: str, direction: int) -> Side:
    """A packet socket that sees what comes in at a device, each frame with the kernel's stamp."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.bind((device, ETH_P_ALL))
    sock.setblocking(False)
    return Side(sock, direction, [0])


def receive(side: Side) -> tuple[bytes, int] | None:
    """The next frame of a side and its receive stamp, ns; None when there is none."""
    try:
        frame, control, _, _ = side.socket.recvmsg(FRAME_MAX, CONTROL_OCTETS)
    except OSError:  # nothing there; or the device went away, which is for the lab to notice
        return None
    t_in_ns = now_ns = time.time_ns()
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data)
            stamp_ns = seconds * 1_000_000_000 + nanoseconds
            if abs(now_ns - stamp_ns) < STAMP_SANE_NS:
                t_in_ns = stamp_ns
        elif level == SOL_PACKET and kind == PACKET_AUXDATA:
            frame = _with_tag(frame, data)
    return frame, t_in_ns


def _with_tag(frame: bytes, auxiliary: bytes) -> bytes:
    """The frame with its outermost VLAN tag, which the kernel takes out before a packet socket sees it."""
    status, *_, tci, tpid = AUXDATA.unpack(auxiliary[: AUXDATA.size])
    if not status & TP_STATUS_VLAN_VALID:
        return frame
    tag = struct.pack("!HH", tpid if status & TP_STATUS_VLAN_TPID_VALID else ETH_P_8021Q, tci)
    return frame[:MAC_OCTETS] + tag + frame[MAC_OCTETS:]


class TruthLog:
    """The log file and the counters next to it. Rows are written whole, soon, and at the end."""

    def __init__(self, core: RelayCore, sides: Sequence[Side], log: Path, counters: Path) -> None:
        self._core = core
        self._sides = sides
        self._counters = counters
        self._fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._written = ""

    def flush(self) -> None:
        """Write what is there."""
        rows, self._core.rows = self._core.rows, []
        if rows:
            os.write(self._fd, b"".join(map(pack, rows)))
        text = json.dumps({**asdict(self._core.counters), "kernel_dropped": sum(map(_kernel_drops, self._sides))})
        if text != self._written:
            fresh = self._counters.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(self._counters)
            self._written = text

    def close(self) -> None:
        """Write what is left and close."""
        self.flush()
        os.close(self._fd)


def _kernel_drops(side: Side) -> int:
    """Frames that found the socket's buffer full, since the start; reading the kernel's counter clears it."""
    with contextlib.suppress(OSError):
        side.kernel_drops[0] += struct.unpack("II", side.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    return side.kernel_drops[0]


class Relay:
    """The loop. `stop` ends it after the frame in hand."""

    def __init__(self, core: RelayCore, inner: Side, outer: Side, log: TruthLog) -> None:
        self._core = core
        self._sides = (inner, outer)
        self._exit = {inner.direction: outer.socket, outer.direction: inner.socket}
        self._log = log
        self.is_stopped = False

    def stop(self, *_: object) -> None:
        """Signal handler."""
        self.is_stopped = True

    def run(self) -> None:
        """Relay until stopped. A signal ends a select() by the wake-up file descriptor."""
        wake, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno())
        readers = [wake, *(side.socket for side in self._sides)]
        last_flush_ns = 0
        while not self.is_stopped:
            idle_ns = self._wait(readers)
            for side in self._sides:
                self._read(side)
            self._send_due()
            now_ns = time.monotonic_ns()
            if len(self._core.rows) >= FLUSH_ROWS or idle_ns or now_ns - last_flush_ns > FLUSH_IDLE_NS:
                self._log.flush()
                last_flush_ns = now_ns
        signal.set_wakeup_fd(-1)
        wake.close()
        wake_write.close()

    def _wait(self, readers: list[socket.socket]) -> bool:
        """Sleep until a frame is there or one is nearly due. Returns whether neither came for a while."""
        due_ns = self._core.next_due_ns
        unflushed = FLUSH_IDLE_NS / 1e9 if self._core.rows else IDLE_WAIT_S
        wait_s = unflushed if due_ns is None else min(unflushed, (due_ns - SPIN_NS - time.time_ns()) / 1e9)
        if wait_s <= 0:
            return False
        ready, _, _ = select.select(readers, [], [], wait_s)
        return not ready and wait_s == unflushed

    def _read(self, side: Side) -> None:
        for _ in range(FRAMES_AT_ONCE):
            got = receive(side)
            if got is None:
                return
            self._core.receive(got[0], side.direction, got[1])

    def _send_due(self) -> None:
        """Send what is due now or within the spin, each at its time."""
        core = self._core
        while (due_ns := core.next_due_ns) is not None:
            now_ns = time.time_ns()
            if due_ns - now_ns > SPIN_NS:
                return
            if due_ns > now_ns and any(select.select([side.socket for side in self._sides], [], [], 0)[0]):
                return  # read first: what just came may be due sooner
            while now_ns < due_ns:
                now_ns = time.time_ns()
            copy = core.pop()
            try:
                self._send(self._exit[copy.direction], copy.frame)
            except OSError:
                core.failed(copy)
            else:
                core.sent(copy, now_ns)

    @staticmethod
    def _send(exit_: socket.socket, frame: bytes) -> None:
        try:
            exit_.send(frame)
        except BlockingIOError:
            select.select([], [exit_], [], SEND_WAIT_S)
            exit_.send(frame)


def arguments() -> argparse.ArgumentParser:
    """The relay's command line; netprobe.lab.faults writes it."""
    parser = argparse.ArgumentParser(prog="netprobe.lab.relay")
    parser.add_argument("--inner", required=True, help="P: the device that faces the guest, hypervisor or fabric")
    parser.add_argument("--outer", required=True, help="Q: the device that faces the bridge")
    parser.add_argument("--direction", required=True, choices=("from", "to"), help="what P faces")
    parser.add_argument("--macs", default="", help="only frames to one of these, with commas between")
    parser.add_argument("--addresses", default="", help="or to one of these")
    parser.add_argument("--inside", action="store_true", help="look at what a tunnel carries")
    for name in ("--delay-ns", "--jitter-ns", "--seed"):
        parser.add_argument(name, type=int, default=0)
    for name in ("--loss", "--duplicate", "--reorder"):
        parser.add_argument(name, type=float, default=0.0)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--counters", type=Path, required=True)
    return parser


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _say_ready() -> None:
    """One write, since the reader goes away after it; then standard output leads nowhere."""
    os.write(1, b"ready\n")
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def main(argv: Sequence[str] | None = None) -> int:
    """Relay until SIGTERM. Writes `ready` to standard output when both sockets are open."""
    options = arguments().parse_args(argv)
    spec = RelaySpec(
        direction=FROM_GUEST if options.direction == "from" else TO_GUEST,
        macs=frozenset(bytes.fromhex(mac.replace(":", "")) for mac in options.macs.split(",") if mac),
        addresses=frozenset(map(_packed, filter(None, options.addresses.split(",")))),
        inside=options.inside,
        delay_ns=options.delay_ns,
        jitter_ns=options.jitter_ns,
        loss=options.loss,
        duplicate=options.duplicate,
        reorder=options.reorder,
        seed=options.seed,
        share=options.share,
    )
    core = RelayCore(spec)
    inner, outer = open_side(options.inner, FROM_GUEST), open_side(options.outer, TO_GUEST)
    log = TruthLog(core, (inner, outer), options.log, options.counters)
    relay = Relay(core, inner, outer, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, relay.stop)
    with contextlib.suppress(PermissionError):
        os.nice(NICE)
    gc.disable()  # nothing here makes cycles, and a collection would be a pause
    _say_ready()
    relay.run()
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
