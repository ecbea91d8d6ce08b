"""Losses inside a hybrid bridge are explained by iptables' rules, and by nothing that was not read."""

from dataclasses import replace

import pytest
from support.clouds import pair

from netprobe.errors import HostNotReadyError
from netprobe.judge.iptables_rules import parse_rules, parse_sets
from netprobe.model.points import Point, PointKind
from netprobe.model.probes import Protocol
from netprobe.plan.plans import SessionPlan
from netprobe.service.bridge_models import HostRules
from netprobe.service.bridge_reasons import bridge_reason
from netprobe.service.prepare import prepare_session

RULES = """*filter
:FORWARD ACCEPT [0:0]
:neutron-openvswi-FORWARD - [0:0]
:neutron-openvswi-i123 - [0:0]
:neutron-openvswi-sg-fallback - [0:0]
-A FORWARD -j neutron-openvswi-FORWARD
-A neutron-openvswi-FORWARD -m physdev --physdev-out tapvm2 --physdev-is-bridged -j neutron-openvswi-i123
-A neutron-openvswi-i123 -p tcp -m tcp --dport 80 -m comment --comment "web[0]" -j RETURN
-A neutron-openvswi-i123 -m comment --comment "default-deny vm2 ingress" -j neutron-openvswi-sg-fallback
-A neutron-openvswi-sg-fallback -j DROP
COMMIT
"""
MEANING = {"default-deny vm2 ingress": {"rule": "default deny", "kind": "default-deny", "id": "x", "port": "vm2"}}


def hybrid():
    """The pair's cloud with its guests behind bridges."""
    cloud = pair()

    def with_bridge(one):
        backend = replace(one.chain[1], device=f"tap{one.name}")
        bridge = Point(f"{one.name}.bridge", PointKind.BRIDGE, one.host, "", f"qvb{one.name}")
        return replace(one, chain=(one.chain[0], backend, bridge))

    return replace(cloud, guests=tuple(map(with_bridge, cloud.guests)), rules=MEANING)


def host_rules(text=RULES):
    rules = parse_rules(text)
    return lambda _host: HostRules({4: rules, 6: rules}, parse_sets(""), parse_rules(""))


def ask(port, *, read=None, first=2, second=1, end="vm2"):
    cloud = hybrid()
    plan = SessionPlan(name="s", src="vm1", dst="vm2", count=3, rate_pps=100, protocol=Protocol.TCP, dst_port=port)
    one = prepare_session(plan, cloud, seed=1, session=7, port_source=lambda *_: range(61000, 61003))
    chain = cloud.guest(end, "test").chain
    return bridge_reason(one, 0, (chain[first], chain[second]), cloud, read=read or host_rules())


def test_the_rule_that_drops_is_named_with_its_chain():
    reason = ask(8080)
    assert (reason.code.value, reason.rule, reason.chassis) == ("security-group", "default deny", "hv2")
    assert "neutron-openvswi-i123" in reason.detail


def test_what_the_rules_let_pass_was_lost_on_the_link():
    reason = ask(80)
    assert reason.code.value == "link-loss"
    assert "lost outside its rules" in reason.detail


def test_a_port_is_found_by_its_chains_where_another_device_stands_for_its_tap():
    chain = f"neutron-openvswi-i{hybrid().guest('vm2', 'test').iface_id[:10]}"
    reason = ask(8080, read=host_rules(RULES.replace("neutron-openvswi-i123", chain).replace("tapvm2", "rr-vm2")))
    assert (reason.code.value, reason.rule) == ("security-group", "default deny")


def test_a_port_that_no_rule_names_is_not_judged():
    reason = ask(8080, read=host_rules(RULES.replace("tapvm2", "rr-vm2")))
    assert reason.code.value == "unknown"
    assert "no rule of iptables on hv2 names tapvm2" in reason.detail


def test_rules_that_cannot_be_read_are_said():
    def read(_host):
        raise HostNotReadyError("iptables-save", "is not installed")

    reason = ask(8080, read=read)
    assert reason.code.value == "unknown"
    assert "could not be read: iptables-save: is not installed" in reason.detail


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_elsewhere_no_bridge_is_asked(first, second):
    assert ask(8080, first=first, second=second) is None
