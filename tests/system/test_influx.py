"""Readings against real servers: influxd 1.6.7 behind a proxy for v2 requests, and VictoriaMetrics' own v2 path."""

import ssl

import pytest
import trio
from support.certificates import authority, issue
from support.influx import Influx, V2Proxy, Victoria
from support.outage import found, outage
from support.waiting import until

from netprobe.host.clock import realtime_ns
from netprobe.model.metrics import Reading
from netprobe.service.sink import SinkConfig, open_sink
from netprobe.store.influx import InfluxTarget, InfluxWriter, Taking
from netprobe.wire.line_protocol import lines_of, tag_text

pytestmark = pytest.mark.system

EVIL = ("<script>alert(1)</script>", 'say "hi", a=b\\', "line\nend", "é\u2028\x00", "#", "'; DROP DATABASE netprobe --")


@pytest.fixture(scope="module")
def influx(tmp_path_factory):
    server = Influx(tmp_path_factory.mktemp("influx"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def victoria(tmp_path):
    server = Victoria(tmp_path / "victoria")
    try:
        server.start()
        yield server
    finally:
        server.close()


def write(target, readings):
    writer = InfluxWriter(target)
    try:
        return writer.write(b"\n".join(lines_of(readings)))
    finally:
        writer.close()


def evil_readings(t_ns):
    return [Reading("evil", {"src": text}, {"rule": text, "n": i, "x": 0.5}, t_ns) for i, text in enumerate(EVIL)]


def test_whatever_names_hold_a_real_parser_reads_it(influx):
    """Names with quotes, commas, line ends, script tags: one row each, and text fields come back as they were."""
    t_ns = realtime_ns()
    target = InfluxTarget(influx.url, "netprobe/autogen", org="ops", token="s3cret")
    assert write(target, evil_readings(t_ns)).taking is Taking.TAKEN
    rows = influx.rows('SELECT * FROM "evil"')
    assert {row["src"] for row in rows} == {tag_text(text) for text in EVIL}
    assert len(rows) == len(EVIL)
    assert all(row["time"] == t_ns and row["x"] == 0.5 for row in rows)
    assert {row["rule"] for row in rows} == {"".join(c if c.isprintable() else " " for c in text) for text in EVIL}
    asked = influx.proxy.asked[-1]
    assert (asked["token"], asked["bucket"], asked["org"]) == ("Token s3cret", "netprobe/autogen", "ops")
    assert asked["precision"] == "ns"


def test_what_is_written_twice_is_there_once(influx):
    readings = [Reading("twice", {"a": str(n % 3)}, {"n": n}, realtime_ns()) for n in range(100)]
    for _ in range(2):
        write(InfluxTarget(influx.url, "netprobe"), readings)
    assert sum(row["count"] for row in influx.rows("SELECT count(n) FROM twice")) == 100


def test_what_a_server_does_not_want_is_told_and_the_rest_is_there(influx):
    """A field of another type is refused for its point alone; a bucket that is not there can be mended."""
    target = InfluxTarget(influx.url, "netprobe")
    now = realtime_ns()
    write(target, [Reading("typed", {}, {"n": 1}, now)])
    answer = write(target, [Reading("typed", {}, {"n": "text"}, now + 1), Reading("typed", {}, {"n": 2}, now + 2)])
    assert (answer.taking, answer.dropped) == (Taking.TAKEN, 1)
    assert "conflict" in answer.why
    assert [row["n"] for row in influx.rows("SELECT n FROM typed")] == [1, 2]
    assert write(InfluxTarget(influx.url, "nowhere"), [Reading("x", {}, {"n": 1}, now)]).taking is Taking.LATER
    assert write(InfluxTarget("http://127.0.0.1:1", "x"), [Reading("x", {}, {"n": 1}, now)]).taking is Taking.LATER


def test_lines_that_a_server_cannot_read_are_named_and_the_others_are_there(influx):
    """Some among good ones, and nothing but such: influxd's own words, with quotes and markup in the lines."""
    now = realtime_ns()
    good = [b"mixed n=%di %d" % (n, now + n) for n in range(3)]
    bad = [b"mixed n= 1", b"""mixed,a=<b> n=x,t="it's 'x': y" 2"""]
    writer = InfluxWriter(InfluxTarget(influx.url, "netprobe"))
    try:
        some = writer.write(b"\n".join([good[0], bad[0], good[1], bad[1], good[2]]))
        none = writer.write(b"\n".join(bad))
    finally:
        writer.close()
    assert (some.taking, some.dropped) == (Taking.TAKEN, 2)
    assert [row["n"] for row in influx.rows("SELECT n FROM mixed")] == [0, 1, 2]
    assert none.taking is Taking.REFUSED
    assert none.named >= set(bad)


def test_victoriametrics_takes_the_same_requests(victoria):
    """Numbers of every line; it has no text fields."""
    t_ns = realtime_ns() // 10**6 * 10**6
    assert write(InfluxTarget(victoria.url, "netprobe"), evil_readings(t_ns)).taking is Taking.TAKEN
    series = until(lambda: len(found := victoria.export('{__name__="evil_n"}')) == len(EVIL) and found)
    assert {one["metric"]["src"] for one in series} == {tag_text(text) for text in EVIL}
    assert sorted(one["values"] for one in series) == [[i] for i in range(len(EVIL))]
    assert {tuple(one["timestamps"]) for one in series} == {(t_ns // 10**6,)}


def test_an_outage_loses_nothing_and_stalls_nothing(influx, tmp_path):
    """The server is killed and started again while 1,000 readings a second come: each is there afterwards, once."""
    told = trio.run(outage, influx, tmp_path / "spool", 3.0)
    assert told.put_meanwhile >= 1000  # it went on putting; readings were on the disk
    assert told.failures >= 2
    assert told.most_waiting >= 20
    assert told.shed == 0
    assert found(influx) == sorted(told.put)
    assert len(set(told.put)) == len(told.put)


def test_a_program_that_is_killed_leaves_its_readings_to_the_next(influx, tmp_path):
    """Two lives of a program at a server that is away for the first."""

    async def live(url, numbers):
        config = SinkConfig(InfluxTarget(url, "netprobe"), tmp_path)
        lines = []
        async with open_sink(config, lines.append) as sink:
            sink.put([Reading("lives", {}, {"n": n}, 10**18 + n) for n in numbers])
        return lines

    # The spool belongs to a URL: the same server, away and back.
    influx.kill()
    told = trio.run(live, influx.url, range(100))
    assert any("wait in" in line for line in told)
    influx.start()
    assert trio.run(live, influx.url, range(100, 110)) == []
    assert [row["n"] for row in influx.rows("SELECT n FROM lives")] == list(range(110))


def test_a_server_with_tls_is_believed_by_its_authority_alone(influx, tmp_path):
    """With the authority's certificate the readings arrive; without it nothing is sent, and the token neither."""
    ca = authority(tmp_path / "pki")
    files = issue(ca, "db", "collector", addresses=["127.0.0.1"])
    proxy = V2Proxy(influx.v1_url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
    url = proxy.url.replace("http:", "https:")
    try:
        readings = [Reading("secured", {}, {"n": 1}, realtime_ns())]
        assert (
            write(InfluxTarget(url, "netprobe", token="s3cret", ca_file=str(files.ca)), readings).taking is Taking.TAKEN
        )
        assert len(proxy.asked) == 1
        answer = write(InfluxTarget(url, "netprobe", token="s3cret"), readings)
    finally:
        proxy.close()
    assert answer.taking is Taking.LATER
    assert "certificate" in answer.why.lower()
    assert len(proxy.asked) == 1
