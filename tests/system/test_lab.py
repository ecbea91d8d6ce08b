"""The lab for real: traffic as its groups say, faults as its truth log says, and nothing left behind whatever dies."""

import json
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.lab_traffic import (
    QUIET_S,
    WAIT_S,
    connect,
    drain,
    echo,
    guest,
    listener,
    marked,
    receiver,
    send,
    send_frames,
    udp_frame,
)
from support.waiting import until

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import iproute, netns, ovs, process
from netprobe.lab import control, journal, state, truth

pytestmark = pytest.mark.system

NAMESPACES = ("hv1", "vm1", "vm2", "vm3", "byp1")


@pytest.fixture(scope="module", autouse=True)
def base(lab_place):
    """The system tests' run directory, and a lab that is gone at the end."""
    return lab_place


@pytest.fixture
def lab(base):
    """A healthy lab without faults."""
    control.up()
    control.fault_clear()
    status = control.status()
    assert status.is_healthy, status.problems
    return status


def in_any_order(rows: str) -> list[str]:
    """Records of ovs-vsctl; OVSDB gives them in no order."""
    return sorted(row.strip() for row in rows.split("\n\n"))


def recorded(base: Path) -> state.State:
    return state.load(base / "lab" / "state.json")


def assert_nothing_left(base: Path, before: state.State) -> None:
    assert not [name for name in NAMESPACES if netns.exists(name)]
    assert not [record.name for record in before.processes if process.is_alive(record)]
    assert process.find({record.argv for record in before.processes}, base) == ([], [])
    assert not (base / "lab").exists()
    assert not (base / "lab.lock").exists()


# --- traffic


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("source", ["vm1", "vm3", "byp1"])
def test_echo_passes_between_all(lab, source, family):
    assert echo(source, guest(lab, "vm2")[family])
    assert echo("vm2", guest(lab, "bypass")[family])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_tcp_80_passes_and_8080_is_dropped_by_default(lab, family):
    address = guest(lab, "vm2")[family]
    with listener("vm2", 80), listener("vm2", 8080):
        assert connect("vm1", address, 80, WAIT_S) == "open"
        assert connect("vm1", address, 8080, QUIET_S) == "dropped"


def test_members_of_a_group_reach_each_other_and_others_do_not(lab):
    assert connect("vm1", guest(lab, "vm3")["ipv4"], 8080, WAIT_S) == "refused"
    assert connect("vm2", guest(lab, "vm3")["ipv4"], 8080, QUIET_S) == "dropped"


def test_a_spoofed_address_is_dropped_and_the_ports_own_passes(lab):
    """The honest frame is sent last: when it is there, the spoofed ones would have been."""
    assert echo("vm1", guest(lab, "vm2")["ipv4"])
    mine, other = guest(lab, "vm1"), guest(lab, "vm3")
    frames = [
        udp_frame(mine | {"ipv4": other["ipv4"]}, guest(lab, "vm2"), b"ip"),
        udp_frame(mine | {"mac": other["mac"]}, guest(lab, "vm2"), b"mac"),
        udp_frame(other, guest(lab, "vm2"), b"both"),
        udp_frame(mine, guest(lab, "vm2"), b"honest"),
    ]
    with receiver("vm2", 5000) as sock:
        sock.settimeout(WAIT_S)
        send_frames("vm1", frames)
        assert sock.recv(100) == b"honest"


# --- state file


def test_the_state_file_is_roots_own_and_names_devices_that_exist(lab, base):
    assert (base / "lab" / "state.json").stat().st_mode & 0o777 == 0o600
    assert (base / "lab" / "allow.toml").stat().st_mode & 0o777 == 0o600
    assert json.loads((base / "lab" / "state.json").read_text()).items() <= lab.to_json().items()
    for point in lab.state["points"]:
        assert point["kind"] == "vswitch" or iproute.link_exists(point["netns"], point["device"])
    for end in (*lab.state["guests"], *lab.state["bypasses"]):
        assert Path(end["agent"]).is_socket()
        assert [end["name"]] == [p["id"].partition(".")[0] for p in lab.state["points"] if p["id"] == end["chain"][0]]


def test_every_flow_of_the_switch_is_explained_by_the_state_file(lab, base):
    place = base / "lab" / "hv1"
    text = process.run(["ovs-ofctl", "-OOpenFlow15", "--timeout=5", "dump-flows", f"unix:{place}/br-int.mgmt"])
    cookies = {word.strip(",")[len("cookie=") :] for word in text.split() if word.startswith("cookie=")}
    assert cookies == set(lab.state["rules"])


