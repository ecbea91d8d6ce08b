"""Why a probe was dropped on its way across hosts under OVN: the rule that is named is the one that dropped it.

Network: the lab `pair`, vm1 on hv1, vm2 and vm4 on hv2, ext1 on hv2 behind the router's NAT. Each test makes OVN drop
in one place, and the reason must name exactly that, on the host that decided, proved by the rule's own counter.
"""

import subprocess
from contextlib import contextmanager

import pytest
import trio
from support.tenants import datagrams

from netprobe.lab import control
from netprobe.model.probes import Protocol
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.discovery import read_topology
from netprobe.service.run import run_plan

pytestmark = pytest.mark.system

MS = 1_000_000
COUNT = 30
DENY = "default deny: no ingress rule allows it"


def run(**changes):
    """One session; its result."""
    given = {"name": "s", "src": "vm1", "dst": "vm2", "count": COUNT, "rate_pps": 500} | changes
    plan = RunPlan("reasons", (SessionPlan(**given),), tmax_ns=300 * MS)
    return trio.run(run_plan, plan, read_topology()).results[0]


def nbctl(*words):
    """One transaction on OVN's northbound database, until both hosts have taken it over."""
    command = ["ovn-nbctl", "--timeout=20", f"--db={read_topology().ovn.northbound}", "--wait=hv", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@contextmanager
def changed(words, undo):
    """OVN with a change in it, and without it afterwards."""
    nbctl(*words)
    try:
        yield
    finally:
        nbctl(*undo)


def acl(direction, match, action, *options):
    """An ACL of the port group of all ports, above all others."""
    where = ["pg_all", direction, "1500", match]
    return changed([*options, "acl-add", *where, action], ["acl-del", *where])


def uuid_of(table, condition):
    return nbctl("--bare", "--columns=_uuid", "find", table, condition)[:8]


def port(name):
    return read_topology().guest(name, "test").iface_id


def lost_between(result, first, second):
    """Every probe was lost there."""
    leg = result.forward
    assert (leg.delivered, leg.lost, leg.unobserved) == (0, COUNT, 0)
    assert (leg.last_seen, leg.first_missing) == (first, second)
    return result.reason


def test_where_nothing_is_dropped_there_is_no_reason(pair_lab):
    """The control: an open port, through both switches, and through the router and its NAT."""
    for target in ("vm2", "vm4", "ext1"):
        result = run(dst=target, protocol=Protocol.TCP, dst_port=80)
        assert (result.forward.delivered, result.forward.lost, result.reason) == (COUNT, 0, None)


@pytest.mark.parametrize("log", [(), ("--log", "--name=no 9999")])
def test_an_acl_to_the_target_is_named_on_the_targets_host(pair_lab, log):
    """to-lport is enforced where the target is; with logging the rule goes to the controller, and drops as well."""
    name = "no 9999" if log else ""
    with acl("to-lport", "outport == @pg_all && tcp.dst == 9999", "drop", *log):
        uuid = uuid_of("ACL", "priority=1500")
        reason = lost_between(run(protocol=Protocol.TCP, dst_port=9999), "hv2.nic", "vm2.backend")
    title = f'ACL "{name}" ' if name else "ACL of port group pg_all "
    assert reason["rule"] == f"{title}(uuid {uuid}…), to-lport, priority 1500, drop, on hv2"
    assert (reason["code"], reason["chassis"], reason["evidence"]) == ("acl", "hv2", "counter-pattern")
    assert "outport == @pg_all && tcp.dst == 9999" in reason["detail"]


def test_an_acl_from_the_source_is_named_on_the_sources_host(pair_lab):
    """from-lport is enforced where the source is: nothing of it is seen at the NIC."""
    with acl("from-lport", "inport == @pg_all && tcp.dst == 80", "drop", "--name=no web"):
        uuid = uuid_of("ACL", "priority=1500")
        reason = lost_between(run(protocol=Protocol.TCP, dst_port=80), "vm1.backend", "hv1.nic")
    assert reason["rule"] == f'ACL "no web" (uuid {uuid}…), from-lport, priority 1500, drop, on hv1'
    assert (reason["code"], reason["chassis"], reason["evidence"]) == ("acl", "hv1", "counter-pattern")


def test_an_acl_that_rejects_is_named_with_what_it_does(pair_lab):
    """ovn-controller answers in the target's place; the probe is lost all the same."""
    with acl("to-lport", "outport == @pg_all && udp.dst == 5001", "reject", "--name=go away"):
        reason = lost_between(run(protocol=Protocol.RAW_UDP, dst_port=5001), "hv2.nic", "vm2.backend")
    assert (reason["code"], reason["chassis"]) == ("acl", "hv2")
    assert reason["rule"].startswith('ACL "go away" (uuid ')
    assert reason["rule"].endswith("…), to-lport, priority 1500, reject, on hv2")


def test_an_answer_that_a_rule_gave_in_the_targets_name_delivers_nothing(pair_lab):
    """`reject` sends an RST for each SYN: no probe came to vm2, so none is delivered, and the ACL is named."""
    with acl("to-lport", "outport == @pg_all && tcp.dst == 80", "reject", "--name=go away"):
        result = run(protocol=Protocol.TCP, dst_port=80, rate_pps=100)
    reason = lost_between(result, "hv2.nic", "vm2.backend")
    assert (reason["code"], reason["chassis"]) == ("acl", "hv2")
    assert "reject, on hv2" in reason["rule"]
    assert any("in the guest's name" in note for note in result.notes)


def test_what_died_on_the_way_is_lost_though_its_error_came_at_once(pair_lab):
    """TTL 1 through the router: errors come back at once, and the probes are lost, not pending."""
    result = run(dst="vm4", ttl=1, rate_pps=100)
    assert (result.forward.delivered, result.forward.pending) == (0, 0)
    assert result.forward.lost == COUNT


@pytest.mark.parametrize(
    ("source", "target", "family", "seen", "missing", "host"),
    [
        ("vm1", "vm2", 4, "hv2.nic", "vm2.backend", "hv2"),
        ("vm1", "vm4", 6, "hv2.nic", "vm4.backend", "hv2"),  # routed on hv1
        ("vm2", "ext1", 4, "hv2.nic", "ext1.backend", "hv2"),  # to the gateway on hv1 in a tunnel, back in a VLAN
        ("ext1", "vm1", 4, "hv1.nic", "vm1.backend", "hv1"),  # to its floating IP
        ("vm4", "vm2", 4, "vm4.backend", "vm2.backend", "hv2"),  # routed on one host
    ],
)
def test_the_default_deny_is_named_wherever_the_way_leads(pair_lab, source, target, family, seen, missing, host):
    """Switched, routed and translated, over tunnels and a provider's VLAN: by its name, on the target's host."""
    result = run(src=source, dst=target, family=family, protocol=Protocol.TCP, dst_port=8080)
    reason = lost_between(result, seen, missing)
    assert reason["rule"].startswith(f'ACL "{DENY}" (uuid ')
    assert reason["rule"].endswith(f"…), to-lport, priority 1001, drop, on {host}")
    assert (reason["code"], reason["chassis"], reason["evidence"]) == ("acl", host, "counter-pattern")


def test_with_tenants_on_the_same_rule_the_reason_is_right_and_claims_no_more_than_it_knows(pair_lab):
    """vm3 hits the default deny of vm2's host all the while, and every port shares that rule's counter."""
    target = str(read_topology().guest("vm2", "test").ipv4)
    with datagrams("vm3", (target, 9999), 0.01) as sent:
        reason = run(protocol=Protocol.TCP, dst_port=8080).reason
        assert sent() > 10
    assert reason["rule"].startswith(f'ACL "{DENY}" ')
    assert (reason["code"], reason["chassis"]) == ("acl", "hv2")
    assert reason["evidence"] in {"counter-pattern", "predicted"}


@pytest.mark.parametrize(
    ("guest", "stage", "seen", "missing", "host"),
    [
        ("vm1", "ls_in_apply_port_sec", "vm1.backend", "hv1.nic", "hv1"),
        ("vm2", "ls_out_apply_port_sec", "hv2.nic", "vm2.backend", "hv2"),
    ],
)
def test_port_security_is_named_with_its_port_and_stage(pair_lab, guest, stage, seen, missing, host):
    """An address that the port may not use: as a source on the sender's host, as a destination on the target's."""
    mine = read_topology().guest(guest, "test")
    allowed = f"{mine.mac} {mine.ipv4} {mine.ipv6}"
    words = ["lsp-set-port-security", mine.iface_id]
    with changed([*words, f"{mine.mac} {mine.ipv4 + 100}"], [*words, allowed]):
        reason = lost_between(run(protocol=Protocol.RAW_UDP, dst_port=5001), seen, missing)
    assert reason["rule"] == f"port security of {guest}, stage {stage}, on {host}"
    assert (reason["code"], reason["chassis"], reason["evidence"]) == ("port-security", host, "counter-pattern")


def router_reason(**changes):
    result = run(dst="vm4", protocol=Protocol.TCP, dst_port=80, **changes)
    reason = lost_between(result, "vm1.backend", "hv1.nic")
    assert (reason["code"], reason["chassis"], reason["evidence"]) == ("router", "hv1", "counter-pattern")
    return reason


def test_a_router_without_a_route_is_named_with_its_stage(pair_lab):
    """vm4 is given an address that no network of the router's has: the last rule of its routing stage drops."""
    mine = read_topology().guest("vm4", "test")
    words = ["lsp-set-addresses", mine.iface_id]
    with changed([*words, f"{mine.mac} 10.99.0.4"], [*words, f"{mine.mac} {mine.ipv4} {mine.ipv6}"]):
        reason = router_reason()
    assert reason["rule"] == "router r1: stage lr_in_ip_routing, priority 0, on hv1"
    assert "no route" in reason["detail"]


def test_a_route_that_discards_is_named(pair_lab):
    target = f"{read_topology().guest('vm4', 'test').ipv4}/32"
    with changed(["lr-route-add", "r1", target, "discard"], ["lr-route-del", "r1", target]):
        uuid = uuid_of("Logical_Router_Static_Route", "nexthop=discard")
        rule = router_reason()["rule"]
    assert rule.startswith("router r1: stage lr_in_ip_routing, priority ")
    assert rule.endswith(f", route (uuid {uuid}…), discard, on hv1")


def test_a_routing_policy_that_drops_is_named(pair_lab):
    match = f"ip4.dst == {read_topology().guest('vm4', 'test').ipv4}"
    with changed(["lr-policy-add", "r1", "700", match, "drop"], ["lr-policy-del", "r1", "700", match]):
        uuid = uuid_of("Logical_Router_Policy", "priority=700")
        reason = router_reason()
    assert reason["rule"] == (
        f"router r1: stage lr_in_policy, priority 700, routing policy (uuid {uuid}…), priority 700, drop, on hv1"
    )
    assert match in reason["detail"]


SEGMENTS = [
    "vm1.backend..hv1.nic",
    "hv1.nic..fabric.hv1",
    "fabric.hv1..fabric.hv2",
    "fabric.hv2..hv2.nic",
    "hv2.nic..vm2.backend",
]


@pytest.mark.parametrize("segment", SEGMENTS)
def test_what_a_link_or_a_driver_loses_no_rule_is_blamed_for(pair_lab, segment):
    """Loss on the underlay, or beside a switch whose rules forward: link-loss, and no chassis decided."""
    control.fault_set(segment, loss=0.5, seed=5)
    try:
        result = run(count=100)
    finally:
        control.fault_clear()
    leg, reason = result.forward, result.reason
    assert 20 < leg.lost < 80
    assert (leg.last_seen, leg.first_missing) == tuple(segment.split(".."))
    assert (reason["code"], reason["chassis"], reason["rule"]) == ("link-loss", None, "")
    if segment == "hv2.nic..vm2.backend":
        assert 'conntrack of hv2 has its connection, admitted by ACL "default: ' in reason["detail"]
