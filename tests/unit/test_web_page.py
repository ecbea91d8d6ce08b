"""The live page without a browser: who may look, what the store tells it, news while others write, how large it is."""

import base64
import json
import ssl
import urllib.request
from dataclasses import replace
from functools import partial
from importlib.resources import files

import duckdb
import pytest
import trio
from support.pages import save_document, save_run, session

from netprobe.cli.main import main
from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.clock import realtime_ns
from netprobe.service import web_page
from netprobe.service.listening import listen_at
from netprobe.service.metrics_page import serve_metrics
from netprobe.service.web_page import FORGET_NS, Page, WebConfig, serve_page, serve_with_page
from netprobe.show.exposition import Exposition
from netprobe.show.web.guard import Guard, guard_of, is_loopback
from netprobe.store.duckdb_file import open_store
from netprobe.store.history import open_history
from netprobe.store.tables import path_id

TOKEN = "a token of twenty octets"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "127.8.9.10"])
def test_loopback_needs_no_token_and_answers_to_its_own_names_alone(address):
    """Another name in Host is a page of another site that had its name point here."""
    guard = guard_of(address, "")
    own = f"[{address}]" if ":" in address else address
    for host in (own, f"{own}:8621", "localhost:1", "[::1]:80", "127.0.0.1", "LOCALHOST"):
        assert guard.refusal("GET", {"host": host}) is None, host
    for host in ("", "evil.example", "evil.example:8621", "127.0.0.1.evil.example", "localhost@evil", "::1"):
        assert guard.refusal("GET", {"host": host}).status == 421, host


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "collector.example"])
def test_elsewhere_a_token_is_needed_and_any_host_is_answered(address):
    """It has several names there; the token keeps foreign pages out."""
    assert not is_loopback(address)
    with pytest.raises(UsageError, match="web-token"):
        guard_of(address, "")
    guard = guard_of(address, TOKEN)
    assert guard.refusal("GET", {"host": "any"}).status == 401
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    for known in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", f"Basic {basic}", f"basic {basic}"):
        assert guard.refusal("HEAD", {"authorization": known}) is None
    for wrong in ("", "Bearer", "Bearer x", f"Bearer {TOKEN}x", TOKEN, "Basic ====", f"Basic {TOKEN}"):
        assert guard.refusal("GET", {"authorization": wrong}).status == 401, wrong


@pytest.mark.parametrize("token", ["short", "x" * 15, "ümlaut" * 4, "a\nb" * 10])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    """Sixteen ASCII characters at least."""
    with pytest.raises(UsageError, match="token"):
        guard_of("127.0.0.1", token)


def test_nothing_but_looking_is_answered():
    """Not even with the token."""
    guard = Guard(None, TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert {guard.refusal(m, headers).status for m in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get")} == {405}
    assert guard.refusal("GET", headers | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}).status == 403
    assert guard.refusal("GET", headers | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) is None


def test_the_page_is_small_and_names_no_other_host():
    """Less than 300 kB with its chart library; no script or style inline, no address of anybody."""
    static, vendor = (list(files("netprobe.show.web").joinpath(name).iterdir()) for name in ("static", "vendor"))
    assert sum(len(f.read_bytes()) for f in (*static, *vendor)) < 300_000
    for file in static:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file.name
        assert "https://" not in text, file.name
        assert "innerHTML" not in text, file.name
    index = files("netprobe.show.web").joinpath("static/index.html").read_text(encoding="utf-8")
    assert index.count("<script") == index.count("<script src=")
    assert "style=" not in index


def test_history_has_the_newest_of_each_path_its_past_and_its_faults(tmp_path):
    """A path is the same in each run, whatever its source port; of an unwatched one the last run says how it is."""
    store = tmp_path / "s.duckdb"
    good, bad = session("a", "b"), session("a", "b", lost=9, type_p={**session("a", "b").type_p, "src_port": 61001})
    other = session("b", "a", vantage="bypass")
    save_run(store, "one", 1_000, [good, other])
    save_run(store, "two", 2_000, [bad], command="watch", states={"mesh": ("degraded", 1_500)})
    save_document(
        store, "v", 3_000, {"run": "v", "matrix": [], "truth": {"x": True}, "counts": {"leak": 2}, "findings": []}
    )
    with open_history(store) as history:
        assert [r["run_id"] for r in history.runs()] == ["v", "two", "one"]
        rows = {row["src"]: row for row in history.newest(["one", "two"])}
        assert path_id(good) == path_id(bad) == rows["a"]["path"]
        assert (rows["a"]["state"], rows["a"]["since_ns"], rows["a"]["is_watched"]) == ("degraded", 1_500, True)
        assert (rows["b"]["state"], rows["b"]["is_watched"], rows["b"]["vantage"]) == ("reachable", False, "bypass")
        past = history.columns(path_id(good))
        assert (past["run_id"], past["lost"], past["state"]) == (["one", "two"], [0, 9], [None, "degraded"])
        middle = history.columns(path_id(good), "forward", "a.backend..b.backend")
        assert (middle["lost"], middle["sent"]) == ([0, 9], [1000, 1000])
        (fault,) = history.faults(path_id(good))
        assert (fault["run_id"], fault["lost"], fault["last_seen"], fault["first_missing"]) == (
            "two", 9, "a.backend", "b.backend",
        )  # fmt: skip
        assert history.session(path_id(good))["session"] == json.loads(json.dumps(bad.to_json()))
        assert history.session(path_id(good), "one")["session"]["lost"] == 0
        assert history.session("nothing") is None
        (verified,) = history.verifications()
        assert (verified["run_id"], verified["counts"]) == ("v", {"leak": 2})
        assert "truth" not in history.verification("v")
        assert history.verification("one") is None


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"lost": 0}, "reachable"), ({"lost": 10}, "degraded"), ({"lost": 1000}, "unreachable")],
)
def test_a_path_that_nobody_watches_is_as_its_last_run_says(tmp_path, changes, state):
    """All lost is unreachable, some lost is with loss."""
    save_run(tmp_path / "s.duckdb", "one", 1, [session("a", "b", **changes)])
    with open_history(tmp_path / "s.duckdb") as history:
        assert [row["state"] for row in history.newest(["one"])] == [state]