# --- up, down, and what may die in between


def test_up_twice_says_that_it_is_up_and_changes_nothing(lab, base):
    before = recorded(base)
    again = control.up()
    assert again.was_up
    assert not again.repaired
    assert recorded(base) == before


def test_up_with_another_configuration_is_refused_while_the_lab_is_up(lab, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text('[[guest]]\nname = "vm1"\n')
    with pytest.raises(UsageError, match="another configuration"):
        control.up(config_path=other)


@pytest.mark.parametrize(
    "victims",
    [["hv1 ovs-vswitchd"], ["hv1 ovs-vswitchd monitor", "hv1 ovs-vswitchd"], ["hv1 ovsdb-server"], ["agent-vm2"]],
)
def test_after_a_kill_9_up_says_what_is_broken_and_repairs_it(lab, base, victims):
    before = recorded(base)
    process.end([record for record in before.processes if record.name in victims], force=True)
    broken = control.status()
    assert not broken.is_healthy
    assert any(victims[0] in problem for problem in broken.problems)
    repaired = control.up()
    assert any(victims[0] in problem for problem in repaired.repaired)
    assert control.status().is_healthy
    assert echo("vm1", guest(lab, "vm2")["ipv4"])
    assert not [record for record in before.processes if process.is_alive(record)]


def test_a_namespace_that_was_removed_by_hand_is_made_again(lab):
    iproute.delete_namespaces(["vm3"])
    assert "network namespace vm3 is gone" in control.up().repaired
    assert echo("vm1", guest(lab, "vm3")["ipv4"])


def test_a_dead_relay_is_noticed_and_the_lab_is_rebuilt_without_it(lab, base):
    control.fault_set("vm1.backend..vm2.backend", loss=1.0)
    process.end([record for record in recorded(base).processes if record.name == "relay-vm1"], force=True)
    with pytest.raises(HostNotReadyError, match=r"relay-vm1.*is gone"):
        control.fault_clear()
    assert any("relay-vm1" in problem for problem in control.up().repaired)
    assert control.status().state["faults"] == []
    assert echo("vm1", guest(lab, "vm2")["ipv4"])


def test_flows_that_are_gone_are_noticed(lab, base):
    switch = ovs.PrivateSwitch("hv1", base / "lab" / "hv1")
    switch.replace_flows("br-int", ["priority=0,actions=drop"])
    assert control.status().problems == ("the security groups' flows are gone",)
    assert control.up().repaired


def test_down_leaves_nothing_and_down_twice_is_fine(lab, base):
    before = recorded(base)
    control.fault_set("vm1.backend..vm2.backend", delay_ns=1000)
    assert control.down().was_up
    assert_nothing_left(base, before)
    assert not control.down().was_up
    assert not control.status().is_up
    with pytest.raises(HostNotReadyError, match=r"is not up.*netprobe lab up"):
        control.fault_set("vm1.backend..vm2.backend", delay_ns=1000)


DIE_AT = """
import os, signal, sys
from netprobe.lab import {module}, control
{module}.{step} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
control.{call}
"""


def die(module: str, step: str, call: str) -> None:
    """Run a function of netprobe.lab.control in a process that kill -9s itself in the middle of it."""
    done = subprocess.run([sys.executable, "-c", DIE_AT.format(module=module, step=step, call=call)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", ["_write_allowlist", "_make_links", "_start_agent", "_make_bridge", "_wait_agents"])
def test_an_up_that_is_killed_half_way_is_cleaned_up_by_down(base, step):
    control.down()
    die("build", step, "up()")
    before = recorded(base)
    assert control.status().problems == ("it was left half-made",)
    assert control.down().was_up
    assert_nothing_left(base, before)


def test_an_up_that_is_killed_half_way_is_repaired_by_up(base):
    control.down()
    die("build", "_wait_agents", "up()")
    assert control.up().repaired == ("it was left half-made",)
    assert control.status().is_healthy


def test_a_down_that_is_killed_half_way_is_finished_by_the_next(lab, base):
    before = recorded(base)
    die("teardown", "_is_ours", "down()")
    assert control.down().was_up
    assert_nothing_left(base, before)


@pytest.mark.parametrize("step", ["_start_relay", "_move_port"])
def test_a_fault_that_is_killed_half_way_is_noticed_and_repaired(lab, step):
    die("faults", step, "fault_set('vm1.backend..vm2.backend')")
    assert any("half-made" in problem or "is gone" in problem for problem in control.status().problems)
    assert control.up().repaired
    assert echo("vm1", guest(lab, "vm2")["ipv4"])


def test_a_foreign_namespace_is_not_adopted_and_not_removed(base):
    control.down()
    iproute.add_namespaces(["vm3"])
    try:
        with pytest.raises(HostNotReadyError, match=r"network namespace vm3: exists .*ip netns del vm3"):
            control.up()
        assert netns.exists("vm3")
        assert not [name for name in NAMESPACES if name != "vm3" and netns.exists(name)]
        assert not control.down().was_up
        assert netns.exists("vm3")
    finally:
        iproute.delete_namespaces(["vm3"])


def test_a_namespace_that_somebody_made_anew_is_left_alone(lab):
    iproute.delete_namespaces(["vm3"])
    iproute.add_namespaces(["vm3"])
    try:
        assert control.down().left_alone == ("network namespace vm3: it was made anew by somebody else",)
        assert netns.exists("vm3")
    finally:
        iproute.delete_namespaces(["vm3"])


def test_a_process_of_another_lab_with_the_same_paths_is_not_found(tmp_path):
    """Its mount namespace has another directory there, as in a container."""
    argv = ("sleep", "77.25")
    elsewhere = f"mount --make-rprivate / && mount -t tmpfs tmpfs {tmp_path} && echo ready && exec sleep 77.25"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", elsewhere], stdout=subprocess.PIPE) as other:
        own = process.spawn(argv, log=tmp_path / "log")
        try:
            assert other.stdout.readline() == b"ready\n"
            until(lambda: process.command_line(other.pid) == argv == process.command_line(own.pid))
            assert [record.pid for record in process.find({argv}, tmp_path)[1]] == [own.pid]
        finally:
            process.end([own])
            other.kill()


def test_two_ups_at_once_are_told_apart(base):
    with journal.locked(base / "lab.lock"), pytest.raises(HostNotReadyError, match="is changing it"):
        control.up()


def test_a_step_that_fails_leaves_nothing(base, monkeypatch):
    control.down()
    monkeypatch.setattr(control.build, "_make_bridge", lambda *_: (_ for _ in ()).throw(HostNotReadyError("x", "y")))
    with pytest.raises(HostNotReadyError, match="x: y"):
        control.up()
    assert not [name for name in NAMESPACES if netns.exists(name)]
    assert not (base / "lab").exists()


# --- faults


def fault_log(result: control.FaultResult) -> str:
    return str(result.faults[0]["log"])


@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize("segment", ["vm1.guest..vm1.backend", "vm1.backend..vm2.backend", "vm2.backend..vm2.guest"])
def test_what_arrives_is_what_the_truth_log_says(lab, segment, expose):
    """200 probes: the lost, the doubled and the delayed are those of the log, one by one."""
    assert echo("vm1", guest(lab, "vm2")["ipv4"])  # addresses are resolved before frames can be lost
    log = fault_log(control.fault_set(segment, delay_ns=200_000, loss=0.1, duplicate=0.1, seed=5, expose=expose))
    with receiver("vm2", 5000) as sock:
        send("vm1", guest(lab, "vm2")["ipv4"], [marked(seq) for seq in range(200)])
        got = [struct.unpack("!I", data[8:12])[0] for data in drain(sock)]
    rows = truth.wait_rows(log, 200)
    by_fate = {fate: rows["seq"][rows["fate"] == fate].tolist() for fate in (0, 1, 2)}
    assert sorted(by_fate[0] + by_fate[1]) == list(range(200))
    assert by_fate[0]
    assert by_fate[2]
    assert sorted(got) == sorted(by_fate[1] + by_fate[2])
    sent = rows[rows["fate"] > 0]
    assert (sent["t_out_ns"] - sent["t_in_ns"] >= sent["delay_ns"]).all()
    assert (sent["delay_ns"] >= 200_000).all()
    assert set(rows["session"].tolist()) == {7}


def test_the_same_seed_loses_the_same_probes(lab):
    lost = []
    for _ in range(2):
        log = fault_log(control.fault_set("vm1.backend..vm2.backend", loss=0.2, seed=11))
        send("vm1", guest(lab, "vm2")["ipv4"], [marked(seq) for seq in range(100)])
        rows = truth.wait_rows(log, 100)
        lost.append(rows["seq"][rows["fate"] == 0].tolist())
    assert lost[0]
    assert lost[0] == lost[1]


def test_a_fault_between_backends_hits_frames_to_that_peer_alone(lab):
    assert echo("vm1", guest(lab, "vm2")["ipv4"])
    control.fault_set("vm1.backend..vm2.backend", loss=1.0)
    with receiver("vm2", 5000) as lost, receiver("vm3", 5000) as kept:
        send("vm1", guest(lab, "vm2")["ipv4"], [b"x"])
        send("vm1", guest(lab, "vm3")["ipv4"], [b"x"])
        kept.settimeout(WAIT_S)
        assert kept.recv(10) == b"x"
        assert drain(lost) == []


def port_rows(base: Path) -> str:
    switch = ovs.PrivateSwitch("hv1", base / "lab" / "hv1")
    return switch.vsctl("--columns=name,ofport,ofport_request,external_ids", "list", "interface")


def test_clear_puts_the_port_back_exactly(lab, base):
    before, ports = control.status().state, port_rows(base)
    result = control.fault_set("vm1.guest..vm1.backend", delay_ns=1000, expose=True)
    there = control.status()
    assert there.is_healthy
    assert guest(there, "vm1")["port"]["device"] == "rr-vm1"
    assert guest(there, "vm1")["chain"] == ["vm1.guest", "vm1.relay", "vm1.backend"]
    assert result.faults[0]["carried_by"] == "vm1.relay..vm1.backend"
    assert "rr-vm1" in port_rows(base)
    assert control.fault_clear("vm1.relay..vm1.backend").faults[0]["segment"] == "vm1.guest..vm1.backend"
    after = control.status()
    assert after.state == before
    assert in_any_order(port_rows(base)) == in_any_order(ports)
    assert not iproute.link_exists("hv1", "rq-vm1")
    assert echo("vm1", guest(lab, "vm2")["ipv6"])


@pytest.mark.parametrize("after_the_move", [False, True])
def test_a_fault_that_fails_or_is_interrupted_leaves_the_port_as_it_was(lab, base, monkeypatch, after_the_move):
    before, ports = control.status().state, port_rows(base)
    move, moves = control.faults._move_port, []

    def interrupted(*arguments) -> None:
        moves.append(arguments)
        if after_the_move or len(moves) > 1:
            move(*arguments)
        if len(moves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(control.faults, "_move_port", interrupted)
    with pytest.raises(KeyboardInterrupt):
        control.fault_set("vm1.backend..vm2.backend", loss=1.0)
    assert len(moves) == 1 + after_the_move
    assert control.status().is_healthy
    assert control.status().state == before
    assert in_any_order(port_rows(base)) == in_any_order(ports)


def test_a_second_fault_in_the_same_port_replaces_the_first(lab, base):
    control.fault_set("vm1.guest..vm1.backend", loss=1.0)
    first = [record for record in recorded(base).processes if record.name == "relay-vm1"]
    result = control.fault_set("vm1.backend..vm2.backend", delay_ns=1000)
    assert result.replaced == "vm1.guest..vm1.backend"
    assert not process.is_alive(first[0])
    assert [fault["segment"] for fault in control.status().state["faults"]] == ["vm1.backend..vm2.backend"]
    assert echo("vm1", guest(lab, "vm2")["ipv4"])


def test_what_the_relay_counted_is_in_the_status(lab):
    log = fault_log(control.fault_set("vm1.backend..vm2.backend", loss=1.0))
    send("vm1", guest(lab, "vm2")["ipv4"], [marked(seq) for seq in range(10)])
    truth.wait_rows(log, 10)
    control.fault_set("vm2.backend..vm1.backend")  # takes the lock and settles nothing of vm1's
    counters = control.status().counters["vm1"]
    assert counters["marked"] == counters["dropped"] == 10


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": 1.5}, "fault loss: is 1.5"),
        ({"delay_ns": -1}, "fault delay_ns: is -1"),
        ({"seed": -1}, "fault seed"),
        ({"share": float("nan")}, "fault share"),
    ],
)
def test_numbers_out_of_range_are_refused_and_nothing_changes(lab, values, says):
    with pytest.raises(UsageError, match=says):
        control.fault_set("vm1.backend..vm2.backend", **values)
    assert control.status().state == lab.state


def test_clearing_a_segment_without_a_fault_names_those_that_have_one(lab):
    control.fault_set("vm1.backend..vm2.backend")
    with pytest.raises(UsageError, match=r"unknown faulty segment.*vm1\.backend\.\.vm2\.backend"):
        control.fault_clear("vm1.backend..vm3.backend")
