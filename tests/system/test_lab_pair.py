"""The lab `pair` for real: traffic across hypervisors as groups and router say, and a fault in each of 7 segments."""

import contextlib
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from itertools import pairwise
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
    look_at,
    marked,
    receiver,
    send,
    send_frames,
    udp_frame,
    watching,
)
from support.waiting import until

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import iproute, netns, ovn_central, process
from netprobe.lab import control, state, truth

pytestmark = pytest.mark.system

GUESTS = ("vm1", "vm2", "vm3", "vm4", "ext1")
NAMESPACES = ("hv1", "hv2", "fabric", "central", "byp1", "byp2", *GUESTS)
THERE = ["vm1.guest", "vm1.backend", "hv1.nic", "fabric.hv1", "fabric.hv2", "hv2.nic", "vm2.backend", "vm2.guest"]
BACK = THERE[::-1]


@pytest.fixture(scope="module", autouse=True)
def base(lab_place):
    """The system tests' run directory, and a lab that is gone at the end."""
    return lab_place


def central(base: Path) -> ovn_central.PrivateCentral:
    return ovn_central.PrivateCentral("central", base / "lab" / "central")


def recorded(base: Path) -> state.State:
    return state.load(base / "lab" / "state.json")


def assert_nothing_left(base: Path, before: state.State) -> None:
    assert not [name for name in NAMESPACES if netns.exists(name)]
    assert not [record.name for record in before.processes if process.is_alive(record)]
    assert process.find({record.argv for record in before.processes}, base) == ([], [])
    assert not (base / "lab").exists()
    assert not (base / "lab.lock").exists()


def points(lab: control.LabStatus, names: list[str]) -> list[dict]:
    by_id = {point["id"]: point for point in lab.state["points"]}
    return [by_id[name] for name in names]


# --- traffic


def test_up_says_how_long_it_took(base):
    control.down()
    status = control.up("pair")
    print(f"lab pair is up, with the first pings across, after {status.seconds:.2f} s")
    assert control.status().is_healthy
    assert echo("vm1", guest(status, "vm2")["ipv4"], wait_s=QUIET_S)


def test_guests_say_nothing_by_themselves(base):
    """Not even listener reports, which would come within a second."""
    control.down()
    status = control.up("pair")
    with contextlib.ExitStack() as stack:
        names = [f"{name}.guest" for name in ("vm1", "vm2", "vm3", "vm4", "bypass1", "bypass2")]
        sockets = [stack.enter_context(look_at(point)) for point in points(status, names)]
        assert select.select(sockets, [], [], 1.2)[0] == []


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("source", ["vm1", "vm2", "vm4", "ext1", "byp1", "byp2"])
def test_no_first_packet_is_lost_on_any_way(pair_lab, source, family):
    for name in GUESTS:
        assert echo(source, guest(pair_lab, name)[family], wait_s=WAIT_S), name


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("target", ["vm2", "vm4"])
def test_tcp_80_passes_and_8080_is_dropped_across_hypervisors_and_routed(pair_lab, target, family):
    address = guest(pair_lab, target)[family]
    with listener(target, 80), listener(target, 8080):
        assert connect("vm1", address, 80, WAIT_S) == "open"
        assert connect("vm1", address, 8080, QUIET_S) == "dropped"


def test_members_of_a_group_reach_each_other_and_others_do_not(pair_lab):
    assert connect("vm3", guest(pair_lab, "vm1")["ipv4"], 8080, WAIT_S) == "refused"
    assert connect("byp1", guest(pair_lab, "vm3")["ipv6"], 8080, WAIT_S) == "refused"
    assert connect("vm2", guest(pair_lab, "vm3")["ipv4"], 8080, QUIET_S) == "dropped"


def test_a_spoofed_address_is_dropped_and_the_ports_own_passes(pair_lab):
    """The honest frame is sent last: when it is there, the spoofed ones would have been."""
    mine, other, target = (guest(pair_lab, name) for name in ("vm1", "vm3", "vm2"))
    frames = [
        udp_frame(mine | {"ipv4": other["ipv4"]}, target, b"ip"),
        udp_frame(mine | {"mac": other["mac"]}, target, b"mac"),
        udp_frame(mine, target, b"honest"),
    ]
    with receiver("vm2", 5000) as sock:
        sock.settimeout(WAIT_S)
        send_frames("vm1", frames)
        assert sock.recv(100) == b"honest"


