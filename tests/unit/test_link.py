"""Links between agents, operators and the collector: handshake, silence, windows, floods, and every wrong message."""

import pytest
from support.links import BOOT, COLLECTOR_BOOT, MS, PART, S, exchange, hello, open_links

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.wire.flow_control import FRAME_COST_BYTES, Bucket, Flight, Limits
from netprobe.wire.framing import MAX_FRAME_BYTES, Frame, encode_frame
from netprobe.wire.link import AgentLink, CollectorLink, OperatorLink
from netprobe.wire.link_core import (
    DEAD_AFTER_NS,
    HANDSHAKE_NS,
    MAX_ASKS,
    MAX_UNSENT_BYTES,
    TRANSITIONS,
    Seat,
    State,
)
from netprobe.wire.link_events import (
    Acked,
    Answered,
    Asked,
    BlockArrived,
    Closed,
    Ending,
    Greeted,
    ShedArrived,
    Welcomed,
)
from netprobe.wire.report import (
    NIL,
    Ack,
    Answer,
    Ask,
    Block,
    PartKey,
    PartState,
    Ping,
    Pong,
    Refused,
    Resume,
    Shed,
    Welcome,
    encode_message,
    pack_value,
    unpack_value_untrusted,
)


def endings(events):
    return [event.ending for event in events if isinstance(event, Closed)]


# --- handshake ---


def test_a_hello_is_answered_with_a_welcome_that_tells_where_to_resume():
    agent = AgentLink(hello(parts=(PartState(run="run-1", boot=BOOT, state="running", next_block=9),)), 0)
    collector = CollectorLink(Limits(window_bytes=1000, bytes_per_s=2000), 0)
    (greeted,) = collector.feed(agent.data_to_send(), 5 * MS)
    assert isinstance(greeted, Greeted)
    assert greeted.hello.parts[0].next_block == 9
    collector.let_in(COLLECTOR_BOOT, 77, {PART: 5})
    welcomed, acked = agent.feed(collector.data_to_send(), 6 * MS)
    assert acked == Acked(PART, 5)
    assert welcomed == Welcomed(
        Welcome(
            version=1,
            boot=COLLECTOR_BOOT,
            now_ns=77,
            window_bytes=1000,
            bytes_per_s=2000,
            resume=(Resume(run="run-1", boot=BOOT, next=5),),
        )
    )
    assert agent.next_to_send(PART) == 5
    assert agent.next_to_send(PartKey("run-2", BOOT)) == 0


def test_a_refusal_reaches_the_agent_although_the_link_has_ended():
    agent, collector = AgentLink(hello(), 0), CollectorLink(Limits(), 0)
    collector.feed(agent.data_to_send(), 0)
    collector.refuse("hv1 is\x1b not known")
    (closed,) = agent.feed(collector.data_to_send(), 0)
    assert (closed.ending, closed.why) == (Ending.REFUSED, "hv1 is? not known")
    assert endings(collector.tick(0)) == [Ending.CLOSED_HERE]


def test_another_version_is_refused_with_both_numbers_on_both_sides():
    agent, collector = AgentLink(hello(version=3), 0), CollectorLink(Limits(), 0)
    events = exchange(agent, collector, 0)
    assert [endings(side) for side in events] == [[Ending.REFUSED], [Ending.OTHER_VERSION]]
    for side in events:
        assert "version 3" in side[-1].why
        assert "collector 1" in side[-1].why or "program 1" in side[-1].why
    welcome = Welcome(version=2, boot=BOOT, now_ns=0, window_bytes=1, bytes_per_s=1)
    assert endings(AgentLink(hello(), 0).feed(encode_message(welcome), 0)) == [Ending.OTHER_VERSION]


