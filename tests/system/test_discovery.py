"""Discovery on the lab `pair`: what the databases say is what the lab wrote down, and what frames really do.

Each test begins with a healthy lab. Changes are made with the cloud's own tools: ip, ovs-vsctl, ovn-nbctl.
"""

import select
import socket
import subprocess
import time
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import trio
from support.waiting import until

from netprobe.errors import UsageError
from netprobe.host.netns import in_netns
from netprobe.lab import control
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.model.topology import RouterLink
from netprobe.plan.paths import build_path, next_hop, translations
from netprobe.service.discovery import read_topology, state_path
from netprobe.service.following import open_follower
from netprobe.service.inventory import inventory, open_inventory

pytestmark = pytest.mark.system

SEEN_WITHIN_S = 1.0
PORT = 862  # every guest's groups let it in
PACKET_OUTGOING = 4
NEW = "3f6c0a52-0000-4000-8000-00000000beef"


def named(cloud, name):
    return next((one for one in cloud.attachments if name in (one.name, one.iface_id)), None)


def run(*words):
    subprocess.run(words, check=True, timeout=20, capture_output=True)


def vsctl(host, *words):
    run("ovs-vsctl", "--timeout=5", f"--db=unix:{read_topology().host(host).ovs_rundir}/db.sock", *words)


def nbctl(*words):
    run("ovn-nbctl", "--timeout=5", f"--db={read_topology().ovn.northbound}", *words)


@asynccontextmanager
async def following(**kwargs):
    async with open_follower(read_topology(), state_file=state_path(), **kwargs) as follower:
        assert follower.topology.stale == {}
        yield follower


async def becomes(follower, condition, *, within_s=SEEN_WITHIN_S):
    """Wait for a topology of which something is true; the time that took, seconds."""
    began, version = time.monotonic(), follower.version
    with trio.fail_after(within_s + 5):
        while not condition(follower.topology):
            version, _ = await follower.wait_changed(version)
    took_s = time.monotonic() - began
    assert took_s < within_s
    return took_s


def discovered():
    async def once():
        async with following() as follower:
            return follower.topology

    return trio.run(once)


def test_what_discovery_finds_is_what_the_lab_wrote_down(pair_lab):
    """Every guest, port, address, network, NAT and tunnel; only the routers are news."""
    cloud, written = discovered(), read_topology()
    assert replace(cloud, routers=()) == written
    assert RouterLink("r1", "ext", is_central=True, gateway="hv1") in cloud.routers


def test_a_cloud_of_which_only_the_hosts_are_written_down_is_found_whole(pair_lab):
    """No guest is known beforehand: OVN and OVSDB tell everything but where agents are."""

    async def find():
        written = read_topology()
        bare = replace(written, guests=(), bypasses=())
        async with open_follower(bare) as follower:
            return written, follower.topology

    written, cloud = trio.run(find)
    known = {"name", "host", "mac", "ipv4", "ipv6", "iface_id", "ofport", "port_device", "network", "prefixes"}
    known |= {"gateway_mac", "floating", "floating_mac", "behind_nat", "is_bound"}
    assert {one.iface_id for one in cloud.guests} == {one.iface_id for one in written.attachments}
    for one in written.guests:
        found = named(cloud, one.iface_id)
        assert {name: getattr(found, name) for name in known} == {name: getattr(one, name) for name in known}
        assert found.chain[-1] == one.chain[-1]
    assert known <= {field.name for field in fields(written.guests[0])}


def _sniffer(point):
    def go():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((point.device, 3))
        sock.setblocking(False)
        return sock

    return in_netns(point.netns, go)


