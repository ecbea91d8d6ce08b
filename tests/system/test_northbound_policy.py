"""OVN's northbound database of the lab `pair`, read as a policy: what the lab's file promises, until one breaks it.

Guests: vm1 and vm3 (groups default, peers), vm2, vm4 and ext1 (default, web), and a bypass NIC on each hypervisor.
"""

import subprocess
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.ovn_policy import read_northbound
from netprobe.judge.policy_compare import DiscrepancyKind, compare_policies
from netprobe.plan.policy_bind import bind
from netprobe.plan.policy_file import parse_policy
from netprobe.plan.policy_ovn import policy_from_northbound
from netprobe.service.discovery import read_topology

pytestmark = pytest.mark.system


def promised():
    """The lab's own file; the bypass NICs have the groups of the guests that they stand in for."""
    topology = read_topology()
    policy = parse_policy((files("netprobe.lab") / "pair.toml").read_text(), "pair.toml")
    copies = tuple(
        replace(policy.port(bypass.copy_of), name=bypass.name, network=bypass.network) for bypass in topology.bypasses
    )
    return bind(replace(policy, ports=(*policy.ports, *copies)), topology.attachments, "pair.toml")


def actual():
    remote = read_topology().ovn.northbound
    return policy_from_northbound(read_northbound(remote), remote)


def nbctl(*words):
    command = ["ovn-nbctl", "--timeout=20", f"--db={read_topology().ovn.northbound}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


@contextmanager
def changed(words, undo):
    nbctl(*words)
    try:
        yield
    finally:
        nbctl(*undo)


def found():
    return [(each.kind, each.ports, each.promised_rule) for each in compare_policies(promised(), actual())]


def test_the_database_is_what_the_labs_file_promises(pair_lab):
    """All ports are there, with their addresses, and nothing is left out."""
    policy = actual()
    assert (policy.remarks, policy.left_out) == ((), ())
    assert {port.name for port in policy.ports} == {"vm1", "vm2", "vm3", "vm4", "ext1", "bypass1", "bypass2"}
    bound = bind(policy, read_topology().attachments, "nb")
    assert all(port.mac and port.ips and port.has_port_security for port in bound.ports)
    assert compare_policies(promised(), policy) == ()


def test_an_acl_that_is_gone_is_named(pair_lab):
    """At every port that should have it."""
    match = "outport == @sg_web && tcp && tcp.dst == 80"
    rows = nbctl("--bare", "--columns=_uuid,name", "find", "acl", f'match="{match}"')
    uuid = rows.split()[0] if rows else ""
    assert uuid, nbctl("acl-list", "sg_web")
    with changed(
        ["remove", "port_group", "sg_web", "acls", uuid],
        [
            "--name=web: ingress tcp dport 80 from any",
            "--label=900",
            "acl-add",
            "sg_web",
            "to-lport",
            "1002",
            match,
            "allow-related",
        ],
    ):
        ((kind, ports, rule),) = found()
    assert (kind, set(ports), rule) == (DiscrepancyKind.RULE_MISSING, {"vm2", "vm4", "ext1", "bypass2"}, "web[1]")
    assert found() == []


def test_a_port_that_left_its_port_group_is_named(pair_lab):
    """It lacks the group's rule, and the others no longer hear it: OVN's address set follows the port group."""
    port = read_topology().guest("vm3", "test").iface_id
    (group_row,) = (
        row for row in read_northbound(read_topology().ovn.northbound).port_groups if row.name == "sg_peers"
    )
    others = [name for name in group_row.ports if name != port]
    with changed(["pg-set-ports", "sg_peers", *others], ["pg-set-ports", "sg_peers", *group_row.ports]):
        kinds = {(kind, ports) for kind, ports, rule in found() if rule == "peers[0]"}
    assert (DiscrepancyKind.RULE_MISSING, ("vm3",)) in kinds
    assert any(kind is DiscrepancyKind.RULE_NARROWER and set(ports) == {"vm1", "bypass1"} for kind, ports in kinds)


def test_anti_spoofing_that_is_off_is_named(pair_lab):
    """port_security emptied behind everybody's back."""
    guest = read_topology().guest("vm1", "test")
    addresses = f"{guest.mac} {guest.ipv4} {guest.ipv6}"
    with changed(["lsp-set-port-security", guest.iface_id], ["lsp-set-port-security", guest.iface_id, addresses]):
        assert found() == [(DiscrepancyKind.PORT_SECURITY, ("vm1",), "")]
    assert found() == []


def test_a_database_that_is_not_there_is_an_error_with_advice(tmp_path):
    """Not a traceback."""
    with pytest.raises(HostNotReadyError, match="OVN northbound at unix:"):
        read_northbound(f"unix:{tmp_path}/nothing.sock")
