"""Reads a relay's truth log: what really happened to each marked frame, to hold a measurement against.

The layout is written by netprobe.lab.relay_rows and explained in docs/lab.md.
"""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netprobe.errors import NoAnswerError
from netprobe.lab.relay_rows import FATE_DROPPED, FATE_DUPLICATE, FATE_FORWARDED, LEG_FORWARD

__all__ = ["FATE_DROPPED", "FATE_DUPLICATE", "FATE_FORWARDED", "TRUTH_DTYPE", "probes", "read", "wait_rows"]

TRUTH_DTYPE = np.dtype(
    [
        ("t_in_ns", "<i8"),
        ("t_out_ns", "<i8"),
        ("delay_ns", "<i8"),
        ("session", "<u4"),
        ("seq", "<u4"),
        ("isn", "<u4"),
        ("src_port", "<u2"),
        ("proto", "u1"),
        ("leg", "u1"),
        ("direction", "u1"),
        ("fate", "u1"),
        ("held", "u1"),
        ("faulted", "u1"),
    ]
)

_LOOK_S = 0.005


def read(path: Path | str) -> npt.NDArray[np.void]:
    """All rows that are in a log now.

    Args:
        path: as in the fault's `log`.

    Returns:
        Shape (n,), dtype TRUTH_DTYPE, in the order in which fates were sealed; a row that is not whole is left out.
    """
    raw = Path(path).read_bytes()
    return np.frombuffer(raw, TRUTH_DTYPE, count=len(raw) // TRUTH_DTYPE.itemsize)


def probes(rows: npt.NDArray[np.void], session: int | None = None) -> npt.NDArray[np.void]:
    """The rows of probes that the fault applied to, without answers and without what merely passed by.

    Args:
        rows: shape (n,), dtype TRUTH_DTYPE.
        session: only of this session.

    Returns:
        Shape (m,), dtype TRUTH_DTYPE.
    """
    wanted: npt.NDArray[np.bool_] = (rows["leg"] == LEG_FORWARD) & (rows["faulted"] == 1)
    if session is not None:
        wanted &= rows["session"] == session
    found: npt.NDArray[np.void] = rows[wanted]
    return found


def wait_rows(path: Path | str, count: int, *, timeout_s: float = 5.0) -> npt.NDArray[np.void]:
    """Wait until a log has at least `count` rows of probes that the fault applied to.

    Args:
        path: as in the fault's `log`.
        count: how many.
        timeout_s: how long to wait, seconds.

    Returns:
        Those rows, shape (m,), dtype TRUTH_DTYPE.

    Raises:
        NoAnswerError: they did not come in time.
    """
    deadline = time.monotonic() + timeout_s
    while len(found := probes(read(path))) < count:
        if time.monotonic() > deadline:
            raise NoAnswerError(str(path), f"has {len(found)} of {count} rows after {timeout_s:g} s")
        time.sleep(_LOOK_S)
    return found
