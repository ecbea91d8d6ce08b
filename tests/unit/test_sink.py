"""The way of readings to a database: nothing waits, what is lost is counted, and a refusal holds up no others."""

import random

import trio

from netprobe.host.spool import MIN_LIMIT_BYTES, Spool
from netprobe.model.metrics import Reading
from netprobe.service.sink import BATCH_LINES, MAX_BLOCK_BYTES, REQUEST_LINES, Sink, SinkConfig, _open_spools
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

    def write(self, octets):
        self.requests += 1
        answer = self.answers.pop(0) if self.answers else Answer(Taking.TAKEN)
        if any(word in octets for word in self.wrong):
            return Answer(Taking.REFUSED, "answers 400: no")
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


def test_a_line_that_is_refused_holds_up_no_others(tmp_path):
    database = Database()
    database.wrong = (b" 77", b" 1234")
    sink, told, _ = send(tmp_path, database, lambda s: s.put(readings(0, 2000)))
    refused = [n for n in range(2000) if str(n).startswith(("77", "1234"))]
    assert sink.counters.refused >= 1
    assert len(database.times) + sink.counters.refused == 2000
    assert set(range(2000)) - set(database.times) >= set(refused)
    assert "refused" in told


def test_all_refused_costs_a_bounded_number_of_requests(tmp_path):
    database = Database()
    database.wrong = (b"m",)
    sink, _, _ = send(tmp_path, database, lambda s: s.put(readings(0, 5000)))
    assert sink.counters.refused == 5000
    assert database.requests < 100


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
    assert "\n" not in _answer_of(400, "a\nb\x1b[31m").why
    assert "\x1b" not in _answer_of(400, "a\nb\x1b[31m").why


def test_two_programs_write_to_one_database_with_a_spool_each(tmp_path):
    first = _open_spools(config(tmp_path), BOOT)
    second = _open_spools(config(tmp_path), LATER)
    assert len(list(config(tmp_path).place.iterdir())) == 2
    for spool in first + second:
        assert isinstance(spool, Spool)
        spool.close()
    again = _open_spools(config(tmp_path), "2" * 32)
    assert len(again) == 1
    again[0].close()
