"""A client of the collector that speaks the protocol by hand, so that it can also break it; and things that it says.

It has a valid certificate. Used in the process of a test, and as a program of its own (`python -m support.evil`) that
does one attack after the other, each at least once, until SIGTERM, and prints what became of them, as JSON.
"""

import argparse
import itertools
import json
import math
import random
import secrets
import signal
import struct
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import trio

from netprobe.errors import NetprobeError
from netprobe.host.tls import ClientTls, Credentials, dial
from netprobe.model.contexts import HopContext
from netprobe.model.inventory import HostInventory, InterfaceRow
from netprobe.model.observations import (
    FOR_EVER_NS,
    HOST_STOPPED,
    Blind,
    Contexts,
    Exchanges,
    Hops,
    PartDone,
    SentReport,
    Sightings,
    Tallies,
    Tally,
    Unwatched,
    Watermark,
)
from netprobe.model.records import HopBatch
from netprobe.service.agents import HostReport
from netprobe.wire.blocks import encode_reports
from netprobe.wire.orders import PartSpec
from netprobe.wire.report import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Ask,
    Block,
    Fault,
    Hello,
    MessageReader,
    PartState,
    Ping,
    Pong,
    Refused,
    Shed,
    Welcome,
    encode_message,
    pack_value,
    unpack_value_untrusted,
)

NOTHING = object()
"""An answer that never comes."""

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError)


class Client:
    """One connection, and what came over it.

    Attributes:
        refused: why the collector ended it, "".
        acked: block number that is expected next, by run.
    """

    opened = []  # all of them, for whoever tidies up

    def __init__(self, place, credentials, name, role="vswitch", boot=None):
        self.opened.append(self)
        self.place = place
        self.credentials = credentials
        self.name = name
        self.role = role
        self.boot = boot or secrets.token_hex(16)
        self.refused = ""
        self.acked = {}
        self.numbers = {}
        self._reader = MessageReader()
        self._inbox = []
        self._stream = None
        self._sending = trio.Lock()

    async def connect(self, **hello):
        """Dial and greet. Returns the Welcome, or None where it is not let in."""
        await self.close()
        self._reader, self._inbox, self.refused = MessageReader(), [], ""
        try:
            plain = self._stream = await trio.open_tcp_stream(*self.place)
            self._stream, _ = await dial(plain, ClientTls(self.credentials))
        except (NetprobeError, OSError) as error:
            self.refused = str(error)
            return None
        fields = {
            "version": PROTOCOL_VERSION,
            "name": self.name,
            "role": self.role,
            "boot": self.boot,
            "software": "evil",
        }
        await self.say(Hello(**{**fields, **hello}))
        message = await self.hear()
        return message if isinstance(message, Welcome) else None

    async def say(self, message, body=b""):
        """Send a message; False where nobody is there any more."""
        return await self.raw(encode_message(message, body))

    async def raw(self, octets):
        """Send octets, whatever they are."""
        if self._stream is None:
            return False
        try:
            async with self._sending:
                await self._stream.send_all(octets)
        except BROKEN:
            return False
        return True

    async def hear(self):
        """The next message, None when the collector has hung up."""
        while not self._inbox:
            try:
                data = bytes(await self._stream.receive_some(1 << 16))
            except BROKEN:
                data = b""
            if not data:
                return None
            self._inbox += [received.message for received in self._reader.feed_untrusted(data)]
        message = self._inbox.pop(0)
        if isinstance(message, Refused):
            self.refused = message.why
        if isinstance(message, Ack):
            self.acked[message.run] = message.next
        return message

    async def serve(self, answer):
        """Answer pings and questions until the collector hangs up; `answer(ask)` gives a value, a Fault or NOTHING."""
        while True:
            message = await self.hear()
            if message is None:
                return
            if isinstance(message, Ping):
                await self.say(Pong(id=message.id, now_ns=time.monotonic_ns()))
            elif isinstance(message, Ask):
                value = answer(message)
                if value is NOTHING:
                    continue
                if isinstance(value, Fault):
                    await self.say(Answer(id=message.id, error=value))
                else:
                    await self.say(Answer(id=message.id, result=pack_value(value)))

    async def block(self, run, octets, number=None, boot=None):
        """Send a block: the next one, unless told otherwise."""
        if number is None:
            number = self.numbers.get(run, 0)
            self.numbers[run] = number + 1
        return await self.say(Block(run=run, boot=boot or self.boot, number=number), octets)

    async def close(self):
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
            self._stream = None


