"""The lab `dpdk`: guests behind vhost-user ports, seen at their vrings by uprobes or by a mirror; and bad days.

Network: vm1 and vm2, virtual machines without KVM, each behind a vhost-user port of hv1's Open vSwitch with DPDK; the
bypass NIC is an af_packet port. What the switch says it enqueued or dropped is the truth that uprobes are held against.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from support.command import start, traced
from support.guest_truth import check_interval_of_a_clock_that_is_off, machine_pid
from support.spread import session
from support.spread_vm import SpreadVm
from support.truth_checks import MS, US, check_fault, first_arrivals, log_of, probe
from support.waiting import until

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host import process
from netprobe.host.libbpf import BpfObject
from netprobe.host.ovs import PrivateSwitch
from netprobe.host.ovs_dpdk import free_huge_mib
from netprobe.host.vhost_devices import device_sockets, find_library
from netprobe.lab import config, control, machines, state
from netprobe.lab.build import port_spec
from netprobe.lab.flow_table import COOKIE_MASK, COOKIE_PREFIX
from netprobe.lab.shapes import BRIDGE
from netprobe.lab.state import Places
from netprobe.lab.topology import endpoints
from netprobe.model.points import Direction, Leg, Vantage
from netprobe.plan.plans import Protocol, RunPlan
from netprobe.service import journal
from netprobe.service.discovery import read_topology
from netprobe.service.doctor import examine
from netprobe.service.journal import clean, stale_journals
from netprobe.service.run import run_plan
from netprobe.service.vrings import VringWish

pytestmark = [pytest.mark.system, pytest.mark.alone(reason="delays are held against a log to some microseconds")]

COUNT, RATE = 100, 200
AGENTS = Path(__file__).parents[2] / "agents"
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
MIRROR = VringWish("mirror", is_change_allowed=True)
MIRROR_BIAS_NS = 100 * US
"""What docs/backends.md states: how far a mirror's delay between two vrings may be from the uprobes', at the median."""


@pytest.fixture
def lab(lab_place):
    """Both machines, as they were made."""
    if control.status().state.get("name", "dpdk") != "dpdk":
        control.down()
    status = control.up("dpdk")
    return control.status() if control.fault_clear().faults else status


def run(*sessions, vrings=None, tmax_ns=1000 * MS, progress=lambda _: None):
    plan = RunPlan("dpdk", sessions, seed=7, tmax_ns=tmax_ns)
    wishes = {} if vrings is None else {"vrings": vrings}
    return trio.run(partial(run_plan, plan, read_topology(), progress, **wishes))


def while_sending(act, after_s):
    """A run's `progress` that does something once, so long after probes are first sent; and its timer, in a list."""
    timers = []

    def progress(text):
        if text.startswith("sending") and not timers:
            timers.append(threading.Timer(after_s, act))
            timers[0].start()

    return progress, timers


def few(**changes):
    return probe(**({"count": COUNT, "rate_pps": RATE} | changes))


def switch():
    return PrivateSwitch("hv1", Places.from_environment().switch("hv1"))


def transmitted(port):
    """(packets that the switch put into a port's ring, packets that it dropped before), as it counts them now."""
    text = switch().appctl("dpctl/show", "-s").partition(f": {port} ")[2]
    if not text:
        return 0, 0  # not yet
    packets, dropped = re.search(r"TX packets:(\d+) errors:\S+ dropped:(\d+)", text).groups()
    return int(packets), int(dropped)


def lost_by_segment(outcome):
    return {s.id: s.lost for s in outcome.results[0].forward.segments if s.lost}


