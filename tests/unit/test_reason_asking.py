"""Reasons across hosts: from what was lost where to the rule, with switches and databases that answer as recorded."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.clouds import pair

from netprobe.collect.arrivals import Arrivals
from netprobe.collect.cells import Aside
from netprobe.collect.ledger import Fate, Ledger
from netprobe.collect.session import LegOutcome
from netprobe.errors import HostNotReadyError
from netprobe.host.ovn_flows import OvnRuleBook
from netprobe.host.unixctl import CommandError
from netprobe.model.probes import Protocol
from netprobe.model.topology import OvnPlaces
from netprobe.plan.plans import SessionPlan
from netprobe.service.prepare import prepare_session
from netprobe.service.reasons import Inquiry, find_reason

DATA = Path(__file__).parent / "data"
ROWS = json.loads((DATA / "ovn_rows.json").read_text())
COUNT = 10


def text(name):
    return (DATA / f"{name}.txt").read_text().replace("tapv2", "tapvm2")


class FakeSwitch:
    """One host's switch: the trace that it gives, and its tunnel to the other."""

    def __init__(self, trace, other, conntrack=""):
        self.answers = {
            "ofproto/trace": trace if isinstance(trace, Exception) else text(f"trace_ovn_{trace}"),
            "dpctl/dump-conntrack": conntrack,
            "dpif/show": text("dpif_show_ovn").replace("172.30.0.1", f"172.30.0.{other}"),
        }

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def call(self, command, *_arguments):
        said = self.answers.get(command, "")
        if isinstance(said, Exception):
            raise said
        return said


def databases(command):
    """Every recorded row of the tables that are asked for; netprobe picks by the rule's cookie and hint."""
    _database, *queries = json.loads(command[-1])
    rows = {**ROWS, "Datapath_Binding": ROWS["Datapath_Binding"][:1]}
    return json.dumps([{"rows": rows.get(query["table"], [])} for query in queries])


def prepared():
    plan = SessionPlan(name="s", src="vm1", dst="vm2", count=COUNT, rate_pps=100, protocol=Protocol.TCP, dst_port=9999)
    return prepare_session(plan, pair(), seed=1, session=7, port_source=lambda *_: range(61000, 61000 + COUNT))


def outcome(one, first, second, *, lost=COUNT, late=0):
    """A forward leg whose first `lost` probes were last seen at one stop and first missing at another."""
    stops, shape = one.path.forward, (len(one.path.forward), COUNT)
    is_lost = np.arange(COUNT) < lost
    at = [next((i for i, s in enumerate(stops) if s.point.id == name), -1) for name in (first, second)]
    ledger = Ledger(
        np.where(is_lost, Fate.LOST, Fate.DELIVERED).astype(np.uint8),
        np.where(is_lost, at[0], len(stops) - 1),
        np.where(is_lost, at[1], -1),
        np.zeros(len(stops), np.int64),
        0,
    )
    was_late = np.zeros(shape, np.bool_)
    was_late[at[1], :late] = True
    times = np.zeros(shape, np.int64)
    arrivals = Arrivals(
        first_ns=times,
        number=np.zeros(shape, np.int32),
        late=was_late,
        again=Aside.concat([]),
        alone=np.empty(0, np.int64),
        seen=np.zeros(shape, np.bool_),
        forged=0,
    )
    return LegOutcome(stops, arrivals, ledger, (), None)


def ask(first, second, near, far, *, client=databases, cloud=None, conntrack="", **lost):
    one = prepared()
    switches = {"hv1": FakeSwitch(near, 2), "hv2": FakeSwitch(far, 1, conntrack)}
    inquiry = Inquiry(
        one,
        cloud or pair(),
        None,
        None,
        None,
        None,
        switches=lambda host: switches[host.name],
        bridges=None,
        ovn=OvnRuleBook(OvnPlaces("unix:/nb", "unix:/sb"), client=client),
    )
    return find_reason(inquiry, outcome(one, first, second, **lost))