@pytest.mark.parametrize("make", [lambda: AgentLink(hello(), 0), lambda: CollectorLink(Limits(), 0)])
def test_a_handshake_that_takes_too_long_ends_the_link_even_if_octets_trickle_in(make):
    link = make()
    link.feed(encode_message(hello())[:9] if isinstance(link, CollectorLink) else b"\0", HANDSHAKE_NS - 1)
    assert link.next_deadline_ns() == HANDSHAKE_NS
    assert link.tick(HANDSHAKE_NS - 1) == []
    assert endings(link.tick(HANDSHAKE_NS)) == [Ending.SLOW_HANDSHAKE]
    assert link.next_deadline_ns() is None


# --- silence ---


def test_silence_is_broken_with_pings_and_a_dead_peer_is_noticed_in_less_than_five_seconds():
    agent, _ = open_links()
    now, pings = 0, 0
    while not agent.is_closed:
        now = agent.next_deadline_ns()
        events = agent.tick(now)
        pings += bool(agent.data_to_send())
    assert endings(events) == [Ending.SILENT]
    assert (now, pings) == (DEAD_AFTER_NS, 3)
    assert now < 5 * S


def test_an_idle_link_lives_on_and_knows_its_round_trip():
    agent, collector = open_links()
    for second in range(1, 60):
        for link in (agent, collector):
            assert link.tick(second * S) == []
        collector.feed(agent.data_to_send(), second * S + 3 * MS)
        agent.feed(collector.data_to_send(), second * S + 5 * MS)
        collector.feed(agent.data_to_send(), second * S + 8 * MS)
    assert agent.is_open
    assert agent.counters.round_trip_ns == 5 * MS
    assert 57 * S < agent.counters.peer_now_ns <= 59 * S + 3 * MS


def test_feeding_nothing_is_no_sign_of_life():
    agent, _ = open_links()
    agent.feed(b"", 3 * S)
    assert endings(agent.tick(4 * S)) == [Ending.SILENT]


def test_half_a_frame_is_a_sign_of_life():
    agent, collector = open_links()
    agent.send_block(PART, 0, bytes(100), 0)
    octets = agent.data_to_send()
    for second in range(20):
        assert collector.feed(octets[second : second + 1], second * S) == []
        assert collector.tick(second * S) == []


# --- blocks ---


def test_blocks_arrive_in_order_and_acknowledgement_is_cumulative():
    agent, collector = open_links()
    for number in range(5):
        agent.send_block(PART, number, bytes([number]), 0)
    _, events = exchange(agent, collector, 0)
    assert events == [BlockArrived(PART, number, bytes([number])) for number in range(5)]
    collector.acknowledge(PART, 3)
    events, _ = exchange(agent, collector, 0)
    assert events == [Acked(PART, 3)]
    assert agent.next_to_send(PART) == 5


def test_shed_blocks_are_told_in_their_place():
    agent, collector = open_links()
    agent.send_block(PART, 0, b"a", 0)
    agent.send_shed(PART, 1, 4, (10, 20), 0)
    agent.send_block(PART, 4, b"b", 0)
    _, events = exchange(agent, collector, 0)
    assert events[1] == ShedArrived(PART, 1, 4, 10, 20)
    assert [event.number for event in (events[0], events[2])] == [0, 4]


def test_the_window_bounds_what_is_unacknowledged_and_an_acknowledgement_opens_it():
    size = 10_000 - FRAME_COST_BYTES
    agent, collector = open_links(Limits(window_bytes=35_000))
    sent = 0
    while agent.has_room(size, 0):
        agent.send_block(PART, sent, bytes(size), 0)
        sent += 1
    assert sent == 3
    exchange(agent, collector, 0)
    assert collector.is_open
    collector.acknowledge(PART, 1)
    exchange(agent, collector, 0)
    assert not agent.has_room(size, 0)  # the rate's bucket is as large as the window, and as empty
    assert agent.has_room(size, S)


