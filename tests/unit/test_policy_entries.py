"""Ways in for a policy's packets, against taps, switches and agents that only count."""

import time

import numpy as np
import pytest
import trio

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host.guest_messages import GuestPacing, SentReport
from netprobe.inject.taps import TapSent
from netprobe.service.policy_entries import GuestEntry, PacketOutEntry, TapEntry, open_entry
from netprobe.service.tap_ports import TapPort

NOW = 1_700_000_000_000_000_000
GAP_NS = 1_000


class Taps:
    """Two ports that can be used, and one that cannot."""

    def __init__(self):
        self.ports = (TapPort("vm1", "hv", "tap1"), TapPort("vm3", "hv", "tap3"))
        self.failures = {"vm2": "device tap2 is not there"}
        self.frames = []

    async def send(self, frames, gap_ns, *, stopped):
        self.frames += frames
        times = np.array([NOW + i if not stopped() else 0 for i in range(len(frames))], np.int64)
        return TapSent(times, 0)


class Switch:
    """Takes packet-outs; says at the barrier that one of them had an impossible port."""

    def __init__(self, bad_port=None):
        self.frames = []
        self.bad_port = bad_port
        self.unconfirmed = []

    def packet_out_nowait(self, in_port, frame):
        self.unconfirmed.append((in_port, frame))

    def barrier(self):
        ports = {port for port, _ in self.unconfirmed}
        if self.bad_port in ports:
            raise RefusedError("bridge br-int", "does not permit it")
        assert len(self.unconfirmed) <= 64
        self.frames += self.unconfirmed
        self.unconfirmed = []


class Agent:
    """Sends what it is told, at once; or dies, or never ends until it is stopped."""

    def __init__(self, *, dies=False, hangs=False):
        self.dies, self.hangs = dies, hangs
        self.stopped = trio.Event()
        self.orders = []

    async def send_mixed(self, frames, due_ns, *, lead_ns):
        if self.dies:
            raise HostNotReadyError("guest agent", "closed the connection")
        self.orders.append((list(frames), list(due_ns)))
        if self.hangs:
            await self.stopped.wait()
        times = np.zeros(len(frames), np.int64)
        if not self.hangs:
            times += np.array(due_ns) + time.time_ns() + lead_ns
            await trio.sleep(lead_ns / 1e9 + due_ns[-1] / 1e9)
        return SentReport(0, times, GuestPacing(len(frames), 0, 0, 0, 0, 0), 0, "")

    async def stop_sends(self):
        self.stopped.set()


def send(entry, frames, gap_ns=GAP_NS, **how):
    async def main():
        return await entry.send(frames, gap_ns, **how)

    return trio.run(main)


def frames(*names):
    return [(name, bytes([i]) * 60) for i, name in enumerate(names)]


def test_taps_take_frames_by_name_and_a_port_that_is_not_open_is_told():
    """Its frame is unsent; the others keep their places."""
    taps = Taps()
    entry = TapEntry(taps)
    assert send(entry, frames("vm1", "vm2", "vm3", "vm9")) == [NOW, 0, NOW + 1, 0]
    assert taps.frames == [(0, bytes([0]) * 60), (1, bytes([2]) * 60)]
    assert entry.problems == ("vm2: device tap2 is not there", "vm9: its port is not open")


def test_packet_outs_go_to_each_ports_own_bridge_with_barriers():
    """200 frames of two hosts: each switch has its own, in order, at most 64 unconfirmed."""
    one, two = Switch(), Switch()
    entry = PacketOutEntry({"a": ("hv1", 3), "b": ("hv2", 4), "c": ("hv1", 5)}, {"hv1": one, "hv2": two}, 1e6)
    names = [("a", "b", "c")[i % 3] for i in range(200)]
    times = send(entry, [(name, i.to_bytes(2, "big") * 30) for i, name in enumerate(names)])
    assert all(times)
    assert times == sorted(times)
    ports = {"a": 3, "b": 4, "c": 5}
    for switch, own in ((one, "ac"), (two, "b")):
        wanted = [(ports[n], i.to_bytes(2, "big") * 30) for i, n in enumerate(names) if n in own]
        assert switch.frames == wanted
    assert entry.problems == ()


def test_packet_outs_that_no_barrier_confirmed_count_as_unsent():
    """A switch that refuses one takes nothing more of the order; the other goes on, and the reason is told."""
    entry = PacketOutEntry(
        {"a": ("hv1", 3), "b": ("hv2", 4)}, {"hv1": Switch(bad_port=3), "hv2": Switch()}, cap_pps=1e6
    )
    times = send(entry, frames(*"abab"))
    assert [t > 0 for t in times] == [False, True, False, True]
    assert len(entry.problems) == 1
    assert "does not permit it" in entry.problems[0]


def test_packet_outs_are_never_faster_than_the_allowlist_says():
    """The order asks for a million a second, the host permits 500."""
    entry = PacketOutEntry({"a": ("hv1", 3)}, {"hv1": Switch()}, cap_pps=500)
    times = send(entry, frames(*"a" * 11))
    assert times[-1] - times[0] >= 10 * 2_000_000 - 1_000_000


def test_agents_send_at_their_places_in_the_whole():
    """Frame i of all is due i gaps after the start, whoever sends it; a dead agent's frames are unsent, and told."""

    async def main():
        agents = {"a": Agent(), "b": Agent(), "c": Agent(dies=True)}
        entry = GuestEntry(agents)
        return agents, entry, await entry.send(frames(*"abcad"), GAP_NS)

    agents, entry, times = trio.run(main)
    assert agents["a"].orders == [([bytes([0]) * 60, bytes([3]) * 60], [0, 3 * GAP_NS])]
    assert agents["b"].orders == [([bytes([1]) * 60], [GAP_NS])]
    assert [t > 0 for t in times] == [True, True, False, True, False]
    assert sorted(entry.problems) == [
        "guest agent: closed the connection.",
        "guest d: its agent is not connected.",
    ]


def test_agents_are_stopped_when_it_is_asked():
    """What was sent until then is told."""

    async def main():
        entry = GuestEntry({"a": Agent(hangs=True), "b": Agent()})
        with trio.fail_after(5):
            return await entry.send(frames("a", "b"), GAP_NS, stopped=lambda: True)

    times = trio.run(main)
    assert times[0] == 0
    assert times[1] > 0


def test_an_unknown_vantage_is_a_usage_error():
    """The nearest known one is offered."""

    async def main():
        async with open_entry("taps", (), None, Taps()):
            pass

    with pytest.raises(UsageError, match="Did you mean 'tap'"):
        trio.run(main)
