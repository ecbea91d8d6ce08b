"""A block: reports of one part of a run (model.observations) as octets, and back. Bytes <-> model, no I/O.

Hop records, answers and times are packed columns, little-endian; the few other things are msgpack. A block is what an
agent numbers, spools and resends, and what the collector keeps; layout in docs/protocol.md. Decoding is total: any
octets give reports or a WireError. What a part may report is service.collection's to check.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from itertools import count
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from netprobe.errors import WireError
from netprobe.model.contexts import HopContext, Tunnel
from netprobe.model.load import Backoff
from netprobe.model.observations import (
    Blind,
    Contexts,
    Exchanges,
    Hops,
    PartDone,
    Report,
    SentReport,
    Sightings,
    Tallies,
    Tally,
    Unwatched,
    Watermark,
)
from netprobe.model.records import HOP_DTYPE, HopBatch
from netprobe.model.results import Pacing
from netprobe.wire.report import printable

MAX_BLOCK_BYTES = 4 << 20
MAX_TEXT = 300
"""Characters of a reason that are kept: they stand in each result that it is about."""

MAX_REPORTS = 20_000
"""In one block. An honest agent's blocks have less: each report is counted with 64 octets or more (`size_of`)."""

MAX_HEADER_BYTES = 1 << 20
MAX_TALLIES = 1_000
"""Points in one report; more are several reports. Together they bound what decoding one report may take."""

MAX_COUNT = 1 << 53
"""What was counted is below it: such a number fits into JSON and any database, and so does a sum of some."""

_WHAT = "report block"
_HEAD = struct.Struct("<BII")  # kind, octets of the header, octets of the body

SIGHTING_DTYPE = np.dtype(
    [
        ("point", "<u2"),
        ("session", "<u4"),
        ("seq", "<u4"),
        ("t2_ns", "<i8"),
        ("t3_ns", "<i8"),
        ("reflector_seq", "<i8"),
        ("seen_ns", "<i8"),
    ]
)
SEND_DTYPE = np.dtype([("times_ns", "<i8"), ("stamps_ns", "<i8")])
EXCHANGE_DTYPE = np.dtype([("t1_ns", "<i8"), ("t2_ns", "<i8"), ("t3_ns", "<i8"), ("t4_ns", "<i8")])


class _Context(msgspec.Struct, array_like=True, frozen=True):
    src: str
    dst: str
    vlans: list[int]
    tunnel: str
    vni: int
    outer_src: str
    outer_dst: str


class _Contexts(msgspec.Struct, array_like=True, frozen=True):
    point: int
    first: int
    contexts: Annotated[list[_Context], Meta(max_length=4_096)]


class _Tallies(msgspec.Struct, array_like=True, frozen=True):
    by_point: Annotated[dict[int, Annotated[dict[str, int], Meta(max_length=32)]], Meta(max_length=MAX_TALLIES)]
    remarked: Annotated[dict[int, dict[int, int]], Meta(max_length=MAX_TALLIES)]


class _Blind(msgspec.Struct, array_like=True, frozen=True):
    point: int
    start_ns: int
    end_ns: int
    why: str


class _Unwatched(msgspec.Struct, array_like=True, frozen=True):
    point: int
    why: str
    since_ns: int


class _Sent(msgspec.Struct, array_like=True, frozen=True):
    session: int
    first: int
    pacing: tuple[int, int, int] | None
    doubtful: int
    failure: str
    is_last: bool
    held: int = 0  # agents of before the governor do not say it


class _Backoff(msgspec.Struct, array_like=True, frozen=True):
    at_ns: int
    share: float
    why: str


class _Watermark(msgspec.Struct, array_like=True, frozen=True):
    until_ns: int
    steps: int


class _Done(msgspec.Struct, array_like=True, frozen=True):
    counters: Annotated[dict[str, int], Meta(max_length=100)]
    why: str


_ENCODE = msgspec.msgpack.Encoder()
_TALLY = tuple(name for name in Tally.__slots__ if name != "remarked")


def encode_reports(reports: Iterable[Report]) -> bytes:
    """The octets of a block; the caller keeps it below MAX_BLOCK_BYTES (`size_of`)."""
    return b"".join(_encode(piece) for report in reports for piece in _pieces(report))


def _pieces(report: Report) -> Iterable[Report]:
    """A report as several, where one may not hold it."""
    if not isinstance(report, Tallies) or len(report.by_point) <= MAX_TALLIES:
        return (report,)
    rows = list(report.by_point.items())
    return (Tallies(dict(rows[i : i + MAX_TALLIES])) for i in range(0, len(rows), MAX_TALLIES))


