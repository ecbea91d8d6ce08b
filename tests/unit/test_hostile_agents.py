"""A collector on the loopback, with honest agents and such as are not: who is let in, and that every run ends.

The agents speak the protocol and report what would have been seen if all probes arrived; no packet is sent. With real
processes, vswitches and floods: tests/system/test_hostile_agents.py.
"""

from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
import trio
from support.certificates import authority, issue
from support.clouds import pair
from support.databases import inventory
from support.evil import NOTHING, Client, Liar, report_of

from netprobe.errors import HostNotReadyError, WireError
from netprobe.host.block_log import BlockLog
from netprobe.host.clock import realtime_ns
from netprobe.host.tls import Credentials
from netprobe.model.inventory import HostInventory, InterfaceRow
from netprobe.model.observations import HOST_STOPPED, Hops, PartDone, SentReport, Sightings, Watermark
from netprobe.model.points import Leg, Vantage
from netprobe.model.probes import Protocol
from netprobe.model.records import HopBatch, HopRecord
from netprobe.plan.grants import Grants, InjectGrant
from netprobe.plan.paths import build_path
from netprobe.service import collector, spread_run
from netprobe.service.agents import MAX_PORTS, OPS_S, HostReport
from netprobe.service.collector import Collector, CollectorConfig
from netprobe.service.operator import OperatorConfig, collector_status, run_remotely
from netprobe.wire.blocks import encode_reports
from netprobe.wire.orders import PartSpec
from netprobe.wire.report import Ask, Fault, Ping, encode_message, unpack_value_untrusted

CLOUD = replace(pair(), ovn=None)
COUNT = 20
PATIENCE_S = 20


def session(src, dst):
    return f'[[session]]\nname = "{src}-{dst}"\nsrc = "{src}"\ndst = "{dst}"\nrate = 1000\ncount = {COUNT}\n'