@pytest.mark.parametrize(("unobserved", "loss"), [(0, 0.01), (50, 10 / 950), (51, None)])
def test_where_too_much_is_undecided_no_loss_is_stated_as_in_the_documents(tmp_path, unobserved, loss):
    """5 % at most; what is lost for certain is told all the same, in the interval's lower end."""
    one = session("a", "b", lost=10)
    one = replace(one, forward=replace(one.forward, delivered=990 - unobserved, unobserved=unobserved))
    save_run(tmp_path / "s.duckdb", "one", 1, [one])
    with open_history(tmp_path / "s.duckdb") as history:
        (row,) = history.newest(["one"])
    assert row["loss_ratio"] == (loss if loss is None else pytest.approx(loss))
    assert row["loss_low"] > 0


def test_a_store_of_an_older_netprobe_is_told_and_brought_up_to_date_by_a_writer(tmp_path):
    """Its rows have no paths: they are kept, and left out."""
    store = tmp_path / "s.duckdb"
    save_run(store, "old", 1, [session("a", "b")])
    with duckdb.connect(str(store)) as db:
        columns = [
            r[0]
            for r in db.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = 'sessions'").fetchall()
        ]
        for name in columns[columns.index("path") :]:
            db.execute(f"ALTER TABLE sessions DROP COLUMN {name}")
        db.execute("DROP TABLE changes; UPDATE meta SET version = 2")
    with pytest.raises(UsageError, match="older netprobe"), open_history(store):
        raise AssertionError("must not open")
    save_run(store, "new", 2, [session("a", "b")])
    with open_history(store) as history:
        assert [row["run_id"] for row in history.newest(["old", "new"])] == ["new"]


def test_the_document_of_a_mesh_comes_back_as_it_was_stored(tmp_path):
    """Its sessions stand in rows of their own; whoever asks for the whole gets it, in order."""
    results = [session("a", "b", name=f"s{i}", lost=i) for i in range(30)]
    save_run(tmp_path / "s.duckdb", "one", 1, results)
    with open_store(tmp_path / "s.duckdb", read_only=True) as store:
        assert [s["name"] for s in store.last_document()["sessions"]] == [r.name for r in results]
        assert store.document("one")["sessions"] == json.loads(json.dumps([r.to_json() for r in results]))
        assert store.document("nothing") is None