def size_of(report: Report) -> int:
    """Octets that a report takes in a block, roughly."""
    if isinstance(report, Hops):
        return len(report.hops) * HOP_DTYPE.itemsize + 64
    if isinstance(report, Sightings):
        return len(report.seq) * SIGHTING_DTYPE.itemsize + 64
    if isinstance(report, SentReport):
        return len(report.times_ns) * SEND_DTYPE.itemsize + 256
    return 256


def _encode(report: Report) -> bytes:
    kind = _KINDS.index(type(report))
    header, body = _ENCODERS[kind](report)
    text = _ENCODE.encode(header)
    return b"".join((_HEAD.pack(kind, len(text), len(body)), text, body))


def _columns(report: object, dtype: np.dtype[np.void]) -> bytes:
    names = dtype.names or ()
    rows = np.empty(len(getattr(report, names[0])), dtype)
    for name in names:
        rows[name] = getattr(report, name)
    return rows.tobytes()


def _context(context: HopContext) -> _Context:
    outer = ["" if a is None else str(a) for a in (context.outer_src, context.outer_dst)]
    src, dst = str(context.src), str(context.dst)
    return _Context(src, dst, list(context.vlans), context.tunnel.value, context.vni, *outer)


def _tallies(report: Tallies) -> _Tallies:
    counts = {i: {name: int(getattr(t, name)) for name in _TALLY} for i, t in report.by_point.items()}
    return _Tallies(counts, {i: dict(t.remarked) for i, t in report.by_point.items()})


def _sent(report: SentReport) -> _Sent:
    p = report.pacing
    pacing = None if p is None else (p.p50_ns, p.p99_ns, p.max_ns)
    return _Sent(report.session, report.first, pacing, report.doubtful, report.failure, report.is_last, report.held)


_ENCODERS: tuple[Callable[[Any], tuple[object, bytes]], ...] = (
    lambda r: (None, np.ascontiguousarray(r.hops.rows).tobytes()),
    lambda r: (None, _columns(r, SIGHTING_DTYPE)),
    lambda r: (_Contexts(r.point, r.first, [_context(c) for c in r.contexts]), b""),
    lambda r: (_tallies(r), b""),
    lambda r: (_Blind(r.point, r.start_ns, r.end_ns, r.why), b""),
    lambda r: (_Unwatched(r.point, r.why, r.since_ns), b""),
    lambda r: (_sent(r), _columns(r, SEND_DTYPE)),
    lambda r: (r.peer, _columns(r, EXCHANGE_DTYPE)),
    lambda r: (_Watermark(r.until_ns, r.steps), b""),
    lambda r: (_Done(r.counters, r.why), b""),
    lambda r: (_Backoff(r.at_ns, r.share, r.why), b""),
)


def decode_reports_untrusted(block: bytes) -> list[Report]:
    """The reports of a block.

    Raises:
        WireError: it is none.
    """
    return list(each_report_untrusted(block))


def each_report_untrusted(block: bytes) -> Iterator[Report]:
    """The reports of a block, one at a time; each takes some ten milliseconds at most.

    Raises:
        WireError: it is none. What came before counts for nothing.
    """
    at = 0
    for number in count(1):
        if at == len(block):
            return
        if len(block) - at < _HEAD.size:
            raise WireError(_WHAT, f"{len(block) - at} octets are left over")
        kind, header_bytes, body_bytes = _HEAD.unpack_from(block, at)
        at += _HEAD.size
        if kind >= len(_KINDS) or header_bytes > MAX_HEADER_BYTES or header_bytes + body_bytes > len(block) - at:
            raise WireError(_WHAT, f"a report of kind {kind} with {header_bytes} and {body_bytes} octets does not fit")
        if number > MAX_REPORTS:
            raise WireError(_WHAT, f"it has more than {MAX_REPORTS} reports")
        header, body = block[at : at + header_bytes], block[at + header_bytes : at + header_bytes + body_bytes]
        at += header_bytes + body_bytes
        try:
            report = _DECODERS[kind](header, body)
        except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, RecursionError) as error:
            raise WireError(_WHAT, f"a report of kind {kind} is damaged: {error}") from error
        yield report


def _rows(body: bytes, dtype: np.dtype[np.void]) -> dict[str, Any]:
    rows = np.frombuffer(body, dtype)
    return {name: np.ascontiguousarray(rows[name]) for name in dtype.names or ()}