PLAN = session("vm1", "vm3") + session("vm1", "vm2") + session("vm2", "vm4")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Time in which an agent is asked again, and in which nobody is waited for any longer."""
    monkeypatch.setattr(collector, "LEARN_S", 0.05)
    monkeypatch.setattr(collector, "MIN_STAY_NS", 300_000_000)
    monkeypatch.setattr(spread_run, "LOST_S", 0.4)
    monkeypatch.setattr(spread_run, "FINISH_S", 0.8)
    for op in ("part.open", "part.go", "part.finish"):
        monkeypatch.setitem(OPS_S, op, 1.0)


class Honest(Client):
    """An agent of a host that reports that all went well."""

    def __init__(self, place, credentials, host):
        super().__init__(place, credentials, host)
        self.host = host
        self.specs = {}
        self.todo = []

    async def run(self):
        while True:
            if await self.connect():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.work)
                    await self.serve(self.answer)
                    nursery.cancel_scope.cancel()
            await trio.sleep(0.1)

    def answer(self, ask):
        if ask.op == "inventory":
            host = next(h for h in CLOUD.hosts if h.name == self.host)
            return HostReport(inventory(host, CLOUD.attachments))
        if ask.op == "ports":
            return [61_000]
        if ask.op == "part.open":
            spec = unpack_value_untrusted(ask.args, PartSpec)
            self.specs[spec.run] = spec
        if ask.op in ("part.go", "part.finish"):
            run = unpack_value_untrusted(ask.args, dict)["run"]
            self.todo.append((run, self.seen(self.specs[run]) if ask.op == "part.go" else [PartDone()]))
        return {"state": "looking"}

    async def work(self):
        while True:
            while self.todo:
                run, reports = self.todo.pop(0)
                await self.block(run, encode_reports(reports))
            await trio.sleep(0.01)

    def seen(self, spec):
        now = realtime_ns()
        index = {place.id: place.index for place in spec.places}
        index |= {f"{send.sender}.guest": send.own for send in spec.sends}
        reports = []
        for probe in spec.probes:
            by_ip = {str(one.ipv4): one for one in CLOUD.guests}
            path = build_path(CLOUD, by_ip[probe.src_ip], by_ip[probe.dst_ip], Vantage.GUEST, Protocol.UDP)
            stops = [(Leg.FORWARD, s) for s in path.forward] + [(Leg.RETURN, s) for s in path.returned]
            sent = now + np.arange(COUNT, dtype=np.int64) * 1_000
            for i, (leg, stop) in enumerate(stops):
                at = index.get(stop.point.id)
                if at is None or not stop.is_observed_by_ring:
                    continue
                rows = [
                    HopRecord(int(t) + i * 10_000, probe.session, n, at, int(stop.direction), int(leg))
                    for n, t in enumerate(sent)
                ]
                reports.append(Hops(HopBatch.of(rows)))
                if leg is Leg.RETURN:
                    many = np.full(COUNT, at, np.uint16), np.full(COUNT, probe.session, np.uint32)
                    t2 = sent + len(path.forward) * 10_000
                    seqs, none = np.arange(COUNT, dtype=np.uint32), np.full(COUNT, -1, np.int64)
                    reports.append(Sightings(*many, seqs, t2, t2 + 1, none, sent + i * 10_000))
            if probe.session in [send.session for send in spec.sends]:
                reports.append(SentReport(probe.session, 0, sent, sent))
        return [*reports, Watermark(now)]


class World:
    """A collector, its certificates, two honest agents."""

    def __init__(self, folder):
        self.ca = authority(folder / "pki")
        self.said = []
        self.news = trio.Event()
        for host in ("hv1", "hv2"):
            issue(self.ca, host, "vswitch", grants=Grants((f"{host}/*",), (InjectGrant("*", 100_000),)))
        self.operator = issue(self.ca, "alice", "operator")
        config = CollectorConfig(
            ("127.0.0.1", 0), issue(self.ca, "collector", "collector"), folder / "runs", CLOUD, None
        )
        self.collector = Collector(config, self.say)
        self.place = ()
        self.nursery = None

    def credentials(self, name, *places, role="vswitch"):
        return issue(self.ca, name, role, grants=Grants(places, ()) if places else None)

    def honest(self, host):
        return Honest(self.place, Credentials.in_folder(self.ca.folder, host), host)

    async def run(self, plan=PLAN):
        config = OperatorConfig("alice", self.place, self.operator)
        with trio.fail_after(PATIENCE_S):
            return await run_remotely(config, plan, "plan")

    async def status(self):
        return await collector_status(OperatorConfig("alice", self.place, self.operator))

    async def wait_for(self, text):
        with trio.fail_after(PATIENCE_S):
            while not any(text in line for line in self.said):
                await self.news.wait()

    def say(self, line):
        self.said.append(line)
        self.news.set()
        self.news = trio.Event()


@asynccontextmanager
async def open_world(folder, hosts=("hv1", "hv2")):
    world = World(folder)
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        nursery.start_soon(world.collector.serve, lambda port: world.say(f"port {port}"))
        await world.wait_for("port ")
        world.place = ("127.0.0.1", int(world.said[0].split()[1]))
        for host in hosts:
            nursery.start_soon(world.honest(host).run)
        for host in hosts:
            await world.wait_for(f"{host} is on {host}")
        try:
            yield world
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for client in Client.opened:
                    await client.close()
            Client.opened.clear()


def figures(document):
    """What honest points say of each session: fates, and the segments between their points."""
    found = []
    for one in document["sessions"]:
        over_it = "hv1.nic..hv2.nic"  # a span of its own where nobody looked at the fabric at all
        segments = {s["id"]: s for s in one["segments"] if "fabric" not in s["id"] and s["id"] != over_it}
        keys = ["planned", "unsent", "received", "lost", "unobserved", "pending"]
        if "hv1.nic" not in str(segments):  # else who looks at the fabric may say that he saw forgeries there
            keys.append("forged")
        samples = {i: s["delay_ns"] and s["delay_ns"]["samples"] for i, s in segments.items()}
        found.append(({k: one[k] for k in keys}, one["return"]["delivered"], samples))
    return found


def in_world(tmp_path, test, **options):
    async def main():
        async with open_world(tmp_path, **options) as world:
            await test(world)

    trio.run(main)


def test_a_run_of_honest_agents_goes_well(tmp_path):
    """What the other tests compare with."""

    async def test(world):
        for one in (await world.run())["sessions"]:
            assert (one["received"], one["return"]["delivered"], one["forged"]) == (COUNT, COUNT, 0)

    in_world(tmp_path, test)


def test_a_long_document_comes_whole(tmp_path, monkeypatch):
    """That of a large mesh is more than a header may hold: it goes as the answer's body."""
    monkeypatch.setattr(collector, "MAX_RESULT_BYTES", 100)

    async def test(world):
        assert len((await world.run())["sessions"]) == 3

    in_world(tmp_path, test)


