"""Connections that outlive their rule, found without sending anything: what they are, and whether they are leaks.

A guest's connection is made while the rule is there; then the policy is asked that lacks it.
"""

import socket
from contextlib import contextmanager
from dataclasses import replace

import pytest
import trio

from netprobe.host.netns import in_netns
from netprobe.lab import config, control
from netprobe.lab.topology import bound_policy, endpoints
from netprobe.service.discovery import read_topology
from netprobe.service.policy_models import ModelAsker
from netprobe.service.stale_connections import living_connections

pytestmark = pytest.mark.system


@pytest.fixture
def bridge_lab(lab_place):
    """The guests behind Linux bridges, guarded by iptables."""
    if control.status().state.get("name", "bridge") != "bridge":
        control.down()
    return control.up("bridge")


@contextmanager
def connection(port):
    """A TCP connection of vm1 to vm2 that both have used."""
    topology = read_topology()
    vm1, vm2 = (topology.guest(name, "test") for name in ("vm1", "vm2"))

    def listen():
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(vm2.ipv4), port))
        listener.listen()
        return listener

    def connect():
        return socket.create_connection((str(vm2.ipv4), port), timeout=5)

    with in_netns(vm2.netns, listen) as listener, in_netns(vm1.netns, connect) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            yield


def policy_without(name, port):
    lab_config = config.load(name)
    policy = bound_policy(lab_config, endpoints(lab_config))
    groups = tuple(
        replace(group, rules=tuple(rule for rule in group.rules if rule.ports != (port, port)))
        for group in policy.groups
    )
    return policy, replace(policy, groups=groups)


def living(policy):
    async def go():
        with ModelAsker() as asker:
            return await living_connections(policy, read_topology(), asker)

    return trio.run(go)


def check(name):
    now, before = policy_without(name, 80)
    with connection(80):
        assert living(now) == []  # the rule is there: nothing is stale
        found = [one for one in living(before) if one.stale.packet.dst_port == 80]
    assert found
    assert {(one.stale.src, one.stale.dst, str(one.stale.check.point)) for one in found} == {
        ("vm1", "vm2", "vm2 ingress")
    }
    assert all("vm2 ingress permits it no more" in one.text for one in found)
    return found


def test_behind_a_bridge_an_established_connection_lives_on(bridge_lab):
    """The rule is still there, so the model lets it pass: with iptables a connection would pass without it, too."""
    (found,) = check("bridge")
    assert found.is_leak
    assert found.onward.kind == "plumbing"


def test_in_a_switchs_table_it_is_found_as_well(lab):
    (found,) = check("single")
    assert found.host == "hv1"


def test_under_ovn_it_is_found_in_the_zone_of_the_port_that_refuses_it(pair_lab):
    (found,) = check("pair")
    assert found.host == "hv2"
