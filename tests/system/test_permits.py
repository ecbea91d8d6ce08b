"""What is asked before anything is sent, on the lab: tuples, rooms and ports of others are left alone."""

import socket
import subprocess

import pytest
import trio
from support.tenants import listener

from netprobe.errors import HostNotReadyError, RefusedError
from netprobe.host.netns import in_netns
from netprobe.host.ovsdb import bound_ports
from netprobe.model.probes import Protocol
from netprobe.plan.budget import Room
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service import permits
from netprobe.service.discovery import read_topology
from netprobe.service.run import run_plan

pytestmark = pytest.mark.system


def run(topology=None, **changes):
    given = {"name": "s", "src": "vm1", "dst": "vm2", "count": 5, "rate_pps": 500} | changes
    return trio.run(run_plan, RunPlan("p", (SessionPlan(**given),)), topology or read_topology()).results[0]


def test_a_tuple_that_is_somebodys_connection_is_refused_and_not_deleted(lab):
    """The user names a source port that a tenant uses to the same destination: nothing is sent, his entry stays."""
    server = in_netns("vm2", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client = in_netns("vm1", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    try:
        server.bind(("10.0.0.2", 5001))
        server.settimeout(5)
        client.bind(("10.0.0.1", 40_000))
        client.sendto(b"tenant", ("10.0.0.2", 5001))
        server.recv(64)
        with pytest.raises(RefusedError, match="source port 40000 of vm1 to vm2 is in conntrack"):
            run(protocol=Protocol.RAW_UDP, dst_port=5001, src_port=40_000)
        with pytest.raises(RefusedError, match="source port 40000"):
            run(protocol=Protocol.RAW_UDP, dst_port=5001, src_port=40_000)  # still there: it was not deleted
    finally:
        server.close()
        client.close()


def test_ports_that_conntrack_has_are_skipped(lab):
    """A tenant holds the first port of our block: the probes take others, and his connection lives."""
    with listener("vm2", 80) as server:
        tenant = in_netns("vm1", lambda: socket.socket())
        tenant.bind(("10.0.0.1", 61_000))
        tenant.connect(("10.0.0.2", 80))
        accepted, _ = server.accept()
        try:
            assert run(protocol=Protocol.TCP, dst_port=80).type_p["src_port"] == 61_001
            tenant.sendall(b"alive")
            accepted.settimeout(5)
            assert accepted.recv(64) == b"alive"
        finally:
            tenant.close()
            accepted.close()


def test_a_plan_that_takes_too_much_of_the_table_is_refused(lab, monkeypatch):
    """1 % of what is free: with room for 400 entries, 5 new connections are too many."""
    monkeypatch.setattr(permits.Conntrack, "use", lambda _self: Room(0, 400))
    with pytest.raises(RefusedError, match="the plan would create 5 entries"):
        run(protocol=Protocol.TCP, dst_port=80)


def test_nothing_is_injected_for_a_port_that_is_not_bound_here(lab):
    """The guest moved away: its port's number now means nothing, or somebody else."""
    topology = read_topology()
    host = topology.hosts[0]
    assert set(bound_ports(host.ovs_rundir).values()) == {1, 2, 3, 4}
    vsctl = ["ovs-vsctl", f"--db=unix:{host.ovs_rundir}/db.sock", "--timeout=5"]
    subprocess.run([*vsctl, "remove", "Interface", "tapvm1", "external_ids", "iface-id"], check=True, timeout=10)
    try:
        with pytest.raises(HostNotReadyError, match="port of vm1: is bound on no host at present"):
            run()
    finally:
        iface = f"external_ids:iface-id={topology.guests[0].iface_id}"
        subprocess.run([*vsctl, "set", "Interface", "tapvm1", iface], check=True, timeout=10)
    assert run().forward.delivered == 5