def test_a_liar_on_the_way_changes_nothing_that_others_saw(tmp_path):
    """It takes part, for the fabric, and lies of everything: the same figures, and the lies are counted and said."""

    async def test(world):
        without = figures(await world.run())
        liar = Liar(world.place, world.credentials("liar", "fabric/*"), "liar", "fabric", floods=False)
        world.nursery.start_soon(liar.lie_again_and_again)
        await world.wait_for("liar is on fabric")
        document = await world.run()
        assert figures(document) == without
        assert liar.counts["parts"] == 1
        assert not any("lie" in note for note in document["sessions"][0]["notes"])
        await world.wait_for("liar reported what it may not")
        counters = (await world.status())["counters"]
        assert counters["reports_refused"] >= 1
        assert document["sessions"][0]["counters"]["refused_reports"] > 0
        assert figures(await world.run()) == without

    in_world(tmp_path, test)


class Lazy(Honest):
    """An agent of the fabric that leaves some questions open, or never ends."""

    def __init__(self, place, credentials, silent=(), refused=(), ends=False):
        super().__init__(place, credentials, "fabric")
        self.name = "lazy"
        self.silent, self.refused, self.ends = silent, refused, ends
        self.chatter = 0

    def answer(self, ask):
        if ask.op in self.silent:
            return NOTHING
        if ask.op in self.refused:
            return Fault(kind="RefusedError", where="lazy", problem="does not want to")
        if ask.op == "inventory":
            return report_of("fabric")
        return super().answer(ask) if self.ends or ask.op != "part.finish" else {"state": "no"}

    def seen(self, _spec):
        return [Watermark(1)]

    async def chat(self):
        """Blocks without end."""
        while True:
            for run in list(self.specs):
                await self.block(run, encode_reports([Watermark(1)]))
            await trio.sleep(0.02)


LAZY = {
    "never says what it has": {"silent": ("inventory",), "ends": True},
    "never opens": {"silent": ("part.open",)},
    "refuses to open": {"refused": ("part.open",)},
    "never goes": {"silent": ("part.go",), "ends": True},
    "never finishes": {"silent": ("part.finish",)},
    "never ends": {},
}


@pytest.mark.parametrize("how", [*LAZY, "reports without end"])
def test_an_agent_that_does_not_do_its_part_keeps_no_run_from_its_end(tmp_path, how):
    """It looks at the fabric on the way of one session: its points are unobserved, and everything else is as it was."""

    async def test(world):
        without = figures(await world.run())
        lazy = Lazy(world.place, world.credentials("lazy", "fabric/*"), **LAZY.get(how, {}))
        world.nursery.start_soon(lazy.run)
        await world.wait_for("lazy (vswitch) dialled in")
        if how == "reports without end":
            world.nursery.start_soon(lazy.chat)
        await trio.sleep(0.1)
        document = await world.run()
        assert figures(document) == without
        is_said = any("fabric.hv1 is unobserved" in note for note in document["sessions"][1]["notes"])
        assert is_said != lazy.ends  # one that ends in good order says that it has looked
        assert not any("fabric" in note for note in document["sessions"][0]["notes"])

    in_world(tmp_path, test)


class Stopper(Lazy):
    """An agent of the fabric that says at once that its host does not want any more."""

    def answer(self, ask):
        if ask.op == "part.open":
            run = unpack_value_untrusted(ask.args, PartSpec).run
            self.todo.append((run, [PartDone({HOST_STOPPED: 1}, "enough")]))
        return super().answer(ask)


def test_only_a_host_with_a_switch_on_the_way_can_stop_a_run(tmp_path):
    """The fabric has none: its points are unobserved, and nothing is stopped."""

    async def test(world):
        without = figures(await world.run())
        world.nursery.start_soon(Stopper(world.place, world.credentials("lazy", "fabric/*")).run)
        await world.wait_for("lazy is on fabric")
        document = await world.run()
        assert (document["stopped"], figures(document)) == (None, without)

    in_world(tmp_path, test)


class Forgetful(Honest):
    """A sender that never says that it is done, and never ends."""

    def seen(self, spec):
        return [r for r in super().seen(spec) if not isinstance(r, SentReport)]

    def answer(self, ask):
        return {"state": "no"} if ask.op == "part.finish" else super().answer(ask)


def test_a_sender_that_never_says_that_it_is_done_is_not_waited_for_for_ever(tmp_path):
    """Nobody knows what hv2 sent; what hv1 sent is as it should be."""

    async def test(world):
        forgetful = Forgetful(world.place, world.honest("hv2").credentials, "hv2")
        world.nursery.start_soon(forgetful.run)
        await world.wait_for("hv2 is on hv2")
        first, *_, third = (await world.run())["sessions"]
        assert (first["received"], first["return"]["delivered"]) == (COUNT, COUNT)
        assert any("nobody knows whether they were sent" in note for note in third["notes"])

    in_world(tmp_path, test, hosts=("hv1",))