@pytest.mark.parametrize("source", ["vm1", "vm2", "vm4"])
def test_behind_nat_is_what_the_outside_sees(pair_lab, source):
    with receiver("ext1", 5000) as sock:
        sock.settimeout(WAIT_S)
        send(source, guest(pair_lab, "ext1")["ipv4"], [b"x"])
        assert guest(pair_lab, source)["behind_nat"] == {"ext": sock.recvfrom(10)[1][0]}


def test_a_floating_address_leads_to_its_guest_which_sees_the_true_source(pair_lab):
    floating = guest(pair_lab, "vm1")["floating"]
    assert echo("ext1", floating)
    assert echo("vm2", floating)
    seen: list[str] = []

    def look() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(WAIT_S)
            assert echo("ext1", floating)
            seen.append(sock.recvfrom(100)[1][0])

    netns.in_netns("vm1", look)
    assert seen == [guest(pair_lab, "ext1")["ipv4"]]


def test_the_provider_network_is_a_vlan_on_the_underlay_and_the_others_are_tunnelled(pair_lab):
    """Frames for ext1 cross the fabric as they are; frames for vm2 inside a tunnel, which a plain look doesn't find."""
    with watching(points(pair_lab, ["fabric.hv1"])) as seen:
        assert echo("vm1", guest(pair_lab, "vm2")["ipv4"], marked(1), seq=1)
        assert echo("vm1", guest(pair_lab, "ext1")["ipv4"], marked(2), seq=2)
        assert seen() == {"fabric.hv1": [1, 2]}


# --- state file, OVN


def test_the_state_file_names_what_exists(pair_lab, base):
    document = json.loads((base / "lab" / "state.json").read_text())
    assert document.items() <= pair_lab.to_json().items()
    for point in document["points"]:
        assert point["kind"] == "vswitch" or iproute.link_exists(point["netns"], point["device"])
    for end in (*document["guests"], *document["bypasses"]):
        assert Path(end["agent"]).is_socket()
    for host in document["hosts"]:
        assert Path(host["allowlist"]).stat().st_mode & 0o777 == 0o600
        assert Path(host["ovs_rundir"], "db.sock").is_socket()
    for remote in document["ovn"].values():
        assert Path(remote.removeprefix("unix:")).is_socket()


def test_ovn_has_the_rules_and_ports_of_the_state_file(pair_lab, base):
    names = central(base).nbctl("--bare", "--columns=name", "list", "acl").split("\n")
    rules = pair_lab.state["rules"]
    assert {name for name in names if name} == {name for name in rules if not name.startswith("port security of ")}
    ports = central(base).sbctl("--bare", "--columns=logical_port", "find", "port_binding", "up=true").split()
    ends = (*pair_lab.state["guests"], *pair_lab.state["bypasses"])
    assert {end["port"]["iface_id"] for end in ends} <= set(ports)


def test_a_hypervisor_without_its_management_link_still_forwards(pair_lab):
    """The underlay is apart from it; and the link of one hypervisor can be cut alone."""
    iproute.batch(["link set mgmt0 down"], netns="hv1")
    try:
        assert not echo("hv1", pair_lab.state["management"]["ip"], wait_s=QUIET_S)
        assert echo("hv2", pair_lab.state["management"]["ip"])
        assert echo("vm1", guest(pair_lab, "vm2")["ipv4"])
    finally:
        iproute.batch(["link set mgmt0 up"], netns="hv1")
    assert until(lambda: echo("hv1", pair_lab.state["management"]["ip"], wait_s=QUIET_S))


# --- faults


def pairs(way: list[str]) -> list[tuple[list[str], int]]:
    return [(way, number) for number in range(len(way) - 1)]


def segment(way: list[str], number: int) -> str:
    return f"{way[number]}..{way[number + 1]}"


@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize(("way", "number"), [*pairs(THERE), *pairs(BACK)])
def test_a_fault_is_between_the_two_points_of_its_segment(pair_lab, way, number, expose):
    """Everything is lost there: seen at each point up to the first of the two, and at none after it."""
    names = [way[0].partition(".")[0], way[-1].partition(".")[0]]
    target = guest(pair_lab, names[1])["ipv4" if number % 2 else "ipv6"]
    assert echo(names[0], target)  # the address is resolved before frames can be lost
    log = control.fault_set(segment(way, number), loss=1.0, expose=expose).faults[0]["log"]
    with watching(points(control.status(), way)) as seen:
        for seq in range(5):
            assert not echo(names[0], target, marked(seq), seq=seq, wait_s=0.001)
        rows = truth.wait_rows(log, 5)
        there = seen()
    assert rows["seq"].tolist() == [0, 1, 2, 3, 4]
    assert set(rows["fate"].tolist()) == {truth.FATE_DROPPED}
    assert [len(there[name]) for name in way] == [5] * (number + 1) + [0] * (7 - number)