def mirrors():
    return switch().vsctl("--bare", "--columns=name", "list", "Mirror").split()


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@pytest.mark.parametrize("vantage", Vantage)
def test_every_vantage_sees_guest_vring_and_vswitch(lab, vantage):
    """All probes and answers are delivered, every segment is there, and stamps say who took the time."""
    found = traced("--vantage", vantage.value, "--count", "50")
    first = {
        Vantage.GUEST: ["vm1.guest..vm1.backend", "vm1.backend..vm2.backend"],
        Vantage.BYPASS: ["bypass.guest..bypass.backend", "bypass.backend..vm2.backend"],
        Vantage.VSWITCH: ["hv1.vswitch..vm2.backend"],
    }[vantage]
    segments = found["segments"]
    assert [s["id"] for s in segments] == [*first, "vm2.backend..vm2.guest"]
    assert (found["received"], found["return"]["delivered"]) == (50, 50)
    across = {Vantage.GUEST: "uprobe", Vantage.BYPASS: "kernel-rx/uprobe", Vantage.VSWITCH: "sender/uprobe"}
    assert segments[-2]["stamp"] == across[vantage]
    assert segments[-1]["stamp"] == "uprobe/packet"
    assert segments[-2]["clock_error_ns"] is None, "both ends are the host's"
    assert not any(found["overflowed"].values())
    # A uprobe's stamp that is off by more than the guests' clocks' error makes a delay negative before the ring, or the
    # target's own times impossible behind it, and those are not used then.
    for each in (segments[0], segments[-1]):
        assert each["delay_ns"] or each["delay_bounds_ns"], each
        assert (each["clock_problem"], each["negative"]) == (None, 0), each


def test_with_a_guests_clock_1_s_off_and_100_ppm_fast_the_interval_up_to_the_vring_contains_the_truth(lab):
    """How far the clock is off is read from the machine's memory; the delay meets that of the clock as it was."""
    (before,) = run(few()).results
    (meanwhile,) = check_interval_of_a_clock_that_is_off("vm1", lambda: run(few())).results
    bounds = []
    for result in (before, meanwhile):
        first = result.forward.segments[0]
        assert (first.id, first.stamp) == ("vm1.guest..vm1.backend", "sender/uprobe")
        assert (first.clock_problem, first.negative, first.received) == ("", 0, COUNT)
        low, high = first.delay_bounds.min
        bounds.append((low or 0, high))
    assert max(low for low, _ in bounds) <= min(high for _, high in bounds), bounds
    assert max(high for _, high in bounds) < 20 * MS, bounds


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": Protocol.ICMP, "size_bytes": 1400},
        {"protocol": Protocol.ICMP, "family": 6},
        {"protocol": Protocol.TCP, "dst_port": 80},
        {"protocol": Protocol.RAW_UDP, "dst_port": 5000, "family": 6, "size_bytes": 1200},
    ],
    ids=["icmp", "icmpv6", "tcp", "raw-udp"],
)
def test_each_type_p_is_known_at_the_vring(lab, changes):
    """Also frames that are longer than what the BPF program hands over of them."""
    (result,) = run(few(vantage=Vantage.BYPASS, count=20, **changes)).results
    segment = next(s for s in result.forward.segments if s.second == "vm2.backend")
    assert (segment.sent, segment.lost, segment.stamp) == (20, 0, "kernel-rx/uprobe")


def test_what_a_relay_does_before_the_vswitch_is_reported_there(lab):
    """Lost and duplicated probes are those of the relay's log, the delay agrees with it, nobody else is blamed."""
    vantage = {"vantage": Vantage.BYPASS}
    run(few(count=10, **vantage))  # ARP, and the datapath's caches
    fault = {"loss": 0.05, "duplicate": 0.05, "delay_ns": 5 * MS}
    put = control.fault_set("bypass.backend..vm2.backend", seed=11, expose=True, **fault)
    try:
        outcome = run(few(count=200, **vantage))
        rows = log_of(put, outcome, 200)
    finally:
        control.fault_clear()
    check_fault(outcome, rows, "bypass.backend..bypass.relay", fault, median_ns=50 * US, p99_ns=5 * MS)


def test_no_relay_stands_where_there_is_no_device(lab):
    with pytest.raises(UsageError, match="is a vhost-user port"):
        control.fault_set("vm1.backend..vm2.backend", loss=0.5)