def test_a_sender_whose_ports_are_none_is_named(tmp_path):
    """Source ports out of nothing: the run is refused with the agent's name, and the next one is not."""

    async def test(world):
        liar = world.honest("hv2")
        honest = liar.answer
        liar.answer = lambda ask: [0, 70_000] if ask.op == "ports" else honest(ask)
        world.nursery.start_soon(liar.run)
        await world.wait_for("hv2 is on hv2")
        with pytest.raises(WireError, match="agent hv2"):
            await world.run(session("vm2", "vm4"))
        assert (await world.run(session("vm1", "vm3")))["sessions"][0]["received"] == COUNT

    in_world(tmp_path, test, hosts=("hv1",))


# ---------------------------------------------------------------------------------------------------------------------
# Who is let in
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "hello"),
    [
        ("vswitch", {"name": "hv1"}),
        ("vswitch", {"role": "operator"}),
        ("vswitch", {"role": "bypass"}),
        ("operator", {"role": "vswitch"}),
        ("guest", {"role": "guest"}),
        ("guest", {"role": "vswitch"}),
    ],
)
def test_nobody_is_let_in_as_somebody_else(tmp_path, role, hello):
    """Name and role are the certificate's: an operator is no agent, an agent no operator, a guest neither."""

    async def test(world):
        client = Client(world.place, world.credentials("mallory", role=role), "mallory", role)
        assert await client.connect(**hello) is None
        assert "certificate" in client.refused or "nothing to do here" in client.refused
        counters = (await world.status())["counters"]
        assert counters["hellos_refused"] == 1

    in_world(tmp_path, test, hosts=())


def test_an_operator_reports_nothing_and_an_agent_asks_nothing(tmp_path):
    """Each is closed at once when it does what the other may; the collector goes on."""

    async def test(world):
        for role in ("operator", "vswitch"):
            client = Client(world.place, world.credentials(f"m-{role}", role=role), f"m-{role}", role)
            assert await client.connect()
            if role == "operator":
                await client.block("r1", b"")
            else:
                await client.say(Ask(id=1, op="status"))
            with trio.fail_after(PATIENCE_S):
                while await client.hear() is not None:
                    pass
        assert (await world.status())["counters"]["links_garbage"] == 2

    in_world(tmp_path, test, hosts=())


def test_the_newer_of_two_connections_under_one_name_takes_the_place_of_the_older(tmp_path):
    """A thief with a copied certificate: after a moment it is in, and after another one the honest agent is back."""

    async def test(world):
        thief = Client(world.place, world.honest("hv1").credentials, "hv1")
        assert await thief.connect() is None
        assert "has just come" in thief.refused
        await trio.sleep(0.4)
        assert await thief.connect() is not None
        await world.wait_for("hv1 is gone")
        assert (await world.status())["counters"]["connections_replaced"] == 1
        await trio.sleep(0.4)
        with trio.fail_after(PATIENCE_S):
            while await thief.hear() is not None:
                pass
        assert "another connection came under the name hv1" in thief.refused
        await trio.sleep(0.6)
        assert (await world.run(session("vm1", "vm3")))["sessions"][0]["received"] == COUNT

    in_world(tmp_path, test)


def test_who_breaks_the_protocol_stays_outside_for_a_while(tmp_path):
    """Garbage, and a number left out: closed, counted, not let in for the next second."""

    async def test(world):
        credentials = world.credentials("mallory", "nowhere/*")
        client = Client(world.place, credentials, "mallory")
        assert await client.connect()
        await client.raw(b"\xff" * 100)
        await world.wait_for("mallory is gone")
        assert await client.connect() is None
        assert "broke the protocol" in client.refused
        await trio.sleep(1.1)
        assert await client.connect()

    in_world(tmp_path, test, hosts=())


@pytest.mark.parametrize(
    "said",
    [
        report_of("hv1"),
        report_of("mallory", chassis="hv1"),
        report_of("mallory", exchange=("203.0.113.9", 8_621)),
        report_of("mallory", exchange=("127.0.0.1", 70_000)),
        report_of("mallory", exchange=("no address", 8_621)),
        report_of("mallory", rows=[InterfaceRow("x\x1b[2J", "br-int", "", 1)]),
        report_of("mallory", rows=[InterfaceRow("x" * 300, "br-int", "", 1)]),
        report_of("mallory", rows=[InterfaceRow("x", "br-int", "", 1 << 60)]),
        report_of("mallory", rows=[InterfaceRow("", "", "", 1)] * (MAX_PORTS + 1)),
        report_of(""),
        {"inventory": 7},
        Fault(kind="Nonsense", where="\x1b", problem="x"),
    ],
)
def test_what_an_agent_says_of_its_host_is_checked(tmp_path, said):
    """Another's host or chassis, another's address, names that are none, too much: said once, counted, not believed."""

    async def test(world):
        client = Client(world.place, world.credentials("mallory", "mallory/*"), "mallory")
        assert await client.connect()
        world.nursery.start_soon(client.serve, lambda _ask: said)
        await world.wait_for("mallory does not say what it has")
        await trio.sleep(0.2)
        status = await world.status()
        assert [a["host"] for a in status["agents"] if a["name"] == "mallory"] == [""]
        assert status["counters"]["inventories_refused"] == 1
        assert "\x1b" not in "".join(world.said)

    in_world(tmp_path, test)