def test_a_block_larger_than_the_window_goes_alone():
    agent, collector = open_links(Limits(window_bytes=5000))
    assert agent.has_room(100_000, 0)
    agent.send_block(PART, 0, bytes(100_000), 0)
    assert not agent.has_room(0, 10 * S)
    _, events = exchange(agent, collector, 0)
    assert isinstance(events[0], BlockArrived)
    collector.acknowledge(PART, 1)
    exchange(agent, collector, 0)
    assert agent.has_room(0, 10 * S)


def test_the_rate_paces_an_agent_and_the_deadline_tells_when_there_is_room():
    limits = Limits(window_bytes=100_000, bytes_per_s=1_000_000)
    agent, collector = open_links(limits)
    now, sent_bytes, number = 0, 0, 0
    while now < 2 * S:
        if agent.has_room(6000, now):
            agent.send_block(PART, number, bytes(6000), now)
            number, sent_bytes = number + 1, sent_bytes + 6000 + FRAME_COST_BYTES
        else:
            later = agent.next_deadline_ns()
            assert later > now
            now = later
        exchange(agent, collector, now)
        collector.acknowledge(PART, number)
        exchange(agent, collector, now)
    assert collector.is_open
    assert sent_bytes == pytest.approx(2_000_000 + 100_000, abs=20_000)


def test_an_agent_that_keeps_to_the_limits_is_never_a_flood_even_after_the_reader_stalled():
    """What it may send while the collector sleeps arrives at one instant."""
    limits = Limits(window_bytes=100_000, bytes_per_s=100_000)
    agent, collector = open_links(limits)
    now, number = 0, 0
    for _ in range(20):
        waiting = b""
        for _ in range(50):  # the collector's program does nothing for this long
            now += 50 * MS
            while agent.has_room(200, now):
                agent.send_block(PART, number, bytes(200), now)
                number += 1
            agent.tick(now)
            waiting += agent.data_to_send()
        assert endings(collector.feed(waiting, now)) == []
        collector.acknowledge(PART, number)
        agent.feed(collector.data_to_send(), now)
    assert collector.is_open
    assert number > 400


def flood_of_blocks(collector):
    for number in range(10_000):
        yield encode_message(Block(run="r", boot=BOOT, number=number), bytes(1000))


def flood_of_pings(collector):
    while True:
        yield encode_message(Ping(id=1, now_ns=1))
        collector.data_to_send()


def flood_of_sheds(collector):
    for number in range(100_000):
        yield encode_message(Shed(run="r", boot=BOOT, first=number, next=number + 1, from_ns=0, to_ns=0))


@pytest.mark.parametrize("flood", [flood_of_blocks, flood_of_pings, flood_of_sheds])
def test_a_flood_ends_the_link(flood):
    _, collector = open_links()
    for count, octets in enumerate(flood(collector)):
        events = collector.feed(octets, count)
        if collector.is_closed:
            break
    assert endings(events) == [Ending.FLOOD]
    assert collector.counters.bytes_in < 64 << 20


def test_a_flood_of_questions_ends_the_link_and_an_honest_operator_is_told_to_wait():
    operator, collector = open_links(role="operator")
    for _ in range(MAX_ASKS):
        operator.ask("status")
    with pytest.raises(RefusedError, match=f"up to {MAX_ASKS}"):
        operator.ask("status")
    exchange(operator, collector, 0)
    assert collector.is_open
    events = collector.feed(encode_message(Ask(id=10_000, op="status")), 0)
    assert endings(events) == [Ending.FLOOD]