# ---------------------------------------------------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------------------------------------------------


def report_of(host, *, rows=(), chassis="", exchange=("", 0)):
    return HostReport(HostInventory(host, chassis, interfaces=tuple(rows)), (), exchange)


def lies(spec, seed=0, rows=3_000):
    """Everything that the part of a run could say and must not, with numbers that are not its own."""
    rng = random.Random(seed)
    probes = spec.probes
    sessions = [p.session for p in probes] or [1]
    most = max((p.count for p in probes), default=1)
    now = time.time_ns()
    gen = np.random.default_rng(seed)
    points = gen.integers(0, 40, rows)
    who = gen.choice(sessions, rows), gen.integers(0, most + 5, rows)
    when = now - gen.integers(0, 5_000_000_000, rows)
    records = HopBatch.from_columns(
        t_ns=when,
        session=who[0].astype(np.uint32),
        seq=who[1].astype(np.uint32),
        point=0,
        direction=gen.integers(0, 2, rows).astype(np.uint8),
        leg=gen.integers(0, 2, rows).astype(np.uint8),
    )
    records.rows["point"] = points
    answers = Sightings(
        points.astype(np.uint16),
        who[0].astype(np.uint32),
        who[1].astype(np.uint32),
        when,
        when + 1,
        gen.integers(-1, most, rows),
        when + 1_000_000,
    )
    past, future = np.array([1, 2, 3], np.int64), np.array([FOR_EVER_NS - 1] * 3, np.int64)
    said = [Hops(records), answers]
    for session in sessions:
        said += [SentReport(session, 0, past, future, is_last=False), SentReport(session, 0, future[:0], future[:0])]
    for point in range(40):
        said.append(Blind(point, 0, FOR_EVER_NS, "a lie"))
        said.append(Unwatched(point, "\x1b[2Ja lie"))
        said.append(Tallies({point: Tally(forged=2**40, dropped=2**40, remarked=dict.fromkeys(sessions, 9))}))
        context = HopContext(IPv4Address("9.9.9.9"), IPv4Address("9.9.9.9"))
        said.append(Contexts(point, 0, (context,) * 50))
    said += [Exchanges(peer, past, future, past, future) for peer in ("hv1", "hv2", "fabric", "nobody")]
    rng.shuffle(said)
    return [*said, Watermark(FOR_EVER_NS - 1, 1 << 50), Watermark(now + 10**15)]


def garbage(rng):
    """Octets that are no message, of many kinds."""
    yield rng.randbytes(4_000)
    yield struct.pack("!I", 0)
    yield struct.pack("!I", 0xFFFF_FFFF)
    yield struct.pack("!IBI", 8 << 20, 6, 1 << 30)
    body = rng.randbytes(1 << 20) * 8
    yield struct.pack("!IBI", 5 + len(body) - 9, 6, 100) + body[: len(body) - 9]
    yield struct.pack("!IBI", 5 + 1000, 5, 1000) + b"\x91" * 1000
    yield encode_message(Answer(id=12345, result=pack_value(1)))
    yield encode_message(Ask(id=1, op="run"))
    yield encode_message(Welcome(version=1, boot="0" * 32, now_ns=0, window_bytes=1, bytes_per_s=1))


