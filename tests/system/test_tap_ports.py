"""Ports with both ends played: on taps of an own namespace (tp-), and on the lab's, behind a real switch."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest
import trio
from support import tap_frames
from support.lab_traffic import echo, guest, look_at
from support.tap_frames import ABSORB, numbered, numbers
from support.waiting import until

from netprobe.host import iproute, tc
from netprobe.host.netns import NETNS_DIR, exists, in_netns
from netprobe.lab import control
from netprobe.model.packets import Kind, Neighbour, Packet
from netprobe.model.policy import UDP
from netprobe.service import tap_ports
from netprobe.service.discovery import read_topology
from netprobe.service.journal import clean, open_journal, stale_journals
from netprobe.service.policy_entries import open_entry
from netprobe.service.tap_links import TapPort
from netprobe.service.tap_ports import AbsorbFilter, open_tap_ports
from netprobe.wire.policy_bpf import absorb_program, tc_bytecode
from netprobe.wire.policy_frames import encode_packet
from netprobe.wire.policy_layout import PolicyMark

pytestmark = pytest.mark.system

COUNT = 3
GAP_NS = 100_000  # 10,000 a second
ARRIVE_S = 5.0
PATIENCE_S = 10.0
TEST_S = 60.0


@pytest.fixture
def taps(tmp_path, monkeypatch):
    """Three taps, veth pairs whose other ends are guests', in two namespaces."""
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(tmp_path))
    host, inside = f"tp-h{os.getpid()}", f"tp-g{os.getpid()}"
    iproute.add_namespaces([host, inside])
    try:
        for name in (host, inside):
            iproute.set_sysctls(name, {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
        pairs = [f"link add tap{i} type veth peer name eth{i} netns {inside}" for i in range(COUNT)]
        iproute.batch([*pairs, *(f"link set tap{i} up" for i in range(COUNT))], netns=host)
        iproute.batch([f"link set eth{i} up" for i in range(COUNT)], netns=inside)
        until(lambda: not [kinds for kinds in tc.qdiscs(host).values() if "noop" in kinds])
        yield [TapPort(f"vm{i}", host, f"tap{i}") for i in range(COUNT)]
    finally:
        iproute.delete_namespaces([host, inside])


def left(netns):
    """Whatever may be left behind: qdiscs and filters of a namespace's devices, links and namespaces of ours."""
    devices = sorted(tc.qdiscs(netns))
    filters = [(device, one) for device in devices for one in tc.filters(netns, device)]
    spaces = sorted(path.name for path in NETNS_DIR.iterdir() if path.name.startswith("np-"))
    return devices, tc.qdiscs(netns), filters, spaces, stale_journals()


def with_taps(ports, use, absorb=ABSORB):
    """Open ports, let `use(opened)` do something; returns what it returns."""

    async def main():
        with open_journal((), None) as journal, trio.fail_after(TEST_S):
            async with open_tap_ports(ports, absorb, journal) as opened:
                return await use(opened)

    return trio.run(main)


async def collect(opened, wanted):
    """(port, number) of absorbed frames, until there are so many; none comes later than that."""
    found = []
    with trio.move_on_after(ARRIVE_S):
        while len(found) < wanted:
            await opened.wait_absorbed()
            opened.drain(lambda absorbed: found.extend(numbers(absorbed)))
    return found


def watch(netns, device):
    """A packet socket that sees a device."""
    return look_at({"netns": netns, "device": device})


def seen(sock):
    """Marked frames that a socket has seen: whether each went out, and its number; canaries are number 0."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, address = sock.recvfrom(2048)
            if frame[12:14] == b"\x08\x00" and frame[15] >> 2 == tap_frames.DSCP:
                found.append((address[2] == 4, int.from_bytes(frame[42:46], "big")))
    return found


def end(i):
    return {"mac": f"02:00:00:00:00:0{i}", "ipv4": f"10.0.0.{i + 1}"}


# ---------------------------------------------------------------------------------------------------------------------
# On taps of our own
# ---------------------------------------------------------------------------------------------------------------------


def test_what_leaves_a_tap_is_absorbed_and_what_is_sent_comes_into_it(taps):
    """Marked frames out of a tap come to its own port and never to the guest; others reach the guest."""
    host = taps[0].netns
    out = in_netns(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        for i in range(30):
            out.sendto(numbered(end(0), end(1), i), (f"tap{i % 3}", 0))
        out.sendto(numbered(end(0), end(1), 99, dscp=0), ("tap1", 0))
        came = await collect(opened, 30)
        sent = await opened.send([(i % 3, numbered(end(0), end(1), i)) for i in range(30)], 0)
        assert (sent.times_ns > 0).all()
        assert opened.losses() == type(opened.losses())()
        return came

    with contextlib.closing(out), contextlib.closing(watch(host, "tap1")) as tap:
        inside = f"tp-g{os.getpid()}"
        with contextlib.closing(watch(inside, "eth1")) as within:
            came = with_taps(taps, use)
            assert seen(within) == []
        assert sorted(came) == sorted((i % 3, i) for i in range(30))
        assert seen(tap) == [(False, i) for i in range(30) if i % 3 == 1]


def test_the_filter_of_a_run_absorbs_all_that_is_marked_and_no_frame_of_a_tenant(taps):
    """IPv4, IPv6 and ARP come back; a tenant's frame of the same class without the run's secrets reaches its guest."""
    host, inside = taps[0].netns, f"tp-g{os.getpid()}"
    mark = PolicyMark(session=7, key=bytes(range(16)), dscp=tap_frames.DSCP, ip_id=0x1234, flow_label=0x54321)
    nobody = "02:00:00:6e:70:00"
    four = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    six = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    packets = [Packet(nobody, nobody, *ips, UDP, 61_000, 9) for ips in (four, six)]
    packets.append(Packet(nobody, nobody, *four, 0, kind=Kind.ARP, neighbour=Neighbour(nobody, *four)))
    canaries = tuple(encode_packet(packet, mark, i) for i, packet in enumerate(packets))
    tenant = numbered(end(0), end(1), 1)

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        out.sendto(tenant, ("tap1", 0))
        await trio.lowlevel.wait_readable(within)
        return within.recv(2048)

    out = in_netns(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with contextlib.closing(out), contextlib.closing(watch(inside, "eth1")) as within:
        assert with_taps(taps, use, AbsorbFilter(tc_bytecode(absorb_program(mark)), canaries)) == tenant


def test_other_traffic_reaches_the_guest_meanwhile(taps):
    """A frame of another DSCP goes where it would go without us."""
    host, inside = taps[0].netns, f"tp-g{os.getpid()}"
    out = in_netns(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    tenant = numbered(end(0), end(1), 1, dscp=46)

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        out.sendto(tenant, ("tap1", 0))
        await trio.lowlevel.wait_readable(within)
        return within.recv(2048)

    with contextlib.closing(out), contextlib.closing(watch(inside, "eth1")) as within:
        assert with_taps(taps, use) == tenant


def test_filters_of_others_stay_and_the_clsact_that_they_hang_on(taps):
    """Ours is added beside them, and only ours is gone at the end; clsact was not ours on tap0, and was on tap1."""
    host = taps[0].netns
    others = "filter add dev tap0 egress protocol ip pref 10 u32 match ip dport 7 0xffff flowid 1:1"
    assert tc.batch(host, [tc.clsact_command("tap0"), others]) == {}
    before = left(host)

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        assert len(tc.filters(host, "tap0")) > len(before[2])
        assert "clsact" in tc.qdiscs(host)["tap1"]

    with_taps(taps, use)
    assert left(host) == before
    assert tc.filters(host, "tap0")


def test_two_runs_on_the_same_taps_do_not_take_each_others_filters(taps):
    """Each removes its own handle; whoever ends last removes the clsact, though the other one made it."""
    host = taps[0].netns
    before = left(host)

    async def longer(is_open, may_end):
        with open_journal((), None) as journal:
            async with open_tap_ports(taps, ABSORB, journal) as opened:
                assert opened.failures == {}
                is_open.set()
                await may_end.wait()
                assert await opened.confirm() == {0, 1, 2}
        assert opened.left == ()

    async def main():
        is_open, may_end = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            with open_journal((), None) as journal:
                async with open_tap_ports(taps, ABSORB, journal) as opened:
                    assert opened.failures == {}
                    nursery.start_soon(longer, is_open, may_end)
                    await is_open.wait()
                    assert len({f.handle for f in tc.filters(host, "tap0")} - {0}) == 2
            may_end.set()

    trio.run(main)
    assert left(host) == before


def test_frames_that_come_slowly_and_long_are_kept_until_they_are_drained(taps):
    """A ring of 32 blocks that are retired after 20 ms would be full after 640 ms; nobody drains for 1.2 s."""
    host = taps[0].netns
    out = in_netns(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))

    async def use(opened):
        for i in range(60):
            out.sendto(numbered(end(0), end(1), i, size=64 + i), (f"tap{i % 3}", 0))
            await trio.sleep(0.02)
        return await collect(opened, 60), opened.dropped

    with contextlib.closing(out):
        came, dropped = with_taps(taps, use)
    assert (came, dropped) == ([(i % 3, i) for i in range(60)], 0)


def test_more_than_can_be_held_is_counted_as_dropped(taps, monkeypatch):
    """Whoever does not drain loses what came, and knows how much."""
    monkeypatch.setattr(tap_ports, "MAX_HELD_BYTES", 1)
    out = in_netns(taps[0].netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))

    async def use(opened):
        out.sendto(numbered(end(0), end(1), 1), ("tap0", 0))
        await opened.wait_absorbed()
        out.sendto(numbered(end(0), end(1), 2), ("tap0", 0))
        with trio.fail_after(ARRIVE_S):
            while not opened.dropped:  # noqa: ASYNC110  nobody is told when frames are shed
                await trio.sleep(0.005)
        return await collect(opened, 1), opened.dropped

    with contextlib.closing(out):
        assert with_taps(taps, use) == ([(0, 1)], 1)


@pytest.mark.parametrize("thing", ["clsact", "filter", "device", "down"])
def test_absorption_that_ends_meanwhile_is_noticed(taps, thing):
    """As when Open vSwitch takes clsact for policing: that port alone is not confirmed any more, and it says why."""
    host = taps[0].netns

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        if thing == "clsact":
            tc.batch(host, ["qdisc del dev tap1 clsact", "qdisc add dev tap1 ingress"])
        elif thing == "filter":
            tc.batch(host, [f"filter del dev tap1 egress pref {tc.PREFERENCE}"])
        elif thing == "device":
            iproute.batch(["link del tap1"], netns=host)
        else:
            iproute.batch(["link set tap1 down"], netns=host)
        return await opened.confirm(), opened.why_unconfirmed(1)

    confirmed, why = with_taps(taps, use)
    assert confirmed == {0, 2}
    assert why.startswith(
        {
            "clsact": "clsact of tap1 is gone",
            "filter": "netprobe's filter on tap1 is gone",
            "device": "device tap1 is gone",
            "down": "nothing can be sent by tap1: Network is down",
        }[thing]
    )
    assert not [device for device, kinds in tc.qdiscs(host).items() if "clsact" in kinds]


def test_a_filter_of_somebody_else_that_comes_first_is_noticed(taps):
    """Ours goes after those that were there: when one of them takes our frames, absorption is not confirmed."""
    host = taps[0].netns
    theirs = "filter add dev tap2 egress protocol all pref 1 u32 match u32 0 0 flowid 1:1"
    assert tc.batch(host, [tc.clsact_command("tap2"), theirs]) == {}

    async def use(opened):
        return await opened.confirm()

    assert with_taps(taps, use) == {0, 1}


def test_ports_that_cannot_be_used_say_why_and_the_others_can(taps):
    """No device, an ingress qdisc in the way, an impossible name."""
    host = taps[0].netns
    tc.batch(host, ["qdisc add dev tap1 ingress"])
    ports = [*taps, TapPort("gone", host, "tap9"), TapPort("odd", host, 'tap"0')]

    async def use(opened):
        assert [port.name for port in opened.ports] == ["vm0", "vm2"]
        assert opened.index("vm2") == 1
        return await opened.confirm(), opened.failures

    confirmed, failures = with_taps(ports, use)
    assert confirmed == {0, 1}
    assert failures["gone"] == "device tap9 is not there"
    assert "ingress qdisc" in failures["vm1"]
    assert "no name of a device" in failures["odd"]
    assert "ingress" in tc.qdiscs(host)["tap1"]


def test_a_filter_that_tc_refuses_leaves_its_port_out(taps):
    """Here all of them: no program of cls_bpf's."""
    before = left(taps[0].netns)

    async def use(opened):
        return opened.ports, sorted(opened.failures)

    assert with_taps(taps, use, AbsorbFilter("1,0 0 0 0", ABSORB.canaries)) == ((), ["vm0", "vm1", "vm2"])
    assert left(taps[0].netns) == before


def test_nothing_is_left_after_an_error_and_after_a_cancelled_send(taps):
    """Sending stops within milliseconds, what was sent is known, and everything is as it was."""
    host = taps[0].netns
    before = left(host)

    async def fail(opened):
        raise ValueError(len(opened.ports))

    with pytest.raises(ValueError, match="3"):
        with_taps(taps, fail)
    assert left(host) == before

    async def cancelled(opened):
        frames = [(0, numbered(end(0), end(1), i)) for i in range(100_000)]
        async with trio.open_nursery() as nursery:

            async def stop():
                with contextlib.closing(watch(host, "tap0")) as tap:
                    nursery.start_soon(opened.send, frames, 1_000_000)
                    await trio.lowlevel.wait_readable(tap)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop)

    began = time.monotonic()
    with_taps(taps, cancelled)
    assert time.monotonic() - began < 10  # and not the 100 s that the order would take
    assert left(host) == before


KILLED = """
import sys, trio
from support.tap_frames import ABSORB
from netprobe.service.journal import open_journal
from netprobe.service.tap_links import TapPort
from netprobe.service.tap_ports import open_tap_ports

async def main():
    with open_journal((), None) as journal:
        ports = [TapPort(f"vm{i}", sys.argv[1], f"tap{i}") for i in range(3)]
        async with open_tap_ports(ports, ABSORB, journal) as opened:
            print(len(await opened.confirm()), flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def test_clean_undoes_what_a_killed_run_left(taps):
    """After a kill -9 filters, links and namespace are there; a journal says so, and `clean` takes them away."""
    host = taps[0].netns
    before = left(host)
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", KILLED, host], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert child.stdout.readline() == "3\n"
        assert clean(None).taps_undone == 0  # it lives
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert "clsact" in tc.qdiscs(host)["tap0"]
    (path,) = stale_journals()
    namespace = json.loads(path.read_text())["taps"][0]["namespace"]
    assert exists(namespace)
    done = clean(None)
    assert (done.journals, done.taps_undone, done.damaged, done.unreachable) == (1, 3, (), ())
    assert left(host) == before
    assert not exists(namespace)


# ---------------------------------------------------------------------------------------------------------------------
# On the lab
# ---------------------------------------------------------------------------------------------------------------------


def lab_ports(lab, *names):
    """Ports of the lab's guests."""
    points = {point["id"]: point for point in lab.state["points"]}
    chains = {name: points[guest(lab, name)["chain"][1]] for name in names}
    return [TapPort(name, point["netns"], point["device"]) for name, point in chains.items()]


@pytest.mark.alone(reason="10,000 frames a second, of which none may be lost")
def test_ten_thousand_frames_a_second_go_through_the_switch_and_none_reaches_a_guest(lab):
    """Two seconds of it, while tenants ping each other: they arrive at the port that they are for, and nowhere else.

    On our own way nothing is lost; the switch's buffer overflows when a busy machine does not let it run.
    """
    one, two = guest(lab, "vm1"), guest(lab, "vm2")
    ports = lab_ports(lab, "vm1", "vm2", "vm3")
    before = left(ports[0].netns)
    count = 20_000
    pings = []

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        found = []
        ended = trio.Event()

        async def look():
            while not found or found[-1][1] < count - 1:
                await opened.wait_absorbed()
                opened.drain(lambda absorbed: found.extend(numbers(absorbed)))

        async def ping():
            while not ended.is_set():
                pings.append(await trio.to_thread.run_sync(echo, one["netns"], two["ipv4"]))

        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                nursery.start_soon(ping)
                frames = [(0, numbered(one, two, i)) for i in range(count)]
                began = time.monotonic()
                sent = await opened.send(frames, GAP_NS)
                took_s = time.monotonic() - began
                ended.set()
        return sent, found, took_s, opened.losses(), opened.dropped

    with contextlib.ExitStack() as stack:
        watched = [
            stack.enter_context(contextlib.closing(watch(guest(lab, name)["netns"], guest(lab, name)["device"])))
            for name in ("vm1", "vm2", "vm3")
        ]
        sent, found, took_s, losses, dropped = with_taps(ports, use)
        assert [seen(sock) for sock in watched] == [[], [], []]
    assert (sent.times_ns > 0).all()
    assert found == sorted(set(found))
    assert {port for port, _ in found} == {1}
    assert len(found) > 0.9 * count, f"{len(found)} of {count}"
    print(f"{len(found)} of {count} in {took_s:.2f} s, {len(pings)} pings")
    assert took_s > 1.9
    assert (dropped, losses.ring, losses.refused, losses.sent, losses.absorbed) == (0, 0, 0, 0, 0)
    assert len(pings) > 3
    assert all(pings)
    assert left(ports[0].netns) == before


@pytest.fixture(scope="module", params=["single", "bridge"])
def some_lab(request, lab_place):
    """A switch that tracks connections itself, and one behind Linux bridges whose iptables do."""
    if control.status().state.get("name", request.param) != request.param:
        control.down()
    return control.up(request.param)


def test_the_switch_judges_injected_frames_as_the_guests_own(some_lab):
    """What a rule allows arrives; a port that no rule names and a stolen address do not."""
    one, two, three = (guest(some_lab, name) for name in ("vm1", "vm2", "vm3"))
    frames = [
        (0, numbered(one, two, 1)),
        (0, numbered(one, two, 2, port=5010)),  # no rule
        (0, numbered(three, two, 3)),  # another's addresses
        (2, numbered(three, two, 4)),
        (0, numbered(one, two, 5)),
    ]

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        await opened.send(frames, 1_000_000)
        return await collect(opened, 3)

    assert sorted(with_taps(lab_ports(some_lab, "vm1", "vm2", "vm3"), use)) == [(1, 1), (1, 4), (1, 5)]


@pytest.mark.parametrize("vantage", ["tap", "vswitch", "guest"])
def test_every_way_in_leads_through_the_switch_to_the_same_ports(some_lab, vantage):
    """Frames of several lengths from three guests in one order; each arrives where it should, and is sent before."""
    ends = {name: guest(some_lab, name) for name in ("vm1", "vm2", "vm3")}
    topology = read_topology()
    attachments = [topology.guest(name, "test") for name in ends]
    pairs = [("vm1", "vm2"), ("vm3", "vm2"), ("vm1", "vm3")] * 20
    frames = [
        (src, numbered(ends[src], ends[dst], i, src_port=61_000 + i, size=60 + 7 * i))
        for i, (src, dst) in enumerate(pairs)
    ]

    async def use(opened):
        assert await opened.confirm() == {0, 1, 2}
        async with open_entry(vantage, attachments, topology, opened) as entry:
            times = await entry.send(frames, GAP_NS)
            assert entry.problems == ()
        return times, await collect(opened, len(frames))

    times, came = with_taps(lab_ports(some_lab, *ends), use)
    assert all(times)
    index = {name: i for i, name in enumerate(ends)}
    assert sorted(came) == sorted((index[dst], i) for i, (_, dst) in enumerate(pairs))


def test_whatever_open_vswitch_does_to_clsact_when_it_sets_policing_is_noticed(lab):
    """Some versions delete it for an ingress qdisc of their own (3.1 does not): `confirm` says what is so."""
    ports = lab_ports(lab, "vm1", "vm2")
    (host,) = lab.state["hosts"]
    vsctl = ["ovs-vsctl", f"--db=unix:{host['ovs_rundir']}/db.sock", "--timeout=10"]
    interface = ["interface", ports[1].device]

    async def use(opened):
        assert await opened.confirm() == {0, 1}
        await trio.run_process([*vsctl, "set", *interface, "ingress_policing_rate=100000"])
        is_there = any(one.is_ours for one in tc.filters(ports[1].netns, ports[1].device))
        return await opened.confirm(), is_there

    try:
        confirmed, is_there = with_taps(ports, use)
        assert confirmed == ({0, 1} if is_there else {0})
    finally:
        subprocess.run([*vsctl, "set", *interface, "ingress_policing_rate=0"], check=True)
        tc.batch(ports[1].netns, [f"qdisc del dev {ports[1].device} ingress"])
