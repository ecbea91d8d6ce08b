"""Sessions of one sender as few orders: what goes out of the same NIC with frames of the same shape is sent as one.

A guest's agent carries out few orders at a time, each with a thread that keeps time; sixteen flows or a mesh's paths
from one guest are one stream of frames in the order in which they are due. No I/O; service.injecting sends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.service.prepare import DUE_BYTES, MAX_ORDER_BYTES, Prepared

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SendOrder:
    """Sessions that are sent together.

    Attributes:
        members: of one sender, and of one shape of frame.
        frames: shape (n, size_bytes), uint8; of all of them, in the order in which they are due.
        due_ns: shape (n,), int64; not decreasing.
        rows: for each member, shape (count,), int64: where its probes stand, in the order of their numbers.
    """

    members: tuple[Prepared, ...]
    frames: npt.NDArray[np.uint8]
    due_ns: I64
    rows: tuple[I64, ...]

    @property
    def t1_offset(self) -> int | None:
        """As in wire.frames.FrameBlock."""
        return self.members[0].block.t1_offset

    @property
    def checksum_offset(self) -> int | None:
        """As in wire.frames.FrameBlock."""
        return self.members[0].block.checksum_offset

    def shares(self, values: I64) -> tuple[I64, ...]:
        """What belongs to each member, of one value a frame."""
        return tuple(values[rows] for rows in self.rows)


def orders_of(prepared: Iterable[Prepared]) -> list[SendOrder]:
    """Sessions as orders, as few as may be: what is sent by packet-out is an order of its own each.

    Args:
        prepared: sessions; each is in one order. An order holds at most what one message does.
    """
    groups: dict[tuple[object, ...], list[list[Prepared]]] = {}
    for one in prepared:
        groups.setdefault(_shape(one), [[]])
        parts = groups[_shape(one)]
        if parts[-1] and _bytes([*parts[-1], one]) > MAX_ORDER_BYTES:
            parts.append([])
        parts[-1].append(one)
    return [_merged(part) for parts in groups.values() for part in parts]


def _shape(one: Prepared) -> tuple[object, ...]:
    block = one.block
    if not one.is_sent_by_agent:
        return (one.probe.session,)
    return (one.sender.name, block.frames.shape[1], block.t1_offset, block.checksum_offset)


def _bytes(members: Sequence[Prepared]) -> int:
    return sum(one.block.frames.nbytes + len(one.due_ns) * DUE_BYTES for one in members)


def _merged(members: Sequence[Prepared]) -> SendOrder:
    counts = [len(one.due_ns) for one in members]
    if len(members) == 1:
        one = members[0]
        return SendOrder((one,), one.block.frames, one.due_ns, (np.arange(counts[0]),))
    due_ns = np.concatenate([one.due_ns for one in members])
    order = np.argsort(due_ns, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    starts = np.cumsum([0, *counts])
    return SendOrder(
        tuple(members),
        np.ascontiguousarray(np.concatenate([one.block.frames for one in members])[order]),
        due_ns[order],
        tuple(place[start : start + count] for start, count in zip(starts.tolist(), counts, strict=False)),
    )
