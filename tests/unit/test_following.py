"""A follower without any database: what agents report, a state file that changes, versions and staleness."""

import json
from dataclasses import replace

import msgspec
import pytest
import trio
import trio.testing
from support import databases
from support.clouds import pair, topology
from support.state_files import OLD, new

from netprobe.errors import NoAnswerError
from netprobe.model.inventory import HostInventory, InterfaceRow
from netprobe.service import following
from netprobe.service.discovery import topology_of
from netprobe.service.following import open_follower

LAB = topology()
HV1 = LAB.hosts[0]


def reported(*attachments):
    return databases.inventory(HV1, attachments)


def follow(scenario, base=LAB, **kwargs):
    """Run a scenario with a follower, without any database and without waiting for the clock."""

    async def run():
        with trio.fail_after(60):
            async with open_follower(base, local_hosts=(), **kwargs) as follower:
                await scenario(follower)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_what_was_written_down_is_there_at_once():
    """Nothing to wait for: version 0."""

    async def scenario(follower):
        assert (follower.version, follower.topology) == (0, LAB)

    follow(scenario)


def test_a_reported_inventory_makes_a_new_version_and_the_same_one_none():
    """Whoever waits is woken only when something differs."""

    async def scenario(follower):
        vm1 = replace(LAB.guests[0], ofport=7)
        follower.take_inventory(reported(vm1, *LAB.attachments[1:3], LAB.bypasses[0]))
        version, cloud = await follower.wait_changed(0)
        assert (version, cloud.guests[0].ofport) == (1, 7)
        follower.take_inventory(reported(vm1, *LAB.attachments[1:3], LAB.bypasses[0]))
        await trio.testing.wait_all_tasks_blocked()
        assert follower.version == 1

    follow(scenario)


def test_many_changes_at_once_make_one_topology():
    """A hundred reports before anybody looks."""

    async def scenario(follower):
        for ofport in range(1, 101):
            follower.take_inventory(reported(replace(LAB.guests[0], ofport=ofport)))
        version, cloud = await follower.wait_changed(0)
        assert (version, cloud.guests[0].ofport) == (1, 100)

    follow(scenario)


def test_a_lost_agent_is_stale_until_it_reports_again():
    """What it said stands meanwhile."""

    async def scenario(follower):
        follower.take_inventory(reported(replace(LAB.guests[0], ofport=7)))
        follower.lose_host("hv1", "no heartbeat for 5 s")
        _, cloud = await follower.wait_changed(0)
        assert cloud.stale == {"agent of hv1": "no heartbeat for 5 s"}
        assert cloud.guests[0].ofport == 7
        follower.take_inventory(reported(replace(LAB.guests[0], ofport=7)))
        _, cloud = await follower.wait_changed(follower.version)
        assert cloud.stale == {}

    follow(scenario)


def test_the_state_file_is_read_again_when_it_changes(tmp_path):
    """Also when it was replaced between the caller's reading it and now."""
    path = tmp_path / "state.json"
    path.write_text(json.dumps(OLD))

    async def scenario(follower):
        version, cloud = await follower.wait_changed(0)
        assert cloud == topology_of(OLD)
        path.with_suffix(".new").write_text(json.dumps(new() | {"ovn": None}))
        path.with_suffix(".new").rename(path)
        version, cloud = await follower.wait_changed(version)
        assert [p.id for p in cloud.hosts[0].uplink] == ["hv1.nic", "fabric.hv1"]
        path.write_text("{")
        version, cloud = await follower.wait_changed(version)
        assert "is damaged" in cloud.stale["state file"]
        assert [p.id for p in cloud.hosts[0].uplink] == ["hv1.nic", "fabric.hv1"]
        path.write_text(json.dumps(OLD))
        _, cloud = await follower.wait_changed(version)
        assert cloud == topology_of(OLD)

    follow(scenario, base=LAB, state_file=path)


def test_databases_that_cannot_be_reached_are_named_and_nobody_waits_for_them(tmp_path):
    """The first topology is what was written down; each source says why it is stale."""
    hosts = tuple(replace(h, ovs_rundir=str(tmp_path)) for h in pair().hosts)

    async def run():
        with trio.fail_after(following.FIRST_WORD_S):
            async with open_follower(replace(pair(), hosts=hosts)) as follower:
                assert set(follower.topology.stale) == {
                    *("OVN southbound", "OVN northbound", "OVSDB of hv1", "OVSDB of hv2"),
                }
                assert all("No such file" in why for why in follower.topology.stale.values())
                assert replace(follower.topology, stale={}) == replace(pair(), hosts=hosts)

    trio.run(run)


def test_sources_that_are_no_longer_named_are_let_go(tmp_path):
    """Another state file without OVN: nothing is stale any more, and what OVN said is forgotten."""
    hosts = tuple(replace(h, ovs_rundir="") for h in pair().hosts)

    async def run():
        base = replace(pair(), hosts=hosts)
        async with open_follower(base) as follower:
            assert len(follower.topology.stale) == 2
            follower.take_base(replace(base, ovn=None))
            _, cloud = await follower.wait_changed(follower.version)
            assert cloud.stale == {}

    trio.run(run)


def test_the_callers_own_error_comes_out_as_it_is():
    """Not inside the exception group of a nursery that is nobody's business."""

    async def scenario(follower):
        raise NoAnswerError("probe", "nobody looked")

    with pytest.raises(NoAnswerError):
        follow(scenario)


def test_an_inventory_survives_the_wire():
    """What an agent reports is what the collector merges."""
    row = InterfaceRow("tap1", "br-int", "", 5, "u1", "fa:16:3e:00:00:01", "veth", is_up=True)
    found = HostInventory("hv1", "c1", ("172.30.0.1",), True, (row,), {"tap1": "in_hw"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=HostInventory) == found
