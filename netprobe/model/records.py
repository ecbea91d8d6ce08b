"""Hop records: "probe (session, seq, leg) was seen at point p, in direction d, at time t".

One packed dtype at the boundary, columns inside the maths, a frozen dataclass for one row in logs and tests. Field
access goes through `HopBatch`, so that a misspelt name is a type error.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netprobe.errors import UsageError

HOP_DTYPE = np.dtype(
    [
        ("t_ns", "<i8"),  # CLOCK_REALTIME of the point's host, ns; NO_TIME where only presence is known
        ("session", "<u4"),
        ("seq", "<u4"),
        ("point", "<u2"),  # index into the run's list of points
        ("direction", "u1"),  # model.points.Direction
        ("leg", "u1"),  # model.points.Leg
        ("context", "<u2"),  # index into the point's list of model.contexts.HopContext; NO_CONTEXT where not kept
    ]
)
assert HOP_DTYPE.itemsize == 22

# The same octets with seq, point, direction and leg as one number, which is read at once.
_PASS_DTYPE = np.dtype([("t_ns", "<i8"), ("session", "<u4"), ("passing", "<u8"), ("context", "<u2")])
assert _PASS_DTYPE.itemsize == HOP_DTYPE.itemsize

NO_CONTEXT = 0xFFFF
"""What was around the probe is not known: an answer told of it, or the point has seen too many different contexts."""

NO_TIME = -1
"""t_ns of a record that proves presence but carries no time (an answer came back)."""


@dataclass(frozen=True, slots=True)
class HopRecord:
    """One row of a HopBatch, with Python's own types."""

    t_ns: int
    session: int
    seq: int
    point: int
    direction: int
    leg: int
    context: int = NO_CONTEXT


class HopBatch:
    """Hop records as columns.

    Args:
        rows: shape (n,), dtype HOP_DTYPE, C-contiguous, in arrival order per point.

    Raises:
        UsageError: the array has another dtype, rank or layout.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        if rows.dtype != HOP_DTYPE or rows.ndim != 1 or not rows.flags.c_contiguous:
            raise UsageError("HopBatch", f"got {rows.dtype} with shape {rows.shape}", allowed=f"{HOP_DTYPE}, 1-D")
        self.rows = rows

    @classmethod
    def empty(cls) -> "HopBatch":
        """A batch with no record."""
        return cls(np.empty(0, HOP_DTYPE))

    @classmethod
    def of(cls, records: Iterable[HopRecord]) -> "HopBatch":
        """A batch of single records; for tests and for the few."""
        rows = [(r.t_ns, r.session, r.seq, r.point, r.direction, r.leg, r.context) for r in records]
        return cls(np.array(rows, HOP_DTYPE))

    @classmethod
    def from_columns(  # one argument per column is the point of it
        cls,
        *,
        t_ns: npt.NDArray[np.int64],
        session: npt.NDArray[np.uint32],
        seq: npt.NDArray[np.uint32],
        point: int,
        direction: npt.NDArray[np.uint8] | int,
        leg: npt.NDArray[np.uint8] | int,
        context: npt.NDArray[np.uint16] | int = NO_CONTEXT,
    ) -> "HopBatch":
        """A batch of one point from equally long columns, shape (n,) each."""
        rows = np.empty(len(t_ns), HOP_DTYPE)
        rows["t_ns"] = t_ns
        rows["session"] = session
        rows["seq"] = seq
        rows["point"] = point
        rows["direction"] = direction
        rows["leg"] = leg
        rows["context"] = context
        return cls(rows)

    @classmethod
    def concat(cls, batches: Iterable["HopBatch"]) -> "HopBatch":
        """All records of several batches, in the order given."""
        arrays = [b.rows for b in batches]
        return cls(np.concatenate(arrays)) if arrays else cls.empty()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def t_ns(self) -> npt.NDArray[np.int64]:
        """Times, ns; NO_TIME where unknown."""
        return np.ascontiguousarray(self.rows["t_ns"])

    @property
    def session(self) -> npt.NDArray[np.uint32]:
        """Session numbers."""
        return np.ascontiguousarray(self.rows["session"])

    @property
    def seq(self) -> npt.NDArray[np.uint32]:
        """Probe numbers within the session, dense from 0."""
        return np.ascontiguousarray(self.rows["seq"])

    @property
    def point(self) -> npt.NDArray[np.uint16]:
        """Indices into the run's list of points."""
        return np.ascontiguousarray(self.rows["point"])

    @property
    def direction(self) -> npt.NDArray[np.uint8]:
        """Directions (model.points.Direction)."""
        return np.ascontiguousarray(self.rows["direction"])

    @property
    def leg(self) -> npt.NDArray[np.uint8]:
        """Legs (model.points.Leg)."""
        return np.ascontiguousarray(self.rows["leg"])

    @property
    def way_and_seq(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """`leg << 24 | direction << 16 | point`, where on which way, and seq; read at once, each with gaps."""
        both = np.ascontiguousarray(self.rows.view(_PASS_DTYPE)["passing"]).view(np.uint32)
        return both[1::2], both[::2]

    @property
    def context(self) -> npt.NDArray[np.uint16]:
        """Indices into the point's list of contexts, or NO_CONTEXT."""
        return np.ascontiguousarray(self.rows["context"])

    def where(self, mask: npt.NDArray[np.bool_]) -> "HopBatch":
        """The records for which `mask` (shape (n,), bool) holds."""
        return HopBatch(np.ascontiguousarray(self.rows[mask]))

    def row(self, i: int) -> HopRecord:
        """Row `i` as a value."""
        return HopRecord(*self.rows[i].item())
