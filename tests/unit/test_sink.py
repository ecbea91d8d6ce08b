"""The way of readings to a database: nothing waits, what is lost is counted, and a refusal holds up no others."""

import json
import math
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from netprobe.host.spool import MIN_LIMIT_BYTES, Spool
from netprobe.model.metrics import Reading
from netprobe.service.sink import (
    BATCH_LINES,
    MAX_BLOCK_BYTES,
    REQUEST_LINES,
    ROUND_PAUSE_S,
    ROUND_REQUESTS,
    Sink,
    SinkConfig,
    _open_spools,
)
from netprobe.store.influx import Answer, InfluxTarget, Taking, _answer_of
from netprobe.wire.line_protocol import MAX_TEXT_CHARS

BOOT = "0" * 32
LATER = "1" * 32


def config(tmp_path):
    return SinkConfig(InfluxTarget("http://127.0.0.1:1", "b"), tmp_path, MIN_LIMIT_BYTES)


def readings(first, count, text="x"):
    return [Reading("m", {"a": text}, {"n": n, "t": text}, n) for n in range(first, first + count)]


class Database:
    """Takes lines, unless it is told to do otherwise."""

    def __init__(self):
        self.lines = []
        self.requests = 0
        self.answers = []  # for the next requests
        self.wrong = ()  # lines with these words are refused, and all others of the request with them
        self.names = False  # it says which

    def write(self, octets):
        self.requests += 1
        answer = self.answers.pop(0) if self.answers else Answer(Taking.TAKEN)
        if any(word in octets for word in self.wrong):
            wrong = [line for line in octets.split(b"\n") if any(word in line for word in self.wrong)]
            return Answer(Taking.REFUSED, "answers 400: no", named=frozenset(wrong if self.names else ()))
        if answer.taking is Taking.TAKEN:
            self.lines += octets.split(b"\n")
        return answer

    @property
    def times(self):
        return [int(line.rpartition(b" ")[2]) for line in self.lines]


def send(tmp_path, database, put, boot=BOOT, said=None, wait_for_trouble=False):
    """One life of a program: `put` is called with its sink. Returns the closed sink, what it told, its own reading."""

    async def live():
        spools = _open_spools(config(tmp_path), boot)
        lines, trouble = said if said is not None else [], trio.Event()

        def say(line):
            lines.append(line)
            trouble.set()

        sink = Sink(config(tmp_path), spools, boot, say)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.send, database.write)
            put(sink)
            if wait_for_trouble:
                await trouble.wait()
            await sink.flush()
            nursery.cancel_scope.cancel()
        told = sink.told(), sink.reading("run")
        for spool in spools:
            spool.close()
        return sink, *told

    return trio.run(live)


def test_readings_arrive_in_order_and_few_requests(tmp_path):
    database = Database()
    _, told, own = send(tmp_path, database, lambda s: [s.put(readings(n, 100)) for n in range(0, 5000, 100)])
    assert database.times == list(range(5000))
    assert database.requests <= 5000 / REQUEST_LINES + 2
    assert told == ""
    assert own.fields["written_readings"] == 5000
    assert own.fields["waiting_batches"] == 0


def test_long_readings_arrive_however_many_come_at_once(tmp_path):
    """A block of a thousand of them would unpack to more than is taken for one of ours, and nobody would miss it."""
    database = Database()
    long = "\u20ac" * MAX_TEXT_CHARS
    count = MAX_BLOCK_BYTES // len(2 * long.encode()) + 1
    put = [Reading("m", {}, {"packet": long, "detail": long}, n) for n in range(count)]
    _, told, own = send(tmp_path, database, lambda s: s.put(put))
    assert count < BATCH_LINES
    assert database.times == list(range(count))
    assert told == ""
    assert own.fields["written_readings"] == count


def test_what_a_program_could_not_send_the_next_one_sends_once(tmp_path):
    """Also after many failures; and the program that could not says how many wait."""
    database, said = Database(), []
    database.answers = [Answer(Taking.LATER, "cannot be reached: refused")] * 2
    _, told, _ = send(tmp_path, database, lambda s: s.put(readings(0, 2500)), said=said)
    assert database.times == []
    assert "3 batches of readings wait" in told
    assert "cannot be reached" in told
    assert any("readings wait meanwhile" in line for line in said)
    database.answers = []
    _, told, _ = send(tmp_path, database, lambda s: s.put(readings(2500, 10)), boot=LATER)
    assert sorted(database.times) == list(range(2510))
    assert told == ""
    _, told, _ = send(tmp_path, database, lambda s: None, boot="2" * 32)
    assert len(database.times) == 2510