def test_what_a_policer_drops_before_the_vring_is_reported_there_and_nowhere_else(lab):
    """As many as the switch itself says; between the vswitch and the vring nobody else could tell."""
    _, before = transmitted("vhuvm2")
    switch().vsctl(
        *("set", "port", "vhuvm2", "qos=@q", "--", "--id=@q", "create", "qos", "type=egress-policer"),
        *("other-config:cir=5000", "other-config:cbs=1000"),
    )
    try:
        outcome = run(few(vantage=Vantage.GUEST))
        dropped = transmitted("vhuvm2")[1] - before
    finally:
        switch().vsctl("--", "destroy", "QoS", "vhuvm2", "--", "clear", "Port", "vhuvm2", "qos")
    assert lost_by_segment(outcome) == {"vm1.backend..vm2.backend": pytest.approx(dropped, abs=2)}
    assert 10 < dropped < COUNT


def test_what_the_policy_forbids_is_lost_at_the_vswitch_and_nowhere_else(lab):
    outcome = run(few(protocol=Protocol.TCP, dst_port=8080, vantage=Vantage.GUEST, count=20))
    assert lost_by_segment(outcome) == {"vm1.backend..vm2.backend": 20}


def test_at_5000_a_second_no_marked_packet_is_missed_at_the_vring(lab):
    """What reached the switch and was not dropped by it was seen on its way in, what left it on its way out."""
    before = transmitted("vhuvm2")
    outcome = run(few(vantage=Vantage.BYPASS, protocol=Protocol.ICMP, count=10_000, rate_pps=5000))
    put, dropped = np.subtract(transmitted("vhuvm2"), before)

    def seen(point, leg):
        hops = outcome.hops
        return set(hops.seq[(hops.point == outcome.points.index(point)) & (hops.leg == leg)])

    came, enqueued = seen("bypass.backend", Leg.FORWARD), seen("vm2.backend", Leg.FORWARD)
    dequeued, answered = seen("vm2.backend", Leg.RETURN), seen("bypass.backend", Leg.RETURN)
    print(f"came {len(came)}, dropped {dropped}, enqueued {len(enqueued)}, dequeued {len(dequeued)}, {len(answered)}")
    assert len(came) > 9_900
    assert enqueued <= came
    if len(came) - len(enqueued) > dropped:  # lost by the device's own ring, before the switch
        assert put - len(enqueued) < 20, "others' are neighbour discovery"
    assert len(answered) > 5_000
    assert answered <= dequeued <= enqueued
    assert not any(outcome.results[0].overflowed.values())


# ---------------------------------------------------------------------------------------------------------------------
# The mirror


def median_ns(outcome, segment):
    start, _ = first_arrivals(outcome, segment.first)
    end, _ = first_arrivals(outcome, segment.second)
    return float(np.median([end[seq] - start[seq] for seq in end if seq in start]))


def test_a_mirror_agrees_with_uprobes_within_its_bias_and_leaves_nothing(lab):
    """Delays are from the records: copies of both ends are stamped late, so that they may come out below 0."""
    by_uprobe = run(few(vantage=Vantage.GUEST))
    by_mirror = run(few(vantage=Vantage.GUEST), vrings=MIRROR)
    there, copied = (outcome.results[0].forward.segments[1] for outcome in (by_uprobe, by_mirror))
    assert (there.stamp, copied.stamp) == ("uprobe", "mirror")
    assert (copied.sent, copied.lost) == (COUNT, 0)
    assert abs(median_ns(by_uprobe, there) - median_ns(by_mirror, copied)) <= MIRROR_BIAS_NS
    assert mirrors() == []
    assert "npm" not in switch().vsctl("list-ports", "br-int")
    assert stale_journals() == []


def test_a_mirror_is_not_made_unasked(lab):
    with pytest.raises(RefusedError, match="--allow-change"):
        run(few(), vrings=VringWish("mirror"))
    assert mirrors() == []


def mirrored_trace():
    """`netprobe trace` as a process of its own, with mirrors, when they are there."""
    words = ["trace", "vm1", "vm2", "--vantage", "guest", "--count", "300", "--rate", "100", "--no-store", "--json"]
    trace = start(*words, "--vring", "mirror", "--allow-change")
    try:
        until(lambda: len(mirrors()) == 4 or trace.poll() is not None)
    except BaseException:
        end(trace)
        raise
    return trace


