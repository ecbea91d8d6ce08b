"""Streams: one session sent by a transmit ring and settled while it runs, over a kernel's bridge and over the lab.

Network of the truth tests: sender -> tap1 -> port1 -> br0 -> port2 -> tap2, in a namespace of its own. A filter at
port1 drops and copies by the probes' own numbers, so that it is known to the probe what must be reported.
"""

import subprocess
from pathlib import Path

import pytest
import trio
from support.truth_checks import probe, run

from bench.chain_bridge import NETNS, PATH, bridge
from bench.peers.chain import session, stops_of
from netprobe.host import iproute
from netprobe.host.signals import StopRequest
from netprobe.inject.templates import build_template
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.service.stream_keeping import StreamKeep
from netprobe.service.stream_sender import Sending
from netprobe.service.streaming import StreamOrder, stream
from netprobe.store.duckdb_file import open_store

pytestmark = [
    pytest.mark.system,
    pytest.mark.alone(reason="40,000 probes a second, of which none may be lost"),
]

COUNT, PPS = 60_000, 40_000
SEQ_AT = 20 + 8 + 8  # from the start of an IPv4 header: magic and session stand before the number
DROPPED, COPIED, OF = 5, 9, 128


@pytest.fixture
def path():
    with bridge():
        yield


def tc(*words):
    subprocess.run(["ip", "netns", "exec", NETNS, "tc", *words], check=True, capture_output=True)


def put_faults():
    """At port1, behind its ring: every 128th probe goes astray, and every 128th is sent out of port2 once more."""
    iproute.batch(["link add astray type veth peer name nowhere", "link set astray up"], netns=NETNS)
    tc("qdisc", "add", "dev", "port1", "clsact")
    for priority, number, action, device in ((1, DROPPED, "redirect", "astray"), (2, COPIED, "mirror", "port2")):
        match = ["match", "u32", hex(number), hex(OF - 1), "at", str(SEQ_AT)]
        where = ["filter", "add", "dev", "port1", "ingress", "protocol", "ip", "prio", str(priority)]
        tc(*where, "u32", *match, "action", "mirred", "egress", action, "dev", device)


def streamed(*, stop=None, on_window=lambda _window: None, **changes):
    order = {**PATH, "pps": PPS, "seconds": COUNT / PPS}
    probes = session(order)
    sending = {"pps": PPS, "burst_frames": 0, "gather_ns": 500_000} | changes.pop("sending", {})
    template = build_template(probes)
    what = Sending(probes, template, PATH["sender"]["netns"], PATH["sender"]["device"], **sending)
    terms = {"tmax_ns": 300_000_000} | changes
    return trio.run(stream, StreamOrder(what, stops_of(PATH["rings"]), **terms), stop or StopRequest(), on_window)


def backlog_drops():
    """Frames that the kernel itself has dropped until now: between two devices its queue is bounded."""
    rows = Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines()
    return sum(int(row.split()[1], 16) for row in rows)


def numbers(which):
    return len(range(which, COUNT, OF))


def test_a_clean_stream_delivers_all_and_keeps_no_residue(path):
    """All are accounted for; what is lost the kernel says it dropped itself."""
    before = backlog_drops()
    outcome = streamed()
    leg = outcome.result
    assert (leg.delivered + leg.lost + leg.unobserved, leg.unsent, outcome.residue) == (COUNT, 0, 0)
    assert leg.lost <= backlog_drops() - before
    assert leg.unobserved == 0 or outcome.tallies
    assert not any(s.duplicated or s.reordered for s in leg.segments)
    assert leg.missed == outcome.counters == {}


