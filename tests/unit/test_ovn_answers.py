"""What OVN's rules say of a policy's packet: traces and rows of OVN 23.03.1 on two chassis, recorded."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.ovn_rows import FakeDatabases
from support.state_files import OLD

from netprobe.host.ovn_rule_index import OvnRuleIndex
from netprobe.judge.ofproto_trace import Trace, parse_trace
from netprobe.judge.trace_answer import arrives, ovn_answer
from netprobe.model.model_answers import ModelQuestion
from netprobe.model.packets import SYN, ConnState, EnforcementPoint, Kind, Packet, Stage
from netprobe.model.topology import OvnPlaces
from netprobe.service.discovery import topology_of

DATA = Path(__file__).parent / "data"
BRIDGE = "br-int"
ADMITTED = json.loads((DATA / "ovn_rows_admitted.json").read_text())
VM1 = topology_of(OLD).guests[0]
VM2 = replace(VM1, name="vm2", mac="fa:16:3e:00:00:02")
PACKET = Packet(VM1.mac, VM2.mac, ip_address("10.1.0.1"), ip_address("10.1.0.2"), 6, 61000, 80, tcp_flags=SYN)


def trace(name):
    return parse_trace((DATA / f"trace_ovn_{name}.txt").read_text())


def index(client=None):
    return OvnRuleIndex(OvnPlaces("unix:/nb", "unix:/sb"), client=client or FakeDatabases())


def answer(name, rules=None, kind=Kind.IP, to="", client=None):
    """As service.policy_models makes it; `to` is the device that the packet should go to."""
    found = trace(name)
    dst = replace(VM2, port_device=to or next(iter(found.ports), "tapvm2"))
    question = ModelQuestion(replace(PACKET, kind=kind), VM1, dst, ConnState.NEW)
    book = index(client)
    look_up = book.admitted if arrives(found, dst.port_device) else book.decide
    return ovn_answer(found, look_up(found, BRIDGE), rules or {}, question, "hv2")


@pytest.mark.parametrize(
    ("name", "kind", "stage"),
    [
        ("far_deny", "acl", Stage.INGRESS),
        ("far_reject", "acl", Stage.INGRESS),
        ("far_acl", "acl", Stage.INGRESS),
        ("near_acl", "acl", Stage.EGRESS),
        ("port_security", "anti-spoofing", Stage.ANTI_SPOOFING),
        ("invalid", "conntrack-invalid", None),
    ],
)
def test_a_drop_names_stage_and_point(name, kind, stage):
    found = answer(name, to="nowhere")
    assert (found.is_allowed, found.kind) == (False, kind)
    assert found.place.startswith("stage ls_")
    assert found.rule
    if stage is not None:
        assert found.point == EnforcementPoint("vm2" if stage is Stage.INGRESS else "vm1", stage)


def test_a_reject_says_that_the_sender_is_told():
    assert "its sender is told" in answer("far_reject", to="nowhere").detail


def test_what_arrives_names_the_last_acl_that_let_it_in():
    """A lab's vm1 to vm2, TCP 80, at the second of two switches; the ACL has a name, and the lab says what it is."""
    found = answer("admitted", client=FakeDatabases(ADMITTED))
    assert (found.is_allowed, found.point) == (True, EnforcementPoint("vm2", Stage.INGRESS))
    assert found.place == "stage ls_out_acl of net1"
    assert (found.rule_id, found.priority) == ("web: ingress tcp dport 80 from any", 2002)
    rules = {found.rule_id: {"id": "web[1]", "rule": "ingress tcp dport 80 from any", "kind": "security-group"}}
    named = answer("admitted", rules, client=FakeDatabases(ADMITTED))
    assert (named.rule_id, named.kind) == ("web[1]", "security-group")


def test_the_users_rule_goes_before_ovns_words():
    plain = answer("far_deny", to="nowhere")
    rules = {plain.rule_id: {"id": "mine[0]", "rule": "my rule", "kind": "default-deny"}}
    found = answer("far_deny", rules, to="nowhere")
    assert (found.rule_id, found.rule, found.kind) == ("mine[0]", "my rule", "default-deny")


def test_a_packet_that_goes_elsewhere_is_not_blamed_on_an_acl():
    found = answer("admitted", to="tapother", client=FakeDatabases(ADMITTED))
    assert (found.is_allowed, found.kind, found.rule) == (False, "forwarded-elsewhere", "")


def test_a_trace_that_cannot_be_read_says_nothing():
    question = ModelQuestion(PACKET, VM1, VM2, ConnState.NEW)
    assert ovn_answer(Trace(), None, {}, question, "hv1").is_allowed is None


def test_a_tunnel_that_is_down_is_no_verdict():
    found = answer("no_neighbour", to="nowhere")
    assert (found.is_allowed, "tunnel is down" in found.detail) == (None, True)


def test_what_was_asked_once_is_not_asked_again():
    """A second trace through the same rules costs no question; a new batch asks only for what is new."""
    client = FakeDatabases()
    book = index(client)
    first = book.decide(trace("far_deny"), BRIDGE)
    asked = len(client.commands)
    assert asked
    assert book.decide(trace("far_deny"), BRIDGE) == first
    assert len(client.commands) == asked
    book.begin()
    book.decide(trace("far_deny"), BRIDGE)
    assert len(client.commands) <= asked + 1  # only the name of its switch


def test_the_stages_of_a_trace_are_learned_once():
    client = FakeDatabases(ADMITTED)
    book = index(client)
    first = book.admitted(trace("admitted"), BRIDGE)
    asked = len(client.commands)
    assert book.admitted(trace("admitted"), BRIDGE) == first
    assert len(client.commands) == asked
    book.begin()
    assert book.admitted(trace("admitted"), BRIDGE) == first
    assert len(client.commands) <= asked + 1


def test_an_arp_request_that_goes_back_was_answered_by_ovn():
    found = trace("admitted")
    question = ModelQuestion(
        replace(PACKET, kind=Kind.ARP), replace(VM1, port_device=found.ports[0]), VM2, ConnState.NEW
    )
    said = ovn_answer(found, None, {}, question, "hv1")
    assert (said.is_allowed, said.kind) == (False, "answered")
