"""Tags that were kept are those that would be computed, and are not computed again."""

import numpy as np
from support.wire_frames import make_session

from netprobe.model.probes import Protocol
from netprobe.wire import tag_cache
from netprobe.wire.decode_sessions import SessionTable
from netprobe.wire.siphash import identity_words, tags
from netprobe.wire.tag_cache import MAX_RUNS, RUN, TagCache


def sessions(n):
    return [make_session(Protocol.RAW_UDP, session=i, key=bytes([i % 256] * 16), count=2**32) for i in range(n)]


def ask(cache, known, rows, seqs):
    """Ask, and check the answer against one key at a time."""
    rows, seqs = np.asarray(rows, np.int64), np.asarray(seqs, np.int64)
    words = identity_words(rows.astype(np.uint32), seqs.astype(np.uint32))
    found = cache.expected(rows, seqs, words)
    for row in set(rows.tolist()):
        assert (found[rows == row] == tags(known[row].key, words[rows == row])).all()


def test_runs_that_share_a_slot_take_turns():
    """Numbers far apart fall into one slot: the later run replaces the earlier, also within one block."""
    known = sessions(1)
    cache = TagCache(SessionTable(known))
    apart = cache._slots * RUN
    for turn in range(6):
        start = turn % 3 * apart
        ask(cache, known, [0] * 500, start + np.arange(500))
        ask(cache, known, [0] * 600, np.concatenate([np.arange(300), apart + np.arange(300)]))
    ask(cache, known, [0, 0], [2**32 - 1, 0])


def test_numbers_at_random_and_sessions_interleaved():
    known = sessions(50)
    cache = TagCache(SessionTable(known))
    rng = np.random.default_rng(2)
    for high in (10, 3000, 2**32):
        for n in (1, 7, 2000):
            ask(cache, known, rng.integers(0, 50, n), rng.integers(0, high, n))
            ask(cache, known, np.sort(rng.integers(0, 50, n)), np.sort(rng.integers(0, high, n)))


def test_more_sessions_than_runs_are_computed_one_by_one():
    known = sessions(MAX_RUNS + 1)
    ask(TagCache(SessionTable(known)), known, [0, MAX_RUNS, 3], [1, 2, 3])


def test_a_tag_that_was_asked_for_is_not_computed_again(monkeypatch):
    """Nor are those of the numbers that follow."""
    known = sessions(3)
    cache = TagCache(SessionTable(known))
    ask(cache, known, np.repeat([0, 1, 2], 200), np.tile(np.arange(200), 3))
    monkeypatch.setattr(tag_cache, "tags_with", None)
    ask(cache, known, np.repeat([2, 0, 1], 300), np.tile(np.arange(700, 1000), 3))


def test_a_forger_makes_nobody_compute_more_than_what_it_sent(monkeypatch):
    """Numbers all over the place: as many tags as there are frames."""
    known = sessions(1)
    cache = TagCache(SessionTable(known))
    computed = []
    monkeypatch.setattr(tag_cache, "tags_with", lambda k0, k1, words: computed.append(len(words)) or words)
    seqs = np.random.default_rng(3).integers(0, 2**32, 5000)
    cache.expected(np.zeros(5000, np.int64), seqs, seqs.astype(np.uint64))
    assert sum(computed) == 5000
