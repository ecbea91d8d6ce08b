"""The lab `vm`: guests that boot, each with a clock of its own, behind taps; and their bad days.

Network: vm1 and vm2, virtual machines without KVM, each behind a tap on hv1's userspace Open vSwitch; their agents are
reached over virtio-serial.
"""

import contextlib
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest
import trio
from support.command import traced
from support.guest_truth import SECOND_NS, check_interval_of_a_clock_that_is_off, machine_pid, places, serial
from support.spread import session
from support.spread_vm import SpreadVm
from support.truth_checks import MS, US, check_fault, log_of, probe, run

from netprobe.errors import HostNotReadyError
from netprobe.host import process, qemu
from netprobe.host.guest_agent import open_guest_agent
from netprobe.lab import control, machines
from netprobe.model.points import Vantage
from netprobe.plan.plans import Protocol

pytestmark = pytest.mark.system

COUNT, RATE = 200, 200
RELAYS = {
    "vm1.guest..vm1.backend": "vm1.relay..vm1.backend",
    "vm1.backend..vm2.backend": "vm1.backend..vm1.relay",
    "vm2.backend..vm2.guest": "vm2.backend..vm2.relay",
}


@pytest.fixture
def lab(lab_place):
    """Both machines, as they were made, and with their neighbours known: a slow guest asks for them for long."""
    if control.status().state.get("name", "vm") != "vm":
        control.down()
    status = control.up("vm")
    if not status.was_up:
        run(few(count=20), few(name="bypass", vantage=Vantage.BYPASS, count=20), tmax_ns=3_000 * MS)
    return control.status() if control.fault_clear().faults else status


def few(**changes):
    return probe(**({"count": COUNT, "rate_pps": RATE} | changes))


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@pytest.mark.parametrize("vantage", Vantage)
def test_every_vantage_sees_guest_backend_and_vswitch(lab, vantage):
    """All probes and answers are delivered, every segment is there, and stamps say who took the time."""
    found = traced("--vantage", vantage.value, "--count", "50", "--tmax", "3s")
    first = {
        Vantage.GUEST: ["vm1.guest..vm1.backend", "vm1.backend..vm2.backend"],
        Vantage.BYPASS: ["bypass.guest..bypass.backend", "bypass.backend..vm2.backend"],
        Vantage.VSWITCH: ["hv1.vswitch..vm2.backend"],
    }[vantage]
    segments = found["segments"]
    assert [s["id"] for s in segments] == [*first, "vm2.backend..vm2.guest"]
    assert (found["received"], found["return"]["delivered"]) == (50, 50), found
    last = segments[-1]
    assert (last["stamp"], last["clock_problem"], last["negative"]) == ("kernel-rx/packet", None, 0)
    assert 0 < last["clock_error_ns"] < 50 * MS
    assert segments[-2]["clock_error_ns"] is None, "both ends are the host's"


@pytest.mark.parametrize("segment", RELAYS)
def test_what_goes_into_a_segment_is_what_is_reported_there(lab, segment):
    """Lost and duplicated probes are those of the relay's log, the delay agrees with it, nobody else is blamed."""
    fault = {"loss": 0.05, "duplicate": 0.05, "delay_ns": 5 * MS}
    put = control.fault_set(segment, seed=11, expose=True, **fault)
    try:
        outcome = run(few())
        rows = log_of(put, outcome, COUNT)
    finally:
        control.fault_clear()
    # Beside emulated machines the relay itself is late now and then between its clock and its send.
    check_fault(outcome, rows, RELAYS[segment], fault, median_ns=50 * US, p99_ns=5 * MS)


def test_what_the_policy_forbids_is_lost_at_the_vswitch_and_nowhere_else(lab):
    (result,) = run(few(protocol=Protocol.TCP, dst_port=8080, vantage=Vantage.GUEST, count=20)).results
    assert {s.id: s.lost for s in result.forward.segments if s.lost} == {"vm1.backend..vm2.backend": 20}


# ---------------------------------------------------------------------------------------------------------------------
# Clocks


def test_the_interval_of_a_clock_that_is_1_s_off_and_100_ppm_fast_contains_the_truth(lab):
    """The truth is read from the machine's memory, to a tenth of a ms."""
    (result,) = check_interval_of_a_clock_that_is_off("vm1", lambda: run(few())).results
    first = result.forward.segments[0]
    assert (first.clock_problem, first.negative) == ("", 0)
    assert result.forward.delivered == COUNT


