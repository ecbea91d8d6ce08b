"""The live page and the report in Chromium: a fault on a lab, hostile names, 10,000 paths, keyboard, who may look."""

import base64
import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import pytest
from playwright.sync_api import expect, sync_playwright
from support.pages import BROWSER, FLAGS, page_of, save_document, save_run, session, with_unseen_point

from netprobe.lab import control
from netprobe.model.results import DelayBounds
from netprobe.show.report_html import report_html
from netprobe.store.duckdb_file import open_store
from netprobe.store.history import History
from netprobe.store.tables import path_id, path_id_of

pytestmark = pytest.mark.system

NETPROBE = [sys.executable, "-m", "netprobe.cli.main"]
AXE = Path(__file__).parents[1] / "unit" / "data" / "axe" / "axe.min.js"
expect.set_options(timeout=25_000)
TO = "\N{EN DASH}"
EVIL = "<script>alert(1)</script>"
EVIL_RULE = """ingress "tcp" o'clock'"><img src=x onerror=alert(2)> dport 80"""
PLAN = """
tmax = "200ms"
[watch]
window = "500ms"
max_loss = "1%"
[[mesh]]
prune = false
rate = 60
"""
POLICY = """
[[group]]
name = "default"
[[group.rule]]
direction = "ingress"
protocol = "tcp"
port = 8443
[[group.rule]]
direction = "egress"
[[guest]]
name = "vm1"
groups = ["default"]
[[guest]]
name = "vm2"
groups = ["default"]
"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A page of a browser; whatever a page complains of, and any dialog, fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints = page.complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("dialog", lambda d: (complaints.append(f"dialog: {d.message}"), d.dismiss()))
    requests = page.requests_seen = []
    page.on("request", lambda r: requests.append(r.url))
    yield page
    context.close()
    assert complaints == []


def verification(**changes):
    """A document of `verify` with one finding."""
    finding = {
        "number": 1, "kind": "leak", "src": "vm1", "dst": "vm2", "scenario": "s", "step": 0,
        "packet": "tcp syn 10.0.0.1 -> 10.0.0.2:80", "expected": "drop at vm2 ingress", "observed": "arrived",
        "rule": "web: ingress tcp dport 80 from any", "rule_id": "web[0]", "detail": "why", "alike": ["s#1"],
        "repeats": 1, "decided": {"is_allowed": True, "host": "hv1", "place": "table 82", "match": "tcp",
        "cookie": "0x1", "rule": "r", "detail": "", "evidence": "predicted"},
        "evidence": {"sent": 4, "arrived": 4, "rejected": 0, "last_seen": "vm1.backend", "missing": "", "segment": ""},
    } | changes  # fmt: skip
    return {
        "run": "v", "started": "2026-01-01T00:00:00+00:00", "stopped": None, "backend": "ovs-ct",
        "policy": {"ports": 2, "groups": 1, "rules": 2, "acls": 0},
        "plan": {"scenarios": 2, "probes": 9, "lower_bound": 3, "naive": 1000} | {
            "shadowed": [], "unproven": [], "unreachable": []},
        "source": "policy.toml", "vantage": "tap", "tmax_ms": 200.0, "alpha": 0.001, "seed": 1, "rate_pps": 2000,
        "sent": 9, "controls": 1, "unsent": 0, "rounds": 2, "late": 0, "overflow": 0, "forged": 0,
        "loss": {"upper": 0.03, "misses_needed": 4}, "models_asked": 1, "conntrack": {"deleted": 0, "kept": 0},
        "seconds": 1.0, "counts": {"leak": 1}, "findings": [finding], "differences": [], "truth": {},
        "matrix": [{"src": finding["src"], "dst": finding["dst"], "reachable": True, "passes": ["ipv4 tcp/80"],
                    "classes": 1, "passed": 1, "dropped": 2, "undecided": 0}],
        "strayed": [], "notes": [],
    }  # fmt: skip


def across_clocks(result):
    """The same with two clocks: they may be off by 20 us at its second segment, by more than its delay at its third."""
    first, second, third = result.forward.segments
    bounds = DelayBounds(*[(5_000, 61_000)] * 3, (60_000, None), (5_000, None))
    second = replace(second, clock_error_ns=20_000, delay_bounds=bounds)
    bounds = DelayBounds(*[(None, 61_000), (None, 80_000), (None, 90_000), (5_000, 99_000), (5_000, None)])
    third = replace(third, clock_error_ns=50_000, delay=None, pdv=None, delay_bounds=bounds)
    delay = replace(first.delay, p99=80_000, p99_interval_95=(75_000, None))
    first = replace(first, delay=delay)
    whole = replace(result.forward.end_to_end, clock_error_ns=70_000)
    return replace(result, forward=replace(result.forward, segments=(first, second, third), end_to_end=whole))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store with three guests, two lossy paths (one past a point that nobody sees), two runs, a verification.

    One path is measured by two clocks.
    """
    store, now = tmp_path_factory.mktemp("small") / "small.duckdb", time.time_ns()
    names = ("vm1", "vm2", "vm3")
    for age, lost in ((20, 0), (10, 30)):
        pairs = [(a, b) for a in names for b in names if a != b and (a, b) != ("vm3", "vm1")]
        results = [session(a, b, lost=lost if (a, b) == ("vm1", "vm2") else 0) for a, b in pairs]
        results.append(with_unseen_point(session("vm3", "vm1", lost=20), 20))
        results[pairs.index(("vm2", "vm3"))] = across_clocks(session("vm2", "vm3"))
        save_run(store, f"run{age}", now - age * 1_000_000_000, results)
    save_document(store, "v", now - 5_000_000_000, verification())
    return store


