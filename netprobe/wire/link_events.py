"""What a link tells its program. Above: wire.link, which makes these."""

from dataclasses import dataclass
from enum import Enum

from msgspec import Raw

from netprobe.errors import NetprobeError, UsageError, WireError
from netprobe.wire.report import Hello, PartKey, T, Welcome, printable, unpack_value_untrusted


class Ending(Enum):
    """Why a link ended."""

    REFUSED = "refused"  # by the collector
    OTHER_VERSION = "other-version"
    GARBAGE = "garbage"  # what came is no message, or none that may come now
    FLOOD = "flood"  # more than the window, the rate or the number of questions allows
    UNREAD = "unread"  # the peer doesn't take what we send
    SILENT = "silent"  # nothing came for DEAD_AFTER_NS
    SLOW_HANDSHAKE = "slow-handshake"
    PEER_CLOSED = "peer-closed"
    CLOSED_HERE = "closed-here"


@dataclass(frozen=True, slots=True)
class Greeted:
    """Event of a collector: somebody dialled. Its program answers with `welcome` or `refuse`."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Event of an agent or operator: the link is open. For an agent, an `Acked` follows for each part to resume."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Asked:
    """Event: an order or a question, to be answered with `answer` or `fail`."""

    id: int
    op: str
    args: Raw
    body: bytes

    def arguments_untrusted(self, expected: type[T]) -> T:
        """The arguments as the type that they must have.

        Raises:
            UsageError: they are something else; `fail` tells the asker.
        """
        try:
            return unpack_value_untrusted(self.args, expected)
        except WireError as error:
            raise UsageError(f"arguments of {printable(self.op)}", error.problem) from error


@dataclass(frozen=True, slots=True)
class Answered:
    """Event: what came of question `id`: an error, or a packed result and a body."""

    id: int
    error: NetprobeError | None
    result: Raw
    body: bytes


@dataclass(frozen=True, slots=True)
class BlockArrived:
    """Event of a collector: a block, perhaps not for the first time; host.block_log knows."""

    part: PartKey
    number: int
    octets: bytes


@dataclass(frozen=True, slots=True)
class ShedArrived:
    """Event of a collector: blocks from `first` to below `next` will never come."""

    part: PartKey
    first: int
    next: int
    from_ns: int
    to_ns: int


@dataclass(frozen=True, slots=True)
class Acked:
    """Event of an agent: all blocks of a part with a number below `next` are on the collector's disk."""

    part: PartKey
    next: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Event: the link has ended; it comes once, and last. `unanswered` are the ids of questions that were open."""

    ending: Ending
    why: str
    unanswered: tuple[int, ...] = ()


Event = Greeted | Welcomed | Asked | Answered | BlockArrived | ShedArrived | Acked | Closed