def test_a_known_delay_is_within_the_bounds_that_two_clocks_leave(lab):
    """20 ms between guest and backend, where the two stamps are of different clocks, one of them 1 s off."""
    machines.order(places(), "vm1", do="clock", step_ns=-SECOND_NS, ppm=0.0)
    control.fault_set("vm1.guest..vm1.backend", delay_ns=20 * MS)
    try:
        (result,) = run(few(count=100)).results
    finally:
        control.fault_clear()
        machines.order(places(), "vm1", do="clock", step_ns=SECOND_NS, ppm=0.0)
    first = result.forward.segments[0]
    assert first.stamp == "sender/kernel-rx"
    low, high = first.delay_bounds.min
    assert low <= 20 * MS + 10 * MS
    assert high >= 20 * MS


def test_a_collector_hears_of_machines_clocks_from_their_host(lab, lab_place, tmp_path):
    """The host's agent shows a clock that is 300 ms off, machines show theirs: segments have delays all the same."""
    cloud = SpreadVm(tmp_path, lab_place)
    try:
        cloud.start_collector()
        cloud.start_agent("hv1", "--test-clock", "offset=300ms")
        cloud.wait_for("collector", "hv1 is on hv1")
        document = cloud.finish(cloud.run("[governor]\nenabled = false\n" + session("vm1", "vm2", 100, 1)))
    finally:
        cloud.close()
    (one,) = document["sessions"]
    assert (one["received"], one["return"]["delivered"], one["late"]) == (100, 100, 0)
    by_id = {s["id"]: s for s in one["segments"]}
    for segment in ("vm1.guest..vm1.backend", "vm2.backend..vm2.guest"):
        assert by_id[segment]["clock_problem"] is None
        assert 0 < by_id[segment]["clock_error_ns"] < 50 * MS
    assert by_id["vm1.backend..vm2.backend"]["clock_error_ns"] is None


# ---------------------------------------------------------------------------------------------------------------------
# To leave a tap is not to be delivered


