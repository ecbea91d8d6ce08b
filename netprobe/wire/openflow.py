"""One OpenFlow connection as a state machine without I/O: bytes in, events out, requests as bytes.

Pure: host.openflow owns the socket. What messages look like is in wire.openflow_messages and wire.openflow_requests,
below. States are a table; a message that may not come now raises WireError, and after that the connection is dead.
"""

from enum import Enum

import numpy as np
import numpy.typing as npt

from netprobe.errors import WireError
from netprobe.wire import openflow_blocks
from netprobe.wire import openflow_requests as requests
from netprobe.wire.openflow_messages import (
    HEADER,
    MAX_MESSAGE_BYTES,
    ErrorMessage,
    Event,
    Hello,
    MessageType,
    Multipart,
    Version,
    body_untrusted,
    hello_versions_untrusted,
    message,
)

ALL_VERSIONS = (Version.OF15, Version.OF14, Version.OF13)


class State(Enum):
    """Where a connection stands."""

    HELLO_WAIT = "waiting for the switch's hello"
    READY = "ready"
    DEAD = "dead"


_FROM_A_SWITCH = frozenset(
    {
        MessageType.ERROR,
        MessageType.ECHO_REQUEST,
        MessageType.ECHO_REPLY,
        MessageType.EXPERIMENTER,
        MessageType.FEATURES_REPLY,
        MessageType.GET_CONFIG_REPLY,
        MessageType.PACKET_IN,
        MessageType.FLOW_REMOVED,
        MessageType.PORT_STATUS,
        MessageType.MULTIPART_REPLY,
        MessageType.BARRIER_REPLY,
        *range(22, 36),  # asynchronous and reply types that netprobe has no name for
    }
)
_NEXT: dict[tuple[State, int], State] = {
    (State.HELLO_WAIT, MessageType.HELLO): State.READY,
    (State.HELLO_WAIT, MessageType.ERROR): State.DEAD,  # the switch refuses our versions (HELLO_FAILED)
    **{(State.READY, kind): State.READY for kind in _FROM_A_SWITCH},
}
"""Every legal message in every state; what is not listed is illegal."""


class OpenFlowConnection:
    """The controller's side of one connection.

    Send `hello()` first, feed what comes in, and use the other makers from the Hello event on. A maker's xid is
    `xid_of(message)`.

    Args:
        versions: wire versions that we offer.
    """

    def __init__(self, versions: tuple[Version, ...] = ALL_VERSIONS) -> None:
        assert versions, "offer one version at least"
        self.versions = versions
        self.state = State.HELLO_WAIT
        self.version: Version | None = None
        self._buffer = bytearray()
        self._xid = 0

    # -- in -----------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the switch.

        Args:
            data: any number of bytes, cut anywhere.

        Returns:
            The events of all messages that are complete now, in order. An EchoRequest carries the bytes to send back.

        Raises:
            WireError: the bytes are no OpenFlow message that may come now; the connection is dead from here on.
        """
        if self.state is State.DEAD:
            raise WireError("OpenFlow connection", "it is dead")
        self._buffer += data
        events: list[Event] = []
        try:
            while len(self._buffer) >= HEADER.size:
                version, kind, size, xid = HEADER.unpack_from(self._buffer)
                if size < HEADER.size:
                    raise WireError("OpenFlow header", f"a length of {size} bytes")  # noqa: TRY301  handled at once
                if len(self._buffer) < size:
                    break
                body = bytes(self._buffer[HEADER.size : size])
                del self._buffer[:size]
                events.append(self._receive(version, kind, xid, body))
        except WireError:
            self._die()
            raise
        assert len(self._buffer) < MAX_MESSAGE_BYTES
        return events

    def _receive(self, version: int, kind: int, xid: int, body: bytes) -> Event:
        following = _NEXT.get((self.state, kind))
        if following is None:
            raise WireError(
                "OpenFlow message", f"type {kind} (version {version}) while the controller is {self.state.value}"
            )
        if self.state is State.READY and version != self.version:
            raise WireError("OpenFlow message", f"version {version} on a connection that speaks {self.version}")
        event: Event
        if kind == MessageType.HELLO:
            event = self._negotiate(version, xid, body)
        else:
            event = body_untrusted(version, kind, xid, body)
        self.state = following
        return event

    def _negotiate(self, header_version: int, xid: int, body: bytes) -> Hello:
        offered = hello_versions_untrusted(header_version, body)
        common = [version for version in self.versions if version in offered]
        if not common:
            ours = sorted(int(v) for v in self.versions)
            raise WireError("OpenFlow hello", f"the switch offers versions {sorted(offered)}, netprobe speaks {ours}")
        self.version = max(common)
        return Hello(xid, self.version)

    def _die(self) -> None:
        self.state = State.DEAD
        self._buffer.clear()

    # -- out ----------------------------------------------------------------------------------------------------------

    def _take(self) -> tuple[Version, int]:
        assert self.state is State.READY, f"no request before the handshake ({self.state.value})"
        assert self.version is not None
        self._xid = self._xid % 0xFFFFFFFF + 1  # never 0, which asynchronous messages use
        return self.version, self._xid

    def hello(self) -> bytes:
        """The first message to send."""
        return requests.hello(self.versions, 0)

    def features_request(self) -> bytes:
        """Ask who the switch is."""
        version, xid = self._take()
        return message(version, MessageType.FEATURES_REQUEST, xid)

    def barrier(self) -> bytes:
        """Ask to be told when everything before has been worked off."""
        version, xid = self._take()
        return message(version, MessageType.BARRIER_REQUEST, xid)

    def packet_out(self, in_port: int, frame: bytes, *, actions: bytes = b"") -> bytes:
        """Send `frame` through the pipeline as if it had come in at OpenFlow port `in_port`."""
        version, xid = self._take()
        return requests.packet_out(version, xid, in_port, frame, actions=actions)

    def packet_outs(self, in_port: int, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Send each row of `frames` like `packet_out`: the messages, row by row (wire.openflow_blocks)."""
        version, first = self._take()
        xids = (first - 1 + np.arange(len(frames), dtype=np.int64)) % 0xFFFFFFFF + 1
        self._xid = int(xids[-1])
        return openflow_blocks.packet_outs(version, xids.astype(np.uint32), in_port, frames)

    def aggregate_request(self, table: int, cookie: int, cookie_mask: int) -> bytes:
        """Ask for the sum of the counters of the flows in `table` whose cookie equals `cookie` under the mask."""
        version, xid = self._take()
        return requests.stats_request(
            version, xid, Multipart.AGGREGATE, table=table, cookie=cookie, cookie_mask=cookie_mask
        )

    def flow_request(self, cookie: int, cookie_mask: int, *, table: int = requests.OFPTT_ALL) -> bytes:
        """Ask for the flows whose cookie equals `cookie` under the mask."""
        version, xid = self._take()
        return requests.stats_request(version, xid, Multipart.FLOW, table=table, cookie=cookie, cookie_mask=cookie_mask)

    def flow_add(self, flow: requests.FlowAdd) -> bytes:
        """Add one flow of netprobe's own (its cookie, a hard timeout; see FlowAdd)."""
        version, xid = self._take()
        return requests.flow_add(version, xid, flow)

    def flow_delete(self, *, label: int | None = None) -> bytes:
        """Delete netprobe's own flows: all, or those with this label."""
        version, xid = self._take()
        return requests.flow_delete(version, xid, label=label)