def end(child):
    child.kill()
    child.communicate()


def leave_mirrors():
    """A run that is killed when its mirrors are there: the journal has them before."""
    trace = mirrored_trace()
    try:
        assert len(mirrors()) == 4
        assert clean(read_topology()).mirrors_undone == 0, "its run is there"
    finally:
        end(trace)


@pytest.mark.parametrize("is_booted_anew", [False, True])
def test_mirrors_that_a_killed_run_left_are_taken_away_by_clean(lab, monkeypatch, is_booted_anew):
    """Also where journal and topology went with the host's last boot: its switch's database has them still."""
    leave_mirrors()
    topology = read_topology()
    if is_booted_anew:
        for path in stale_journals():
            path.unlink()
    (found,) = (check for check in examine() if check.name == "mirrors of hv1")
    assert not found.is_ok
    if is_booted_anew:
        monkeypatch.setattr(journal, "SYSTEM_RUNDIR", str(switch().run_dir))
        topology = None
    assert clean(topology).mirrors_undone == 2
    assert mirrors() == []
    assert "npm" not in switch().vsctl("list-ports", "br-int")
    assert stale_journals() == []


def has_database():
    """Whether the switch itself does what is asked of its database: it reconnects when it thinks fit."""
    try:
        switch().vsctl("set", "Open_vSwitch", ".", f"external_ids:asked={time.time_ns()}")
    except HostNotReadyError:
        return False
    return True


@pytest.mark.parametrize("is_sending", [True, False])
def test_a_run_whose_mirrors_cannot_be_taken_away_says_so_and_they_stay_written_down(lab, is_sending):
    """The switch's database is stopped, and has them still: they would be made again."""
    trace = mirrored_trace()
    try:
        if is_sending:
            until(lambda: any(transmitted(name)[0] > 20 for name in mirrors()))
        else:
            os.kill(trace.pid, signal.SIGSTOP)
        recorded = state.load(Places.from_environment().state)
        process.end([one for one in recorded.processes if one.name == "hv1 ovsdb-server"])
        os.kill(trace.pid, signal.SIGCONT)
        out, err = trace.communicate(timeout=60)
        done, left = clean(read_topology()), stale_journals()
    finally:
        end(trace)
        switch().start_server()
        until(has_database, 30)
    if is_sending:
        assert trace.returncode == 0, err
        document = json.loads(out)
        assert document["received"] == 300
        assert sum("run `netprobe clean`" in note for note in document["notes"]) == 2
    else:
        assert trace.returncode == 3, err
        assert err.count("run `netprobe clean`") == 2
    assert (done.mirrors_undone, len(left)) == (0, 1)
    assert any("Open vSwitch" in text for text in done.unreachable), done.unreachable
    assert clean(read_topology()).mirrors_undone == 2
    assert mirrors() == []
    assert stale_journals() == []


def test_an_agent_looks_at_vrings_for_a_collector_where_its_host_lets_it(lab, lab_place, tmp_path):
    """Spread over processes as over hosts: uprobes are the agent's, and so is the allowlist that may forbid them."""
    cloud = SpreadVm(tmp_path, lab_place)
    plan = "[governor]\nenabled = false\n" + session("vm1", "vm2", 50, 1)
    try:
        cloud.start_collector()
        cloud.start_agent("hv1")
        cloud.wait_for("collector", "hv1 is on hv1")
        (seen,) = cloud.finish(cloud.run(plan))["sessions"]
        restore = change_allowlist("")
        try:
            (unseen,) = cloud.finish(cloud.run(plan))["sessions"]
        finally:
            restore()
        refused = cloud.run(plan, "--vring", "mirror")
        assert "no agent makes mirrors" in refused.communicate(timeout=60)[1]
    finally:
        cloud.close()
    assert refused.returncode == 2
    there, back = ({s["id"]: s for s in way} for way in (seen["segments"], seen["return"]["segments"]))
    for ways, segment in ((there, "vm1.backend..vm2.backend"), (back, "vm2.backend..vm1.backend")):
        assert (ways[segment]["stamp"], ways[segment]["received"], ways[segment]["lost"]) == ("uprobe", 50, 0)
        assert 0 < ways[segment]["delay_ns"]["p50"] < 5 * MS
    assert (unseen["received"], unseen["lost"], unseen["return"]["delivered"]) == (50, 0, 50)
    assert any("vring_uprobes_s" in note for note in unseen["notes"]), unseen["notes"]


