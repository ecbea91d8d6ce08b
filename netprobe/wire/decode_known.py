"""Frames of known shapes, found a block at a time: what `decode` need not parse, because it has parsed such a frame.

Each frame's own header picks a shape (by two hashes, of which nothing is believed), then all of its octets are compared
with that, then number, tag, ports and times are checked as `decode_udp` does. Only what proves itself in full is taken;
all the rest, forged claims too, is left to be parsed. So what comes out is the same, in a third of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from netprobe.model.contexts import HopContext
from netprobe.wire import mark
from netprobe.wire.decode_claims import Kind
from netprobe.wire.decode_headers import I64, U8, U64, Bools
from netprobe.wire.decode_sessions import SessionTable
from netprobe.wire.decode_shapes import BEFORE, MAX_TAGS, TYPE_AT, Shape
from netprobe.wire.decode_udp import ntp_ns
from netprobe.wire.tag_cache import TagCache

MAX_SHAPES = 8192
MAX_SHAPES_A_SESSION = 32
"""A guest that sends its probes on under ever new headers makes only its own sessions slower."""

_MIN_HEADER_BYTES = 32  # what the first hash looks at
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_MAGIC = np.frombuffer(mark.MAGIC, np.uint32)[0]
_IPV6 = 0xDD86  # EtherType as it stands in memory
_VLANS = (0x0081, 0xA888)  # VLAN_TYPES as they stand in memory
_PTP = 0x4000_0000  # Z flag of an Error Estimate, in the word that starts with it (RFC 8186 §2.3)
_IDENTITY = np.dtype("V24")


@dataclass(frozen=True, slots=True)
class Found:
    """Frames that proved to be ours, shape (n,) each, in the order of the block.

    Attributes:
        rows: which of the frames.
        shape: number of the shape.
        session: row in the session table.
        others as in Decoded.
    """

    rows: I64
    shape: I64
    session: I64
    seq: I64
    t1_ns: I64
    t2_ns: I64
    t3_ns: I64
    reflector_seq: I64


class _Ranked:
    """Numbers to be found by a hash; several may have the same one, and each has a rank among these."""

    def __init__(self, hashes: U64) -> None:
        order = np.argsort(hashes, kind="stable")
        _, repeats = np.unique(hashes, return_counts=True)
        self.depth = int(repeats.max(initial=0))
        self._order = np.concatenate([order, np.zeros(self.depth, np.int64)])
        self._hashes = np.concatenate([hashes[order], np.zeros(self.depth, np.uint64)])
        self._size = len(hashes)

    def first(self, hashes: U64) -> I64:
        return np.searchsorted(self._hashes[: self._size], hashes)

    def at(self, places: I64, hashes: U64) -> tuple[Bools, I64]:
        """Whether there is a number for each hash at this place, and which."""
        return (self._hashes.take(places) == hashes) & (places < self._size), self._order.take(places)


class _Book:
    """Shapes as columns; never changes.

    Args:
        shapes: in any order.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        longest = max(len(shape.header) for shape in shapes)
        self.header_bytes = max(_MIN_HEADER_BYTES, (longest + 7) // 8 * 8)
        self.length = _column(shapes, "length")
        self.kernel_tag = _column(shapes, "kernel_tag")
        self.payload = _column(shapes, "payload")
        self.session = _column(shapes, "session")
        self.leg = _column(shapes, "leg").astype(np.uint8)
        self.kind = _column(shapes, "kind").astype(np.uint8)
        self.dscp = _column(shapes, "dscp").astype(np.uint8)
        self.ttl = _column(shapes, "ttl").astype(np.uint8)
        self.is_stamp = _column(shapes, "is_stamp").astype(np.bool_)
        self.port_at = _column(shapes, "port_at")
        self.other_magic_at = _column(shapes, "other_magic_at")
        self.at = _column(shapes, "at")
        self.contexts = tuple(dict.fromkeys(shape.context for shape in shapes))
        numbers = {context: number for number, context in enumerate(self.contexts)}
        self.context = np.array([numbers[shape.context] for shape in shapes], np.int64)
        self.stack = _words([shape.stack for shape in shapes], 8)[:, 0]
        self.header = _words([shape.header for shape in shapes], self.header_bytes)
        self.header_mask = _words([shape.header_mask for shape in shapes], self.header_bytes)
        self.block = _words([shape.block for shape in shapes], 16)
        self.block_mask = _words([shape.block_mask for shape in shapes], 16)
        self.has_stamp = bool(self.is_stamp.any())
        self.has_own_ports = bool((self.port_at >= 0).any())
        self.has_other_magic = bool((self.other_magic_at >= 0).any())
        self.has_tags = bool(self.stack.any())
        self.has_kernel_tags = bool(self.kernel_tag.any())
        hashes = _header_hash(self.header, self.length, self.kernel_tag, self.stack)
        places = np.unique(np.stack([hashes, self.at.astype(np.uint64)], axis=1), axis=0)
        self.places = places[:, 1].astype(np.int64)
        self.by_header = _Ranked(places[:, 0])
        self.by_session = _Ranked(_session_hash(hashes, self.at, self.block[:, 1]))


def _column(shapes: Sequence[Shape], name: str) -> I64:
    return np.array([getattr(shape, name) for shape in shapes], np.int64)


def _words(rows: Sequence[bytes], width: int) -> U64:
    octets = b"".join(row.ljust(width, b"\0") for row in rows)
    return np.frombuffer(octets, np.uint64).reshape(len(rows), width // 8)


def _header_hash(header: U64, lengths: I64, kernel_tags: I64 | int, stacks: U64 | int) -> U64:
    """Of octets that no tunnel's end chooses anew: see decode_shapes."""
    first, second, third = _FACTORS
    mixed = (header[:, 0] & np.uint64(0xF0FFFFFF)) * first  # EtherType, version, traffic class
    mixed ^= mixed >> np.uint64(29)
    mixed += header[:, 2] & np.uint64(0xFFFF_FFFF_FFFF)  # IPv4 addresses; of IPv6 the middle of the source
    mixed += stacks
    mixed *= second
    mixed ^= mixed >> np.uint64(32)
    is_ipv6 = header[:, 0] & np.uint64(0xFFFF) == _IPV6
    mixed += (header[:, 3] & np.uint64(0xFFFF)) * is_ipv6  # the end of the source, where IPv4 has a port
    mixed += (lengths << 16 | kernel_tags << 40).astype(np.uint64)
    mixed *= third
    return mixed


def _session_hash(hashes: U64, at: I64, words: U64) -> U64:
    """`words` start with the session's number."""
    mixed = (hashes ^ (words & np.uint64(0xFFFF_FFFF))) * _FACTORS[0]
    mixed ^= mixed >> np.uint64(31)
    mixed += at.astype(np.uint64)
    mixed *= _FACTORS[1]
    return mixed


@dataclass(frozen=True, slots=True)
class _Block:
    """Frames as they are looked at, n of them.

    Attributes:
        buf: the octets.
        offsets, lengths: of frames that lie in `buf`.
        kernel_tags: as in Shape; a 0 for all.
        stacks: tags in band as one word, likewise.
        header: shape (n, words), octets from the EtherType on.
    """

    buf: U8
    offsets: I64
    lengths: I64
    kernel_tags: I64 | int
    stacks: U64 | int
    header: U64

    def take(self, rows: I64) -> "_Block":
        """Some rows, in ascending order."""
        if len(rows) == len(self.lengths):
            return self
        return _Block(
            self.buf,
            self.offsets.take(rows),
            self.lengths.take(rows),
            self.kernel_tags if isinstance(self.kernel_tags, int) else self.kernel_tags.take(rows),
            self.stacks if isinstance(self.stacks, int) else self.stacks.take(rows),
            self.header.take(rows, axis=0),
        )

    def gather(self, at: I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """An item at each of these positions in their frames; some other one where it would lie beyond the buffer."""
        return _gather(self.buf, self.offsets + at, dtype)


def _gather(buf: U8, positions: I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    last = len(buf) - dtype.itemsize
    window = np.ndarray((last + 1,), dtype, buffer=buf.data, strides=(1,))
    return window[np.minimum(positions, last)]


class KnownFrames:
    """Shapes seen so far, and the frames that have one of them. Not to be shared by threads.

    Args:
        table: the sessions.
        tags: may be shared with others of the same sessions.
    """

    def __init__(self, table: SessionTable, tags: TagCache) -> None:
        self._table, self._tags = table, tags
        self._shapes: dict[int, list[Shape]] = {}
        self._book: _Book | None = None
        self._likely = -1  # the shape of most frames of the last block

    def learn(self, shapes: Sequence[Shape]) -> None:
        """Keep more shapes; of a session that has had very many, forget the others."""
        is_new = False
        for shape in shapes:
            own = self._shapes.setdefault(shape.session, [])
            if shape in own or sum(map(len, self._shapes.values())) >= MAX_SHAPES:
                continue
            if len(own) >= MAX_SHAPES_A_SESSION:
                own.clear()
            own.append(shape)
            is_new = True
        if is_new:
            self._book = _Book([shape for own in self._shapes.values() for shape in own])
            self._likely = -1

    def find(self, buf: U8, offsets: I64, lengths: I64, vlan: I64 | None) -> "Found | None":
        """Frames that have a known shape and prove to be ours. Arguments as of Decoder.decode; None for no frame."""
        book = self._book
        if book is None or not len(offsets) or not _are_inside(buf, offsets, lengths, book.header_bytes):
            return None
        block = _block(book, buf, offsets, lengths, vlan)
        which = self._likely_shapes(book, block)
        left = np.flatnonzero(which < 0)
        if len(left) == len(which):
            which = _shapes(book, block)
        elif len(left):
            which[left] = _shapes(book, block.take(left))
        rows = np.flatnonzero(which >= 0)
        self._likely = -1
        if not len(rows):
            return None
        if len(rows) < len(which):
            which, block = which.take(rows), block.take(rows)
        if np.count_nonzero(which == which[0]) * 2 > len(offsets):
            self._likely = int(which[0])
        return self._proved(book, block, which, rows)

    def _likely_shapes(self, book: _Book, block: _Block) -> I64:
        """The shape of most frames of the last block, where it is also that of these; else -1."""
        if self._likely < 0:
            return np.full(len(block.lengths), -1)
        shape = self._likely
        is_same = block.lengths == book.length[shape]
        if not isinstance(block.kernel_tags, int) or book.has_kernel_tags:
            is_same &= block.kernel_tags == book.kernel_tag[shape]
        if book.has_tags:
            is_same &= block.stacks == book.stack[shape]
        for number, (word, mask) in enumerate(zip(book.header[shape], book.header_mask[shape], strict=True)):
            if mask:
                is_same &= block.header[:, number] & mask == word
        return np.where(is_same, shape, -1)

    def _proved(self, book: _Book, block: _Block, which: I64, rows: I64) -> Found:
        """Those of the frames, all of a shape by their header, whose identity block proves them."""
        table = self._table
        identity = block.gather(book.at.take(which) - BEFORE, _IDENTITY).view(np.uint64).reshape(-1, 3)
        good = identity[:, 0] & book.block_mask[:, 0].take(which) == book.block[:, 0].take(which)
        good &= identity[:, 1] & book.block_mask[:, 1].take(which) == book.block[:, 1].take(which)
        words = identity[:, 1].byteswap()
        session = book.session.take(which)
        seq = (words & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        good &= seq < table.count.take(session)
        good &= self._tags.expected(session, seq, words) == identity[:, 2].byteswap()
        if book.has_own_ports:
            good &= self._has_own_port(book, block, which, session, seq)
        if book.has_other_magic:
            at = book.other_magic_at.take(which)
            other = block.gather(np.maximum(at, 0), np.dtype("V4")).view(np.uint32)
            good &= (other != _MAGIC) | (at < 0)
        zeros = np.zeros(len(which), np.int64)
        found = Found(rows, which, session, seq, zeros, zeros, zeros, zeros - 1)
        if book.has_stamp:
            found, is_sound = _with_times(book, block, found)
            good &= is_sound
        if good.all():
            return found
        kept = np.flatnonzero(good)
        return Found(*(getattr(found, field.name).take(kept) for field in fields(Found)))

    def _has_own_port(self, book: _Book, block: _Block, which: I64, session: I64, seq: I64) -> Bools:
        at = book.port_at.take(which)
        ports = block.gather(np.maximum(at, 0), np.dtype("V2")).view(np.uint16).byteswap()
        is_own: Bools = ports == self._table.src_port(session, seq)
        return is_own | (at < 0)

    def columns(self, found: Found) -> tuple[dict[str, npt.NDArray[np.uint8]], I64, tuple[HopContext, ...]]:
        """Leg, kind, dscp and ttl of what was found, and its contexts as in Decoded."""
        book = self._book
        assert book is not None, "nothing was found without shapes"
        names = ("leg", "kind", "dscp", "ttl")
        numbers = book.context.take(found.shape)
        present = np.flatnonzero(np.bincount(numbers, minlength=len(book.contexts)))
        place = np.zeros(len(book.contexts), np.int64)
        place[present] = np.arange(len(present))
        contexts = tuple(book.contexts[number] for number in present.tolist())
        return {name: getattr(book, name).take(found.shape) for name in names}, place.take(numbers), contexts


def _are_inside(buf: U8, offsets: I64, lengths: I64, header_bytes: int) -> bool:
    """Whether all frames lie in the buffer, and it has room for what is read at once."""
    size = len(buf)
    if size < 2 * (TYPE_AT + 4 * MAX_TAGS + header_bytes) or not buf.flags.c_contiguous:
        return False
    if offsets.min() < 0 or lengths.min() < 0 or offsets.max() > size or lengths.max() > size:
        return False
    return bool((offsets + lengths).max() <= size)


def kernel_tags_of(vlan: I64) -> I64:
    """Shape.kernel_tag from `vlan` as of Decoder.decode."""
    return np.where(vlan >= 0, vlan & 0xFFF | 0x1000, 0)


def _block(book: _Book, buf: U8, offsets: I64, lengths: I64, vlan: I64 | None) -> _Block:
    kernel_tags: I64 | int = 0 if vlan is None else kernel_tags_of(vlan)
    stacks: U64 | int = 0
    positions = offsets + TYPE_AT
    if book.has_tags:
        stacks, tag_bytes = _stacks(_gather(buf, positions, np.dtype("V8")).view(np.uint64))
        positions += tag_bytes
    return _Block(buf, offsets, lengths, kernel_tags, stacks, _headers(buf, positions, book.header_bytes))


def _stacks(words: U64) -> tuple[U64, I64]:
    """Tags in band at the start of these octets, the others zero; and how many octets they are."""
    first, second = words & np.uint64(0xFFFF), words >> np.uint64(32) & np.uint64(0xFFFF)
    is_tagged = (first == _VLANS[0]) | (first == _VLANS[1])
    is_twice = is_tagged & ((second == _VLANS[0]) | (second == _VLANS[1]))
    once = np.where(is_tagged, words & np.uint64(0xFFFF_FFFF), np.uint64(0))
    return np.where(is_twice, words, once), (is_tagged.astype(np.int64) + is_twice) * 4


def _headers(buf: U8, positions: I64, width: int) -> U64:
    """`width` octets at each position as words; zeros beyond the buffer."""
    dtype = np.dtype(f"V{width}")
    rows = _gather(buf, positions, dtype)
    late = np.flatnonzero(positions > len(buf) - width)
    if len(late):
        tail = np.concatenate([buf[-width:], np.zeros(2 * width, np.uint8)])
        rows[late] = _gather(tail, positions[late] - (len(buf) - width), dtype)
    return rows.view(np.uint64).reshape(len(positions), width // 8)


def _shapes(book: _Book, block: _Block) -> I64:
    """The shape of each frame by its header, -1 where it has none that is known."""
    which = np.full(len(block.lengths), -1)
    hashes = _header_hash(block.header, block.lengths, block.kernel_tags, block.stacks)
    first = book.by_header.first(hashes)
    left = np.arange(len(which))
    for rank in range(book.by_header.depth):
        is_there, place = book.by_header.at(first.take(left) + rank, hashes.take(left))
        left, place = left[is_there], place[is_there]
        if not len(left):
            break
        at = book.places.take(place)
        words = _gather(block.buf, block.offsets.take(left) + at - BEFORE, _IDENTITY).view(np.uint64).reshape(-1, 3)
        which[left] = _shapes_of_session(book, block.take(left), _session_hash(hashes.take(left), at, words[:, 1]))
        left = left[which.take(left) < 0]
    return which


def _shapes_of_session(book: _Book, block: _Block, hashes: U64) -> I64:
    which = np.full(len(hashes), -1)
    first = book.by_session.first(hashes)
    left = np.arange(len(hashes))
    for rank in range(book.by_session.depth):
        is_there, shape = book.by_session.at(first.take(left) + rank, hashes.take(left))
        left, shape = left[is_there], shape[is_there]
        if not len(left):
            break
        is_same = _has_shape(book, block.take(left), shape)
        which[left[is_same]] = shape[is_same]
        left = left[~is_same]
    return which


def _has_shape(book: _Book, block: _Block, shape: I64) -> Bools:
    other = block.header & book.header_mask.take(shape, axis=0)
    other ^= book.header.take(shape, axis=0)
    is_same: Bools = np.bitwise_or.reduce(other, axis=1) == 0
    is_same &= block.lengths == book.length.take(shape)
    is_same &= block.kernel_tags == book.kernel_tag.take(shape)
    is_same &= block.stacks == book.stack.take(shape)
    return is_same


def _with_times(book: _Book, block: _Block, found: Found) -> tuple[Found, Bools]:
    """With what STAMP packets say (RFC 8762 §4.2.1, §4.3.1), and which have the right number and times as NTP has."""
    which = found.shape
    is_stamp = book.is_stamp.take(which)
    words = block.gather(book.payload.take(which), np.dtype("V40")).view(">u4").reshape(-1, 10)
    number, seconds, fraction, estimate = (words[:, i].astype(np.int64) for i in range(4))
    is_reply = is_stamp & (book.kind.take(which) == Kind.STAMP_REPLY)
    good = (number == found.seq) & (estimate & _PTP == 0) | ~is_stamp
    own = ntp_ns(seconds, fraction)
    if not is_reply.any():
        return replace(found, t1_ns=np.where(is_stamp, own, 0)), good
    received = ntp_ns(words[:, 4].astype(np.int64), words[:, 5].astype(np.int64))
    sender_seq = words[:, 6].astype(np.int64)
    sender = ntp_ns(words[:, 7].astype(np.int64), words[:, 8].astype(np.int64))
    is_sound = (sender_seq == found.seq) & ((estimate | words[:, 9]) & _PTP == 0)
    good = np.where(is_reply, is_sound, good)
    return (
        replace(
            found,
            t1_ns=np.where(is_reply, sender, np.where(is_stamp, own, 0)),
            t2_ns=np.where(is_reply, received, 0),
            t3_ns=np.where(is_reply, own, 0),
            reflector_seq=np.where(is_reply, number, -1),
        ),
        good,
    )