def test_an_agent_that_owes_an_answer_is_not_asked_the_same_again(tmp_path, monkeypatch):
    """So that each question costs at most one wait; when the answer comes, it is asked again."""
    monkeypatch.setitem(OPS_S, "inventory", 0.2)

    async def test(world):
        client, asked = Client(world.place, world.credentials("lazy", "lazy/*"), "lazy"), []
        assert await client.connect()
        world.nursery.start_soon(client.serve, lambda ask: asked.append(ask) or NOTHING)
        await world.wait_for("did not answer 'inventory'")
        await world.wait_for("still owes an answer")
        await trio.sleep(0.2)
        assert len(asked) == 1

    in_world(tmp_path, test, hosts=())


def test_a_disk_that_takes_no_block_ends_the_run_and_nothing_else(tmp_path, monkeypatch):
    """The run fails with the reason; agents stay, nobody is punished for it."""

    async def test(world):
        def fail(*_):
            raise HostNotReadyError("block log", "cannot be written: no space left")

        with monkeypatch.context() as broken:
            broken.setattr(BlockLog, "append", fail)
            with pytest.raises(HostNotReadyError, match="cannot be kept any more"):
                await world.run()
        assert "connections_failed" not in (await world.status())["counters"]
        assert (await world.run())["sessions"][0]["received"] == COUNT

    in_world(tmp_path, test)


def test_an_agent_that_is_gone_is_no_note_where_it_was_not_on_the_way(tmp_path):
    """hv1's own session says nothing of the fabric's agent; the one across the fabric does."""

    async def test(world):
        client = Client(world.place, world.credentials("liar", "fabric/*"), "liar")
        assert await client.connect()
        world.nursery.start_soon(client.serve, lambda _ask: report_of("fabric"))
        await world.wait_for("liar is on fabric")
        await client.close()
        await world.wait_for("liar is gone")
        document = await world.run()
        notes = ["liar is not connected" in " ".join(one["notes"]) for one in document["sessions"]]
        assert notes == [False, True, False]

    in_world(tmp_path, test)


def test_a_connection_that_fails_ends_nothing_else(tmp_path, monkeypatch):
    """A fault of netprobe itself in one connection is counted and said."""

    async def test(world):
        def fail(*_):
            raise ZeroDivisionError

        client = Client(world.place, world.credentials("mallory", "nowhere/*"), "mallory")
        assert await client.connect()
        monkeypatch.setattr(world.collector, "take_block", fail)
        await client.block("r1", b"")
        await world.wait_for("a connection failed")
        assert (await world.status())["counters"]["connections_failed"] == 1

    in_world(tmp_path, test, hosts=())


def test_tiny_messages_without_end_are_a_flood(tmp_path):
    """Each costs 4 KiB of the rate: some ten thousand at once, and the connection is closed."""

    async def test(world):
        client = Client(world.place, world.credentials("mallory", "nowhere/*"), "mallory")
        assert await client.connect()
        pings = b"".join(encode_message(Ping(id=i, now_ns=0)) for i in range(30_000))
        world.nursery.start_soon(client.serve, lambda _ask: NOTHING)
        await client.raw(pings)
        await world.wait_for("mallory is gone: more than")
        assert (await world.status())["counters"]["links_flood"] == 1

    in_world(tmp_path, test, hosts=())


def test_an_honest_inventory_passes():
    """Some thousand ports, and a switch's own words."""
    rows = [InterfaceRow(f"tap{i}", "br-int", "", i % 1000 - 1, f"port-{i}", error="no device") for i in range(4_000)]
    HostReport(HostInventory("hv1", "hv1", ("192.0.2.1",), interfaces=tuple(rows))).check()
    with pytest.raises(WireError, match="is no name"):
        HostReport(HostInventory("hv1", offloaded={"x": "y" * 1_000})).check()
