"""Why a probe was dropped, on a real switch: the rule that is named is the rule that dropped it.

Network: the lab. vm2's groups (default, web) let TCP 80 and UDP 862 in and nothing else that is used here.
"""

import socket
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
import trio
from support.tenants import datagrams, listener

from netprobe.host.conntrack import Conntrack
from netprobe.host.netns import in_netns
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.plan.plans import RunPlan, SessionPlan
from netprobe.service.discovery import read_topology
from netprobe.service.run import run_plan

pytestmark = pytest.mark.system

MS = 1_000_000


def run(topology=None, **changes):
    """One session vm1 -> vm2; its result."""
    given = {"name": "s", "src": "vm1", "dst": "vm2", "count": 50, "rate_pps": 500} | changes
    plan = RunPlan("reasons", (SessionPlan(**given),), tmax_ns=300 * MS)
    return trio.run(run_plan, plan, topology or read_topology()).results[0]


def rules():
    return read_topology().rules


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vantage", list(Vantage))
def test_a_port_that_no_group_opens_is_dropped_by_the_default_deny_of_its_guest(lab, vantage, family):
    """From every vantage, IPv4 and IPv6: between the same two points, by vm2's own default deny, and proved."""
    result = run(protocol=Protocol.TCP, dst_port=8080, vantage=vantage, family=family)
    leg, reason = result.forward, result.reason
    assert (leg.delivered, leg.lost, leg.unobserved) == (0, 50, 0)
    first = {"guest": "vm1.backend", "bypass": "bypass.backend", "vswitch": "hv1.vswitch"}[vantage.value]
    assert (leg.last_seen, leg.first_missing) == (first, "vm2.backend")
    assert (reason["code"], reason["table"], reason["evidence"]) == ("security-group", 82, "counter-pattern")
    assert rules()[reason["cookie"]]["port"] == "vm2"
    assert rules()[reason["cookie"]]["kind"] == "default-deny"
    assert "vm2" in reason["rule"]
    assert [s.lost for s in leg.segments if s.lost] == [50]


@pytest.mark.parametrize("gap_s", [0.02, 0.002])
def test_with_tenants_on_the_same_rule_the_reason_is_right_or_says_that_it_is_a_prediction(lab, gap_s):
    """vm3 hits vm2's default deny all the while; netprobe still names it, and claims no more than it knows."""
    with datagrams("vm3", ("10.0.0.2", 9999), gap_s) as sent:
        reason = run(protocol=Protocol.TCP, dst_port=8080, vantage=Vantage.VSWITCH).reason
        assert sent() > 10
    assert rules()[reason["cookie"]]["kind"] == "default-deny"
    assert reason["code"] == "security-group"
    assert reason["evidence"] in {"counter-pattern", "predicted"}


def test_a_guest_that_sends_with_another_ones_address_is_stopped_at_its_own_port(lab):
    """Anti-spoofing names itself: table 71, and the source's rule."""
    topology = read_topology()
    vm1, *others = topology.guests
    liar = replace(vm1, ipv4=IPv4Address("10.0.0.77"))  # a decoy: nobody's address
    result = run(replace(topology, guests=(liar, *others)), protocol=Protocol.RAW_UDP, dst_port=5001)
    assert result.forward.lost == 50
    assert (result.reason["code"], result.reason["table"]) == ("anti-spoofing", 71)
    assert rules()[result.reason["cookie"]]["port"] == "vm1"


def new_connections(port):
    """Packets that the rule for new TCP connections to vm2's port has let in, from the switch's own counters."""
    host = read_topology().host("hv1")
    with UnixctlClient(host.ovs_rundir) as unixctl:
        unixctl.wait_revalidators()
    dump = subprocess.run(
        ["ovs-ofctl", "-OOpenFlow15", "dump-flows", f"{host.ovs_rundir}/br-int.mgmt", "table=82"],
        capture_output=True, text=True, check=True, timeout=10,
    ).stdout  # fmt: skip
    total = 0
    for line in dump.splitlines():
        if "+new" in line and "tcp," in line and "reg5=0x2" in line and f"tp_dst={port}" in line:
            total += int(line.split("n_packets=")[1].split(",")[0])
    return total


def own_entries(dst_port):
    host = read_topology().host("hv1")
    with UnixctlClient(host.ovs_rundir) as unixctl:
        entries = Conntrack(unixctl).dump(host.zone).entries
    return [e for e in entries if e.original.protocol == 6 and e.original.dst_port == dst_port]


@pytest.mark.parametrize("is_open", [True, False])
def test_500_syns_are_500_new_connections_and_leave_no_entry(lab, is_open):
    """Open port and closed port alike: each SYN is a connection of its own to conntrack; afterwards none is left."""
    port = 80 if is_open else 443
    before = new_connections(port)
    if is_open:
        with listener("vm2", port):
            result = run(protocol=Protocol.TCP, dst_port=port, count=500, rate_pps=500)
    else:
        result = run(protocol=Protocol.TCP, dst_port=port, count=500, rate_pps=500)
    assert (result.forward.delivered, result.forward.lost) == (500, 0)
    assert result.returned.delivered == 500
    assert new_connections(port) - before == 500
    assert own_entries(port) == []
    assert result.counters["conntrack_kept"] == 0
    assert result.counters["conntrack_deleted"] >= 1


def test_an_open_port_with_tenants_connection_on_it_is_not_touched(lab):
    """A tenant's own connection to the same port survives our cleaning up: only our exact tuples are deleted."""
    with listener("vm2", 80) as server:
        tenant = in_netns("vm1", lambda: socket.create_connection(("10.0.0.2", 80), timeout=2))
        accepted, _ = server.accept()
        try:
            run(protocol=Protocol.TCP, dst_port=80, count=100)
            tenant.sendall(b"still here")
            accepted.settimeout(2)
            assert accepted.recv(64) == b"still here"
            assert len(own_entries(80)) == 1
        finally:
            tenant.close()
            accepted.close()
