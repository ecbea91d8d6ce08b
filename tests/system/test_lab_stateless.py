"""Stateless groups, `allow-stateless` and `reject` in every lab, and the differences that cannot be helped."""

import pytest
from support.lab_traffic import QUIET_S, WAIT_S, connect, echo, guest, listener

from netprobe.lab import control

pytestmark = pytest.mark.system

LABS = ("single", "bridge", "pair")

POLICY = """
[[group]]
name = "open"
[[group.rule]]
direction = "egress"
[[group.rule]]
direction = "ingress"
protocol = "icmp"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = "80-89"

# Both ways must be allowed by themselves: questions to port 80 and the answers from there; no answers to what it asks.
[[group]]
name = "fast"
stateful = false
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = 80
[[group.rule]]
direction = "egress"
protocol = "tcp"
[[group.rule]]
direction = "egress"
protocol = "icmp"
[[group.rule]]
direction = "ingress"
protocol = "icmp"

[[guest]]
name = "vm1"
groups = ["open"]
[[guest]]
name = "vm2"
groups = ["open"]
[[guest]]
name = "vm3"
groups = ["fast"]

[[acl]]
name = "past conntrack"
direction = "ingress"
priority = 1500
action = "allow-stateless"
protocol = "tcp"
port = 81
ports = ["vm2"]

[[acl]]
name = "its answers are not"
direction = "egress"
priority = 1500
action = "drop"
protocol = "tcp"
source_port = 81
ports = ["vm2"]

[[acl]]
name = "nothing here"
direction = "ingress"
priority = 1400
action = "reject"
protocol = "tcp"
port = 82
ports = ["vm2"]
"""


@pytest.fixture(scope="module", params=LABS)
def lab(request, lab_place, tmp_path_factory):
    """Each lab in turn, with this policy."""
    control.down()
    path = tmp_path_factory.mktemp("policy") / "stateless.toml"
    path.write_text(POLICY)
    control.up(request.param, config_path=path)
    status = control.status()
    assert status.is_healthy, status.problems
    yield status
    control.down()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_stateless_port_is_reached_where_its_rules_allow_both_ways(lab, family):
    vm3 = guest(lab, "vm3")[family]
    assert echo("vm1", vm3)
    assert echo("vm3", guest(lab, "vm1")[family])
    with listener("vm3", 80), listener("vm3", 83):
        assert connect("vm1", vm3, 80, WAIT_S) == "open"
        assert connect("vm1", vm3, 83, QUIET_S) == "dropped"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_stateless_port_gets_no_answers_that_no_rule_allows(lab, family):
    with listener("vm1", 80):
        assert connect("vm3", guest(lab, "vm1")[family], 80, QUIET_S) == "dropped"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_went_past_conntrack_has_no_answers_that_pass_by_themselves(lab, family):
    """A stateful permit would let the answers pass whatever the egress rules say, as on port 83.

    In `single` the two ports share a conntrack zone, so that vm2 knows the connection that vm1 began.
    """
    with listener("vm2", 81), listener("vm2", 83):
        assert connect("vm1", guest(lab, "vm2")[family], 83, WAIT_S) == "open"
        fate = connect("vm1", guest(lab, "vm2")[family], 81, WAIT_S if lab.state["name"] == "single" else QUIET_S)
    assert fate == ("open" if lab.state["name"] == "single" else "dropped")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_reject_is_a_refusal_in_ovn_and_a_drop_elsewhere(lab, family):
    with listener("vm2", 82):
        fate = connect("vm1", guest(lab, "vm2")[family], 82, WAIT_S if lab.state["name"] == "pair" else QUIET_S)
    assert fate == ("refused" if lab.state["name"] == "pair" else "dropped")