async def followed(page, check):
    """Follow the store until `check` says that the news has come."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page.follow)
        with trio.fail_after(10):
            version = -1
            while not check(json.loads(await page.overview())):
                version = await page.wait_news(version, 10)
        nursery.cancel_scope.cancel()


def test_news_of_another_writer_come_by_themselves(tmp_path):
    """From no store at all to a second run; old paths stay, new figures replace theirs."""
    store = tmp_path / "s.duckdb"
    page = Page(WebConfig(("127.0.0.1", 0), "", store))

    async def main():
        await followed(page, lambda o: "no store" in (o["problem"] or ""))
        save_run(store, "one", 1, [session("a", "b"), session("b", "a")])
        await followed(page, lambda o: len(o["paths"]) == 2 and not o["problem"])
        save_run(store, "two", 2, [session("a", "b", lost=5)])
        await followed(page, lambda o: sorted((p["run_id"], p["lost"]) for p in o["paths"]) == [("one", 0), ("two", 5)])
        found = await page.path(path_id(session("a", "b")), None)
        assert (found["run_id"], found["history"]["run_id"]) == ("two", ["one", "two"])

    trio.run(main)


def test_a_writer_finds_its_turn_while_pages_ask(tmp_path):
    """DuckDB lets nobody write while another one reads: looks are short, and leave a gap."""
    store = tmp_path / "s.duckdb"
    save_run(store, "one", 1, [session("a", "b")])
    page = Page(WebConfig(("127.0.0.1", 0), "", store))
    asked = 0

    async def ask_on():
        nonlocal asked
        while True:
            await page.path(path_id(session("a", "b")), None)
            asked += 1

    async def main():
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask_on)
            for i in range(5):
                await trio.to_thread.run_sync(partial(save_run, store, f"w{i}", 2 + i, [session("a", "b")]))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert asked
    with open_history(store) as history:
        assert len(history.runs()) == 6


def test_a_path_that_nobody_probes_any_more_is_forgotten_and_counted(tmp_path, monkeypatch):
    """A week behind the newest result, or one too many; the store has it still."""
    store, week = tmp_path / "s.duckdb", FORGET_NS
    page = Page(WebConfig(("127.0.0.1", 0), "", store))

    def names(found):
        return sorted(p["src"] for p in found["paths"])

    async def main():
        save_run(store, "one", 1, [session("a", "z"), session("b", "z")])
        await followed(page, lambda o: names(o) == ["a", "b"] and o["forgotten"] == 0)
        save_run(store, "two", 1 + week, [session("c", "z")])
        await followed(page, lambda o: names(o) == ["a", "b", "c"] and o["forgotten"] == 0)
        save_run(store, "three", 2 + week, [session("b", "z")])
        await followed(page, lambda o: names(o) == ["b", "c"] and o["forgotten"] == 1)
        assert (await page.path(path_id(session("a", "z")), None))["run_id"] == "one"
        monkeypatch.setattr(web_page, "MAX_PATHS", 2)
        save_run(store, "four", 3 + week, [session("d", "z")])
        await followed(page, lambda o: names(o) == ["b", "d"] and o["forgotten"] == 2)

    trio.run(main)


def test_a_clock_that_is_ahead_makes_nobody_elses_paths_old(tmp_path):
    """And a path that comes back is no longer among those that are not shown."""
    store, now = tmp_path / "s.duckdb", realtime_ns()
    page = Page(WebConfig(("127.0.0.1", 0), "", store))

    def state(found):
        return sorted(p["src"] for p in found["paths"]), found["forgotten"]

    async def main():
        save_run(store, "one", now - 1, [session("a", "z")])
        save_run(store, "two", now - 2 * FORGET_NS, [session("b", "z")])
        await followed(page, lambda o: state(o) == (["a"], 1))
        save_run(store, "three", now + 2 * FORGET_NS, [session("c", "z")])
        await followed(page, lambda o: state(o) == (["a", "c"], 1))
        save_run(store, "four", now, [session("b", "z")])
        await followed(page, lambda o: state(o) == (["a", "b", "c"], 0))

    trio.run(main)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("none", "there is no store"), ("file/s.duckdb", "cannot be looked at: Not a directory")],
)
def test_why_there_is_nothing_to_show_is_told_as_it_is(tmp_path, path, problem):
    """A folder that is none is not a store that comes by waiting."""
    (tmp_path / "file").write_text("x")
    page = Page(WebConfig(("127.0.0.1", 0), "", tmp_path / path))
    trio.run(followed, page, lambda o: problem in (o["problem"] or ""))


@pytest.mark.parametrize("name", ["no.such.host.invalid", "a..b", "192.0.2.1.5"])
@pytest.mark.parametrize("serve", [serve_page, serve_metrics])
def test_an_address_that_is_none_is_the_callers_mistake(tmp_path, name, serve):
    """And nobody asks whether another one is running, nor for a token."""
    about = WebConfig((name, 0), TOKEN, tmp_path / "s") if serve is serve_page else Exposition()
    more = () if serve is serve_page else ((name, 0), TOKEN)
    with pytest.raises(UsageError, match=f"this host knows no '{name}'") as refused:
        trio.run(serve, about, *more)
    assert "running" not in str(refused.value)
    with pytest.raises(UsageError, match="this host knows no"):
        trio.run(serve_page, WebConfig((name, 0), "", tmp_path / "s"))
    with pytest.raises(UsageError, match=f"--listen {name}:0: this host knows no"):
        trio.run(listen_at, "--listen", name, 0)  # as the collector does


def test_an_address_of_another_host_is_told_so(tmp_path):
    """Not that another one is running there."""
    with pytest.raises(HostNotReadyError, match="this host has"):
        trio.run(serve_page, WebConfig(("192.0.2.77", 0), TOKEN, tmp_path / "s"))


@pytest.mark.parametrize(("token", "code", "warned"), [("short", 2, False), (TOKEN, 0, True)])
def test_that_a_token_goes_in_clear_is_said_of_one_that_is_used(tmp_path, capsys, monkeypatch, token, code, warned):
    """One that is refused goes nowhere."""

    async def served(config, ready):
        guard_of(config.listen[0], config.token)
        ready("http://page/")

    monkeypatch.setattr("netprobe.cli.web.serve_page", served)
    monkeypatch.setenv("NETPROBE_WEB_TOKEN", token)
    assert main(["serve", "--web", "0.0.0.0:0", "--store", str(tmp_path / "s")]) == code
    assert ("in clear" in capsys.readouterr().err) is warned


def test_an_address_that_is_taken_is_said_so(tmp_path):
    """Exit code 3, and which."""

    async def main():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        try:
            await serve_page(WebConfig(("127.0.0.1", port), "", tmp_path / "s"))
        finally:
            await listeners[0].aclose()

    with pytest.raises(HostNotReadyError, match="cannot be listened at"):
        trio.run(main)


def test_agents_of_a_collector_in_this_process_are_shown(tmp_path):
    """And where there is none, that there is none."""
    alone = Page(WebConfig(("127.0.0.1", 0), "", tmp_path / "s"))
    beside = Page(WebConfig(("127.0.0.1", 0), "", tmp_path / "s", agents=lambda: {"agents": [{"name": "hv1"}]}))
    assert alone.agents()["collector"] is None
    assert beside.agents()["collector"] == {"agents": [{"name": "hv1"}]}


def get(url, place, context=None):
    """What a page answers."""
    with urllib.request.urlopen(url + place, timeout=10, context=context) as answer:
        return json.loads(answer.read())


def test_the_page_is_served_beside_a_collector_and_ends_with_it(tmp_path):
    """In one process, with what the collector says of its agents."""
    config = WebConfig(("127.0.0.1", 0), "", tmp_path / "s")
    told = {"agents": [{"name": "hv1"}], "away": [], "counters": {}}
    served = trio.Event()
    urls = []

    async def collect():
        await served.wait()
        found = await trio.to_thread.run_sync(get, urls[0], "api/agents")
        assert found["collector"] == told
        raise KeyError("the collector's end")

    def ready(url):
        urls.append(url)
        served.set()

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        trio.run(serve_with_page, config, lambda: told, collect, ready)
    with pytest.raises(OSError, match="refused"):
        get(urls[0], "api/agents")


def test_https_is_served_with_a_certificate_and_its_key(tmp_path):
    """One that is none is a wrong option, not a fault."""
    assert main(["pki", "init", "--dir", str(tmp_path)]) == 0
    issue = ["pki", "issue", "page", "--role", "collector", "--dir", str(tmp_path), "--address", "127.0.0.1"]
    assert main(issue) == 0
    certificate, key = tmp_path / "page.crt", tmp_path / "page.key"
    config = WebConfig(("127.0.0.1", 0), "", tmp_path / "s", certificate, key)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    async def look():
        async with trio.open_nursery() as nursery:
            found = trio.Event()
            urls = []
            nursery.start_soon(serve_page, config, lambda url: (urls.append(url), found.set()))
            await found.wait()
            assert urls[0].startswith("https://")
            answer = await trio.to_thread.run_sync(get, urls[0], "api/overview", trusting)
            assert answer["paths"] == []
            nursery.cancel_scope.cancel()

    trio.run(look)
    with pytest.raises(UsageError, match="cannot be used"):
        trio.run(serve_page, replace(config, key=tmp_path / "ca.crt"))
