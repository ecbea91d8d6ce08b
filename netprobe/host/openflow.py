"""A bridge's OpenFlow management socket: packets in through the pipeline, counters out, netprobe's own flows.

Blocking, with a timeout on everything, for one worker thread at a time. The protocol is wire.openflow's, below; timed
packet-out is inject.packet_out's, above. Nothing here can touch a flow that netprobe did not add.
"""

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, WireError
from netprobe.wire.openflow import ALL_VERSIONS, OpenFlowConnection, error_name, xid_of
from netprobe.wire.openflow_messages import (
    AggregateStats,
    BarrierReply,
    EchoRequest,
    ErrorMessage,
    Event,
    FeaturesReply,
    FlowEntry,
    FlowStats,
    Hello,
    Version,
)
from netprobe.wire.openflow_requests import NETPROBE_COOKIE, NETPROBE_COOKIE_MASK, FlowAdd

WHOLE_COOKIE = (1 << 64) - 1
TIMEOUT_S = 5.0
"""A switch answers within milliseconds; a thread that waits longer waits for a dead or stopped one."""

MAX_OUTSTANDING = 64
"""Packet-outs before the next barrier (design §6a): a userspace vswitch sheds longer bursts."""

_READ_BYTES = 1 << 16
_IS_PERMISSION = ("EPERM", "IS_SLAVE", "TABLE_FULL")