class Attacker:
    """One attack after the other with one certificate, until its time is over.

    Attributes:
        counts: what was done and what became of it.
    """

    def __init__(self, place, credentials, name, host):
        self.place, self.credentials, self.name, self.host = place, credentials, name, host
        self.counts = {}
        self.rng = random.Random(1)
        self.seen_runs = []

    def count(self, what, number=1):
        self.counts[what] = self.counts.get(what, 0) + number

    async def client(self, **hello):
        client = Client(self.place, self.credentials, self.name)
        welcome = await client.connect(**hello)
        self.count("let in" if welcome else "kept out")
        if welcome is None:
            await client.close()
            await trio.sleep(0.3)
        return client if welcome else None

    def answers(self, ask):
        return report_of(self.host) if ask.op == "inventory" else {"state": "looking"}

    async def for_a_while(self, client, seconds, attack):
        """Serve its questions while an attack goes on; the longest is cut off."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.serve, self.answers)
                await attack(client)
                nursery.cancel_scope.cancel()
        await client.close()

    async def throw_garbage(self):
        for octets in garbage(self.rng):
            client = await self.client()
            if client is None:
                continue
            await client.raw(octets)
            self.count("garbage sent")
            with trio.move_on_after(1):
                while await client.hear() is not None:
                    pass
                self.count("garbage closed")
            await client.close()

    async def half_a_frame(self):
        """Half a message, and silence. Notes how long it took until the collector hung up."""
        client = await self.client()
        if client is None:
            return
        await client.raw(struct.pack("!IBI", 4 << 20, 6, 100) + bytes(1_000))
        began = time.monotonic()
        while await client.hear() is not None:  # pings come, and are not answered
            pass
        self.counts["half open s"] = max(self.counts.get("half open s", 0.0), time.monotonic() - began)
        await client.close()

    async def flood(self):
        """Blocks of a run that never was, tiny messages, without regard to the window; as fast as it goes."""

        async def attack(client):
            large = encode_message(Block(run="none", boot=client.boot, number=0), bytes(1 << 20))
            tiny = b"".join(encode_message(Ping(id=i, now_ns=0)) for i in range(3_000))
            for octets in itertools.cycle([large, tiny]):
                if not await client.raw(octets):
                    self.count("flood closed")
                    return
                self.count("flood octets", len(octets))

        client = await self.client()
        if client is not None:
            await self.for_a_while(client, 2, attack)

    async def strange_blocks(self):
        """Blocks of other runs, boots and numbers, and lost ones that never were."""

        async def attack(client):
            for run in [*self.seen_runs, "none", "x"]:
                for boot in (client.boot, "0" * 32):
                    for number in (0, 0, 7, (1 << 62) - 1):
                        await client.block(run, secrets.token_bytes(50), number, boot)
                        span = {"from_ns": -(1 << 63), "to_ns": (1 << 63) - 1}
                        await client.say(Shed(run=run, boot=boot, first=number, next=number + 1, **span))
                        self.count("strange blocks")
            await trio.sleep(0.2)

        parts = tuple(PartState(run=f"r{i}", boot="0" * 32, state="gone", next_block=1 << 62) for i in range(4_000))
        client = await self.client(parts=parts)
        if client is not None:
            await self.for_a_while(client, 2, attack)

    async def strange_names(self):
        for hello in ({"name": "hv1"}, {"role": "operator"}, {"role": "guest"}, {"version": 99}):
            client = Client(self.place, self.credentials, self.name)
            if await client.connect(**hello) is None:
                self.count("impostures refused")
            else:
                self.count("impostures let in")
            await client.close()

    async def strange_hosts(self):
        """Inventories of others' hosts, with others' chassis, without end, or of other types."""
        row = InterfaceRow("vhu", "br-int", "", 1, "port-of-vm1", "fa:16:3e:01:00:01", is_up=True)
        many = [InterfaceRow("", "", "", i) for i in range(10_000)]
        for said in (
            report_of("hv1", rows=[row]),
            report_of(self.host, rows=[row], chassis="hv1", exchange=("203.0.113.9", 53)),
            report_of(self.host, rows=many),
            report_of("x" * 300_000),
            {"inventory": [1, 2, 3]},
            b"\x91" * 500_000,
            Fault(kind="HostNotReadyError", where="\x1b[2J", problem="no"),
            NOTHING,
        ):
            client = await self.client()
            if client is None:
                continue
            with trio.move_on_after(0.3):
                await client.serve(lambda _ask, said=said: said)
            self.count("inventories")
            await client.close()

    async def crowd(self):
        """200 connections that never say a word of TLS, and as many that come and go."""
        streams = []
        for _ in range(200):
            try:
                streams.append(await trio.open_tcp_stream(*self.place))
            except OSError:
                self.count("not connected")
        self.count("crowd", len(streams))
        for _ in range(50):
            client = Client(self.place, self.credentials, self.name)
            await client.connect()
            await client.close()
            self.count("came and went")
        await trio.sleep(0.5)
        for stream in streams:
            await trio.aclose_forcefully(stream)

    async def everything(self, is_enough):
        """All attacks, again and again, but each once whatever is said."""
        attacks = [
            self.strange_names,
            self.crowd,
            self.strange_hosts,
            self.strange_blocks,
            self.half_a_frame,
            self.flood,
            self.throw_garbage,
        ]
        for done, attack in enumerate(itertools.cycle(attacks)):
            if is_enough.is_set() and done >= len(attacks):
                return
            await attack()
            self.count(attack.__name__)


class Liar(Attacker):
    """Takes part in runs, for the points of its certificate, and lies; ends its part, or not."""

    def __init__(self, *args, ends=True, floods=True):
        super().__init__(*args)
        self.ends, self.floods = ends, floods
        self.parts = []

    def answers(self, ask):
        if ask.op == "part.open":
            self.parts.append(unpack_value_untrusted(ask.args, PartSpec))
            self.count("parts")
        return super().answers(ask)

    async def lie(self, client):
        """In each run that it is asked into: lies, the same again, garbage, lies behind its end."""
        while True:
            await trio.sleep(0.05)
            while self.parts:
                spec = self.parts.pop()
                self.seen_runs.append(spec.run)
                block = encode_reports(lies(spec))
                await client.block(spec.run, block)
                await client.block(spec.run, encode_reports(lies(spec, 1)), number=0)  # a replay with other words
                await client.block(spec.run, self.rng.randbytes(3_000))
                for seed in range(200 if self.floods else 0):
                    if not await client.block(spec.run, encode_reports(lies(spec, seed, rows=20_000))):
                        return
                    await trio.sleep(0.01)
                if self.ends:
                    end = PartDone({"port_dropped": 2**52, HOST_STOPPED: 1}, "enough")
                    await client.block(spec.run, encode_reports([end]))
                await client.block(spec.run, block)
                self.count("lies", client.acked.get(spec.run, 0))

    async def everything(self, is_enough):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lie_again_and_again)
            await is_enough.wait()
            nursery.cancel_scope.cancel()

    async def lie_again_and_again(self):
        while True:
            client = await self.client()
            if client is not None:
                await self.for_a_while(client, math.inf, self.lie)


async def until_told(attacker):
    """Attack until SIGTERM."""
    is_enough = trio.Event()

    async def listen():
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", flush=True)
            await anext(signals)
            is_enough.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await attacker.everything(is_enough)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["noise", "liar"])
    parser.add_argument("place")
    parser.add_argument("pki")
    parser.add_argument("name")
    parser.add_argument("host")
    args = parser.parse_args()
    address, port = args.place.rsplit(":", 1)
    kind = Liar if args.kind == "liar" else Attacker
    attacker = kind((address, int(port)), Credentials.in_folder(Path(args.pki), args.name), args.name, args.host)
    trio.run(until_told, attacker)
    json.dump(attacker.counts, sys.stdout)


if __name__ == "__main__":
    main()