@pytest.fixture(scope="module")
def small_url(small):
    """The page of that store."""
    with page_of(small) as url:
        yield url


@contextlib.contextmanager
def shown(page, store, *words):
    """The page's address while it is served. The browser has left it before its server ends."""
    with page_of(store, *words) as url:
        yield url
        page.goto("about:blank")


def report_of(store, run):
    """The report of a run, in a file."""
    file = store.with_name(f"{run}.html")
    with open_store(store, read_only=True) as opened:
        document, history = opened.document(run), History(opened)
        named = {s["name"]: path_id_of(s) for s in document.get("sessions") or ()}
        found = {n: {"history": history.columns(p), "faults": history.faults(p)} for n, p in named.items()}
    file.write_text(report_html(document, found), encoding="utf-8")
    return file


def cell(page, src, dst):
    return page.get_by_role("gridcell", name=f"{src} to {dst}")


# ---------------------------------------------------------------------------------------------------------------------
# On a lab
# ---------------------------------------------------------------------------------------------------------------------


def test_a_fault_appears_and_is_followed_to_its_segment_and_a_finding_to_its_evidence(lab, tab, tmp_path):
    """A watch writes, the page shows: fine, then degraded by itself; a click, the segment; a reload, the same."""
    store, plan, policy = tmp_path / "s.duckdb", tmp_path / "plan.toml", tmp_path / "policy.toml"
    plan.write_text(PLAN)
    policy.write_text(POLICY)
    verify = [*NETPROBE, "verify", str(policy), "--store", str(store), "--prove-rules", "0", "--json"]
    proved = subprocess.run(verify, capture_output=True, text=True, timeout=120, check=False)
    assert proved.returncode == 1, proved.stderr
    words = ["watch", str(plan), "--store", str(store), "--json"]
    lines = tmp_path / "watch.jsonl"
    with lines.open("w") as out:
        watch = subprocess.Popen([*NETPROBE, *words], stdout=out)
    try:
        with shown(tab, store) as url:
            tab.goto(url)
            expect(cell(tab, "vm1", "vm2")).to_contain_class("reachable")
            control.fault_set("vm1.backend..vm2.backend", loss=0.6, seed=1)
            expect(cell(tab, "vm1", "vm2")).to_contain_class("degraded")
            expect(tab.get_by_role("link", name=re.compile("vm1 → vm2 .*reachable → .*degraded"))).to_be_visible()
            cell(tab, "vm1", "vm2").click()
            bad = tab.locator("li.segment.degraded button")
            expect(bad).to_have_count(1)
            assert bad.get_attribute("data-segment") == "vm1.backend..vm2.backend"
            bad.click()
            expect(tab.get_by_role("heading", name="vm1.backend → vm2.backend")).to_be_visible()
            expect(tab.locator(".chart canvas")).to_have_count(3)
            expect(tab.get_by_role("cell", name="vm1.backend … vm2.backend").first).to_be_visible()
            tab.reload()
            expect(tab.get_by_role("heading", name="vm1.backend → vm2.backend")).to_be_visible()
            finding = json.loads(proved.stdout)["findings"][0]
            tab.get_by_role("link", name="Policy").click()
            tab.get_by_role("link", name=f"#{finding['number']}", exact=True).click()
            evidence = tab.locator(".evidence")
            expect(evidence).to_contain_text(finding["packet"])
            expect(evidence).to_contain_text(f"{finding['evidence']['sent']} packet")
            expect(evidence).to_contain_text(finding["rule"] or finding["detail"])
            assert all(seen.startswith(url) for seen in tab.requests_seen)
    finally:
        watch.terminate()
        assert watch.wait(timeout=20) == 130
    windows = [line for line in map(json.loads, lines.read_text().splitlines()) if line["type"] == "window"]
    assert windows
    assert all(window["stored"] for window in windows)  # the page keeps no writer waiting for too long


