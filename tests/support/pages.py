"""The live page in a process of its own, a browser that opens it, and stores with as many paths as one likes."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

from support.results import segment

from netprobe.model.records import HopBatch
from netprobe.model.results import LegResult, SessionResult
from netprobe.store.duckdb_file import open_store
from netprobe.store.tables import StoredRun, StoredSession

BROWSER = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
TYPE_P = {"proto": "udp", "family": 4, "size_bytes": 110, "dscp": 3, "src_port": 61000, "dst_port": 862, "ttl": 64}


def session(src, dst, *, lost=0, name="mesh", points=("guest", "backend", "backend", "guest"), p50=30_000, **changes):
    """A result of 1,000 probes, of which some were lost in the middle of the path."""
    ends = (src, src, dst, dst)
    ids = [f"{end}.{kind}" for end, kind in zip(ends, points, strict=True)]
    segments = []
    for i, (a, b) in enumerate(pairwise(ids)):
        arrived = 1000 - (lost if i > 1 else 0)
        one = segment(p50, lost if i == 1 else 0, name=f"{a}..{b}", total=max(1, arrived))
        histogram = tuple((p50 - 8_000 + 1_000 * k, 60) for k in range(16))
        assert one.delay is not None
        delay = replace(one.delay, histogram=histogram)
        segments.append(replace(one, first=a, second=b, kind=f"{points[i]}-{points[i + 1]}", delay=delay))
    whole = replace(segment(3 * p50, lost, total=1000), id=f"{ids[0]}..{ids[-1]}", first=ids[0], second=ids[-1])
    leg = LegResult(
        planned=1000,
        unsent=0,
        delivered=1000 - lost,
        lost=lost,
        unobserved=0,
        pending=0,
        late=0,
        segments=tuple(segments),
        end_to_end=whole,
        last_seen=ids[1] if lost else ids[-1],
        first_missing=ids[2] if lost else None,
        missed={},
        is_complete=not lost,
    )
    given = {
        "name": name,
        "src": src,
        "dst": dst,
        "vantage": "guest",
        "type_p": TYPE_P,
        "seed": 1,
        "tmax_ms": 200.0,
        "schedule": "poisson",
        "rate_pps": 100,
        "pacing": None,
        "forward": leg,
        "returned": None,
        "forged": 0,
        "remarked_at": None,
        "reason": None,
        "overflowed": {},
        "counters": {"ring_dropped": 0},
        "notes": (),
    } | changes
    return SessionResult(**given)


def with_unseen_point(result, lost):
    """The same path with one more point in its middle where nobody looks: what is lost is lost across it."""
    first, middle, last = result.forward.segments
    unseen = {"delay": None, "pdv": None, "lost": 0}
    to, onward = (f"{middle.first}..fabric", f"fabric..{middle.second}")
    inner = (
        replace(middle, id=to, second="fabric", **unseen),
        replace(middle, id=onward, first="fabric", **unseen),
    )
    wide = replace(middle, lost=lost)
    leg = replace(result.forward, segments=(first, inner[0], wide, inner[1], last))
    return replace(result, forward=leg)


def save_run(path, run_id, started_ns, results, *, command="run", states=None, changes=()):
    """Results into a store, as `run` and `watch` save them."""
    document = {
        "run": run_id,
        "started": "2026-01-01T00:00:00+00:00",
        "stopped": None,
        "plan": "p",
        "seed": 1,
        "mesh": [],
        "sessions": [r.to_json() for r in results],
    }
    sessions = [StoredSession(i, r, *(states or {}).get(r.name, ("", None))) for i, r in enumerate(results)]
    with open_store(path) as store:
        store.save(StoredRun(run_id, started_ns, command, document, sessions, HopBatch.empty(), (), changes))


def save_document(path, run_id, started_ns, document, command="verify"):
    """A document without sessions into a store."""
    with open_store(path) as store:
        store.save(StoredRun(run_id, started_ns, command, document, (), HopBatch.empty(), ()))


@contextlib.contextmanager
def page_of(store, *words, environment=None):
    """`netprobe serve --web` on a port of its own; its address. Its end must be clean."""
    command = [
        sys.executable,
        "-m",
        "netprobe.cli.main",
        "serve",
        "--web",
        "127.0.0.1:0",
        "--store",
        str(store),
        *words,
    ]
    env = os.environ | (environment or {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stdout.readline()
        assert line.startswith("page on "), line + process.stderr.read()
        yield line.removeprefix("page on ").strip()
    finally:
        process.terminate()
        out, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (0, ""), out + error
