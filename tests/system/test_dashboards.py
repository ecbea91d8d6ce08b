"""Every query of the dashboards, on a real influxd that real runs have filled: watch, verify, a collector's run.

Network: the lab `pair`, for all of it: two hypervisors, OVN, and a fault behind the tunnel between them.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from support.certificates import authority, issue
from support.grafana import FOLDER, alerts, boards, filled, panels
from support.grafana_ui import browser, html, type_errors
from support.influx import Influx, V2Proxy, free_port
from support.results import segment
from support.runs import leg
from support.runs import session as session_result
from support.spread import NETPROBE, Spread, session
from support.waiting import until

from netprobe.host.clock import realtime_ns
from netprobe.host.netns import in_netns
from netprobe.lab import config, control
from netprobe.plan.grants import Grants, parse_inject
from netprobe.service.discovery import read_topology
from netprobe.service.readers import send_readings
from netprobe.service.sink import SinkConfig
from netprobe.show.policy_metrics import verification_readings
from netprobe.show.run_metrics import session_readings
from netprobe.store.influx import InfluxTarget

pytestmark = pytest.mark.system

WATCHED = """
name = "watched"
tmax = "200ms"
[watch]
window = "500ms"
[[session]]
name = "web"
src = "vm1"
dst = "vm2"
rate = 200
[[session]]
name = "other"
src = "vm2"
dst = "vm1"
rate = 50
"""
FAULTY = "hv2.nic..vm2.backend"
"""What comes out of the tunnel for vm2 is lost on its hypervisor. Both points keep their devices meanwhile."""

LAST_SEEN, FIRST_MISSING = FAULTY.split("..")
ONE = {"src": "vm1", "dst": "vm2", "path": "web", "leg": "forward", "segment": FAULTY}
SECONDS_NS = 1_000_000_000


@pytest.fixture(scope="module")
def influx(tmp_path_factory):
    server = Influx(tmp_path_factory.mktemp("influx"))
    try:
        server.start()
        yield server
    finally:
        server.close()


class Queries:
    """The dashboards' queries, asked as Grafana would ask them."""

    def __init__(self, server, since_ns):
        self.server, self.since_ns = server, since_ns

    def _filled(self, text, **variables):
        given = {"plan": ".*", "policy": ".*", **ONE, **variables}
        return filled(text, given, from_ns=self.since_ns, to_ns=realtime_ns() + SECONDS_NS)

    def ask(self, text, **variables):
        return self.server.rows(self._filled(text, **variables))

    def series(self, text):
        return self.server.query(self._filled(text))

    def panel(self, board, title, **variables):
        (panel,) = [p for p in panels(boards()[board]) if p["title"] == title]
        return self.ask(panel["targets"][0]["query"], **variables)