def test_a_database_that_comes_back_gets_everything_in_the_same_life(tmp_path):
    database, said = Database(), []
    database.answers = [Answer(Taking.LATER, "answers 503: no")]

    def put(sink):
        sink.put(readings(0, 3 * BATCH_LINES))

    _, _, own = send(tmp_path, database, put, said=said, wait_for_trouble=True)
    assert database.times == list(range(3 * BATCH_LINES))
    assert own.fields["failures"] == 1
    assert said[-1].endswith("takes readings again")


def test_what_finds_no_room_is_the_oldest_and_counted(tmp_path):
    """Taken later + shed = put, by readings."""
    database, rng = Database(), random.Random(1)
    database.answers = [Answer(Taking.LATER, "x")] * 10
    given = [Reading("m", {}, {"t": rng.randbytes(2000).hex()}, n) for n in range(1000)]  # 2 KB each, packed

    def put(sink):
        for first in range(0, len(given), 20):
            sink.put(given[first : first + 20])

    said = []
    sink, told, own = send(tmp_path, database, put, said=said)
    assert 0 < sink.shed < len(given)
    lines = [line for line in said if "shed so far" in line]  # told while it happens, and not every time
    assert 1 <= len(lines) <= 6
    assert f"{sink.shed} readings" in told
    assert own.fields["shed_readings"] == sink.shed
    database.answers = []
    send(tmp_path, database, lambda s: None, boot=LATER)
    assert database.times == list(range(sink.shed, len(given)))


SCATTERED = tuple(b" %d" % n for n in range(1050, 2000, 20))
"""Words of 48 lines among 2,000, far from each other."""


@pytest.mark.parametrize(("names", "most"), [(False, 48 * 2 * 12), (True, 4)])
def test_lines_that_are_refused_take_no_good_line_with_them(tmp_path, names, most):
    """However many they are: those that the database names at once, others by halves, round after round."""
    database = Database()
    database.wrong, database.names = SCATTERED, names
    _, told, own = send(tmp_path, database, lambda s: s.put(readings(0, 2000)))
    assert sorted(database.times) == [n for n in range(2000) if b" %d" % n not in SCATTERED]
    assert own.fields["refused_readings"] == len(SCATTERED)
    assert own.fields["written_readings"] == 2000 - len(SCATTERED)
    assert own.fields["waiting_batches"] == 0
    assert "refused 48 readings" in told
    assert database.requests <= most


def test_what_is_undecided_when_a_program_ends_waits_for_the_next_one(tmp_path):
    """The database goes away in the midst of the halving: no line is given up for that, and each is there once."""
    database = Database()
    database.wrong = SCATTERED
    database.answers = [Answer(Taking.TAKEN)] * 30 + [Answer(Taking.LATER, "gone")] * 100
    _, told, own = send(tmp_path, database, lambda s: s.put(readings(0, 2000)))
    assert own.fields["waiting_batches"] == 2
    assert 0 < len(database.times) < 1900
    assert "batches of readings wait" in told
    database.answers = []
    send(tmp_path, database, lambda s: None, boot=LATER)
    assert sorted(set(database.times)) == [n for n in range(2000) if b" %d" % n not in SCATTERED]


async def paused():
    """Until the sink waits for a time; while it waits for its thread there is none."""
    while trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf:
        await wait_all_tasks_blocked()


