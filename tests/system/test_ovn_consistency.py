"""Flows deleted behind OVN's back, on a real chassis: each is missed and named, and nothing else ever is."""

import subprocess

import pytest

from netprobe.host import ovn_consistency
from netprobe.host.ovn_consistency import OvnConsistency, dump_flows
from netprobe.service.discovery import read_topology

pytestmark = pytest.mark.system


@pytest.fixture
def host(pair_lab, tmp_path):
    """The second hypervisor; its flows are as they were afterwards."""
    host = read_topology().host("hv2")
    saved = tmp_path / "flows"
    saved.write_text("\n".join(line for line in dump_flows(host).splitlines() if " actions=" in line))
    yield host
    ofctl(host, "replace-flows", str(saved))
    assert check() == []


def ofctl(host, command, *words):
    place = f"{host.ovs_rundir}/{host.bridge}.mgmt"
    options = ["ovs-ofctl", "-OOpenFlow15", "--timeout=10"]
    subprocess.run([*options, command, place, *words], check=True, capture_output=True, timeout=10)


def check():
    topology = read_topology()
    return OvnConsistency(topology.ovn).check(topology.hosts)


def key_of(host, device_match):
    """reg15 and metadata of vm2 on its chassis, as its port security has them."""
    flows = dump_flows(host).splitlines()
    line = next(line for line in flows if "table=73" in line and device_match in line)
    words = dict(word.partition("=")[::2] for word in line.replace(" ", ",").split(","))
    return words["reg14"], words["metadata"], words["cookie"]


def test_a_healthy_chassis_lacks_nothing(pair_lab):
    assert check() == []


def test_a_whole_acl_that_is_gone_is_named(host):
    name = "web: ingress tcp dport 80 from any"
    rows = OvnConsistency(read_topology().ovn)
    acl = next(
        one for one in rows._wanted().flows if one.flow.stage == "ls_out_acl" and "tcp.dst == 80" in one.flow.match
    )
    ofctl(host, "del-flows", f"cookie=0x{acl.flow.uuid[:8]}/-1")
    found = check()
    assert found
    assert {one.host for one in found} == {"hv2"}
    assert {one.row.name for one in found} <= {name, "web[1]"}
    assert all(one.found.flow.uuid == acl.flow.uuid for one in found)


def test_one_flow_of_one_port_that_is_gone_is_named(host):
    reg, metadata, _cookie = key_of(host, "10.1.0.2 ")
    match = f"table=46,priority=2002,tcp6,reg0=0x80/0x80,reg15={reg},metadata={metadata},tp_dst=80"
    ofctl(host, "del-flows", match, "--strict")
    (found,) = check()
    assert "tcp6" in found.found.detail
    vm2 = read_topology().guest("vm2", "test")
    assert found.found.ports == (vm2.iface_id,)


def test_port_security_that_is_gone_is_named_by_its_port(host):
    _reg, _metadata, cookie = key_of(host, "10.1.0.2 ")
    ofctl(host, "del-flows", f"cookie={cookie}/-1,table=73")
    (found,) = check()
    assert found.found.ports == (read_topology().guest("vm2", "test").iface_id,)
    assert "port security" in found.text


def test_a_flow_that_somebody_added_is_told(host):
    _reg, metadata, _cookie = key_of(host, "10.1.0.2 ")
    ofctl(
        host, "add-flow", f"cookie=0x77,table=46,priority=9999,tcp,metadata={metadata},tp_dst=99 actions=resubmit(,47)"
    )
    (found,) = check()
    assert found.found.lack.value == "extra"


def test_what_was_only_on_its_way_is_left_out(host, monkeypatch):
    """Put back between the two reads: nothing is told."""
    _reg, _metadata, cookie = key_of(host, "10.1.0.2 ")
    text = dump_flows(host)
    saved = "\n".join(line for line in text.splitlines() if cookie not in line)
    answers = [saved, text]
    monkeypatch.setattr(
        ovn_consistency, "dump_flows", lambda one: answers.pop(0) if answers and one.name == "hv2" else dump_flows(one)
    )
    assert check() == []
    assert answers == []