class Watch:
    """A watch that sends readings, and what it says of its windows."""

    def __init__(self, folder, url, *words):
        (folder / "watched.toml").write_text(WATCHED)
        spool = ["--influx", url, "--influx-spool", str(folder / "spool"), "--no-store"]
        command = [*NETPROBE, "watch", str(folder / "watched.toml"), "--json", *spool, *words]
        self.said = (folder / "watch.err").open("wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.said, text=True)

    def window(self, suits, since_ns=0):
        """The next window that suits, and began since then."""
        for line in self.process.stdout:
            document = json.loads(line)
            if document["type"] != "window" or document["start_ns"] < since_ns:
                continue
            if suits({row["name"]: row for row in document["sessions"]}["web"]):
                return document
        raise AssertionError(Path(self.said.name).read_text())

    def end(self):
        self.process.terminate()
        self.process.stdout.read()
        self.process.stdout.close()
        self.process.wait(20)
        self.said.close()


def verify(folder, url, *words):
    spool = ["--influx", url, "--influx-spool", str(folder / "spool"), "--no-store", "--json"]
    done = subprocess.run(
        [*NETPROBE, "verify", *map(str, words), *spool], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


class Collected(Spread):
    """A spread cloud whose collector sends readings."""

    def __init__(self, folder, run_dir, url):
        self.folder, self.run_dir, self.url = folder, run_dir, url
        self.pki, self.processes, self.logs = folder / "pki", {}, {}
        ca = authority(self.pki)
        for name in ("collector", "operator"):
            issue(ca, name, name)
        for host in ("hv1", "hv2"):
            issue(ca, host, "vswitch", grants=Grants((f"{host}/*",), (parse_inject("*@20000", "test"),)))

    def start_collector(self):
        words = ["serve", "--listen", "172.31.0.1:8620", "--pki", self.pki, "--dir", self.folder / "collector"]
        words += ["--no-store", "--influx", self.url, "--influx-spool", self.folder / "influx"]
        words += ["--metrics", "127.0.0.1:0"]
        self._start("collector", "central", [*NETPROBE, *words])
        self.wait_for("collector", "ready")

    def close(self):
        """At once: no run is under way, and the lab goes too."""
        for name, process in self.processes.items():
            if process.poll() is None:
                self.kill(name)


def watched(folder, server, queries):
    """A watch, and a fault in the middle of it: what its windows said, and what the dashboards showed of that."""
    port = free_port()
    watch = Watch(folder, server.url, "--metrics", f"127.0.0.1:{port}")
    try:
        watch.window(lambda web: web["state"] == "reachable")
        control.fault_set(FAULTY, loss=1.0)
        # Splicing the relay in costs both paths some probes: a window that began later.
        broken = watch.window(lambda web: web["state"] == "unreachable" and web["lost"] == web["sent"], realtime_ns())
        # How long `until` waits is the claim: what a window says is on the dashboards within 5 s of its end.
        shown = {
            "unreachable": until(lambda: queries.panel("overview", "Unreachable"), 5),
            "losing": until(lambda: queries.panel("overview", "Losing for certain"), 5),
            "overview": until(lambda: whole(of_web(queries.panel("overview", "Loss of paths"), loss=1)), 5),
            "states": until(lambda: of_web(queries.panel("overview", "States of watched paths"), state_code=2), 5),
            "mesh": until(lambda: of_web(queries.panel("mesh", "Loss"), loss=1), 5),
            "mesh state": until(lambda: of_web(queries.panel("mesh", "State"), state=2), 5),
            "where": until(lambda: [r for r in queries.panel("path", "Where") if r["lost"] >= 100], 5),
            "losses": until(lambda: [r for r in queries.panel("path", "Last losses") if r["lost_probes"] == 100], 5),
            "slow": queries.panel("mesh", "Delay, 99th percentile"),
            "alert": queries.ask(alerts()["netprobe-unreachable"]),
        }
        late_ns = realtime_ns() - broken["end_ns"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            page = response.read().decode()
        control.fault_clear()
        watch.window(lambda web: web["state"] == "reachable")
    finally:
        watch.end()
    return SimpleNamespace(broken=broken, shown=shown, late_ns=late_ns, page=page)


def of_web(rows, **values):
    return [r for r in rows if (r["src"], r["dst"]) == ("vm1", "vm2") and values.items() <= r.items()]


def whole(rows):
    """Rows with all their fields: while influxd takes a point in, it shows them one after the other."""
    return [r for r in rows if r["owloss_low_ratio"] is not None]


def proved(folder, url):
    """A proof that finds leaks, and a rule that is taken away while somebody watches."""
    text = (Path(config.__file__).parent / "pair.toml").read_text(encoding="utf-8").replace('"both"', '"ipv4"')
    first, *guests = re.split(r"(?=\[\[guest\]\])", text.partition("# A probe NIC outside")[0])
    text = first + "".join(one for one in guests if 'name = "vm1"' in one or 'name = "vm2"' in one)
    policy, narrower = folder / 'the "web".toml', folder / "narrower.toml"
    policy.write_text(text)
    narrower.write_text(text.replace("port = 80\n", "port = 81\n", 1))  # what the lab lets pass on port 80 leaks
    proof = verify(folder, url, narrower, "--prove-rules", "0")
    where = ["sg_web", "to-lport", "1002", "outport == @sg_web && tcp && tcp.dst == 80"]
    change = shlex.join(["ovn-nbctl", f"--db={read_topology().ovn.northbound}", "--wait=hv", "acl-del", *where])
    rates = ["--watch-rate", "1000", "--watch-connections", "100", "--watch-before", "200ms", "--watch-after", "500ms"]
    return proof, verify(folder, url, policy, "--watch-rule", "web[1]", "--watch-change", change, *rates)


def collected(cloud, queries):
    """A run over both agents: its document, and what the collector's page says of it and of them."""
    for host in ("hv1", "hv2"):
        cloud.wait_for("collector", f"{host} is on {host}")
    document = cloud.finish(cloud.run('name = "spread"\n' + session("vm1", "vm2", 200, 1)))
    until(lambda: queries.panel("itself", "Clocks"), 15)
    (url,) = re.findall(r"metrics are at (http://\S+)", cloud.said("collector"))

    def page():
        return in_netns("central", lambda: urllib.request.urlopen(url, timeout=5).read().decode())

    # Of its agents a collector tells regularly, so later than of a run that was short.
    return document, until(lambda: (text := page()).count("\nnetprobe_agent_connected{") == 2 and text, 15)


@pytest.fixture(scope="module")
def filled_one(influx, lab_place, tmp_path_factory):
    """The database after all of it, and what the programs themselves said.

    What takes its time goes on meanwhile: agents begin during the watch, and one is away while the policy is proved.
    """
    folder = tmp_path_factory.mktemp("runs")
    queries = Queries(influx, realtime_ns())
    control.up("pair")
    proxy = V2Proxy(influx.v1_url, netns="central")
    cloud = Collected(folder, lab_place, proxy.url)
    try:
        cloud.start_collector()
        for host in ("hv1", "hv2"):
            cloud.start_agent(host)
        seen = watched(folder, influx, queries)
        seen.run, seen.collectors_page = collected(cloud, queries)
        cloud.kill("hv2")
        seen.proof, seen.change = proved(folder, influx.url)
        until(lambda: [r for r in queries.panel("itself", "Agents") if not r["connected"]], 15)
    finally:
        cloud.close()
        proxy.close()
    seen.queries = queries
    return seen


def asked_of(board):
    return [(panel["title"], target["query"]) for panel in panels(board) for target in panel["targets"]]


@pytest.mark.parametrize("name", ["overview", "mesh", "path", "policy", "itself"])
def test_every_query_of_every_panel_has_rows(filled_one, name):
    empty = {title for title, query in asked_of(boards()[name]) if not filled_one.queries.ask(query)}
    # At the end all watched paths are reachable: these count none, and show 0. During the fault two of them had rows.
    assert empty <= ({"Unreachable", "Degraded", "Unobserved", "Losing for certain"} if name == "overview" else set())


def test_every_variable_has_values_and_every_alert_rows(filled_one):
    for board in boards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                assert filled_one.queries.ask(variable["query"]), variable["name"]
    for uid, query in alerts().items():
        assert filled_one.queries.ask(query), uid


def test_a_fault_shows_on_overview_mesh_and_path_within_5_s_of_the_windows_end(filled_one):
    """All of vm1's probes to vm2 are lost behind the tunnel, between the other hypervisor's NIC and vm2."""
    shown = filled_one.shown
    assert filled_one.late_ns < 5 * SECONDS_NS
    assert shown["unreachable"][0]["paths"] == shown["losing"][0]["paths"] == 1
    (row,) = shown["overview"]
    assert (row["lost_in"], row["lost_probes"]) == (FAULTY, 100)
    assert row["owloss_low_ratio"] > 0.95
    (state,) = shown["states"]
    assert (state["last_seen"], state["first_missing"]) == (LAST_SEEN, FIRST_MISSING)
    assert shown["mesh"]
    assert shown["mesh state"]
    # Splicing the fault in may cost probes elsewhere, too.
    assert max(shown["where"], key=lambda r: r["lost"])["segment"] == FAULTY
    assert shown["losses"][0]["last_seen"] == LAST_SEEN
    (alarm,) = [r for r in shown["alert"] if r["path"] == "web"]
    assert alarm["last"] == 2
    # Nothing arrived: the 99th percentile is infinite, and no older one stands in for it.
    assert of_web(shown["slow"]) == []


def test_the_page_for_prometheus_tells_of_the_same_fault(filled_one):
    lines = [line for line in filled_one.page.splitlines() if line.startswith("netprobe_state_state_code{")]
    (web,) = [line for line in lines if 'path="web"' in line]
    assert web.endswith(" 2.0")
    assert "netprobe_owdelay_seconds_bucket{" in filled_one.page


def test_the_collectors_own_page_tells_of_its_agents_and_runs(filled_one):
    lines = filled_one.collectors_page.splitlines()
    assert [line for line in lines if line.startswith("netprobe_agent_connected{") and line.endswith(" 1.0")]
    run = {line.partition("{")[0] for line in lines if 'plan="spread"' in line}
    assert run >= {"netprobe_path_received_probes_total", "netprobe_clock_offset_high_seconds"}


def test_the_policy_board_says_what_the_proof_said(filled_one):
    queries, proof = filled_one.queries, filled_one.proof
    assert proof["counts"]["leak"] > 0
    assert queries.panel("policy", "Leak")[0]["findings"] == proof["counts"]["leak"]
    assert queries.panel("overview", "Policies violated")[0]["policies"] == 1
    assert len(queries.panel("policy", "Findings")) == len(proof["findings"])
    reached = {(r["src"], r["dst"]): bool(r["reachable"]) for r in queries.panel("policy", "Who reaches whom")}
    assert reached == {(r["src"], r["dst"]): r["reachable"] for r in proof["matrix"] if r["reachable"] is not None}
    told = {(r["rule"], r["stream"]): r["after_commit_ns"] for r in queries.panel("policy", "Watched changes")}
    (one,) = filled_one.change["classes"]
    assert told == {("web[1]", kind): one[kind]["after_commit_ns"] for kind in ("existing", "new")}


def test_the_board_of_netprobe_itself_knows_agents_and_clocks(filled_one):
    queries = filled_one.queries
    agents = {r["agent"]: r["connected"] for r in queries.panel("itself", "Agents")}
    assert agents == {"hv1": 1, "hv2": 0}
    assert queries.panel("overview", "Agents away")[0]["agents"] == 1
    (bounds,) = queries.panel("itself", "Clocks")
    assert bounds["at least"] <= 0 <= bounds["at most"]  # both have this machine's clock
    (segment,) = [r for r in queries.panel("path", "Where", path="vm1-vm2") if r["segment"] == "hv1.nic..hv2.nic"]
    assert segment["clock_error"] > 0  # also where the clocks are further apart than the delay is long
    assert filled_one.run["sessions"][0]["received"] == 200


EVIL = "<script>alert(1)</script>"
"""As the name of a guest; beside it, in texts: quotes of both kinds, a backslash."""

RULE = """allow "web", 'tcp' \\ 80 <img src=x onerror=alert(2)>"""


DRAWN = """(panel) => [panel.dataset.panel, panel.querySelector('canvas') ? 'timeseries'
    : panel.querySelector('[role=table], [role=grid]') ? 'table' : /[0-9]/.test(panel.innerText) ? 'stat' : '']"""
"""What a panel has become: its title, and of what type it looks."""


@pytest.fixture(scope="module")
def hostile(filled_one, influx, tmp_path_factory):
    """A result and a proof with such names in the same database."""
    t_ns = realtime_ns()
    forward = replace(
        leg(100, 50, 50, last_seen=f"{EVIL}.backend", first_missing="vm2.backend"),
        segments=(segment(40_000, lost=1000, name=f"{EVIL}.backend..vm2.backend"),),
    )
    one = session_result("web", forward, reason={"code": "acl", "detail": RULE}, src=EVIL)
    finding = {
        "number": 1, "kind": "leak", "src": EVIL, "dst": "vm2", "packet": RULE, "expected": RULE, "observed": "passed",
        "rule": RULE, "rule_id": "", "evidence": None, "repeats": 0, "decided": {"rule": RULE}, "detail": RULE,
    }  # fmt: skip
    counts = dict.fromkeys(("leak", "overblock", "wrong place", "divergence", "unproven"), 0)
    numbers = dict.fromkeys(("sent", "unsent", "rounds", "seconds", "overflow", "forged"), 1)
    proof = {"source": RULE, "backend": "ovn", "vantage": "tap", "counts": counts, "matrix": [], "findings": [finding]}
    proof["stopped"] = None
    readings = [*session_readings([one], "hostile", t_ns), *verification_readings(proof | numbers, t_ns)]
    trio.run(
        send_readings,
        SinkConfig(InfluxTarget(influx.url, "netprobe"), tmp_path_factory.mktemp("spool")),
        "test",
        readings,
        pytest.fail,
    )
    return filled_one.queries


def test_names_and_texts_that_try_hard_break_no_query(hostile):
    """The path of a guest with such a name, and a finding whose texts have quotes: there, and as they were written."""
    (row,) = [r for r in hostile.panel("overview", "Loss of paths") if r["src"] == EVIL]
    assert (row["lost_in"], row["reason_detail"]) == (f"{EVIL}.backend..vm2.backend", RULE)
    (where,) = hostile.panel("path", "Where", src=EVIL, path="web")
    assert where["segment"] == f"{EVIL}.backend..vm2.backend"
    assert hostile.panel("path", "Delay of $segment", src=EVIL, segment="end-to-end") == []  # it has no histogram
    (finding,) = [r for r in hostile.panel("policy", "Findings") if r["src"] == EVIL]
    assert (finding["rule"], finding["packet"], finding["decided_by"]) == (RULE, RULE, RULE)
    assert hostile.panel("overview", "Loss of paths", plan="hostile")


def spoiled(board, where, value):
    found = copy.deepcopy(board)
    panel = next(p for p in found["panels"] if p["type"] == "timeseries")
    here = panel
    for name in where[:-1]:
        here = here[name]
    here[where[-1]] = value
    return found


def test_grafanas_own_types_have_nothing_to_say(tmp_path):
    """@grafana/schema 13.2.0 with tsc: all boards are right, and what is spoiled is found."""
    files = sorted((FOLDER / "json").glob("*.json"))
    wrong = {
        "height": (("gridPos", "h"), "tall"),
        "line": (("fieldConfig", "defaults", "custom", "lineInterpolation"), "zigzag"),
        "legend": (("options", "legend", "place"), "bottom"),
        "type": (("type",), "timeserie"),
        "format": (("targets",), [{"refId": "A"}]),
    }
    for name, (where, value) in wrong.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(spoiled(boards()["path"], where, value)))
    told = type_errors(*files, *sorted(tmp_path.glob("*.json"))).splitlines()
    assert {line.partition(".ts:")[0] for line in told if ".ts:" in line} == set(wrong), told


def test_panels_are_rendered_by_grafanas_own_components(hostile, tmp_path):
    """Stat, table and timeseries panels of all dashboards with this database's rows, in Chromium; nothing runs in it.

    The screenshots stay in the folder that SCREENSHOTS names. Heat maps and state timelines are not in Grafana's
    packages.
    """
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    shown = [{"name": name, "panels": drawable(hostile, board)} for name, board in boards().items()]
    data = {"boards": shown, "from": hostile.since_ns // 10**6, "to": realtime_ns() // 10**6}
    faults = []
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1500, "height": 900})
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
        page.goto(html(tmp_path, data).as_uri())
        page.wait_for_function("document.title !== 'waiting'")
        assert page.title() == "rendered"
        for board in shown:
            here = page.locator(f"[data-board={board['name']}]")
            here.screenshot(path=shots / f"{board['name']}.png")
            drawn = here.locator("[data-panel]").evaluate_all(f"(all, how) => all.map({DRAWN})")
            wanted = {one["panel"]["title"]: one["panel"]["type"] for one in board["panels"]}
            assert dict(drawn) == wanted
            if board["name"] in ("overview", "policy"):
                assert EVIL in here.inner_text()
    assert faults == []


def drawable(queries, board):
    """Panels whose components are in Grafana's packages, with what the database answers."""
    return [
        {"panel": panel, "answers": [queries.series(t["query"]) for t in panel["targets"]]}
        for panel in panels(board)
        if panel["type"] in ("stat", "table", "timeseries")
    ]