@pytest.mark.parametrize("number", range(7))
def test_what_arrives_is_what_the_truth_log_says(pair_lab, number):
    """200 probes: the lost, the doubled and the delayed are those of the log, one by one."""
    log = control.fault_set(segment(THERE, number), delay_ns=200_000, loss=0.1, duplicate=0.1, seed=5).faults[0]["log"]
    with receiver("vm2", 5000) as sock:
        send("vm1", guest(pair_lab, "vm2")["ipv4"], [marked(seq) for seq in range(200)], gap_s=0.0005)
        got = [struct.unpack("!I", data[8:12])[0] for data in drain(sock)]
    rows = truth.wait_rows(log, 200)
    by_fate = {fate: rows["seq"][rows["fate"] == fate].tolist() for fate in (0, 1, 2)}
    assert sorted(by_fate[0] + by_fate[1]) == list(range(200))
    assert by_fate[0]
    assert by_fate[2]
    assert sorted(got) == sorted(by_fate[1] + by_fate[2])
    sent = rows[rows["fate"] > 0]
    assert (sent["t_out_ns"] - sent["t_in_ns"] >= sent["delay_ns"]).all()
    assert set(rows["session"].tolist()) == {7}


@pytest.mark.parametrize(
    ("where", "hit", "spared"),
    [
        ("vm1.backend..hv1.nic", ["vm2", "vm4", "ext1", "bypass2"], ["vm3", "bypass1"]),
        ("vm4.backend..hv2.nic", ["vm1", "vm3", "ext1"], ["vm2", "bypass2"]),
        ("hv2.nic..vm2.backend", ["vm2"], ["vm4", "ext1", "bypass2"]),
        ("hv2.nic..ext1.backend", ["ext1"], ["vm2", "vm4"]),
        ("vm2.backend..vm4.backend", ["vm4"], ["bypass2", "vm1"]),
    ],
)
def test_a_fault_hits_those_frames_alone(pair_lab, where, hit, spared):
    """Routed ones too, which carry the router's MAC; ext1 is reached through the gateway, from vm4's own hypervisor."""
    source = where.partition(".")[0].replace("hv2", "vm1")
    control.fault_set(where, loss=1.0)
    for name in spared:
        assert echo(source, guest(pair_lab, name)["ipv4"]), name
    for name in hit:
        assert not echo(source, guest(pair_lab, name)["ipv4"], wait_s=0.1), name


def test_a_fault_hits_what_is_sent_to_a_floating_address(pair_lab):
    floating = guest(pair_lab, "vm1")["floating"]
    log = control.fault_set("hv1.nic..vm1.backend", loss=1.0).faults[0]["log"]
    assert not echo("ext1", floating, marked(1), wait_s=0.1)
    assert truth.wait_rows(log, 1)["seq"].tolist() == [1]


def test_several_relays_keep_up_with_a_thousand_probes_a_second(pair_lab):
    """Three at once on one way, each with a fault: every probe is in every log, and the delays add up."""
    places = [segment(THERE, 0), segment(THERE, 3), segment(THERE, 5)]
    logs = [control.fault_set(place, delay_ns=1_000_000).faults[0]["log"] for place in places]
    assert len(control.status().state["faults"]) == 3
    with receiver("vm2", 5000) as sock:
        send("vm1", guest(pair_lab, "vm2")["ipv4"], [marked(seq) for seq in range(1000)], gap_s=0.001)
        assert len(drain(sock)) == 1000
    rows = [truth.wait_rows(log, 1000) for log in logs]
    assert [row["seq"].tolist() for row in rows] == [list(range(1000))] * 3
    assert (rows[2]["t_out_ns"] - rows[0]["t_in_ns"] >= 3_000_000).all()
    assert {counted["kernel_dropped"] for counted in control.status().counters.values()} == {0}