class OpenFlowClient:
    """A connection to one bridge.

    Use it as a context manager; it holds one unix socket.

    Args:
        run_dir: the switch's run directory.
        bridge: name of the bridge.
        versions: wire versions that may be negotiated.
        timeout_s: how long any single answer may take, seconds.

    Raises:
        HostNotReadyError: the switch does not run, or it speaks no version of ours.
    """

    def __init__(
        self,
        run_dir: Path | str,
        bridge: str,
        *,
        versions: tuple[Version, ...] = ALL_VERSIONS,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.path = Path(run_dir) / f"{bridge}.mgmt"
        self._where = f"bridge {bridge}"
        self._timeout_s = timeout_s
        self._connection = OpenFlowConnection(versions)
        self._errors: list[ErrorMessage] = []
        self._events: list[Event] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(self.path))
            self._socket.sendall(self._connection.hello())
            self._wait(lambda event: isinstance(event, Hello))
        except OSError as error:
            self.close()
            raise self._lost(f"cannot be reached at {self.path}: {error.strerror or error}") from error
        except NetprobeError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the socket. Twice is fine."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def version(self) -> Version:
        """The version that was negotiated."""
        assert self._connection.version is not None
        return self._connection.version

    # -- requests -----------------------------------------------------------------------------------------------------

    def packet_out_nowait(self, in_port: int, frame: bytes) -> None:
        """Write one packet-out; `barrier` says later whether the switch took it.

        Args:
            in_port: OpenFlow port that the frame seems to come from.
            frame: Ethernet frame without FCS.

        Raises:
            HostNotReadyError: the switch is gone.
        """
        self._send(self._connection.packet_out(in_port, frame))

    def packet_out(self, in_port: int, frames: Iterable[bytes]) -> int:
        """Send frames through the pipeline at once, at most MAX_OUTSTANDING before each barrier.

        Returns:
            How many frames were sent; all of them were worked off.

        Raises:
            HostNotReadyError, RefusedError: the switch is gone, or refused one.
        """
        sent = 0
        for frame in frames:
            self.packet_out_nowait(in_port, frame)
            sent += 1
            if sent % MAX_OUTSTANDING == 0:
                self.barrier()
        self.barrier()
        return sent

    def barrier(self) -> None:
        """Wait until the switch has worked off everything before.

        Raises:
            HostNotReadyError: the switch is gone, or one of the messages before could not be carried out.
            RefusedError: the switch does not permit one of them.
        """
        request = self._connection.barrier()
        self._send(request)
        self.wait_barrier(xid_of(request))

    def packet_outs_nowait(self, in_port: int, frames: npt.NDArray[np.uint8]) -> int:
        """Write many packet-outs and a barrier behind them, in one go.

        Args:
            in_port: OpenFlow port that the frames seem to come from.
            frames: shape (n, size), n at least 1: Ethernet frames without FCS.

        Returns:
            The barrier, for `wait_barrier`. Barriers must be waited for in the order in which they were written.

        Raises:
            HostNotReadyError: the switch is gone.
        """
        messages = self._connection.packet_outs(in_port, frames)
        barrier = self._connection.barrier()
        self._send(messages.tobytes() + barrier)
        return xid_of(barrier)

    def wait_barrier(self, xid: int) -> None:
        """Wait until the switch has worked off everything before a barrier.

        Raises:
            HostNotReadyError: the switch is gone, or one of the messages before could not be carried out.
            RefusedError: the switch does not permit one of them.
        """
        self._wait(lambda event: isinstance(event, BarrierReply) and event.xid == xid)
        errors, self._errors = self._errors, []
        if errors:
            raise self._refused(errors)

    def aggregate(self, table: int, cookie: int, mask: int = WHOLE_COOKIE) -> AggregateStats:
        """Sums of the counters of the flows in a table whose cookie equals `cookie` under `mask`.

        They hold what the datapath has pushed: call unixctl's `revalidator/wait` before.
        """
        request = self._connection.aggregate_request(table, cookie, mask)
        self._send(request)
        xid = xid_of(request)
        answer = self._wait(lambda event: isinstance(event, AggregateStats) and event.xid == xid, xid=xid)
        assert isinstance(answer, AggregateStats)
        return answer

    def flows(self, cookie: int = NETPROBE_COOKIE, mask: int = NETPROBE_COOKIE_MASK) -> tuple[FlowEntry, ...]:
        """The flows of all tables whose cookie equals `cookie` under `mask`; default: netprobe's own."""
        request = self._connection.flow_request(cookie, mask)
        self._send(request)
        xid = xid_of(request)
        found: list[FlowEntry] = []
        while True:
            part = self._wait(lambda event: isinstance(event, FlowStats) and event.xid == xid, xid=xid)
            assert isinstance(part, FlowStats)
            found += part.flows
            if not part.more:
                return tuple(found)

    def add_flow(self, flow: FlowAdd) -> None:
        """Add (or refresh) one flow of netprobe's own and wait until it is in place."""
        self._send(self._connection.flow_add(flow))
        self.barrier()

    def delete_own_flows(self, *, label: int | None = None) -> None:
        """Delete netprobe's own flows, all or those of one label, and wait until they are gone."""
        self._send(self._connection.flow_delete(label=label))
        self.barrier()

    def datapath_id(self) -> int:
        """The bridge's datapath id."""
        request = self._connection.features_request()
        self._send(request)
        xid = xid_of(request)
        answer = self._wait(lambda event: isinstance(event, FeaturesReply) and event.xid == xid, xid=xid)
        assert isinstance(answer, FeaturesReply)
        return answer.datapath_id

    # -- transport ----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(f"stopped taking messages: {error.strerror or error}") from error

    def _wait(self, is_wanted: Callable[[Event], bool], *, xid: int | None = None) -> Event:
        """Read until a wanted event comes; errors for `xid` are raised, those for others kept for the next barrier."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            while self._events:
                event = self._events.pop(0)
                if is_wanted(event):
                    return event
                if isinstance(event, EchoRequest):
                    self._send(event.reply)
                elif isinstance(event, ErrorMessage):
                    if event.xid == xid or not self._is_ready:
                        raise self._refused([event])
                    self._errors.append(event)
            self._events = self._read(deadline)

    @property
    def _is_ready(self) -> bool:
        return self._connection.version is not None

    def _read(self, deadline: float) -> list[Event]:
        left_s = max(deadline - time.monotonic(), 1e-3)  # 0 would mean non-blocking
        try:
            self._socket.settimeout(left_s)
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError as error:
            raise self._lost(f"did not answer within {self._timeout_s:g} s") from error
        except OSError as error:
            raise self._lost(f"broke off: {error.strerror or error}") from error
        if not data:
            raise self._lost("closed the connection")
        try:
            return self._connection.feed(data)
        except WireError as error:
            raise self._lost(f"does not speak OpenFlow as netprobe does: {error}") from error

    def _lost(self, problem: str) -> HostNotReadyError:
        advice = "is ovs-vswitchd running, and are you root? After a restart of the switch, run the command again"
        return HostNotReadyError(self._where, problem, advice=advice)

    def _refused(self, errors: list[ErrorMessage]) -> NetprobeError:
        name = error_name(errors[0])
        problem = f"the switch answered {name}" + (f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else "")
        if name.endswith(_IS_PERMISSION):
            return RefusedError(self._where, problem, advice="see the switch's own access control and table limits")
        advice = "is the port still there, and does the switch speak OpenFlow 1.3 to 1.5?"
        return HostNotReadyError(self._where, problem, advice=advice)
