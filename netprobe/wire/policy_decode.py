"""Bytes to frames of a verify run, a block at a time: which arrived, and which somebody refused.

Takes a block of a packet ring as it is; never raises, whatever the bytes. A frame is ours if its tag proves it and
addresses, ports and flags are those of the frame with that number; a SYN without a tag by its number, addresses and
ports. Headers come from `policy_sent`, frames from `policy_frames`; layouts: docs/wire-format.md.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from netprobe.model.packets import RST, SYN
from netprobe.model.policy import TCP
from netprobe.wire import isn, mark
from netprobe.wire.decode_headers import (
    I64,
    U8,
    Bools,
    Octets,
    frame_bounds,
    parse_ethernet,
    with_outermost_tag,
)
from netprobe.wire.policy_layout import ERRORS_V4, MIN_INFORMATIONAL_V6, PolicyMark
from netprobe.wire.policy_sent import Heads, SentTable, parse_heads
from netprobe.wire.siphash import identity_words, tags

__all__ = ["DecodedPolicy", "PolicyDecoder", "PolicyKind", "SentTable"]

_UNREACHABLE_V4, _UNREACHABLE_V6 = 3, 1  # RFC 792; RFC 4443 §3.1
_FRAGMENTATION_NEEDED = 4  # code of an IPv4 "unreachable" that refuses a size, not a packet


class PolicyKind(IntEnum):
    """What a frame says of the one that was sent."""

    ARRIVED = 0
    REJECTED = 1  # by a TCP RST or an ICMP "unreachable" that is not ours


@dataclass(frozen=True, slots=True)
class DecodedPolicy:
    """What a block says of sent frames, in the order of its frames; columns of shape (n,).

    Attributes:
        index: which input frame, each at most once.
        seq: number of the sent frame.
        kind: PolicyKind.
        tags: VLAN tags around it, packed; see `decode_headers.vlan_ids`.
        forged: frames that claim to be ours and do not prove it: the magic, or a sent SYN's addresses and ports, with a
            wrong tag, number, address, port or flag, or of another run.
        foreign: frames that claim nothing.
    """

    index: I64
    seq: npt.NDArray[np.uint32]
    kind: U8
    tags: I64
    forged: int
    foreign: int

    def __len__(self) -> int:
        return len(self.index)


class PolicyDecoder:
    """Decodes frames of one verify run. Keeps no state of its own: all points of a host can share one.

    Args:
        policy_mark: of the run.
        sent: its frames; whoever sends appends to it before they leave.
    """

    def __init__(self, policy_mark: PolicyMark, sent: SentTable) -> None:
        self._mark = policy_mark
        self._sent = sent
        self._isn_keys = isn.round_keys(policy_mark.key, policy_mark.session)

    def decode(self, buf: U8, offsets: I64, lengths: I64, vlan: I64 | None = None) -> DecodedPolicy:
        """Decode a block of frames.

        Args:
            buf: the octets, uint8, shape (size,).
            offsets: where the Ethernet header of each frame starts, shape (n,).
            lengths: captured octets of each frame, shape (n,). Both are forced into the buffer.
            vlan: id of a VLAN tag that the kernel took off each frame, shape (n,), -1 where none.

        Returns:
            What is ours, and counts of what is not. Nothing in it refers to `buf`.
        """
        octets = Octets(buf)
        starts, ends = frame_bounds(len(buf), offsets, lengths)
        l3, ether_types, vlan_tags = parse_ethernet(octets, starts, ends)
        if vlan is not None:
            vlan_tags = with_outermost_tag(vlan_tags, np.asarray(vlan, np.int64))
        heads = parse_heads(octets, np.arange(len(starts)), ether_types, l3, ends)
        quotes = _quotes(octets, heads)
        claimed, seqs = self._arrived(octets, heads, quotes)
        kind = np.full(len(heads), PolicyKind.ARRIVED)
        for refused in (self._reset(heads, claimed), self._unreachable(octets, heads, quotes, claimed)):
            chosen = (seqs < 0) & (refused >= 0)
            seqs[chosen] = refused[chosen]
            kind[chosen] = PolicyKind.REJECTED
        rows = np.flatnonzero(seqs >= 0)
        forged = int(np.count_nonzero(claimed & (seqs < 0)))
        index = heads.index[rows]
        return DecodedPolicy(
            index=index,
            seq=seqs[rows].astype(np.uint32),
            kind=kind[rows].astype(np.uint8),
            tags=vlan_tags[index],
            forged=forged,
            foreign=len(starts) - len(rows) - forged,
        )

    def _named(self, octets: Octets, heads: Heads) -> tuple[Bools, I64]:
        """Which packets have the magic where the identity stands, and the numbers that their tags prove; else -1."""
        at = heads.identity
        claimed = (at >= heads.l4) & (at + mark.IDENTITY_BYTES <= heads.end) & (octets.uint(at, 4) == mark.MAGIC_WORD)
        seqs = np.full(len(heads), -1)
        rows = np.flatnonzero(claimed & (octets.uint(at + 4, 4) == self._mark.session))
        numbers = octets.uint(at[rows] + 8, 4)
        words = identity_words(self._mark.session, numbers.astype(np.uint32))
        proved = octets.u64(at[rows] + 12) == tags(self._mark.key, words)
        seqs[rows[proved]] = numbers[proved]
        return claimed, seqs

    def _arrived(self, octets: Octets, heads: Heads, quotes: Heads) -> tuple[Bools, I64]:
        """Which packets claim to be ours, and which of the sent ones they are; -1 for none."""
        claimed, seqs = self._named(octets, heads)
        # The end of an error is its own only where it goes on behind the packet that it quotes.
        others = quotes.index[quotes.end >= heads.end[quotes.index]]
        claimed[others], seqs[others] = False, -1
        bare = np.flatnonzero((heads.protocol == TCP) & (heads.flags & SYN > 0) & (heads.data_bytes == 0))
        if len(bare):
            syns = heads.take(bare)
            seqs[bare] = isn.decode(self._isn_keys, syns.number.astype(np.uint32)).astype(np.int64)
            claimed[bare] = self._sent.latest(syns.words, lambda rows, _: np.ones(len(rows), np.bool_)) >= 0
        return claimed, np.where(self._sent.holds(seqs, heads), seqs, -1)

    def _reset(self, heads: Heads, claimed: Bools) -> I64:
        """The sent segments that resets answer; -1 for none. One of ours has a tag: it is no refusal."""
        found = np.full(len(heads), -1)
        rows = np.flatnonzero((heads.protocol == TCP) & (heads.flags & RST > 0) & ~claimed)
        resets = heads.take(rows)
        found[rows] = self._sent.latest(
            resets.turned(), lambda at, seqs: self._sent.is_rejected_by(seqs, resets.take(at))
        )
        return found

    def _unreachable(self, octets: Octets, heads: Heads, quotes: Heads, claimed: Bools) -> I64:
        """The sent packets that ICMP and ICMPv6 "unreachable" messages to their senders quote; -1 for none."""
        found = np.full(len(heads), -1)
        family, kind = heads.family, heads.icmp_type
        code = heads.words[:, 5] & np.uint64(0xFF)
        refuses = (family == 4) & (kind == _UNREACHABLE_V4) & (code != _FRAGMENTATION_NEEDED)
        refuses |= (family == 6) & (kind == _UNREACHABLE_V6)
        outer = quotes.index
        to_sender = (quotes.words[:, 1:3] == heads.words[outer, 3:5]).all(axis=1)
        quoted = quotes.take(np.flatnonzero(refuses[outer] & ~claimed[outer] & to_sender))
        if not len(quoted):
            return found
        is_named, named = self._named(octets, quoted)
        by_words = self._sent.latest(
            quoted.words, lambda at, seqs: self._sent.holds(seqs, quoted.take(at), is_quoted=True)
        )
        # A quote that reaches to the identity names its packet; of shorter ones the last that it can be is taken.
        by_name = np.where(self._sent.holds(named, quoted, is_quoted=True), named, -1)
        found[quoted.index] = np.where(is_named, by_name, by_words)
        return found


def _quotes(octets: Octets, heads: Heads) -> Heads:
    """The packets that ICMP and ICMPv6 errors quote; their index is the row of the error in `heads`."""
    kind = heads.icmp_type
    is_error = np.where(heads.family == 4, np.isin(kind, ERRORS_V4), (kind >= 0) & (kind < MIN_INFORMATIONAL_V6))
    rows = np.flatnonzero(is_error & (heads.l4 + 8 <= heads.end))
    ether_types = np.where(heads.family[rows] == 6, 0x86DD, 0x0800)
    return parse_heads(octets, rows, ether_types, heads.l4[rows] + 8, heads.end[rows])