@pytest.mark.alone(reason="2,000 packets a second, of which none may be lost")
@pytest.mark.parametrize("place", [segment(THERE, 0), segment(THERE, 6)])
def test_nothing_is_lost_any_more_when_a_fault_was_set_or_cleared(pair_lab, place):
    """OVN has bound the port anew before the command ends."""
    address, is_over, sent, afterwards = guest(pair_lab, "vm2")["ipv4"], threading.Event(), [], set()  # sent: times

    def keep_sending() -> None:
        with netns.in_netns("vm1", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as out:
            while not is_over.wait(0.0005):
                sent.append(time.monotonic())
                out.sendto(marked(len(sent) - 1), (address, 5000))

    with receiver("vm2", 5000) as sock:
        thread = threading.Thread(target=keep_sending)
        thread.start()
        for change in (lambda: control.fault_set(place), control.fault_clear) * 3:
            change()
            end, count = time.monotonic(), len(sent)
            until(lambda count=count: len(sent) > count + 100)
            afterwards |= {seq for seq in range(count, count + 100) if sent[seq] > end}
        is_over.set()
        thread.join()
        arrived = {struct.unpack("!I", data[8:12])[0] for data in drain(sock)}
    assert afterwards <= arrived


def test_clear_puts_every_port_back(pair_lab):
    before = control.status().state
    for number in range(7):
        control.fault_set(segment(THERE, number), expose=True)
    there = control.status()
    assert there.is_healthy
    assert there.state["hosts"][1]["uplink"] == ["hv2.relay", "hv2.nic", "relay.hv2", "fabric.hv2"]
    control.fault_clear()
    assert control.status().state == before
    assert iproute.master("fabric", "port1") == iproute.master("fabric", "port2") == "br-fab"
    assert not iproute.link_exists("hv2", "rr-und")
    assert echo("vm1", guest(pair_lab, "vm2")["ipv4"])


# --- move


def test_a_moved_guest_is_bound_on_the_other_hypervisor_and_reached_there(pair_lab, base):
    before = guest(pair_lab, "vm1")
    agent = next(record for record in recorded(base).processes if record.name == "agent-vm1")
    result = control.move("vm1", "hv2").to_json()
    assert (result["guest"], result["from"], result["to"]) == ("vm1", "hv1", "hv2")
    print(f"moved in {result['seconds']} s")
    status = control.status()
    assert status.is_healthy
    assert guest(status, "vm1") == before | {"host": "hv2"}
    assert points(status, ["vm1.backend"])[0] == {
        "id": "vm1.backend",
        "kind": "backend",
        "host": "hv2",
        "netns": "hv2",
        "device": "tapvm1",
    }
    assert process.is_alive(agent)
    for name in ("vm2", "vm3", "vm4", "ext1"):
        assert echo("vm1", guest(status, name)["ipv4"]), name
        assert echo(name, before["ipv6"]), name
    assert echo("ext1", before["floating"])
    log = control.fault_set("vm1.backend..vm2.backend", loss=1.0).faults[0]["log"]  # they are neighbours now
    assert not echo("vm1", guest(status, "vm2")["ipv4"], marked(1), wait_s=0.05)
    assert len(truth.wait_rows(log, 1)) == 1


@pytest.mark.alone(reason="a time is claimed")
def test_a_move_interrupts_traffic_for_less_than_half_a_second(pair_lab):
    """The guest's neighbours are still known afterwards: asking anew would take a second."""
    arrived = []
    with receiver("vm2", 5000) as sock:

        def receive() -> None:
            with contextlib.suppress(TimeoutError):
                while True:
                    sock.recv(100)
                    arrived.append(time.monotonic())

        sock.settimeout(2 * QUIET_S)
        threads = [
            threading.Thread(
                target=send,
                args=("vm1", guest(pair_lab, "vm2")["ipv4"], [marked(seq) for seq in range(700)]),
                kwargs={"gap_s": 0.002},
            ),
            threading.Thread(target=receive),
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(arrived) > 50)
        control.move("vm1", "hv2")
        for thread in threads:
            thread.join()
    gap_s = max(later - earlier for earlier, later in pairwise(arrived))
    print(f"nothing arrived for {gap_s:.3f} s")
    assert len(arrived) > 350
    assert gap_s < 0.5


def test_a_guest_on_the_provider_network_can_be_moved(pair_lab):
    control.move("ext1", "hv1")
    assert echo("vm2", guest(pair_lab, "ext1")["ipv4"])
    assert echo("ext1", guest(pair_lab, "vm1")["floating"])


def test_a_move_to_where_it_is_changes_nothing(pair_lab):
    assert control.move("vm1", "hv1").old_host == "hv1"
    assert control.status().state == pair_lab.state


@pytest.mark.parametrize(
    ("name", "host", "says"),
    [
        ("vm9", "hv1", "unknown guest 'vm9'"),
        ("vm1", "hv3", "unknown hypervisor 'hv3'"),
        ("bypass1", "hv2", "probe NIC"),
    ],
)
def test_a_move_that_cannot_be_is_refused(pair_lab, name, host, says):
    with pytest.raises(UsageError, match=says):
        control.move(name, host)
    assert control.status().state == pair_lab.state


@pytest.mark.parametrize("where", ["vm1.guest..vm1.backend", "vm3.backend..vm1.backend", "vm2.backend..hv2.nic"])
def test_a_move_with_a_fault_that_knows_where_the_guest_is_is_refused(pair_lab, where):
    control.fault_set(where)
    with pytest.raises(UsageError, match=rf"a fault is in {where}.*fault clear {where}"):
        control.move("vm1", "hv2")
    assert guest(control.status(), "vm1")["host"] == "hv1"


# --- up, down, and what may die in between


def test_one_lab_at_a_time(pair_lab):
    with pytest.raises(UsageError, match=r"lab single: lab pair is up. Run `netprobe lab down` first"):
        control.up("single")
    assert control.status().state == pair_lab.state


def test_up_twice_says_that_it_is_up_and_changes_nothing(pair_lab, base):
    before = recorded(base)
    assert control.up("pair").was_up
    assert recorded(base) == before


@pytest.mark.parametrize("victim", ["hv2 ovn-controller", "central ovn-northd", "central ovsdb-server sb"])
def test_after_a_kill_9_up_says_what_is_broken_and_repairs_it(pair_lab, base, victim):
    before = recorded(base)
    process.end([record for record in before.processes if record.name == victim], force=True)
    assert any(victim in problem for problem in control.status().problems)
    assert any(victim in problem for problem in control.up("pair").repaired)
    assert not [record for record in before.processes if process.is_alive(record)]
    assert echo("vm1", guest(control.status(), "vm2")["ipv4"])


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


@pytest.mark.parametrize("step", ["_make_links", "_make_central", "_start_agent", "start_controller", "_settle"])
def test_an_up_that_is_killed_half_way_is_cleaned_up_by_down(base, step):
    control.down()
    die("build", step, "up('pair')")
    before = recorded(base)
    assert control.status().problems == ("it was left half-made",)
    assert control.down().was_up
    assert_nothing_left(base, before)


def test_a_move_that_is_killed_half_way_is_noticed_and_repaired(pair_lab):
    die("moving", "port_spec", "move('vm1', 'hv2')")
    assert control.status().problems == ("the move of vm1 was left half-made",)
    with pytest.raises(HostNotReadyError, match="half-made"):
        control.move("vm1", "hv2")
    assert control.up("pair").repaired
    assert guest(control.status(), "vm1")["host"] == "hv1"
    assert echo("vm1", guest(pair_lab, "vm2")["ipv4"])


@pytest.mark.parametrize("place", ["fabric.hv1..fabric.hv2", "hv2.nic..vm2.backend"])
@pytest.mark.parametrize("step", ["_start_relay", "_move_port"])
def test_a_fault_on_the_underlay_that_is_killed_half_way_is_noticed_and_repaired(pair_lab, place, step):
    die("faults", step, f"fault_set({place!r})")
    assert any("half-made" in problem or "is gone" in problem for problem in control.status().problems)
    assert control.up("pair").repaired


@pytest.mark.parametrize("place", ["fabric.hv1..fabric.hv2", "hv2.nic..vm2.backend"])
@pytest.mark.parametrize("after_the_move", [False, True])
def test_a_fault_on_the_underlay_that_is_interrupted_leaves_the_port_as_it_was(
    pair_lab, monkeypatch, place, after_the_move
):
    before, move, moves = control.status().state, control.faults._move_port, []

    def interrupted(*arguments) -> None:
        moves.append(arguments)
        if after_the_move or len(moves) > 1:
            move(*arguments)
        if len(moves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(control.faults, "_move_port", interrupted)
    with pytest.raises(KeyboardInterrupt):
        control.fault_set(place, loss=1.0)
    assert len(moves) == 1 + after_the_move
    assert control.status().state == before
    assert echo("vm1", guest(pair_lab, "vm2")["ipv4"])


def test_down_leaves_nothing(pair_lab, base):
    control.fault_set("fabric.hv1..fabric.hv2", delay_ns=1000)
    before = recorded(base)
    began = time.monotonic()
    assert control.down().was_up
    print(f"down after {time.monotonic() - began:.2f} s")
    assert_nothing_left(base, before)