# ---------------------------------------------------------------------------------------------------------------------
# Bad days


def change_allowlist(text):
    path = Places.from_environment().lab / "allow.toml"
    before = path.read_text()
    path.write_text("".join(line + "\n" for line in before.splitlines() if "vring" not in line) + text)
    return lambda: path.write_text(before)


def test_where_uprobes_are_not_allowed_the_vring_is_unobserved_and_nothing_is_called_lost(lab):
    restore = change_allowlist("")
    try:
        (result,) = run(few(vantage=Vantage.VSWITCH, count=20)).results
        (mirrored,) = run(few(vantage=Vantage.VSWITCH, count=20), vrings=VringWish(is_change_allowed=True)).results
    finally:
        restore()
    assert result.forward.lost == 0
    assert any("vring_uprobes_s" in note for note in result.notes), result.notes
    assert mirrored.forward.segments[0].stamp == "sender/mirror"
    assert mirrored.forward.delivered == 20


def test_uprobes_are_taken_off_when_their_time_is_over(lab):
    restore = change_allowlist("vring_uprobes_s = 1\n")
    try:
        (result,) = run(few(vantage=Vantage.BYPASS, rate_pps=50)).results
    finally:
        restore()
    assert any("may stay for 1 s" in note for note in result.notes), result.notes
    assert lost_by_segment_of(result) == {}


def lost_by_segment_of(result):
    return {s.id: s.lost for s in result.forward.segments if s.lost}


@pytest.mark.parametrize(("code", "text"), [(1, "Operation not permitted"), (22, "Invalid argument")])
def test_a_kernel_that_takes_no_bpf_is_an_unobserved_point_with_the_reason(lab, monkeypatch, code, text):
    """What libbpf answers is changed, for this machine permits it."""

    def refuse(self, what):
        import ctypes  # noqa: PLC0415

        ctypes.set_errno(code)
        return original(self, what)

    original = BpfObject._failed
    monkeypatch.setattr(BpfObject, "_failed", refuse)
    monkeypatch.setattr(BpfObject, "attach_uprobe", lambda self, name, **_: (_ for _ in ()).throw(self._failed(name)))
    (result,) = run(few(vantage=Vantage.VSWITCH, count=5)).results
    assert result.forward.lost == 0
    assert any(text in note for note in result.notes), result.notes


WATCHING = """
import sys
from pathlib import Path
from netprobe.errors import HostNotReadyError
from netprobe.observe.vring import VringPlace, VringWatch
try:
    VringWatch(VringPlace(Path(sys.argv[1]), 10**9), (), {}).close()
except HostNotReadyError as error:
    print(error)
"""


def capabilities(name):
    """What a unit, or a file beside it, gives."""
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", (AGENTS / name).read_text(), re.MULTILINE)
    return {word.removeprefix("CAP_").lower() for word in line.split()}


def test_the_shipped_unit_has_what_uprobes_need_with_its_drop_in_alone_and_no_capability_too_many(lab):
    """Without any one of the drop-in's the reason is said."""
    unit = capabilities("netprobe-agent-vswitch.service")
    more = capabilities("netprobe-agent-vswitch-vrings.conf")

    def said(capabilities):
        given = ",".join(f"+{name}" for name in sorted(capabilities))
        words = ["setpriv", f"--bounding-set=-all,{given}", "--no-new-privs", sys.executable, "-c", WATCHING]
        return process.run([*words, str(switch().run_dir / "ovs-vswitchd.pid")])

    assert said(unit | more) == ""
    for lacking in ({one} for one in more):
        assert "root" in said((unit | more) - lacking), lacking
    assert "its memory map may not be read" in said(unit)