def test_a_peer_that_reads_nothing_does_not_fill_our_memory():
    agent, collector = open_links()
    collector.ask("send-times")
    (asked,) = agent.feed(collector.data_to_send(), 0)
    agent.answer(asked.id)
    for _ in range(MAX_UNSENT_BYTES // (MAX_FRAME_BYTES - 70_000) + 1):
        collector.ask("send-times", None, bytes(MAX_FRAME_BYTES - 70_000))
        if collector.is_closed:
            break
    assert collector.next_deadline_ns() is not None  # the program is to call tick at once
    assert endings(collector.tick(0)) == [Ending.UNREAD]
    assert collector.data_to_send() == b""


def test_blocks_that_are_acknowledged_before_they_arrive_do_not_count_as_a_flood():
    """An earlier link had brought them; the acknowledgement and the second copies cross on the way."""
    agent, collector = open_links(Limits(window_bytes=30_000))
    for number in range(3):
        agent.send_block(PART, number, bytes(5_000), 0)
    collector.acknowledge(PART, 3)
    agent.feed(collector.data_to_send(), 0)
    for number in range(3, 6):
        agent.send_block(PART, number, bytes(5_000), S)
    assert endings(collector.feed(agent.data_to_send(), S)) == []


# --- questions ---


def test_questions_are_answered_with_values_bodies_and_errors():
    agent, collector = open_links()
    first = collector.ask("prepare", {"run": "r1"}, b"body")
    second = collector.ask("stop")
    events, _ = exchange(agent, collector, 0)
    assert events[0] == Asked(first, "prepare", pack_value({"run": "r1"}), b"body")
    assert events[0].arguments_untrusted(dict[str, str]) == {"run": "r1"}
    with pytest.raises(UsageError, match="arguments of prepare"):
        events[0].arguments_untrusted(dict[str, int])
    agent.fail(second, RefusedError("port vm9", "is not granted", allowed="vm1"))
    agent.answer(first, [1, 2], b"rows")
    _, events = exchange(agent, collector, 0)
    assert isinstance(events[0].error, RefusedError)
    assert (events[0].id, str(events[0].error)) == (second, "port vm9: is not granted (allowed: vm1).")
    assert (events[1].id, unpack_value_untrusted(events[1].result, list[int]), events[1].body) == (
        first,
        [1, 2],
        b"rows",
    )


def test_an_answer_that_is_too_long_can_still_become_an_error():
    agent, collector = open_links()
    question = collector.ask("everything")
    exchange(agent, collector, 0)
    with pytest.raises(UsageError):
        agent.answer(question, None, bytes(MAX_FRAME_BYTES))
    agent.fail(question, UsageError("everything", "is too much"))
    _, events = exchange(agent, collector, 0)
    assert isinstance(events[0], Answered)
    assert isinstance(events[0].error, UsageError)


def test_questions_that_stay_open_are_named_when_the_link_ends_and_none_can_be_asked_after():
    _, collector = open_links()
    questions = (collector.ask("a"), collector.ask("b"))
    (closed,) = collector.receive_eof()
    assert (closed.ending, closed.unanswered) == (Ending.PEER_CLOSED, questions)
    with pytest.raises(HostNotReadyError, match="'c' cannot be asked"):
        collector.ask("c")


def test_answers_and_acknowledgements_that_come_after_the_end_are_dropped():
    agent, collector = open_links()
    question = collector.ask("a")
    exchange(agent, collector, 0)
    agent.close("enough")
    collector.close("enough")
    agent.answer(question, 1)
    agent.fail(question, UsageError("a", "b"))
    collector.acknowledge(PART, 1)
    collector.refuse("late")
    assert agent.data_to_send() == collector.data_to_send() == b""


# --- every message in every state ---

MESSAGES = [
    hello(),
    Welcome(version=1, boot=BOOT, now_ns=0, window_bytes=1, bytes_per_s=1),
    Refused(version=1, why="x"),
    Ask(id=5, op="x"),
    Answer(id=1, result=NIL),
    Block(run="r", boot=BOOT, number=0),
    Shed(run="r", boot=BOOT, first=0, next=1, from_ns=0, to_ns=0),
    Ack(run="r", boot=BOOT, next=0),
    Ping(id=1, now_ns=0),
    Pong(id=1, now_ns=0),
]


def link_in(seat, state):
    """A link at this seat, in this state; with question 1 open where it may ask."""
    if state is State.GREETING:
        return {
            Seat.AGENT: lambda: AgentLink(hello(), 0),
            Seat.OPERATOR: lambda: OperatorLink(hello("operator"), 0),
            Seat.COLLECTOR: lambda: CollectorLink(Limits(), 0),
        }[seat]()
    if state is State.JUDGING:
        link = CollectorLink(Limits(), 0)
        link.feed(encode_message(hello()), 0)
        return link
    agent, collector = open_links(role="operator" if seat in (Seat.OPERATOR, Seat.COLLECTOR_OF_OPERATOR) else "vswitch")
    link = agent if seat in (Seat.AGENT, Seat.OPERATOR) else collector
    if seat in (Seat.OPERATOR, Seat.COLLECTOR_OF_AGENT):
        assert link.ask("x") == 1
    return link


@pytest.mark.parametrize("place", TRANSITIONS, ids=lambda place: f"{place[0].name}-{place[1].name}")
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_in_every_state_is_in_the_table_or_ends_the_link(place, message):
    link = link_in(*place)
    events = link.feed(encode_message(message), 1)
    following = TRANSITIONS[place].get(type(message))
    if following is None:
        assert endings(events) == [Ending.GARBAGE]
        assert place[1].name.lower() in events[-1].why
        assert link.feed(encode_message(message), 2) == []
    else:
        assert link.state is following
        assert endings(events) == ([Ending.REFUSED] if following is State.CLOSED else [])


@pytest.mark.parametrize(
    "octets",
    [
        encode_frame(Frame(200, b"")),
        encode_message(Answer(id=99)),
        encode_message(Shed(run="r", boot=BOOT, first=3, next=3, from_ns=0, to_ns=0)),
        b"\xff" * 9,
    ],
)
def test_garbage_ends_the_link_after_what_came_before_it(octets):
    _, collector = open_links()
    block = encode_message(Block(run="r", boot=BOOT, number=0), b"x")
    events = collector.feed(block + octets + block, 0)
    assert [type(event) for event in events] == [BlockArrived, Closed]
    assert events[-1].ending is Ending.GARBAGE


def test_a_question_that_comes_twice_is_garbage():
    agent, _ = open_links()
    ask = encode_message(Ask(id=3, op="x"))
    assert endings(agent.feed(ask + ask, 0)) == [Ending.GARBAGE]


# --- arithmetic of the flow ---


def test_a_bucket_passes_its_rate_and_its_burst_and_not_more():
    bucket, passed = Bucket(per_s=1000, burst=100, now_ns=0), 0
    for now in range(0, 10 * S, 7 * MS):
        while bucket.take(3, now):
            passed += 3
    assert passed == pytest.approx(10 * 1000 + 100, abs=10)


def test_a_bucket_tells_exactly_when_an_amount_may_pass():
    bucket = Bucket(per_s=3, burst=10, now_ns=0)
    assert bucket.take(10, 0)
    ready = bucket.ready_ns(1, 0)
    assert ready == S // 3 + 1
    assert not bucket.take(1, ready - 1)
    assert bucket.take(1, ready)


def test_a_full_bucket_lets_a_larger_amount_pass_and_is_then_in_debt():
    bucket = Bucket(per_s=10, burst=10, now_ns=0)
    assert bucket.take(30, 0)
    assert bucket.ready_ns(10, 0) == 3 * S
    assert bucket.ready_ns(10, -5 * S) == -2 * S  # time that runs backwards adds nothing


def test_a_flight_forgets_what_is_acknowledged():
    flight = Flight()
    other = PartKey("run-2", BOOT)
    for number in range(4):
        flight.add(PART, number, 10)
    flight.add(other, 0, 5)
    flight.acknowledge(PART, 2)
    assert flight.bytes == 25
    flight.acknowledge(PART, 99)
    flight.acknowledge(PartKey("run-3", BOOT), 99)
    assert (flight.bytes, flight.has_room(10, 15), flight.has_room(11, 15)) == (5, True, False)
