"""The page for Prometheus, read by its own parser: counters add up, gauges are the newest, what is gone goes."""

import urllib.error
import urllib.request

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from netprobe.errors import HostNotReadyError
from netprobe.model.metric_catalogue import AGENT, COUNTER, DELAY_BUCKET, PATH, SEGMENT
from netprobe.service.metrics_page import metrics_app, serve_metrics
from netprobe.show import exposition
from netprobe.show.exposition import KEEP_NS, Exposition
from netprobe.show.web.guard import Guard, guard_of

TAGS = {"plan": "p", "path": '<script>"x"\\', "src": "vm 1", "dst": "vm2", "vantage": "guest", "proto": "udp"}


def samples(page, now_ns=0):
    """(name, labels) -> value; the parser refuses what is no page."""
    text = page.page(now_ns).decode()
    families = list(text_string_to_metric_families(text))
    assert len({f.name for f in families}) == len(families)
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if v))): s.value for f in families for s in f.samples
    }


def by_name(found, name):
    return [value for (one, _), value in found.items() if one == name]


def test_counts_of_windows_add_up_and_the_rest_is_the_newest():
    page = Exposition()
    for lost, p50 in ((3, 5_000), (4, 7_000)):
        page.put([PATH.reading(1, {**TAGS, "leg": "forward"}, lost_probes=lost, owdelay_p50_ns=p50, reason="acl")], 0)
    found = samples(page)
    assert by_name(found, "netprobe_path_lost_probes_total") == [7]
    assert by_name(found, "netprobe_path_owdelay_p50_seconds") == [pytest.approx(7e-6)]
    assert not [name for name, _ in found if "reason" in name]
    labels = dict(next(labels for name, labels in found if name.startswith("netprobe_path_lost")))
    assert (labels["path"], labels["src"]) == ('<script>"x"/', "vm 1")


def test_a_figure_that_is_not_known_any_more_is_not_shown():
    page = Exposition()
    page.put([SEGMENT.reading(1, {**TAGS, "segment": "a..b"}, owdelay_p50_ns=5, lost_probes=0)], 0)
    page.put([SEGMENT.reading(2, {**TAGS, "segment": "a..b"}, lost_probes=9)], 0)
    found = samples(page)
    assert by_name(found, "netprobe_segment_owdelay_p50_seconds") == []
    assert by_name(found, "netprobe_segment_lost_probes_total") == [9]


def test_buckets_become_a_histogram_that_grows():
    page = Exposition()
    tags = {**TAGS, "leg": "forward", "segment": "a..b"}
    for _ in range(2):
        page.put(
            [DELAY_BUCKET.reading(1, {**tags, "le_ns": f"{e:013d}"}, delays=n) for e, n in ((1024, 2), (4096, 3))], 0
        )
    found = samples(page)
    buckets = {
        dict(labels)["le"]: v for (name, labels), v in found.items() if name == "netprobe_owdelay_seconds_bucket"
    }
    assert buckets == {"1.024e-06": 4, "4.096e-06": 10, "+Inf": 10}


def test_what_is_gone_is_forgotten_and_what_finds_no_room_is_counted(monkeypatch):
    monkeypatch.setattr(exposition, "MAX_SERIES", 2)
    page = Exposition()
    page.put([AGENT.reading(1, {"agent": name, "host": "h"}, connected=1) for name in "abc"], 0)
    found = samples(page, 0)
    assert len(by_name(found, "netprobe_agent_connected")) == 2
    assert by_name(found, "netprobe_page_shed_series") == [1]
    assert by_name(samples(page, KEEP_NS), "netprobe_agent_connected") == [1, 1]
    assert by_name(samples(page, KEEP_NS + 1), "netprobe_agent_connected") == []


def test_a_bucket_that_is_seldom_hit_stays_as_long_as_its_histogram():
    """Counts that shrink are a restart to Prometheus: all that was ever counted would seem to have come anew."""
    page, tags = Exposition(), {**TAGS, "leg": "forward", "segment": "a..b"}
    slow, fast = ({**tags, "le_ns": f"{edge:013d}"} for edge in (4096, 1024))
    page.put([DELAY_BUCKET.reading(1, slow, delays=3), DELAY_BUCKET.reading(1, fast, delays=2)], 0)
    page.put([DELAY_BUCKET.reading(1, fast, delays=2)], KEEP_NS)
    assert by_name(samples(page, KEEP_NS + 1), "netprobe_owdelay_seconds_bucket") == [4, 7, 7]
    assert by_name(samples(page, 2 * KEEP_NS + 1), "netprobe_owdelay_seconds_bucket") == []


async def ask(page, guard, method="GET", path="/metrics", headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await metrics_app(page, guard, scope, None, send)
    return sent[0]["status"], sent[1]["body"]


def test_the_page_is_read_only_and_asks_for_its_token():
    page, guard = Exposition(), Guard(None, "secret")
    page.put([COUNTER.reading(1, {"plan": "p", "counter": "x"}, events=2)], 2**62)
    bearer = (b"authorization", b"Bearer secret")
    assert trio.run(ask, page, guard)[0] == 401
    assert trio.run(ask, page, guard, "GET", "/metrics", [(b"authorization", b"Bearer secre")])[0] == 401
    status, body = trio.run(ask, page, guard, "GET", "/metrics", [bearer])
    assert status == 200
    assert b"netprobe_counter_events_total" in body
    anybody = Guard(None, "")
    assert trio.run(ask, page, anybody, "POST")[0] == 405
    assert trio.run(ask, page, anybody, "GET", "/etc/passwd")[0] == 404
    assert trio.run(ask, page, anybody, "HEAD") == (200, b"")


def test_on_loopback_a_page_of_another_site_is_told_nothing():
    """Neither one whose name was made to point here (DNS rebinding) nor one that a browser calls cross-site."""
    page, guard = Exposition(), guard_of("127.0.0.1", "")
    page.put([COUNTER.reading(1, {"plan": "p", "counter": "x"}, events=2)], 2**62)
    own, other = (b"host", b"localhost:9862"), (b"host", b"evil.example:9862")
    assert trio.run(ask, page, guard, "GET", "/metrics", [own])[0] == 200
    assert trio.run(ask, page, guard, "GET", "/metrics", [(b"host", b"127.0.0.1:9862")])[0] == 200
    for headers in ([other], [], [own, (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors")]):
        status, body = trio.run(ask, page, guard, "GET", "/metrics", headers)
        assert status in (421, 403)
        assert b"events" not in body


def test_the_page_is_served_over_http_and_a_taken_port_is_told():
    page = Exposition()
    page.put([AGENT.reading(1, {"agent": "a"}, connected=1)], 2**62)

    def fetch(url, headers=None):
        request = urllib.request.Request(f"{url}/metrics", headers=headers or {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["content-type"], response.read()

    async def live():
        async with trio.open_nursery() as nursery:
            (url,) = await nursery.start(serve_metrics, page, ("127.0.0.1", 0))
            with pytest.raises(urllib.error.HTTPError, match="421") as refused:
                await trio.to_thread.run_sync(fetch, url, {"Host": "evil.example"})
            refused.value.close()
            found = await trio.to_thread.run_sync(fetch, url)  # all of it: the server needs this thread to answer
            port = int(url.rpartition(":")[2])
            with pytest.raises(HostNotReadyError, match="cannot be listened at"):
                await serve_metrics(page, ("127.0.0.1", port))
            nursery.cancel_scope.cancel()
        return found

    status, kind, body = trio.run(live)
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert b'netprobe_agent_connected{agent="a",host=""} 1.0' in body
