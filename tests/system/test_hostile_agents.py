"""Agents with valid certificates that lie, flood and break the protocol, beside honest ones, with real processes.

Network: the lab pair; honest agents on hv1 and hv2, the collector in `central`. Two hostile programs (support.evil)
dial from hv2: `liar` may report the fabric, so it takes part in every run across hosts; `noise` may report nothing that
is. Who never answers or never ends, and who is let in, is in tests/unit/test_hostile_agents.py.
"""

import json
import sys
from pathlib import Path

import pytest
from support.spread import COLLECTOR, Spread, session

pytestmark = [
    pytest.mark.system,
    pytest.mark.alone(reason="an attack takes a processor, and honest runs must lose nothing meanwhile"),
]

TESTS = Path(__file__).parents[1]
PATHS = [("vm1", "vm2"), ("vm2", "vm1"), ("vm4", "vm3")]
RATE, SECONDS = 100, 3
ROUND_S = 60  # one attack of each kind; takes a quarter of it
MAX_RSS_KB = 500_000
MAX_LINES = 1_000


@pytest.fixture
def spread(pair_lab, tmp_path, lab_place):
    cloud = Spread(tmp_path, lab_place)
    try:
        yield cloud
    finally:
        cloud.close()


def start_evil(spread, kind, host):
    address, port = COLLECTOR
    path = f"PYTHONPATH={TESTS.parent}:{TESTS}"
    argv = [sys.executable, "-m", "support.evil", kind, f"{address}:{port}", spread.pki, kind, host]
    spread._start(kind, "hv2", ["env", path, "nice", "-n", "10", *argv])
    spread.wait_for(kind, "ready")


def counts_of(spread, kind):
    """What a hostile program has done, once it is told that it is enough."""
    spread.processes[kind].terminate()
    assert spread.processes[kind].wait(ROUND_S) == 0, spread.said(kind)
    return json.loads(spread.said(kind).split("ready\n")[1])


def figures(document):
    """Fates of each session, and the samples of each segment between points of hv1 and hv2."""
    found = {}
    for one in document["sessions"]:
        fates = [one[k] for k in ("planned", "unsent", "received", "lost", "unobserved", "pending", "late")]
        found[one["name"]] = [*fates, one["return"]["delivered"], one["return"]["lost"]]
        for segment in (*one["segments"], *one["return"]["segments"]):
            if "fabric" not in segment["id"] and segment["kind"] != "nic-nic":
                samples = segment["delay_ns"]["samples"] if segment["delay_ns"] else 0
                found[one["name"], segment["id"]] = (segment["sent"], segment["received"], segment["lost"], samples)
    return found


def peak_rss_kb(process):
    """Of the program that `ip netns exec` became."""
    (line,) = [s for s in Path(f"/proc/{process.pid}/status").read_text().splitlines() if s.startswith("VmHWM:")]
    return int(line.split()[1])


def test_hostile_agents_change_no_result_and_stop_no_collector(spread):
    """Lies, replays, gaps, floods, garbage, half frames, impostors, crowds: runs are what they are without them."""
    spread.issue("liar", "fabric/*")
    spread.issue("noise", "nowhere/*")
    spread.start_all()
    plan = "".join(session(*path, RATE, SECONDS) for path in PATHS)
    without = figures(spread.finish(spread.run(plan)))
    assert without["vm1-vm2"] == [RATE * SECONDS, 0, RATE * SECONDS, 0, 0, 0, 0, RATE * SECONDS, 0]

    start_evil(spread, "liar", "fabric")
    spread.wait_for("collector", "liar is on fabric")
    start_evil(spread, "noise", "elsewhere")
    for _ in range(2):
        document = spread.finish(spread.run(plan))
        assert figures(document) == without
        assert document["sessions"][0]["counters"]["refused_reports"] > 0
        assert not any(s["duplicated"] or s["reordered"] for s in document["sessions"][0]["segments"][:2])
    liar, noise = counts_of(spread, "liar"), counts_of(spread, "noise")
    assert figures(spread.finish(spread.run(plan))) == without

    assert liar["parts"] >= 2
    assert noise["impostures refused"] >= 4
    assert "impostures let in" not in noise
    assert noise["garbage closed"] == noise["garbage sent"] > 0
    assert noise["flood closed"] >= 1
    assert noise["crowd"] >= 200
    assert 3 < noise["half open s"] < 5
    said = spread.said("collector")
    for line in ("liar reported what it may not", "noise is gone", "noise does not say what it has"):
        assert line in said
    assert len(said.splitlines()) < MAX_LINES
    assert spread.processes["collector"].poll() is None
    assert peak_rss_kb(spread.processes["collector"]) < MAX_RSS_KB
    assert "hv1 is gone" not in said
    assert "hv2 is gone" not in said
