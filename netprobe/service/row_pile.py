"""Rows that come in pieces of any size, kept in order. Pure.

Whoever reports them decides how small the pieces are, and an array of one row takes ten times its octets: small pieces
are put together on the way, so that memory follows the rows alone. Used by service.collection.
"""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]


class RowPile:
    """Rows of one structured dtype.

    Args:
        dtype: of the rows.
    """

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._pieces: list[Rows] = []
        self._dtype = dtype
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Rows) -> None:
        """More rows, shape (n,); they are not copied while they are a large piece."""
        if not len(rows):
            return
        self._pieces.append(rows)
        self._count += len(rows)
        # Each piece is larger than the one behind it, so there are few, and each row is copied a few times at most.
        while len(self._pieces) > 1 and len(self._pieces[-2]) <= len(self._pieces[-1]):
            self._pieces[-2:] = [np.concatenate(self._pieces[-2:])]

    def rows(self) -> Rows:
        """All of them, in the order in which they came."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate(self._pieces) if self._pieces else np.empty(0, self._dtype)]
        return self._pieces[0]
