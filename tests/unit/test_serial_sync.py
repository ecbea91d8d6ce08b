"""Sessions on a virtio-serial port: where they begin, however the stream is cut and whatever came before."""

import os
import socket

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from netprobe_agents.port import Port

from netprobe.errors import HostNotReadyError
from netprobe.host.guest_agent import ANSWER_BYTES, HELD_BYTES, GuestAgent
from netprobe.wire.control import ControlReader, encode_frames, encode_message
from netprobe.wire.serial_sync import AGENT_MAGIC, CONTROLLER_MAGIC, NONCE_BYTES, PreambleFinder, preamble

NONCE, OTHER = bytes(range(NONCE_BYTES)), bytes(range(100, 100 + NONCE_BYTES))


@given(st.binary(max_size=200), st.binary(max_size=200), st.lists(st.integers(1, 60), max_size=20))
def test_a_preamble_is_found_however_the_stream_is_cut(before, behind, cuts):
    stream = before + preamble(AGENT_MAGIC, NONCE) + behind
    finder, at, seen = PreambleFinder(AGENT_MAGIC, NONCE), 0, None
    for size in [*cuts, len(stream)]:
        piece = stream[at : at + size]
        if (found := finder.find(piece)) is not None:
            assert seen is None
            seen = at + found[1]
        at += len(piece)
    assert seen == len(before) + len(preamble(AGENT_MAGIC, NONCE))


def test_an_answer_to_another_controller_is_none():
    assert PreambleFinder(AGENT_MAGIC, NONCE).find(preamble(AGENT_MAGIC, OTHER)) is None


def test_of_two_controllers_the_last_one_counts():
    stream = preamble(CONTROLLER_MAGIC, OTHER) + b"x" + preamble(CONTROLLER_MAGIC, NONCE) + b"rest"
    nonce, end = PreambleFinder(CONTROLLER_MAGIC).find(stream)
    assert (nonce, stream[end:]) == (NONCE, b"rest")


async def read_until(sock, wanted):
    data = b""
    with trio.fail_after(5):
        while wanted not in data:
            data += await sock.recv(4096)
    return data.partition(wanted)[2]


async def echo(stream):
    """A session that answers each message with its own type."""
    reader = ControlReader()
    while data := await stream.receive_some():
        for message in reader.feed(bytes(data)):
            await stream.send_all(encode_message(message.type))


async def with_port(body):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    host = trio.socket.from_stdlib_socket(ours)
    with theirs, host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Port(theirs.fileno()).serve, echo)
            await body(host)
            nursery.cancel_scope.cancel()


def test_garbage_before_a_session_is_passed_over_and_a_new_controller_ends_the_old_session():
    async def body(host):
        await host.send(b"\0garbage" * 100 + preamble(CONTROLLER_MAGIC, OTHER) + encode_message("first"))
        rest = await read_until(host, preamble(AGENT_MAGIC, OTHER))
        assert rest in (b"", encode_message("first")[: len(rest)])
        # It dies in the middle of a message; the next one's preamble stands where its body would be.
        await host.send(encode_message("half", bytes(1000))[:500] + preamble(CONTROLLER_MAGIC, NONCE))
        await host.send(encode_message("second"))
        rest = await read_until(host, preamble(AGENT_MAGIC, NONCE))
        while len(rest) < len(encode_message("second")):
            rest += await host.recv(4096)
        assert rest == encode_message("second")

    trio.run(with_port, body)


def test_what_an_earlier_session_left_in_the_port_is_passed_over_by_the_controller():
    async def main():
        ours, theirs = trio.socket.socketpair()
        agent = GuestAgent("serial:x", trio.SocketStream(ours))
        with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.synchronize)
                asked = await theirs.recv(4096)
                await theirs.send(os.urandom(3000) + preamble(AGENT_MAGIC, OTHER) + encode_message("old")[:-3])
                await theirs.send(preamble(AGENT_MAGIC, asked[-NONCE_BYTES:]) + b"then")
        assert asked[:-NONCE_BYTES] == CONTROLLER_MAGIC
        assert agent._begun_with == b"then"

    trio.run(main)


@pytest.mark.parametrize(("said", "text"), [(b"", "does not answer"), (b"\xff" * 1000, "has said 1000 octets")])
def test_a_port_without_an_agent_is_an_error_that_says_what_is_there(said, text):
    async def main():
        ours, theirs = trio.socket.socketpair()
        agent = GuestAgent("serial:x", trio.SocketStream(ours))
        with ours, theirs:
            await theirs.send(said)
            await agent.synchronize()

    with pytest.raises(HostNotReadyError, match=text):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.2))


def test_a_guest_that_floods_its_channel_fills_no_memory():
    """Frames beyond what is held are shed and counted; a message longer than an agent would say is nonsense at once."""

    async def main():
        ours, theirs = trio.socket.socketpair()
        agent = GuestAgent("serial:x", trio.SocketStream(ours))
        frame = bytes(60_000)
        big = encode_frames([1] * 250, [0] * 250, [frame] * 250)
        with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.read)
                stream = trio.SocketStream(theirs)
                for _ in range(6):
                    await stream.send_all(big)
                await stream.send_all((ANSWER_BYTES + 1).to_bytes(4, "big") + bytes(4))
            assert agent._held_bytes <= HELD_BYTES
            assert agent.shed_batches >= 1
            while agent._held_bytes:
                agent.receive_frames_nowait()
            with pytest.raises(HostNotReadyError, match="sent nonsense: its length is"):
                await agent.status()

    trio.run(main)