def test_after_a_restart_of_the_vswitch_the_vring_is_looked_at_again_and_the_gap_is_unobserved(lab):
    """Its guard starts it anew; its flows are put back by the test, as the cloud's agent would.

    What came before and after it is seen; nothing is called lost but what was sent meanwhile.
    """
    place, times = switch(), []
    flows = subprocess.run(
        ["ovs-ofctl", "-OOpenFlow15", "--no-stats", "dump-flows", place.management("br-int")],
        env=place.env, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    flows = [line.strip() for line in flows if "cookie" in line]
    pid = int((place.run_dir / "ovs-vswitchd.pid").read_text())
    ticks = process.start_ticks(pid)

    def restart():
        times.append(time.time_ns())
        os.kill(pid, signal.SIGSEGV)  # of what kills it, its guard restarts it after this
        for _ in range(300):
            threading.Event().wait(0.1)
            try:
                if int((place.run_dir / "ovs-vswitchd.pid").read_text()) != pid:
                    times[1:] = times[1:] or [time.time_ns()]
                    place.appctl("version")
                    place.replace_flows("br-int", flows)
                    if place.flow_count("br-int", COOKIE_PREFIX, COOKIE_MASK):
                        times.append(time.time_ns())
                        return
            except Exception:  # noqa: BLE001  it is not there yet
                continue

    progress, timers = while_sending(restart, 2.0)
    outcome = run(few(vantage=Vantage.BYPASS, count=2400, rate_pps=200), progress=progress)
    timers[0].join(40)
    assert process.start_ticks(pid) != ticks
    (result,) = outcome.results
    killed_ns, anew_ns, back_ns = times
    came, _ = first_arrivals(outcome, "bypass.backend")
    seen, _ = first_arrivals(outcome, "vm2.backend")
    outside = {seq for seq, t_ns in came.items() if not killed_ns - 50 * MS < t_ns < back_ns + 4_000 * MS}
    assert min(outside) < 200 < 1_600 < max(outside)
    assert outside <= seen.keys()
    gap = {seq for seq, t_ns in came.items() if killed_ns + 20 * MS < t_ns < anew_ns}
    print(f"gap {len(gap)}, unobserved {result.forward.unobserved}, lost {result.forward.lost}")
    assert gap
    assert gap.isdisjoint(seen)
    assert result.forward.unobserved >= len(gap)
    assert result.forward.delivered >= len(outside)
    assert result.forward.lost + result.forward.unobserved <= 2400 - len(outside)


def devices():
    """Whose ring is whose, by the switch's own memory."""
    library = find_library(int((switch().run_dir / "ovs-vswitchd.pid").read_text()))
    sockets = {str(Places.from_environment().vhost(name)): name for name in ("vm1", "vm2")}
    return {number: sockets[path] for number, path in device_sockets(library, sockets).items()}


def test_guests_that_are_plugged_anew_in_a_run_are_each_seen_at_their_own_vring(lab):
    """Each gets the other one's number, at once. What was between is unobserved or lost, never seen elsewhere."""
    loaded = config.load("dpdk")
    ends = {end.name: end for end in endpoints(loaded)}
    before, times = devices(), []

    def plug_anew():
        times.append(time.time_ns())
        for name in ("vm1", "vm2"):
            switch().remove_port(BRIDGE, ends[name].vhost)
        for name in sorted(before.values(), key={name: n for n, name in before.items()}.get, reverse=True):
            spec = port_spec(ends[name], ends[name].vhost, loaded.shape, Places.from_environment())
            switch().add_port(BRIDGE, spec)
            until(lambda name=name: name in devices().values(), 20)
        times.append(time.time_ns())

    progress, timers = while_sending(plug_anew, 1.0)
    there = few(count=800, rate_pps=100)
    outcome = run(there, few(name="back", src="vm2", dst="vm1", count=800, rate_pps=100), progress=progress)
    timers[0].join(60)
    removed_ns, back_ns = times
    assert sorted(devices().items()) == sorted((1 - number, name) for number, name in before.items())
    hops = outcome.hops
    for number, result in zip(outcome.sessions, outcome.results, strict=True):
        for leg, way in ((Leg.FORWARD, result.forward), (Leg.RETURN, result.returned)):
            own = hops.where((hops.session == number) & (hops.leg == leg))
            for segment, direction in zip(way.segments[:2], Direction, strict=True):
                here = own.where(own.point == outcome.points.index(segment.second))
                assert (here.direction == direction).all(), segment.second
                assert here.t_ns.min() < removed_ns
                assert here.t_ns.max() > back_ns + 1000 * MS
            assert way.planned == way.unsent + way.delivered + way.lost + way.unobserved + way.pending
            assert 100 < way.delivered < 800
    assert outcome.results[0].forward.unobserved > 0


def test_a_guest_that_is_killed_in_a_run_is_lost_before_its_vring_and_its_lab_can_be_repaired(lab):
    """What came before its end was seen there, what came after it is lost there: the switch has nobody to give it."""
    pid, killed = machine_pid("vm2"), []

    def kill():
        killed.append(time.time_ns())
        os.kill(pid, signal.SIGKILL)

    progress, timers = while_sending(kill, 1.0)
    changes = {"vantage": Vantage.BYPASS, "protocol": Protocol.RAW_UDP, "dst_port": 5001, "count": 600}
    outcome = run(few(**changes), progress=progress)
    timers[0].join()
    (result,) = outcome.results
    came, _ = first_arrivals(outcome, "bypass.backend")
    seen, _ = first_arrivals(outcome, "vm2.backend")
    assert len(came) == 600
    assert {seq for seq, t_ns in came.items() if t_ns < killed[0] - 50 * MS} <= seen.keys()
    assert max(seen.values()) < killed[0] + 500 * MS
    assert lost_by_segment(outcome) == {"bypass.backend..vm2.backend": 600 - len(seen)}
    assert (result.forward.delivered, result.forward.unobserved) == (len(seen), 0)
    problems = (f"{machines.machine_name('vm2')} (process {pid}) is gone",)
    assert control.status().problems == problems
    assert control.up("dpdk").repaired == problems
    (result,) = run(few(count=20)).results
    assert (result.forward.delivered, result.returned.delivered) == (20, 20)


@pytest.fixture
def huge_pages():
    """Enough of them for the lab's switch, while the test lasts."""
    before = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text(str(int(before) + 1024))
    try:
        if free_huge_mib() < 1024:
            pytest.skip("the kernel has no 1024 huge pages in one piece to give")
        yield
    finally:
        HUGE_PAGES.write_text(before)


@pytest.mark.long
def test_where_huge_pages_are_free_the_switch_takes_them_and_gives_them_back(lab_place, huge_pages):
    """The guests' packets cross it as they do without; `down` leaves as many free pages as there were."""
    control.down()
    free_mib = free_huge_mib()
    control.up("dpdk")
    assert free_mib - free_huge_mib() >= 512
    assert "no-huge" not in switch().vsctl("get", "Open_vSwitch", ".", "other_config:dpdk-extra")
    (result,) = run(few(count=50)).results
    assert (result.forward.delivered, result.returned.delivered) == (50, 50)
    assert result.forward.segments[1].stamp == "uprobe"
    control.down()
    assert free_huge_mib() == free_mib


def test_nothing_is_left_of_the_lab(lab_place):
    """No machine, no switch, also one that was started again, no file of DPDK's, and as many huge pages as before."""
    if not control.status().is_up:
        control.up("dpdk")
    pids = [record["pid"] for record in control.status().state["processes"]]
    pages = HUGE_PAGES.read_text()
    control.down()
    assert not any(process.start_ticks(pid) for pid in pids)
    assert not (lab_place / "lab").exists()
    assert HUGE_PAGES.read_text() == pages
