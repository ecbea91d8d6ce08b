"""Divergences that were planted, each found and named: by the finding, the rule and the place.

Network: each lab with the policy of 40 rules; what is planted is undone by taking the lab down.
"""

import socket
import subprocess
from contextlib import contextmanager

import pytest
from support.verifying import document, forty_lab

from netprobe.host.netns import in_netns
from netprobe.lab import control
from netprobe.lab.state import Places

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def ovs_lab(lab_place, tmp_path_factory):
    with forty_lab("single", tmp_path_factory.mktemp("single")) as path:
        yield path


def findings(found, kind):
    return [f for f in found["findings"] if f["kind"] == kind]


def ofctl(host, *words):
    rundir = Places.from_environment().switch(host)
    options, (name, *rest) = [w for w in words if w.startswith("--")], [w for w in words if not w.startswith("--")]
    command = ["ovs-ofctl", "-OOpenFlow15", "--timeout=5", *options, name, f"unix:{rundir}/br-int.mgmt", *rest]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def saved(host):
    """All flows of a bridge, as replace-flows takes them."""
    lines = ofctl(host, "dump-flows", "--no-stats").splitlines()
    return [line.strip() for line in lines if "actions=" in line]


@contextmanager
def flows_back(host):
    before = saved(host)
    try:
        yield
    finally:
        rundir = Places.from_environment().switch(host)
        subprocess.run(
            ["ovs-ofctl", "-OOpenFlow15", "--timeout=5", "replace-flows", f"unix:{rundir}/br-int.mgmt", "-"],
            input="\n".join(before) + "\n", check=True, text=True, timeout=10,
        )  # fmt: skip


def test_anti_spoofing_that_is_off_is_a_leak_at_the_senders_port(ovs_lab):
    with flows_back("hv1"):
        ofctl(
            "hv1", "add-flow", "table=71,priority=99,ip,reg5=1,in_port=1,actions=ct(table=72,zone=NXM_NX_REG6[0..15])"
        )
        code, found = document(ovs_lab, "--prove-rules", "0")
    leaks = findings(found, "leak")
    assert code == 1
    assert {leak["expected"] for leak in leaks} == {"be dropped at vm1 anti-spoofing"}
    assert {(leak["src"], leak["rule_id"]) for leak in leaks} == {("vm1", "anti-spoofing"), ("vm1", "dhcp")}


def test_a_rule_in_the_wrong_direction_is_an_overblock_where_it_is_missing_and_a_leak_where_it_stands(ovs_lab):
    with flows_back("hv1"):
        rules = [line for line in saved("hv1") if "table=82" in line and "reg5=0x1," in line and "tp_dst=862" in line]
        assert rules
        ofctl("hv1", "del-flows", "table=82,udp,reg5=1,tp_dst=862")
        ofctl("hv1", "del-flows", "table=82,udp6,reg5=1,tp_dst=862")
        code, found = document(ovs_lab, "--prove-rules", "1")
    (overblock, *_) = findings(found, "overblock")
    assert code == 1
    assert overblock["dst"] == "vm1"
    assert overblock["rule_id"] == "base[3]"
    assert overblock["decided"]["kind"] == "default-deny"
    assert overblock["decided"]["evidence"] == "counter-pattern"
    assert overblock["evidence"]["segment"].endswith("..vm1.backend")
    assert overblock["repeats"] >= 1  # the other family


def test_a_connection_that_outlives_its_rule_is_found_before_anything_is_sent(ovs_lab):
    """Conntrack lets answers of an established connection pass, whatever rules there are now."""
    state = {guest["name"]: guest for guest in control.status().state["guests"]}
    with flows_back("hv1"):
        # For a moment everything may enter vm3: a connection is made that the policy does not permit.
        ofctl("hv1", "add-flow", "table=82,priority=99,ct_state=+new-est,tcp,reg5=3,tp_dst=4999,"
              "actions=ct(commit,zone=NXM_NX_REG6[0..15]),output:3")  # fmt: skip
        ofctl("hv1", "add-flow", "table=82,priority=99,ct_state=+est-rel-rpl,tcp,reg5=3,tp_dst=4999,actions=output:3")
        with connection(state["vm1"], state["vm3"], 4999):
            ofctl("hv1", "del-flows", "--strict", "table=82,priority=99,ct_state=+new-est,tcp,reg5=3,tp_dst=4999")
            code, found = document(ovs_lab, "--prove-rules", "0")
    stale = [leak for leak in findings(found, "leak") if "stale conntrack" in leak["detail"]]
    assert code == 1
    assert [(one["src"], one["dst"]) for one in stale] == [("vm1", "vm3")]
    assert ":4999" in stale[0]["packet"]


@contextmanager
def connection(src, dst, port):
    def listen():
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((dst["ipv4"], port))
        listener.listen()
        return listener

    def connect():
        return socket.create_connection((dst["ipv4"], port), timeout=5)

    with in_netns(dst["netns"], listen) as listener, in_netns(src["netns"], connect) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            yield


@pytest.fixture(scope="module")
def ovn_lab(lab_place, tmp_path_factory):
    with forty_lab("pair", tmp_path_factory.mktemp("pair")) as path:
        yield path


def nbctl(*words):
    place = f"unix:{Places.from_environment().central}/ovnnb_db.sock"
    command = ["ovn-nbctl", f"--db={place}", "--timeout=10", "--wait=hv", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def test_a_flow_deleted_behind_ovns_back_is_named_with_its_acl_and_chassis(ovn_lab):
    lines = [line for line in saved("hv2") if "table=46" in line and "udp," in line and "tp_dst=862" in line]
    cookie = lines[0].partition("cookie=")[2].partition(",")[0]
    with flows_back("hv2"):
        ofctl("hv2", "del-flows", f"cookie={cookie}/-1")
        code, found = document(ovn_lab, "--prove-rules", "0")
    assert code == 1
    (divergence, *_) = findings(found, "divergence")
    assert (divergence["rule_id"], divergence["decided"]["host"]) == ("base[3]", "hv2")
    assert "862" in divergence["detail"]
    overblocks = findings(found, "overblock")
    assert overblocks
    assert {f["rule_id"] for f in overblocks} == {"base[3]"}
    assert {f["decided"]["host"] for f in overblocks} == {"hv2"}


def test_an_acl_that_another_shadows_by_priority_is_a_leak_and_the_other_one_is_named(ovn_lab):
    """The policy drops TCP ports 1023 and 1024 above all groups; somebody allows 1024 above that."""
    match = "outport == @pg_all && tcp.dst == 1024"
    nbctl("--name=shadow", "acl-add", "pg_all", "to-lport", "2500", match, "allow-related")
    try:
        code, found = document(ovn_lab, "--prove-rules", "1")
    finally:
        nbctl("acl-del", "pg_all", "to-lport", "2500", match)
    leaks = findings(found, "leak")
    assert code == 1
    assert leaks
    assert {leak["rule_id"] for leak in leaks} <= {"no telnet", "default deny"}
    assert all(":1024" in leak["packet"] for leak in leaks)
    assert all("shadow" in leak["decided"]["rule"] for leak in leaks)
    assert leaks[0]["decided"]["evidence"] == "counter-pattern", leaks[0]["decided"]["detail"]