class Sniffers:
    """A packet socket on every point of a topology; nothing of netprobe's own observing."""

    def __init__(self, cloud):
        points = [one.chain[-1] for one in cloud.guests] + [p for host in cloud.hosts for p in host.uplink]
        self.points = {_sniffer(point): point.id for point in points}

    def close(self):
        for sock in self.points:
            sock.close()

    def way_of(self, sender, address, key, wanted):
        """Send one datagram from a guest's namespace; {(point, direction): frame} of all its sightings.

        Looks until all that is wanted was seen, and a little longer for what is not.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with in_netns(sender, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.sendto(key, (address, PORT))
        seen, deadline = {}, time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            for ready in select.select([*self.points], [], [], left)[0]:
                frame, where = ready.recvfrom(4096)
                if key in frame:
                    seen[self.points[ready], int(where[2] == PACKET_OUTGOING)] = frame
                    if seen.keys() >= wanted:
                        deadline = min(deadline, time.monotonic() + 0.02)
        return seen


def _addresses(frame, key):
    """Source and destination of the IP header before the UDP header before the key."""
    at = frame.index(key) - 8
    if frame[at - 20] >> 4 == 4 and frame[at - 20 + 9] == 17:
        return socket.inet_ntoa(frame[at - 8 : at - 4]), socket.inet_ntoa(frame[at - 4 : at])
    return socket.inet_ntop(socket.AF_INET6, frame[at - 32 : at - 16]), socket.inet_ntop(
        socket.AF_INET6, frame[at - 16 : at]
    )


def test_every_path_is_the_way_that_frames_take(pair_lab):
    """All pairs of guests, both families: points, directions, next hop and addresses, also through gateway and NAT."""
    cloud, hidden = discovered(), []
    sniffers = Sniffers(cloud)
    try:
        for number, (sender, target, family) in enumerate(
            (a, b, family) for a in cloud.guests for b in cloud.guests if a is not b for family in (4, 6)
        ):
            try:
                sent_to, pairs = translations(cloud, sender, target, family)
            except UsageError:
                hidden.append((sender.name, target.name, family))
                continue
            path = build_path(cloud, sender, target, Vantage.GUEST, Protocol.RAW_UDP)
            key = b"netprobe way %06d" % number
            wanted = {(s.point.id, int(s.direction)) for s in path.forward[1:]}
            for _ in range(3):  # the first frame to a neighbour may be lost to its address resolution
                seen = sniffers.way_of(sender.netns, str(sent_to), key, wanted)
                if seen.keys() == wanted:
                    break
            assert seen.keys() == wanted, (sender.name, target.name, family)
            told = {(str(sender.address(family)), str(sent_to)), *((str(p.src_ip), str(p.dst_ip)) for p in pairs)}
            assert {_addresses(frame, key) for frame in seen.values()} == told
            assert seen[f"{sender.name}.backend", 0][:6].hex(":") == next_hop(sender, target, family)
    finally:
        sniffers.close()
    assert hidden == [("ext1", name, 4) for name in ("vm2", "vm3", "vm4")]


def test_a_port_that_is_added_moved_and_deleted_is_followed(pair_lab):
    """With nothing but ip, ovs-vsctl and ovn-nbctl; each change is seen well within a second."""

    async def live():
        async with following() as follower:
            for host in ("hv1", "hv2"):
                run("ip", "-n", host, "link", "add", "tapnew", "type", "veth", "peer", "name", "tapnewp")
                run("ip", "-n", host, "link", "set", "tapnew", "up")
            plug = ["add-port", "br-int", "tapnew", "--", "set", "interface", "tapnew", f"external_ids:iface-id={NEW}"]
            nbctl("lsp-add", "net1", NEW, "--", "lsp-set-addresses", NEW, "fa:16:3e:00:be:ef 10.1.0.77")
            vsctl("hv1", *plug)
            await becomes(follower, lambda cloud: (new := named(cloud, NEW)) and new.is_bound)
            new = named(follower.topology, NEW)
            assert (new.host, new.mac, str(new.ipv4), new.network) == ("hv1", "fa:16:3e:00:be:ef", "10.1.0.77", "net1")
            assert (new.chain[1].netns, new.chain[1].device) == ("hv1", "tapnew")
            vsctl("hv1", "del-port", "br-int", "tapnew")
            await becomes(follower, lambda cloud: named(cloud, NEW) is None or not named(cloud, NEW).is_bound)
            vsctl("hv2", *plug)
            await becomes(follower, lambda cloud: (new := named(cloud, NEW)) and new.is_bound and new.host == "hv2")
            nbctl("lsp-del", NEW)
            vsctl("hv2", "del-port", "br-int", "tapnew")
            await becomes(follower, lambda cloud: named(cloud, NEW) is None)
            assert replace(follower.topology, routers=()) == read_topology()

    try:
        trio.run(live)
    finally:
        for host in ("hv1", "hv2"):
            subprocess.run(["ip", "-n", host, "link", "del", "tapnew"], check=False, capture_output=True)


def test_a_guest_that_the_lab_moves_is_followed_there_and_back(pair_lab):
    """Its backend is on the other host, its path is shorter, and its ids are the same."""

    async def live():
        async with following() as follower:
            before = named(follower.topology, "vm2")
            await trio.to_thread.run_sync(control.move, "vm2", "hv1")
            await becomes(follower, lambda cloud: (vm2 := named(cloud, "vm2")) and vm2.host == "hv1" and vm2.is_bound)
            cloud = follower.topology
            vm2 = named(cloud, "vm2")
            assert [p.place for p in vm2.chain] == ["vm2/vm2.guest", "hv1/vm2.backend"]
            path = build_path(cloud, named(cloud, "vm1"), vm2, Vantage.GUEST, Protocol.UDP)
            assert [s.point.id for s in path.forward] == ["vm1.guest", "vm1.backend", "vm2.backend", "vm2.guest"]
            await trio.to_thread.run_sync(control.move, "vm2", "hv2")
            await becomes(follower, lambda cloud: named(cloud, "vm2") == before)

    trio.run(live)


@pytest.mark.parametrize("expose", [False, True])
def test_a_relay_of_the_labs_is_followed_in_and_out(pair_lab, expose):
    """The port's device changes under a guest that stays: its chain is what the state file says."""

    async def live():
        async with following() as follower:
            before = follower.topology
            for segment in ("vm1.backend..hv1.nic", "vm2.guest..vm2.backend"):
                await trio.to_thread.run_sync(
                    lambda at=segment: control.fault_set(at, expose=expose, delay_ns=1_000_000)
                )
            spliced = read_topology()
            assert spliced.guests != before.guests
            await becomes(follower, lambda cloud: replace(cloud, routers=()) == spliced)
            await trio.to_thread.run_sync(control.fault_clear)
            await becomes(follower, lambda cloud: cloud == before)

    trio.run(live)