@pytest.mark.parametrize(
    ("first", "second", "near", "far", "code", "chassis", "rule"),
    [
        ("hv2.nic", "vm2.backend", "into_tunnel", "far_acl", "acl", "hv2", 'ACL "no-9999" '),
        ("hv2.nic", "vm2.backend", "into_tunnel", "out_port_security", "port-security", "hv2", "port security of "),
        ("vm1.backend", "hv1.nic", "near_acl", "far_acl", "acl", "hv1", 'ACL "no-smtp" '),
        ("vm1.backend", "hv1.nic", "no_route", "far_acl", "router", "hv1", "router "),
        ("vm1.backend", "hv1.nic", "into_tunnel", "far_acl", "link-loss", None, ""),
        ("hv2.nic", "vm2.backend", "into_tunnel", "far_allow", "link-loss", None, ""),
        ("vm1.guest", "vm1.backend", "near_acl", "far_acl", "link-loss", None, ""),
        ("hv1.nic", "fabric.hv1", "near_acl", "far_acl", "link-loss", None, ""),
        ("fabric.hv1", "fabric.hv2", "near_acl", "far_acl", "link-loss", None, ""),
        ("fabric.hv2", "hv2.nic", "near_acl", "far_acl", "link-loss", None, ""),
        ("vm2.backend", "vm2.guest", "near_acl", "far_acl", "link-loss", None, ""),
        ("vm1.backend", "vm2.backend", "into_tunnel", "far_acl", "acl", "hv2", 'ACL "no-9999" '),
        ("vm1.backend", "vm2.backend", "near_acl", "far_acl", "acl", "hv1", 'ACL "no-smtp" '),
        ("vm1.backend", "vm2.backend", "into_tunnel", "far_allow", "unknown", None, ""),
        ("hv2.nic", "vm2.backend", "near_acl", "far_acl", "unknown", None, ""),
    ],
)
def test_where_it_was_lost_decides_whose_rule_is_named(first, second, near, far, code, chassis, rule):
    """The switch between the two points answers; where there is none, or the model contradicts, none is blamed."""
    reason = ask(first, second, near, far)
    assert (reason.code.value, reason.chassis) == (code, chassis)
    assert reason.rule.startswith(rule)
    assert bool(reason.rule) is bool(rule)
    assert reason.evidence.value == "predicted"  # no bridge is in reach, so nothing was tested


def test_where_nothing_was_lost_there_is_no_reason():
    assert ask("hv2.nic", "vm2.backend", "into_tunnel", "far_acl", lost=0) is None


def test_what_came_after_its_time_was_slow_and_no_rule_is_asked_for():
    reason = ask("hv2.nic", "vm2.backend", "near_acl", "far_acl", late=8)
    assert reason.code.value == "late"


def test_without_ovns_databases_the_rule_is_named_by_its_table_and_the_detail_says_why():
    def silent(_command: Iterable[str]) -> str:
        raise HostNotReadyError("ovsdb-client", "did not end within 6 s")

    reason = ask("hv2.nic", "vm2.backend", "into_tunnel", "far_deny", client=silent)
    assert (reason.code.value, reason.table, reason.chassis) == ("rule-drop", 46, "hv2")
    assert "did not end within 6 s" in reason.detail


@pytest.mark.parametrize(
    ("error", "code", "chassis"),
    [
        (HostNotReadyError("ovs-vswitchd", "is gone"), "vswitch-down", "hv2"),
        (CommandError("ovs-vswitchd", "ofproto/trace", "no such bridge"), "unknown", None),
    ],
)
def test_a_far_switch_that_does_not_answer_is_named(error, code, chassis):
    reason = ask("hv2.nic", "vm2.backend", "into_tunnel", error)
    assert (reason.code.value, reason.chassis) == (code, chassis)


def test_a_tunnel_that_leads_to_no_known_host_is_told():
    cloud = pair()
    alone = replace(cloud, hosts=tuple(replace(h, encap_ips=()) for h in cloud.hosts))
    reason = ask("vm1.backend", "hv1.nic", "into_tunnel", "far_acl", cloud=alone)
    assert (reason.code.value, reason.chassis) == ("forwarded-elsewhere", "hv1")
    assert "172.30.0.2" in reason.detail


def test_what_a_switch_forwards_was_let_in_by_the_acl_that_conntrack_remembers():
    """The probe's own connection on the target's host, with the label of the ACL that admitted it."""
    there = "src=10.1.0.1,dst=10.1.0.2,sport=61000,dport=9999"
    back = "src=10.1.0.2,dst=10.1.0.1,sport=9999,dport=61000"
    entry = f"tcp,orig=({there}),reply=({back}),zone=6,labels=0x4d000000000000000000000000,protoinfo=(state=SYN_SENT)"

    def one_acl(command):
        assert '"label", "==", 77' in command[-1]
        return json.dumps([{"rows": [{"_uuid": ["uuid", "1a2b3c4d-0"], "name": "web", "direction": "to-lport"}]}])

    reason = ask("hv2.nic", "vm2.backend", "into_tunnel", "far_allow", conntrack=entry, client=one_acl)
    assert reason.code.value == "link-loss"
    assert 'conntrack of hv2 has its connection, admitted by ACL "web" (uuid 1a2b3c4d…)' in reason.detail
    other = ask("hv2.nic", "vm2.backend", "into_tunnel", "far_allow", conntrack=entry.replace("61000", "50000"))
    assert "conntrack" not in other.detail