def xid_of(request: bytes) -> int:
    """The transaction id that a maker put into its message."""
    return int.from_bytes(request[4:8], "big")


_TYPES = {
    0: ("HELLO_FAILED", {0: "INCOMPATIBLE", 1: "EPERM"}),
    1: (
        "BAD_REQUEST",
        {
            0: "BAD_VERSION", 1: "BAD_TYPE", 2: "BAD_MULTIPART", 3: "BAD_EXPERIMENTER", 4: "BAD_EXP_TYPE", 5: "EPERM",
            6: "BAD_LEN", 7: "BUFFER_EMPTY", 8: "BUFFER_UNKNOWN", 9: "BAD_TABLE_ID", 10: "IS_SLAVE", 11: "BAD_PORT",
            12: "BAD_PACKET", 13: "MULTIPART_BUFFER_OVERFLOW",
        },
    ),
    2: (
        "BAD_ACTION",
        {0: "BAD_TYPE", 1: "BAD_LEN", 4: "BAD_OUT_PORT", 5: "BAD_ARGUMENT", 6: "EPERM", 10: "MATCH_INCONSISTENT"},
    ),
    3: ("BAD_INSTRUCTION", {0: "UNKNOWN_INST", 1: "UNSUP_INST", 2: "BAD_TABLE_ID", 8: "EPERM"}),
    4: ("BAD_MATCH", {0: "BAD_TYPE", 1: "BAD_LEN", 6: "BAD_FIELD", 7: "BAD_VALUE", 8: "BAD_MASK", 9: "BAD_PREREQ"}),
    5: ("FLOW_MOD_FAILED", {0: "UNKNOWN", 1: "TABLE_FULL", 2: "BAD_TABLE_ID", 3: "OVERLAP", 4: "EPERM"}),
    13: ("MULTIPART_REQUEST_FAILED", {}),
}  # fmt: skip


def error_name(error: ErrorMessage) -> str:
    """Type and code of an error in the specification's words (§7.5.4), or as numbers."""
    kind, codes = _TYPES.get(error.type, (f"type {error.type}", {}))
    return f"{kind}/{codes.get(error.code, f'code {error.code}')}"