def test_inventories_of_agents_stand_in_for_databases_that_are_elsewhere(pair_lab):
    """A spread cloud: only OVN is followed here; what an agent said stands when it is gone, and is marked."""

    async def live():
        written = read_topology()
        async with open_follower(written, local_hosts=()) as follower:
            async with open_inventory(written.host("hv1")) as hv1:
                follower.take_inventory(hv1.inventory)
                follower.take_inventory(await trio.to_thread.run_sync(inventory, written.host("hv2")))
                await becomes(follower, lambda cloud: replace(cloud, routers=()) == written)
                version = hv1.version
                await trio.to_thread.run_sync(lambda: vsctl("hv1", "set", "interface", "tapvm1", "external_ids:x=y"))
                await trio.to_thread.run_sync(lambda: vsctl("hv1", "add-br", "br-other"))
                try:
                    with trio.fail_after(SEEN_WITHIN_S):
                        _, found = await hv1.wait_changed(version)
                    assert "br-other" in {row.bridge for row in found.interfaces}
                finally:
                    vsctl("hv1", "del-br", "br-other", "--", "remove", "interface", "tapvm1", "external_ids", "x")
            follower.lose_host("hv2", "its connection was lost")
            await becomes(follower, lambda cloud: bool(cloud.stale))
            assert follower.topology.stale == {"agent of hv2": "its connection was lost"}
            assert follower.topology.guests == written.guests

    trio.run(live)


def test_a_state_file_that_goes_away_is_said_and_what_it_said_stands(pair_lab):
    """And it is read again when it is back."""

    async def live():
        path = state_path()
        async with following() as follower:
            hidden = path.rename(path.with_suffix(".hidden"))
            try:
                await becomes(follower, lambda cloud: "state file" in cloud.stale)
                assert len(follower.topology.guests) == 5
            finally:
                hidden.rename(path)
            await becomes(follower, lambda cloud: not cloud.stale)

    trio.run(live)


def test_two_followers_leave_nothing_behind(pair_lab):
    """No thread, no connection, no descriptor."""
    mine = Path("/proc/self/fd")
    trio.run(_once)
    before = len(list(mine.iterdir()))
    for _ in range(2):
        trio.run(_once)
    until(lambda: len(list(mine.iterdir())) <= before)


async def _once():
    async with following():
        pass
