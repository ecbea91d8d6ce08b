"""The Session-Sender's figures, from answers of the sans-IO reflector over a link that the test invents."""

import select
import socket

import pytest
from netprobe_agents.clock import ClockQuality
from netprobe_agents.reflector import Reflector, ReflectorConfig
from netprobe_agents.sender import SenderConfig, SenderSession, send_question

from netprobe.wire.stamp import TimestampFormat

T0_NS = 1_700_000_000_000_000_000
PEER, LOCAL = ("192.0.2.1", 40_000), ("192.0.2.2", 862)
FORTH_NS, INSIDE_NS, BACK_NS = 100_000, 30_000, 50_000


class World:
    """One sender, one reflector whose clock is off, and a link with fixed delays."""

    def __init__(self, *, count=10, reflector=None, offset_ns=0, **config):
        self.config = SenderConfig("192.0.2.2", 862, count, 100.0, **config)
        self.session = SenderSession(self.config, ssid=77, quality=ClockQuality(1_000, synchronized=True))
        self.reflector = Reflector(reflector or ReflectorConfig(), clock_error_ns=2_000)
        self.offset_ns = offset_ns

    def ask(self, seq, *, answer_arrives=True):
        t1_ns = T0_NS + seq * 10_000_000
        question = self.session.question(seq, t1_ns)
        t2_ns = t1_ns + FORTH_NS
        reply = self.reflector.receive_untrusted(
            question, PEER, LOCAL, ttl=64, dscp=0, t2_ns=t2_ns + self.offset_ns, now_ns=t2_ns
        )
        answer = self.reflector.finish(reply, t2_ns + INSIDE_NS + self.offset_ns)
        if answer_arrives:
            self.session.receive_untrusted(answer, t2_ns + INSIDE_NS + BACK_NS)
        return answer

    def lose_on_the_way(self, seq):
        self.session.question(seq, T0_NS + seq * 10_000_000)


@pytest.mark.parametrize("form", TimestampFormat)
@pytest.mark.parametrize("key", [None, b"0123456789abcdef"])
@pytest.mark.parametrize("size_bytes", [0, 200])
def test_the_round_trip_leaves_out_the_reflectors_own_time_and_the_clocks(form, key, size_bytes):
    world = World(
        reflector=ReflectorConfig(key=key), offset_ns=-7_000_000, timestamp_format=form, key=key, size_bytes=size_bytes
    )
    answers = [world.ask(seq) for seq in range(10)]
    m = world.session.measurement(None)
    assert (m.sent, m.received, m.lost, m.bad, m.duplicated) == (10, 10, 0, 0, 0)
    assert (m.round_trip.min_ns, m.round_trip.p50_ns, m.round_trip.max_ns) == (FORTH_NS + BACK_NS,) * 3
    assert m.forward.p50_ns == FORTH_NS - 7_000_000
    assert m.backward.p50_ns == BACK_NS + 7_000_000
    assert size_bytes == 0 or {len(answer) for answer in answers} == {size_bytes}


def test_the_clock_error_is_what_both_ends_state():
    world = World()
    world.ask(0)
    m = world.session.measurement(None)
    assert 3_000 <= m.clock_error_ns <= 3_100
    assert not m.clocks_synchronized  # the reflector's is not


def test_no_answer_gives_no_figures():
    m = World().session.measurement(None)
    assert (m.sent, m.unsent, m.received, m.lost) == (0, 10, 0, 0)
    assert m.round_trip is None
    assert m.clock_error_ns is None
    assert not m.clocks_synchronized


def test_a_stateful_reflector_tells_forward_from_return_loss():
    world = World()
    for seq in range(10):
        if seq in (2, 5, 6):
            world.lose_on_the_way(seq)
        else:
            world.ask(seq, answer_arrives=seq not in (1, 3))
    m = world.session.measurement(None)
    assert (m.sent, m.received, m.lost, m.forward_lost, m.return_lost) == (10, 5, 5, 3, 2)


def test_a_stateless_reflector_can_not():
    world = World(reflector=ReflectorConfig(stateful=False))
    world.lose_on_the_way(0)
    world.ask(1)
    m = world.session.measurement(None)
    assert (m.lost, m.forward_lost, m.return_lost) == (1, None, None)


def test_duplicates_and_strangers_change_no_figure():
    world = World()
    answer = world.ask(0)
    for octets in (answer, answer[:43], b"", bytes(44), answer[:14] + b"\0\1" + answer[16:]):
        world.session.receive_untrusted(octets, T0_NS + 10**9)
    wrong_t1 = bytearray(answer)
    wrong_t1[30] ^= 1
    world.session.receive_untrusted(bytes(wrong_t1), T0_NS)
    m = world.session.measurement(None)
    assert (m.received, m.duplicated) == (1, 1)
    assert m.bad == 5  # too short twice, all zero, a foreign SSID, another T1
    assert m.round_trip.max_ns == FORTH_NS + BACK_NS


def test_a_question_is_sent_though_nobody_took_the_one_before():
    """An ICMP error waits on the socket for the next call, which would send nothing."""
    with socket.socket(type=socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as somebody:
        sock.connect(address)
        sock.send(b"first")
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(10_000)  # its error is there
        somebody.bind(address)
        somebody.settimeout(10)
        send_question(sock, b"second")
        assert somebody.recv(100) == b"second"
