"""Straight lines that fit between two sets of points: the geometry under collect.clocks. Knows nothing of clocks.

Points above bound a line from above, points below from below. All lines that fit are a convex polygon in the plane of
(height, slope), and only the points on the two facing convex hulls matter. Sources: Moon, Skelly and Towsley,
"Estimation and removal of clock skew from network delay measurements", INFOCOM 1999 (the linear program); Zhang, Liu
and Xia, "Clock synchronization algorithms for network measurements", INFOCOM 2002 (the convex hull).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def lower_hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Indices of the points on the lower convex hull, from left to right.

    Andrew's monotone chain ("Another efficient algorithm for convex hulls in two dimensions", 1979). Exact for
    integers, which may be of any size.

    Args:
        x: ascending; where equal, the smallest `y` first.
        y: as many.
    """
    hull: list[int] = []
    for i, (right, height) in enumerate(zip(x, y, strict=True)):
        if hull and x[hull[-1]] == right:
            continue
        while len(hull) > 1:
            far, last = hull[-2], hull[-1]
            left, low = x[far], y[far]
            if (y[last] - low) * (right - left) < (height - low) * (x[last] - left):
                break
            hull.pop()
        hull.append(i)
    return hull


@dataclass(frozen=True, slots=True)
class Edge:
    """One side of the polygon: the extreme height at x = 0 for each of some slopes, shape (n,) each."""

    slope: Floats
    height: Floats


def _edge(x: Floats, y: Floats, steepest: tuple[float, float]) -> Edge:
    """The highest lines below the points of a lower hull, for the slopes where the polygon has a corner."""
    low, high = steepest
    slopes = np.diff(y) / np.diff(x)
    slope = np.concatenate([[low], slopes[(slopes > low) & (slopes < high)], [high]])
    return Edge(slope, (y - slope[:, None] * x).min(axis=1))


@dataclass(frozen=True, slots=True)
class Lines:
    """All lines that fit; made by `fit`.

    Attributes:
        top, bottom: the polygon's two sides.
    """

    top: Edge
    bottom: Edge

    @property
    def slopes(self) -> tuple[float, float]:
        """The smallest and the largest slope of any line that fits."""
        return float(self.top.slope[0]), float(self.top.slope[-1])

    def bounds(self, x: Floats) -> tuple[Floats, Floats]:
        """The lowest and the highest value that any line that fits has at each x: shape (n,) each."""
        low = (self.bottom.height + x[:, None] * self.bottom.slope).min(axis=1)
        high = (self.top.height + x[:, None] * self.top.slope).max(axis=1)
        return low, high


def _hull(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    on_it = lower_hull(x.tolist(), y.tolist())
    return x[on_it], y[on_it]


def fit(above: tuple[Floats, Floats], below: tuple[Floats, Floats], max_slope: float) -> Lines | None:
    """All lines that run under the points `above` and over the points `below`, no steeper than `max_slope`.

    By the elimination of Fourier and Motzkin: a slope b is possible where no point above, at x, contradicts a point
    below, at x': b (x - x') <= y - y'. Every bound of b comes from such a pair, both on their hulls.

    Args:
        above: x and y, shape (n,) each, n > 0, in any order.
        below: likewise.
        max_slope: positive.

    Returns:
        None where no line fits.
    """
    ux, uy = _hull(*above)
    lx, ly = _hull(below[0], -below[1])
    ly = -ly
    dx, dy = ux[:, None] - lx, uy[:, None] - ly
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = dy / dx
    high = min(max_slope, float(np.where(dx > 0, ratio, np.inf).min()))
    low = max(-max_slope, float(np.where(dx < 0, ratio, -np.inf).max()))
    if low > high or bool(((dx == 0) & (dy < 0)).any()):
        return None
    bottom = _edge(lx, -ly, (-high, -low))
    return Lines(_edge(ux, uy, (low, high)), Edge(-bottom.slope[::-1], -bottom.height[::-1]))