def _number(value: int, most: int = 2**63 - 1, least: int = 0) -> int:
    if not least <= value <= most:
        raise ValueError(f"{value} is not from {least} to {most}")
    return value


def _count(value: int) -> int:
    return _number(value, MAX_COUNT)


def _words(text: str) -> str:
    """A reason, which will be shown to people."""
    return printable(text[:MAX_TEXT])


def _decode_contexts(header: bytes, _body: bytes) -> Contexts:
    got = msgspec.msgpack.decode(header, type=_Contexts)
    return Contexts(_number(got.point, 0xFFFF), _number(got.first), tuple(_decode_context(c) for c in got.contexts))


def _decode_context(got: _Context) -> HopContext:
    outer = [ip_address(a) if a else None for a in (got.outer_src, got.outer_dst)]
    vlans = tuple(_number(v, 4095) for v in got.vlans[:4])
    vni = _number(got.vni, 2**24 - 1)
    return HopContext(ip_address(got.src), ip_address(got.dst), vlans, Tunnel(got.tunnel), vni, *outer)


def _decode_tallies(header: bytes, _body: bytes) -> Tallies:
    got = msgspec.msgpack.decode(header, type=_Tallies)
    found = {}
    for point, counts in got.by_point.items():
        tally = Tally(remarked={_number(s): _count(n) for s, n in got.remarked.get(point, {}).items()})
        for name in _TALLY:
            setattr(tally, name, _count(counts.get(name, 0)))
        found[_number(point, 0xFFFF)] = tally
    return Tallies(found)


def _decode_blind(header: bytes, _body: bytes) -> Blind:
    got = msgspec.msgpack.decode(header, type=_Blind)
    return Blind(_number(got.point, 0xFFFF), _number(got.start_ns), _number(got.end_ns), _words(got.why))


def _decode_unwatched(header: bytes, _body: bytes) -> Unwatched:
    got = msgspec.msgpack.decode(header, type=_Unwatched)
    return Unwatched(_number(got.point, 0xFFFF), _words(got.why), _number(got.since_ns))


def _decode_sent(header: bytes, body: bytes) -> SentReport:
    got = msgspec.msgpack.decode(header, type=_Sent)
    pacing = None if got.pacing is None else Pacing(*(_count(n) for n in got.pacing))
    return SentReport(
        session=_number(got.session, 2**32 - 1),
        first=_number(got.first, 2**32 - 1),
        **_rows(body, SEND_DTYPE),
        pacing=pacing,
        doubtful=_count(got.doubtful),
        failure=_words(got.failure),
        is_last=got.is_last,
        held=_count(got.held),
    )


def _decode_watermark(header: bytes, _body: bytes) -> Watermark:
    got = msgspec.msgpack.decode(header, type=_Watermark)
    return Watermark(_number(got.until_ns), _count(got.steps))


def _decode_done(header: bytes, _body: bytes) -> PartDone:
    got = msgspec.msgpack.decode(header, type=_Done)
    return PartDone({name[:100]: _count(n) for name, n in got.counters.items()}, _words(got.why))


def _decode_backoff(header: bytes, _body: bytes) -> Backoff:
    got = msgspec.msgpack.decode(header, type=_Backoff)
    if not 0 <= got.share <= 1:
        raise ValueError(f"{got.share} is no share")
    return Backoff(_number(got.at_ns), got.share, _words(got.why))


_DECODERS: tuple[Callable[[bytes, bytes], Report], ...] = (
    lambda _header, body: Hops(HopBatch(np.frombuffer(body, HOP_DTYPE))),
    lambda _header, body: Sightings(**_rows(body, SIGHTING_DTYPE)),
    _decode_contexts,
    _decode_tallies,
    _decode_blind,
    _decode_unwatched,
    _decode_sent,
    lambda header, body: Exchanges(msgspec.msgpack.decode(header, type=str)[:MAX_TEXT], **_rows(body, EXCHANGE_DTYPE)),
    _decode_watermark,
    _decode_done,
    _decode_backoff,
)
_KINDS: tuple[type, ...] = (
    Hops,
    Sightings,
    Contexts,
    Tallies,
    Blind,
    Unwatched,
    SentReport,
    Exchanges,
    Watermark,
    PartDone,
    Backoff,
)
"""A report's kind on the wire is its place in here, in the encoders and in the decoders."""
