"""The committed dashboards: what the generator writes, of fields that exist, and linked to each other."""

import json
import re

import pytest
from support.grafana import FOLDER, alerts, boards, filled, panels

from dashboards.generate import texts
from netprobe.model.metric_catalogue import CATALOGUE

BY_NAME = {one.name: one for one in CATALOGUE}
OURS = re.compile(r'"([a-z_]+)"')


def queries():
    found = [
        (f"{name}: {p['title']}", t["query"]) for name, b in boards().items() for p in panels(b) for t in p["targets"]
    ]
    return found + list(alerts().items())


def test_generating_again_gives_the_same_bytes():
    """`python -m dashboards.generate` renews them."""
    for name, text in texts().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name
    assert {p.name for p in (FOLDER / "json").iterdir()} == {n.removeprefix("json/") for n in texts() if "json/" in n}


@pytest.mark.parametrize("query", [query for _, query in queries()], ids=[title for title, _ in queries()])
def test_a_query_asks_for_what_the_catalogue_has(query):
    """Measurements, tags and fields that are written; a cloud's names are variables in quotes, never patterns."""
    names = [name for name in OURS.findall(query) if name.startswith("netprobe_")]
    (name,) = set(names)
    measurement = BY_NAME[name]
    own = set(re.findall(r'AS "([^"]+)"', query))
    known = {f.name for f in measurement.fields} | measurement.tags.keys() | own | {measurement.name}
    assert set(re.findall(r'"([^"]+)"', query)) <= known
    assert set(re.findall(r"=~ /\^?\$(\w+)", query)) <= {"plan", "policy"}
    assert "$timeFilter" in query
    assert "time($__interval)" not in query or "fill(none)" in query


def test_boards_are_told_apart_and_link_to_each_other():
    uids = [board["uid"] for board in boards().values()]
    assert len(set(uids)) == len(uids) == 5
    for name, board in boards().items():
        assert board["tags"] == ["netprobe"]
        assert board["links"][0]["tags"] == ["netprobe"]
        ids = [panel["id"] for panel in board["panels"] if "id" in panel]
        assert len(set(ids)) == len(ids)
        if name in ("overview", "mesh"):
            links = re.findall(r"/d/([a-z-]+)\?", json.dumps(board))
            assert links
            assert set(links) == {"netprobe-path"} <= set(uids)


def test_no_two_panels_overlap():
    for board in boards().values():
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_a_name_with_quotes_ends_no_text_of_a_query():
    text = filled("\"src\" = '$src' AND $timeFilter", {"src": "a' OR '1'='1\\"}, from_ns=0, to_ns=10**6)
    assert text == "\"src\" = 'a\\' OR \\'1\\'=\\'1\\\\' AND time >= 0ms AND time <= 1ms"


def test_a_violated_policy_is_told_for_a_day():
    """It stays violated until a proof says otherwise, and proofs are not made every five minutes, as windows are."""
    file = json.loads((FOLDER / "provisioning" / "alerting" / "netprobe.json").read_text(encoding="utf-8"))
    spans = {rule["uid"]: rule["data"][0]["relativeTimeRange"]["from"] for rule in file["groups"][0]["rules"]}
    assert spans.pop("netprobe-violated") == 86_400
    assert set(spans.values()) == {300}
    (panel,) = [p for p in panels(boards()["overview"]) if p["title"] == "Policies violated"]
    assert panel["timeFrom"] == "24h"


def test_alert_rules_have_what_provisioning_asks_for():
    file = json.loads((FOLDER / "provisioning" / "alerting" / "netprobe.json").read_text(encoding="utf-8"))
    (group,) = file["groups"]
    uids = [rule["uid"] for rule in group["rules"]]
    assert len(set(uids)) == len(uids)
    source = (FOLDER / "provisioning" / "datasources" / "netprobe.yaml").read_text(encoding="utf-8")
    for rule in group["rules"]:
        assert len(rule["uid"]) <= 40
        assert rule["condition"] in [one["refId"] for one in rule["data"]]
        assert f"uid: {rule['data'][0]['datasourceUid']}\n" in source
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        query = rule["data"][0]["model"]["query"]
        assert labels <= set(re.findall(r'"(\w+)"', query[query.rindex("GROUP BY") :])), rule["uid"]