def test_between_two_rounds_the_database_has_a_pause(tmp_path):
    """Of one that refuses everything so much is asked in a row, and no more before the pause is over."""
    clock, database = MockClock(), Database()
    database.wrong = (b"m",)
    reached = trio.Event()

    def write(octets):
        answer = database.write(octets)
        if database.requests % ROUND_REQUESTS == 0:
            trio.from_thread.run_sync(reached.set)
        return answer

    async def live():
        nonlocal reached
        (spool,) = _open_spools(config(tmp_path), BOOT)
        sink = Sink(config(tmp_path), [spool], BOOT)
        sink.put(readings(0, 500))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.send, write)
            await reached.wait()
            await paused()
            assert database.requests == ROUND_REQUESTS
            reached = trio.Event()
            clock.jump(ROUND_PAUSE_S)
            await reached.wait()
            await paused()
            assert database.requests == 2 * ROUND_REQUESTS
            nursery.cancel_scope.cancel()
        assert 0 < sink.counters.refused < 500
        assert sink.waiting == 1
        spool.close()

    trio.run(live, clock=clock)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"error": "unable to parse 'a\ud800': x"}),
        json.dumps({"data": [{"original_line": "\udfff"}]}),
        "[" * 200_000,
        "partial write: dropped=" + "9" * 5_000,
    ],
)
def test_whatever_a_server_says_is_an_answer(text):
    """What it wrote to us must not end the program that measures."""
    assert _answer_of(400, text).taking is not Taking.LATER


def test_a_page_for_people_is_no_databases_refusal():
    """A proxy or a web server at that address knows nothing of lines: they wait until somebody mends it."""
    html = "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
    assert _answer_of(400, html).taking is Taking.LATER
    assert _answer_of(413, html).taking is Taking.REFUSED  # half of it may be small enough


def test_answers_of_servers_are_understood():
    """Statuses of InfluxDB 1.8, 2 and 3; a partial write is taken, but for what was dropped."""
    assert _answer_of(401, "unauthorized").taking is Taking.LATER
    assert _answer_of(404, "bucket not found").taking is Taking.LATER
    assert _answer_of(429, "slow down").taking is Taking.LATER
    assert _answer_of(503, "").taking is Taking.LATER
    assert _answer_of(400, "unable to parse").taking is Taking.REFUSED
    assert _answer_of(413, "too large").taking is Taking.REFUSED
    partial = _answer_of(400, '{"error":"partial write: field type conflict: input field ... dropped=3"}')
    assert (partial.taking, partial.dropped) == (Taking.TAKEN, 3)
    told = '{"error":"partial write of line protocol occurred","data":[{"original_line":"a"},{"original_line":"b"}]}'
    assert (_answer_of(400, told).taking, _answer_of(400, told).dropped) == (Taking.TAKEN, 2)
    assert _answer_of(400, "partial write").dropped == 1
    later = '{"code":"unprocessable entity","message":"failure writing points: partial write: beyond policy dropped=5"}'
    assert (_answer_of(422, later).taking, _answer_of(422, later).dropped) == (Taking.TAKEN, 5)
    assert "\n" not in _answer_of(400, "a\nb\x1b[31m").why
    assert "\x1b" not in _answer_of(400, "a\nb\x1b[31m").why


def test_lines_that_a_server_names_are_recognised():
    """InfluxDB 1 and 2 quote each line that they cannot read, InfluxDB 3 lists them; texts may hold quotes."""
    lines = [b"m,a=<b> n=,t=\"it's 'x': y\" 1", b"m n= 2"]
    words = "\n".join(f"unable to parse '{line.decode()}': missing field value" for line in lines)
    assert _answer_of(400, json.dumps({"code": "invalid", "message": words})).named >= set(lines)
    partial = _answer_of(400, json.dumps({"error": f"partial write: {words} dropped=0"}))
    assert (partial.taking, partial.dropped) == (Taking.TAKEN, 2)
    data = [{"original_line": line.decode(), "line_number": 1} for line in lines]
    whole = _answer_of(400, json.dumps({"error": "parsing failed for write_lp endpoint", "data": data}))
    assert (whole.taking, whole.named) == (Taking.REFUSED, set(lines))
    assert _answer_of(400, json.dumps(["odd"])).named == set()
    assert _answer_of(400, json.dumps({"error": 1, "data": [1, {"original_line": None}]})).taking is Taking.REFUSED


def test_two_programs_write_to_one_database_with_a_spool_each(tmp_path):
    first = _open_spools(config(tmp_path), BOOT)
    second = _open_spools(config(tmp_path), LATER)
    assert [path.name for path in sorted(config(tmp_path).place.iterdir()) if path.is_dir()] == ["00", "01"]
    for spool in first + second:
        assert isinstance(spool, Spool)
        spool.close()
    again = _open_spools(config(tmp_path), "2" * 32)
    assert len(again) == 1
    again[0].close()