# ---------------------------------------------------------------------------------------------------------------------
# On stores of our own
# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_is_used_by_keyboard_alone_and_a_deep_link_holds(small_url, tab):
    """Tab into the matrix, arrows, Enter; segments are buttons; Escape goes back to the same cell."""
    tab.goto(small_url)
    expect(cell(tab, "vm1", "vm2")).to_be_visible()
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('role')") == "gridcell":
            break
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("vm1 to vm2: degraded")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", level=1)).to_have_text("vm1 → vm2")
    expect(
        tab.locator("[data-segment='vm2.backend..vm2.guest']").first
    ).to_be_visible()  # the heading is there before it
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.dataset.segment") == "vm2.backend..vm2.guest":
            break
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("heading", name="vm2.backend → vm2.guest")).to_be_visible()
    assert tab.evaluate("document.activeElement.dataset.segment") == "vm2.backend..vm2.guest"
    tab.reload()
    expect(tab.get_by_role("heading", name="vm2.backend → vm2.guest")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Mesh")


def test_the_way_back_leads_to_the_cell_that_was_opened(small_url, tab):
    """Focus is where it was."""
    tab.goto(small_url)
    cell(tab, "vm2", "vm3").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("vm2 → vm3")
    tab.keyboard.press("Escape")
    expect(cell(tab, "vm2", "vm3")).to_be_focused()


def test_an_earlier_result_is_shown_as_one(small_url, tab):
    """A link out of the faults or the history says that it is not the newest, and leads there."""
    result = path_id(session("vm1", "vm2"))
    tab.goto(f"{small_url}#/path/{result}?run=run20")
    expect(tab.get_by_text("This is an earlier result.")).to_be_visible()
    expect(tab.locator(".verdict")).to_have_text("1000 of 1000 probes arrived, seen at every point.")
    tab.get_by_role("link", name="Show the newest").click()
    expect(tab.locator(".verdict")).to_contain_text("30 of 1000 probes were lost")
    tab.goto(f"{small_url}#/path/0123456789abcdef")
    expect(tab.get_by_role("heading", level=1)).to_have_text("This cannot be shown")
    assert [c for c in tab.complaints if "404" not in c] == []
    tab.complaints.clear()


def test_dark_follows_the_system_and_the_switch_is_kept(small_url, tab):
    """prefers-color-scheme first; what was chosen outlives a reload."""
    paper = "getComputedStyle(document.body).backgroundColor"
    tab.goto(small_url)
    light = tab.evaluate(paper)
    tab.emulate_media(color_scheme="dark")
    dark = tab.evaluate(paper)
    assert dark != light
    tab.get_by_role("button", name="Change to light colours").click()
    assert tab.evaluate(paper) == light
    tab.reload()
    assert tab.evaluate(paper) == light


def test_what_is_lost_across_a_point_where_nobody_looked_is_drawn_as_one_segment(small_url, tab):
    """Its two halves would look fine."""
    tab.goto(f"{small_url}#/path/{path_id(session('vm3', 'vm1'))}")
    expect(tab.locator("li.segment")).to_have_count(3)
    expect(tab.locator("li.segment.degraded")).to_contain_text("past 1 unseen")
    expect(tab.locator("li.segment.degraded")).to_contain_text("2.00 % lost")


@pytest.mark.parametrize("place", ["page", "report"])
def test_the_line_says_how_sure_each_of_its_figures_is(small, small_url, tab, place):
    """For those who see it and those who hear it: intervals of median, p99 and loss; between two clocks their error."""
    if place == "page":
        tab.goto(f"{small_url}#/path/{path_id(session('vm2', 'vm3'))}")
        line = tab.locator(".line")
    else:
        tab.goto(report_of(small, "run10").as_uri())
        line = tab.locator(".session").filter(has=tab.get_by_role("heading", name="vm2 → vm3")).locator(".line")
    buttons = line.get_by_role("button")
    expect(buttons).to_have_count(3)
    loss = f"0 % lost 95 % interval 0.00 {TO} 0.37 %"
    said = [" ".join(text.split()) for text in buttons.all_inner_texts()]
    named = [name(button) for button in buttons.all()]
    assert "30.0 µs" in said[0]
    assert f"median 30.0 µs 95 % interval 28.0 {TO} 32.0 µs p99 80.0 µs 95 % interval ≥ 75.0 µs {loss}" in named[0]
    assert f"median 30.0 µs clock error ± 20.0 µs p99 ∞ between two clocks ≥ 60.0 µs {loss}" in named[1]
    both = "between two clocks for certain"
    assert f"median < 80.0 µs {both} p99 5.00 {TO} 99.0 µs {both} {loss}" in named[2]
    chip = line.locator("xpath=following-sibling::*").get_by_role("button").last
    expect(chip).to_have_text(f"end to end: p50 90.0 µs (± 70.0 µs), p99 ∞, 0 % lost (0.00 {TO} 0.37 %)")
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))  # sections are called by them
    if place == "page":
        tab.goto(small_url)
    expect(cell(tab, "vm2", "vm3")).to_have_accessible_name(re.compile("median 90.0 µs, p99 ∞, ± 70.0 µs between two"))