def test_what_is_lost_behind_the_tap_is_told_by_the_tap(lab):
    """A machine that stands still does not empty its tap: rings see all go out, the tap says how many it dropped."""
    pid = machine_pid("vm2")
    process.run(["ip", "-n", "hv1", "link", "set", "tapvm2", "txqueuelen", "20"])
    os.kill(pid, signal.SIGSTOP)
    try:
        outcome = run(few(vantage=Vantage.BYPASS, protocol=Protocol.RAW_UDP, dst_port=5000), tmax_ns=100 * MS)
    finally:
        os.kill(pid, signal.SIGCONT)
        process.run(["ip", "-n", "hv1", "link", "set", "tapvm2", "txqueuelen", "500"])
    (result,) = outcome.results
    assert result.forward.delivered == COUNT, "raw UDP is delivered at the backend"
    assert COUNT - 40 <= result.counters["behind_port_dropped"] <= COUNT
    assert any("the device of vm2.backend dropped" in note for note in result.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Bad days


def test_garbage_on_the_port_is_passed_over(lab):
    """From the host's side, in the middle of nothing and in the middle of a session; the next controller is served."""

    async def main():
        async with open_guest_agent(serial("vm1")) as agent:
            assert agent.hello.device == "eth0"

    for octets in (os.urandom(5000), b'\0\0\0\x20\0\0\0\x10{"type": "hel', b"\xff" * 20_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(places().agent_port("vm1")))
            sock.sendall(octets)
        trio.run(main)


def test_an_agent_that_hangs_is_an_error_that_names_it_and_works_again_afterwards(lab):
    machines.order(places(), "vm1", do="signal", number=int(signal.SIGSTOP))
    try:
        with pytest.raises(HostNotReadyError, match=r"guest agent serial:.*vm1.serial: does not answer in 5 s"):
            run(few(count=5))
    finally:
        machines.order(places(), "vm1", do="signal", number=int(signal.SIGCONT))
    (result,) = run(few(count=20)).results
    assert result.forward.delivered == 20


def test_guests_that_are_killed_in_a_run_leave_results_that_say_so(lab):
    """Ledgers close; nothing is called lost where nobody could look. `up` makes the lab anew."""
    pids = [machine_pid(name) for name in ("vm1", "vm2")]

    def kill():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def progress(text):
        if text.startswith("sending"):
            threading.Thread(target=kill).start()

    results = run(few(), few(name="bypass", vantage=Vantage.BYPASS), progress=progress).results
    for leg in (result.forward for result in results):
        assert leg.planned == COUNT == leg.unsent + leg.delivered + leg.lost + leg.unobserved + leg.pending
        assert not any(s.lost for s in leg.segments if s.second == "vm2.guest")
    assert any("sending ended early" in note and "is gone" in note for note in results[0].notes), results[0].notes
    assert results[1].forward.delivered < COUNT, "a tap without its machine has no carrier: the switch drops"
    problems = control.status().problems
    assert problems == tuple(
        f"{machines.machine_name(name)} (process {pid}) is gone" for name, pid in zip(("vm1", "vm2"), pids, strict=True)
    )
    assert control.up("vm").repaired == problems


def test_nothing_is_left_of_a_lab_whatever_was_killed(lab):
    """Kill -9 of a machine and of the vswitch's guard; then `down`."""
    before = [process.ProcessRecord(**{**p, "argv": tuple(p["argv"])}) for p in lab.state["processes"]]
    os.kill(machine_pid("vm1"), signal.SIGKILL)
    os.kill(next(r.pid for r in before if r.name.endswith("monitor")), signal.SIGKILL)
    assert control.down().was_up
    assert not any(process.is_alive(record) for record in before)
    assert not Path("/run/netns/hv1").exists()


def test_a_guest_that_does_not_boot_is_an_error_with_the_end_of_its_serial_log(lab_place, tmp_path, monkeypatch):
    """An initramfs with nothing in it: the kernel panics. What was made is gone again."""
    control.down()
    image = machines.guest_image()
    shutil.copy(image.kernel, tmp_path / "kernel")
    (tmp_path / "initrd").write_bytes(bytes(512))
    monkeypatch.setenv(machines.IMAGE, str(tmp_path))
    with pytest.raises(HostNotReadyError, match=r"ended while it booted.*Kernel panic") as caught:
        control.up("vm")
    assert caught.value.exit_code == 3
    assert not control.status().is_up
    assert not places().lab.exists()


def test_a_snapshot_that_one_guest_cannot_read_is_made_anew_and_nothing_stays_of_the_try(
    lab_place, tmp_path, monkeypatch
):
    """The other guest had been resumed already: it is ended, for each is started from the new one."""
    control.down()
    image = machines.guest_image()
    for path in image.folder.iterdir():
        shutil.copy2(path, tmp_path / path.name)
    monkeypatch.setenv(machines.IMAGE, str(tmp_path))
    resume, tried = qemu.Monitor.resume, []

    def resume_all_but_vm2(monitor):
        tried.append(monitor._machine.name)
        if monitor._machine.name == "vm2" and tried.count("vm2") == 1:
            raise monitor._machine.trouble("did not read its snapshot")
        resume(monitor)

    monkeypatch.setattr(qemu.Monitor, "resume", resume_all_but_vm2)
    control.up("vm")
    try:
        assert sorted(tried) == ["vm1", "vm1", "vm2", "vm2"]
        assert sorted(emulated()) == sorted([machine_pid("vm1"), machine_pid("vm2")])
        (result,) = run(few(count=20), tmax_ns=3_000 * MS).results
    finally:
        control.down()
    assert (result.forward.delivered, result.returned.delivered) == (20, 20)
    assert emulated() == []


def emulated():
    """Process ids of QEMUs for vm1 and vm2 to which our files are as they are to us: no other worker's."""
    found, here = [], places().lab.parent
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            is_machine = words[:2] == [qemu.PROGRAM.encode(), b"-name"] and words[2] in (b"vm1", b"vm2")
            if is_machine and here.samefile(f"{path}/root{here}"):
                found.append(int(path.name))
    return found


def test_a_guest_without_an_agent_is_measured_from_outside(lab_place, tmp_path):
    """Its kernel answers pings; nobody knows its clock, and nothing is said that would need it."""
    control.down()
    config = tmp_path / "vm.toml"
    text = (Path(machines.__file__).parent / "vm.toml").read_text()
    config.write_text(text.replace('name = "vm2"\n', 'name = "vm2"\nagent = false\n'))
    control.up("vm", config_path=config)
    try:
        (result,) = run(few(vantage=Vantage.BYPASS, protocol=Protocol.ICMP, count=50)).results
        with pytest.raises(HostNotReadyError, match="runs no agent"):
            run(few(src="vm2", dst="vm1", count=5))
    finally:
        control.down()
    assert (result.forward.delivered, result.returned.delivered) == (50, 50), result
    assert result.forward.segments[-1].delay is None
    assert result.forward.segments[-2].delay is not None
