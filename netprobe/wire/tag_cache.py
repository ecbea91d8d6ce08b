"""Keyed tags of probes, kept in runs of consecutive numbers: a probe is seen at several points, its tag made once.

Also spares a small block most of its cost: SipHash in numpy is some two hundred calls, however few the words. Memory is
bounded; numbers that jump about, as a forger's do, are computed one by one. Asked by `decode_known`.
"""

import numpy as np

from netprobe.wire.decode_headers import I64, U64
from netprobe.wire.decode_sessions import SessionTable
from netprobe.wire.siphash import tags_with

_RUN_BITS = 10
RUN = 1 << _RUN_BITS  # consecutive numbers
MAX_RUNS = 4096  # of all sessions: 32 MiB
MAX_RUNS_A_SESSION = 128
_DENSE = 128  # numbers wanted of a run, so that it pays to make it even if nobody else asks
_FEW = 4  # runs that are made for a block in any case


class TagCache:
    """Expected tags by session and number. Not to be shared by threads.

    Args:
        table: the sessions.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        sessions = max(table.unknown, 1)
        self._slots = min(MAX_RUNS_A_SESSION, 1 << max(MAX_RUNS // sessions, 1).bit_length() - 1)
        self._can_keep = sessions * self._slots <= MAX_RUNS
        self._kept: I64 | None = None
        self._tags: U64 | None = None

    def expected(self, sessions: I64, seqs: I64, words: U64) -> U64:
        """The tags that prove these probes.

        Args:
            sessions: rows in the session table, shape (n,), none of them `unknown`.
            seqs: their numbers, 0..2^32-1.
            words: as they are hashed (siphash.identity_words).

        Returns:
            Shape (n,).
        """
        if not self._can_keep:
            return self._computed(sessions, words)
        if self._kept is None or self._tags is None:
            size = self._table.unknown * self._slots
            self._kept, self._tags = np.full(size, -1), np.zeros((size, RUN), np.uint64)
        runs = seqs >> _RUN_BITS
        slots = sessions * self._slots + (runs & self._slots - 1)
        missing = np.flatnonzero(self._kept.take(slots) != runs)
        if len(missing):
            self._make(sessions[missing], runs[missing])
        found = self._tags.reshape(-1).take((slots << _RUN_BITS) + (seqs & RUN - 1))
        # Not only of those that were missing: another may have had the slot that one of them took.
        if len(missing) and len(still := np.flatnonzero(self._kept.take(slots) != runs)):
            found[still] = self._computed(sessions[still], words[still])
        return found

    def _computed(self, sessions: I64, words: U64) -> U64:
        return tags_with(self._table.key0.take(sessions), self._table.key1.take(sessions), words)

    def _make(self, sessions: I64, runs: I64) -> None:
        """Make runs of which many numbers are wanted, or that are few."""
        # One after the other they are mostly the same: no need to sort them all.
        which = sessions << 32 | runs
        change = np.flatnonzero(which[1:] != which[:-1])
        if len(change) > len(runs) // 8 + _FEW:
            return
        first = np.concatenate([[0], change + 1])
        wanted, place = np.unique(which[first], return_inverse=True)
        if len(wanted) > _FEW:
            sizes = np.diff(np.concatenate([first, [len(runs)]]))
            wanted = wanted[np.bincount(place, sizes) >= _DENSE]
            if not len(wanted):
                return
        session, run = wanted >> 32, wanted & 0xFFFF_FFFF
        seqs = (run[:, None] << _RUN_BITS) + np.arange(RUN)
        words = self._table.number[session][:, None] << np.uint64(32) | seqs.astype(np.uint64)
        k0, k1 = self._table.key0[session], self._table.key1[session]
        made = tags_with(np.repeat(k0, RUN), np.repeat(k1, RUN), words.reshape(-1)).reshape(-1, RUN)
        slot = session * self._slots + (run & self._slots - 1)
        assert self._kept is not None and self._tags is not None  # noqa: PT018  made above
        self._tags[slot] = made  # two runs of one slot: the later one stays, in both
        self._kept[slot] = run