def name(button):
    """The accessible name, as Chromium computes it."""
    return re.sub(r"\s+", " ", button.aria_snapshot().partition('"')[2].rpartition('"')[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(small, small_url, tab, scheme):
    """On every view, and in the report."""
    tab.emulate_media(color_scheme=scheme)
    report = report_of(small, "run10")
    path = path_id(session("vm1", "vm2"))
    for place in (
        f"{small_url}#/mesh",
        f"{small_url}#/path/{path}",
        f"{small_url}#/policy/v/1",
        f"{small_url}#/agents",
        report.as_uri(),
    ):
        tab.goto(place)
        expect(tab.get_by_role("heading").first).to_be_visible()
        expect(tab.locator(".panel.waiting")).to_have_count(0)
        tab.evaluate(AXE.read_text(encoding="utf-8"))
        found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        bad = [(v["id"], n["html"][:200]) for v in found if v["impact"] in ("serious", "critical") for n in v["nodes"]]
        assert bad == [], place


def test_names_and_rules_of_others_are_text_and_nothing_else(tmp_path, tab):
    """A guest called <script>, a rule with quotes and an <img>: page and report show them as they are."""
    store, now = tmp_path / "evil.duckdb", time.time_ns()
    reason = {"code": "acl", "table": 4, "cookie": "0x1", "priority": 1, "match": EVIL_RULE, "rule": EVIL_RULE,
              "chassis": None, "evidence": "predicted", "detail": EVIL}  # fmt: skip
    result = session(EVIL, "vm2", lost=40, name=EVIL_RULE, reason=reason, notes=(EVIL,), overflowed={EVIL: EVIL_RULE})
    change = {"name": EVIL_RULE, "src": EVIL, "dst": "vm2", "from": "reachable", "to": "degraded", "since_ns": now,
              "at_ns": now, "tests": {}, "last_seen": EVIL, "first_missing": EVIL_RULE, "reason": reason}  # fmt: skip
    save_run(store, "r1", now - 1_000_000_000, [result], command="watch", changes=[change])
    save_run(store, "r2", now, [result], command="watch", states={EVIL_RULE: ("degraded", now)})
    told = verification(src=EVIL, packet=EVIL, rule=EVIL_RULE, detail=EVIL_RULE, expected=EVIL_RULE)
    save_document(store, "v", now, told | {"source": EVIL, "notes": [EVIL_RULE], "strayed": [EVIL]})
    reports = [report_of(store, run) for run in ("r2", "v")]
    with shown(tab, store) as url:
        places = [f"{url}#/mesh", f"{url}#/path/{path_id(result)}", f"{url}#/policy/v/1", f"{url}#/agents"]
        for place in [*places, *(r.as_uri() for r in reports)]:
            tab.goto(place)
            expect(tab.get_by_role("heading").first).to_be_visible()
            expect(tab.locator(".panel.waiting")).to_have_count(0)
            if "agents" not in place:
                expect(tab.locator("main")).to_contain_text(EVIL)
            assert tab.locator("main script, main img, header script").count() == 0
            if "#" not in place:
                tab.locator("summary").last.click()
                expect(tab.locator("main")).to_contain_text(EVIL_RULE)


def ten_thousand(store):
    """A store with 100 x 100 paths: one path, and the rest of it as the database can make them."""
    save_run(store, "big", time.time_ns(), [session("vmSRC", "vmDST", lost=7)])
    with duckdb.connect(str(store)) as db:
        names = "('vm' || (n // 100 + 1)) AS a, ('vm' || (n % 100 + 1)) AS b"
        named = {"sessions": ("src", "dst", "document", "last_seen", "first_missing"), "segments": ("segment",)}
        for table, columns in named.items():
            texts = [f"replace(replace({c}, 'vmSRC', a), 'vmDST', b) AS {c}" for c in columns]
            new = ", ".join(["n::UINTEGER AS session", *texts, *(["'p' || n AS path"] if table == "sessions" else [])])
            db.execute(f"CREATE TEMP TABLE one AS SELECT * FROM {table}; DELETE FROM {table}")
            db.execute(
                f"INSERT INTO {table} SELECT one.* REPLACE ({new})"
                f" FROM one, (SELECT n, {names} FROM range(10000) t(n)); DROP TABLE one"
            )


def test_ten_thousand_paths_need_few_elements_and_a_click_opens_one(tmp_path, tab, record_property):
    """The matrix is virtual: what is out of sight is no element, wherever one scrolls."""
    store = tmp_path / "big.duckdb"
    ten_thousand(store)
    count = "document.querySelectorAll('*').length"
    with shown(tab, store) as url:
        tab.goto(url)
        expect(tab.get_by_role("heading", name="10,000 paths, 100 sources")).to_be_visible()
        assert tab.evaluate(count) < 4_000
        tab.evaluate("document.querySelector('.scroller').scrollTo(1e6, 1e6)")
        expect(cell(tab, "vm100", "vm100")).to_be_visible()
        assert tab.evaluate(count) < 4_000
        opened = """async () => {
            const from = performance.now();
            document.querySelector('[data-r="99"][data-c="98"]').click();
            while (!document.querySelector('.line')) await new Promise((next) => requestAnimationFrame(next));
            return performance.now() - from;
        }"""
        record_property("click_ms", tab.evaluate(opened))  # reported, not judged: other tests run beside
        expect(tab.get_by_role("heading", level=1)).to_have_text("vm100 → vm99")
        expect(tab.locator("li.segment.degraded button")).to_have_attribute(
            "data-segment", "vm100.backend..vm99.backend"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Who may look
# ---------------------------------------------------------------------------------------------------------------------


def ask(url, place="/", *, method="GET", **headers):
    """One request: its status, headers, body."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, place, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_nothing_is_written_and_no_foreign_host_or_page_is_answered(small_url):
    """GET and HEAD alone; another name in Host is DNS rebinding; each answer has the policy that forbids all else."""
    assert ask(small_url)[0] == ask(small_url, method="HEAD")[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert ask(small_url, "/api/overview", method=method)[0] == 405, method
    assert ask(small_url, Host="evil.example")[0] == ask(small_url, Host="localhost.evil.example:80")[0] == 421
    assert ask(small_url, "/api/overview", Host="localhost:1")[0] == 200
    assert ask(small_url, "/api/overview", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(small_url, "/static/..%2fapp.py")[0] == ask(small_url, "/etc/passwd")[0] == 404
    for place in ("/", "/api/overview", "/static/base.js", "/nowhere"):
        headers = ask(small_url, place)[1]
        assert "default-src 'none'" in headers["content-security-policy"], place
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert b'"error"' in ask(small_url, "/api/path/unknown")[2]


def test_a_token_is_asked_for_and_one_is_needed_where_others_can_reach_the_page(small, tmp_path):
    """As Basic or Bearer; not given, not guessed. Without one, no address but loopback is listened at."""
    secret = tmp_path / "token"
    secret.write_text("correct horse battery staple\n")
    token = secret.read_text().strip()
    basic = base64.b64encode(f"anybody:{token}".encode()).decode()
    with page_of(small, "--web-token", str(secret)) as url:
        for place in ("/", "/static/base.js", "/api/overview", "/api/events"):
            status, headers, body = ask(url, place)
            assert (status, b"vm1" in body) == (401, False)
            assert headers["www-authenticate"].startswith("Basic")
        wrong = ("Bearer wrong", "Bearer", "Basic !!!", f"Basic {base64.b64encode(b'a:b').decode()}", f"Digest {token}")
        assert {ask(url, Authorization=word)[0] for word in wrong} == {401}
        assert ask(url, Authorization=f"Bearer {token}")[0] == ask(url, Authorization=f"Basic {basic}")[0] == 200
    serve = [*NETPROBE, "serve", "--web", "0.0.0.0:0", "--store", str(small)]
    refused = subprocess.run(serve, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 2
    assert "--web-token" in refused.stderr
