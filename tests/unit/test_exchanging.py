"""Clock exchanges: what is asked, what is answered and what not; and over real sockets, clocks that are wrong."""

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.collect.clocks import ClockEstimator
from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.clock import HostClock, realtime_ns
from netprobe.service.exchanging import exchange_with, serve_exchanges
from netprobe.wire.exchange import ANSWERS_PPS, BURST, MAX_OUTSTANDING, MAX_PEERS, Answering, Questions

T = 1_800_000_000_123_456_789
PEER = ("192.0.2.7", 40_000)
KEYS = [None, b"sixteen octets.."]


def exchanged(key, questions=None):
    """One question and its answer, as octets."""
    questions, answering = questions or Questions(key), Answering(8_620, key)
    data = questions.ask(T)
    questions.sent(T + 5)
    question = answering.take_untrusted(data, PEER, 0)
    return questions, data, answering.answer(question, T + 300, T + 400)


@pytest.mark.parametrize("key", KEYS)
def test_an_exchange_gives_the_four_stamps_to_the_nanosecond(key):
    """T1 is when it left, not when it was made ready; the answer is as long as the question; it counts once."""
    questions, data, answer = exchanged(key)
    assert len(answer) == len(data)
    assert questions.take_untrusted(answer, T + 700) == (T + 5, T + 300, T + 400, T + 700)
    assert questions.take_untrusted(answer, T + 800) is None
    assert questions.counters == {"answered": 1, "foreign": 1}


def test_an_answer_to_somebody_else_or_with_another_key_is_none():
    """The number, the stamp and the SSID must be ours; in authenticated mode the HMAC decides."""
    _, _, answer = exchanged(None)
    ours = Questions()
    ours.ask(T)
    assert ours.take_untrusted(answer, T) is None
    questions, _, answer = exchanged(KEYS[1])
    assert questions.take_untrusted(answer[:50] + b"\xff" + answer[51:], T) is None
    assert questions.counters == {"bad": 1}


@pytest.mark.parametrize("key", KEYS)
def test_the_answering_side_is_no_weapon(key):
    """No answer to an answer, to a reflector's port, another size or the wrong key: no loop, no amplifier."""
    _, data, answer = exchanged(key)
    answering = Answering(8_620, key)
    for octets, peer in (
        (answer, PEER),
        (data, ("192.0.2.7", 862)),
        (data, ("192.0.2.7", 8_620)),
        (data, ("192.0.2.7", 0)),
        (data[:-1], PEER),
        (data + b"\0", PEER),
        (b"", PEER),
    ):
        assert answering.take_untrusted(octets, peer, 0) is None
    assert answering.counters == {"reflected": 1, "reflector-port": 3, "size": 3}
    if key:
        assert Answering(8_620, b"another").take_untrusted(data, PEER, 0) is None


def test_one_address_gets_so_many_answers_a_second():
    """A burst, then ANSWERS_PPS; another address is served meanwhile."""
    answering, data = Answering(8_620), Questions().ask(T)
    taken = sum(answering.take_untrusted(data, PEER, 0) is not None for _ in range(1_000))
    assert taken == BURST
    later = sum(answering.take_untrusted(data, PEER, n * 1_000_000) is not None for n in range(1_000, 2_000))
    assert later == pytest.approx(ANSWERS_PPS + BURST, abs=2)
    assert answering.take_untrusted(data, ("192.0.2.8", 40_000), 0) is not None


def test_memory_is_bounded():
    """Questions that nobody answers, and peers that come and go, are forgotten."""
    questions, answering = Questions(), Answering(8_620)
    for n in range(3 * MAX_PEERS):
        data = questions.ask(T + n)
        answering.take_untrusted(data, (f"192.0.{n >> 8}.{n & 255}", 40_000), n)
    assert len(questions._open) == MAX_OUTSTANDING
    assert len(answering._due_ns) == MAX_PEERS


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=140), st.sampled_from(KEYS), st.integers(0, 140))
def test_any_octets_are_taken_without_an_error(octets, key, at):
    """Random octets, and a real packet with random octets somewhere in it, at either side."""
    questions, data, answer = exchanged(key)
    answering = Answering(8_620, key)
    for packet in (octets, data[:at] + octets, answer[:at] + octets, (data[:at] + octets + data)[: len(data)]):
        row = questions.take_untrusted(packet, T)
        assert row is None or all(0 <= t < 2**63 for t in row)
        question = answering.take_untrusted(packet, PEER, 0)
        assert question is None or len(answering.answer(question, T, T)) == len(packet)


async def compare(theirs, ours, want, **keys):
    """Exchanges over the loopback until `want` of them are in; the estimator that they made."""
    estimator, count, enough = ClockEstimator(), 0, trio.Event()

    def emit(t1, t2, t3, t4):
        nonlocal count
        estimator.add(t1, t2, t3, t4)
        count += len(t1)
        if count >= want:
            enough.set()

    async with trio.open_nursery() as nursery:
        answering = await nursery.start(lambda **k: serve_exchanges("127.0.0.1", 0, theirs, key=keys.get("their"), **k))
        port = answering.port
        nursery.start_soon(lambda: exchange_with("127.0.0.1", port, ours, 0.02, emit, key=keys.get("our")))
        with trio.move_on_after(10 if want else 0.6):
            await enough.wait()
        nursery.cancel_scope.cancel()
    return estimator, answering, count


@pytest.mark.parametrize("key", KEYS)
def test_over_sockets_the_interval_contains_the_offset_that_was_set(key):
    """Their clock is 300 ms ahead and gains 50 ppm, ours is 1 s behind."""
    theirs, ours = HostClock.parse("offset=300ms,drift=50ppm"), HostClock.parse("offset=-1s")
    began = realtime_ns()
    estimator, answering, count = trio.run(lambda: compare(theirs, ours, 12, their=key, our=key))
    assert count >= 12
    assert answering.counters["answered"] >= 12
    real = np.linspace(began, realtime_ns(), 20).astype(np.int64)
    low, high = estimator.bounds(theirs.shown(real))
    truth = theirs.shown(real) - ours.shown(real)
    assert ((low <= truth) & (truth <= high)).all()
    assert np.median(high - low) < 20_000_000
    assert not estimator.steps


def test_without_the_key_nobody_answers():
    """The reflector has a key, the question has none."""
    _, answering, count = trio.run(lambda: compare(HostClock(), HostClock(), 0, their=KEYS[1]))
    assert count == 0
    assert answering.counters["answered"] == 0


@pytest.mark.parametrize("address", ["not an address", "224.0.0.1", "255.255.255.255", "0.0.0.0", "::", "ff02::1"])
def test_only_one_host_is_asked_and_answers(address):
    """Neither a collector's order nor a configuration makes a host send to many."""
    said = trio.run(exchange_with, address, 8_620, HostClock(), 0.05, print)
    assert "no place of another agent" in said
    with pytest.raises(UsageError, match="one address of this host's own"):
        trio.run(serve_exchanges, address, 8_620, HostClock())


def test_a_port_that_is_taken_is_told():
    """HostNotReadyError, with what to do."""

    async def twice():
        async with trio.open_nursery() as nursery:
            answering = await nursery.start(serve_exchanges, "127.0.0.1", 0, HostClock())
            with pytest.raises(HostNotReadyError, match="Choose another port"):
                await serve_exchanges("127.0.0.1", answering.port, HostClock())
            nursery.cancel_scope.cancel()

    trio.run(twice)