@pytest.mark.parametrize("pps", [PPS, 0], ids=["paced", "flat out"])
def test_what_a_filter_drops_and_copies_is_what_is_reported_there(path, pps):
    """The truth, as fast as the sender can: in the segment behind port1, and elsewhere what the kernel dropped."""
    put_faults()
    gone, windows, before = set(), [], backlog_drops()
    outcome = streamed(sending={"pps": pps}, on_window=windows.append, keeps_hops=True)
    dropped = backlog_drops() - before
    leg = outcome.result
    assert outcome.residue == 0
    for window in windows:
        seen = window.hops.seq[window.hops.point == 3]
        gone |= set(range(window.first, window.end)) - set(seen.tolist())
    by_id = {s.id: s for s in leg.segments}
    expected = set(range(DROPPED, COUNT, OF))
    assert expected <= gone
    assert leg.lost <= numbers(DROPPED) + dropped  # where rings overflowed, others are unobserved, never lost
    if not dropped and not leg.unobserved:
        assert gone == expected
        assert by_id["port1..port2"].lost == leg.lost == numbers(DROPPED)
        assert (leg.delivered, by_id["port1..port2"].duplicated) == (COUNT - numbers(DROPPED), numbers(COPIED))
    else:
        print(f"the kernel dropped {dropped} frames, {leg.unobserved} probes are unobserved")


def test_a_stream_that_is_stopped_tells_what_was_sent(path):
    """Whatever was sent by then is settled; the rest is unsent, and nothing is left over."""
    stop = StopRequest()
    outcome = streamed(stop=stop, on_window=lambda _window: stop.ask("enough"))
    leg = outcome.result
    assert leg.unsent > 0
    assert leg.delivered + leg.unsent == COUNT
    assert outcome.sent.sent == leg.delivered


def test_too_little_memory_sheds_and_says_so_and_loses_nothing(path):
    """Windows without room are unobserved: never lost."""
    outcome = streamed(sending={"pps": 0}, tmax_ns=2_000_000_000, max_live=32_768)
    leg = outcome.result
    assert (leg.lost, outcome.residue) == (0, 0)
    assert leg.unobserved > 0
    assert outcome.counters["shed"] > 0


def test_a_device_that_is_not_there_is_said_before_anything_is_sent(path):
    sender = PATH["sender"]
    try:
        PATH["sender"] = {**sender, "device": "nowhere"}
        with pytest.raises(Exception, match="nowhere"):
            streamed()
    finally:
        PATH["sender"] = sender


def test_a_run_that_is_too_long_for_one_order_is_streamed_and_stored_meanwhile(lab, tmp_path):
    """The result is a run's: ledger, segments, Type-P, and a note that says how; windows and records are stored."""
    keep = StreamKeep(tmp_path / "s.duckdb", "this-run", hops=True)
    long = probe(
        vantage=Vantage.BYPASS, protocol=Protocol.RAW_UDP, dst_port=862, size_bytes=1400, count=30_000, rate_pps=10_000
    )
    outcome = run(long, keep=keep)
    (result,) = outcome.results
    leg = result.forward
    assert leg.planned == 30_000 == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending
    assert leg.delivered > 15_000  # beside others the rings and the switch have little of the processors
    assert [s.id for s in leg.segments] == ["bypass.guest..bypass.backend", "bypass.backend..vm2.backend"]
    assert any("streamed" in note for note in result.notes)
    assert result.to_json()["sent"] == 30_000 - leg.unsent
    assert outcome.run_id == "this-run"
    with open_store(keep.path, read_only=True) as store:
        ledger = "sum(planned), sum(delivered), sum(lost), sum(unobserved)"
        (stored,) = store.connection.execute(f"SELECT {ledger} FROM windows WHERE run_id = 'this-run'").fetchall()
        (points,) = store.connection.execute("SELECT points FROM streams").fetchone()
        kept = store.connection.execute("SELECT count(*) FROM stream_hops WHERE point = 2").fetchone()
    assert stored == (leg.planned, leg.delivered, leg.lost, leg.unobserved)
    assert points == ["bypass.guest", "bypass.backend", "vm2.backend"]
    assert kept == (leg.delivered,)
    assert (result.counters["store_hops_shed"], result.counters["store_windows_shed"]) == (0, 0)
