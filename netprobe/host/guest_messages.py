"""What a guest's agent says, as values: frames, reports of sends, states, its clock. A guest is a tenant's.

The messages are netprobe.wire.control's; who asks for them is netprobe.host.guest_agent, beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import WireError
from netprobe.wire.control import Message, frame_columns_untrusted

_I64_BYTES = 8


@dataclass(frozen=True, slots=True)
class GuestFrames:
    """Frames that the guest saw, as columns; frame i is `buf[offsets[i] : offsets[i] + lengths[i]]`.

    Attributes:
        t_ns: int64, shape (n,): kernel receive stamps, the guest's CLOCK_REALTIME.
        direction: uint8, shape (n,): wire.control.DIRECTION_IN or DIRECTION_OUT.
        buf: uint8, shape (octets,).
        offsets: int64, shape (n,).
        lengths: int64, shape (n,).
    """

    t_ns: npt.NDArray[np.int64]
    direction: npt.NDArray[np.uint8]
    buf: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.t_ns)

    @classmethod
    def from_message_untrusted(cls, message: Message) -> "GuestFrames":
        """The columns of a `frames` message.

        Raises:
            WireError: count, lengths and body don't agree.
        """
        columns = frame_columns_untrusted(message)
        lengths = np.frombuffer(columns.lengths, "<u4").astype(np.int64)
        return cls(
            t_ns=np.frombuffer(columns.t_ns, "<i8").astype(np.int64),
            direction=np.frombuffer(columns.directions, np.uint8),
            buf=np.frombuffer(columns.data, np.uint8),
            offsets=np.cumsum(lengths) - lengths,
            lengths=lengths,
        )


@dataclass(frozen=True, slots=True)
class GuestPacing:
    """How far the guest's sends were from the plan, ns; see netprobe.inject.pacer.PacingStats."""

    planned: int
    unsent: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    pauses: int


@dataclass(frozen=True, slots=True)
class SentReport:
    """How a send went.

    Attributes:
        start_ns: guest's CLOCK_REALTIME that the due offsets counted from.
        times_ns: int64, shape (count,): guest's CLOCK_REALTIME of each send, by its kernel's stamp where there is one;
            0 where it was not sent, netprobe.inject.pacer.HELD where it was held back.
        refused: frames that the guest's kernel did not take, for the reason in `error`.
    """

    start_ns: int
    times_ns: npt.NDArray[np.int64]
    pacing: GuestPacing
    refused: int
    error: str


@dataclass(frozen=True, slots=True)
class ObserveStatus:
    """What the guest's observer has seen and lost since it began.

    Attributes:
        dropped: frames that found the kernel's buffer full; shed: frames that the channel had no room for.
        unstamped: frames that the agent stamped, for want of a kernel stamp.
    """

    received: int = 0
    dropped: int = 0
    shed: int = 0
    unstamped: int = 0


@dataclass(frozen=True, slots=True)
class GuestHello:
    """What the agent says of itself.

    Attributes:
        mac: 6 octets, or none where the device has no address.
        reflector: the reflector's counters (docs/guest-agent.md), or None where none runs.
        is_mixing: it takes frames of different lengths in one order; older agents do not.
        is_thinning: it can hold a part of what is due back; older agents cannot.
    """

    version: int
    device: str
    mac: bytes
    reflector: Mapping[str, object] | None
    is_mixing: bool = False
    is_thinning: bool = False


def reflector_of(message: Message) -> Mapping[str, object] | None:
    """The reflector's counters in a message, None where none runs."""
    statistics = message.header.get("reflector")
    return statistics if isinstance(statistics, dict) else None


@dataclass(frozen=True, slots=True)
class ClockExchange:
    """One comparison of the guest's clock with ours (RFC 8762): T1 and T4 by ours, T2 and T3 by the guest's, ns."""

    t1_ns: int
    t2_ns: int
    t3_ns: int
    t4_ns: int


def mac_untrusted(text: str) -> bytes:
    """A MAC address, or none.

    Raises:
        WireError: it is neither.
    """
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError as error:
        raise WireError("hello", f"{text!r} is no MAC address") from error


def sent_report_untrusted(message: Message, count: int) -> SentReport:
    """The report of a send of `count` frames.

    Raises:
        WireError: times are missing, or too many, or a field is.
    """
    if len(message.body) != count * _I64_BYTES:
        raise WireError("sent", f"{len(message.body)} octets of times for {count} frames")
    pacing = GuestPacing(*(message.integer(name) for name in GuestPacing.__slots__))
    return SentReport(
        message.integer("start_ns"),
        np.frombuffer(message.body, "<i8").astype(np.int64),
        pacing,
        message.integer("refused"),
        message.text("error"),
    )
