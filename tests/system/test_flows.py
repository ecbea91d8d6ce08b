"""`trace --flows` and meshes on a real switch: the flow whose leg is broken is named; alike guests share a path.

Network: the lab; a rule of the switch that swallows one source port plays the broken leg.
"""

import json
import subprocess
import sys

import pytest
from support.switch_rules import rules

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "netprobe.cli.main"]


@pytest.fixture
def store(tmp_path):
    return ["--store", str(tmp_path / "results.duckdb")]


def netprobe(*words, timeout=60):
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=timeout, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_flow_whose_leg_is_broken_is_named(lab, lab_place, store):
    """One of six source ports is swallowed: 5 of 6 pass, exit code 1, the port and the segment."""
    first = json.loads(netprobe("trace", "vm1", "vm2", "--flows", "2", "--json", *store).stdout)
    lost = max(row["src_port"] for row in first["flows"]) + 3  # ports rest: the next ones follow
    with rules(lab_place, f"table=0,priority=30000,udp,in_port=1,tp_src={lost},actions=drop"):
        done = netprobe("trace", "vm1", "vm2", "--flows", "6", "--tmax", "200ms", "--json", *store)
    said = json.loads(done.stdout)
    assert done.returncode == 1
    (bad,) = [row for row in said["flows"] if row["state"] != "passes"]
    assert (bad["src_port"], bad["state"], bad["lost"], bad["sent"]) == (lost, "fails", 20, 20)
    assert (bad["last_seen"], bad["first_missing"]) == ("vm1.backend", "vm2.backend")
    (group,) = said["flow_groups"]
    assert (group["flows"], group["passes"], group["failing"]) == (6, 5, [bad["flow"]])
    assert len({row["src_port"] for row in said["flows"]}) == 6
    assert [s["name"] for s in said["sessions"]] == [f"trace#{i}" for i in range(6)]
    assert all(row["lost"] == 0 for row in said["flows"] if row is not bad)


def test_flows_that_all_pass_are_exit_code_0_and_readable(lab, store):
    """A verdict, a table, and one session whole."""
    done = netprobe("trace", "vm1", "vm2", "--flows", "4", "--count", "10", *store)
    assert done.returncode == 0
    assert "4 of 4 flows pass" in done.stdout
    assert done.stdout.count("delivered to vm2.guest") == 1


def test_flows_of_tcp_are_one_syn_each(lab, store):
    """Each with a port of its own."""
    done = netprobe("trace", "vm1", "vm2", "--proto", "tcp", "--dport", "80", "--flows", "5", "--json", *store)
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(row["sent"], row["received"]) for row in said["flows"]] == [(1, 1)] * 5


def test_a_mesh_runs_one_path_for_guests_that_are_alike(lab, store, tmp_path):
    """vm1 and vm3 are alike: 6 pairs, 3 sessions; the document says which stand for which, stderr says it in words."""
    plan = tmp_path / "mesh.toml"
    plan.write_text(
        'seed = 4\ntmax = "300ms"\n[[mesh]]\nname = "m"\nproto = "icmp"\ncount = 20\nrate = 40\nbudget_pps = 60\n'
    )
    done = netprobe("run", str(plan), "--json", *store)
    said = json.loads(done.stdout)
    assert done.returncode == 0
    (mesh,) = said["mesh"]
    assert (mesh["all_pairs"], mesh["sessions"], mesh["saved"]) == (6, 3, 3)
    assert [c["members"] for c in mesh["classes"]] == [["vm1", "vm3"], ["vm2"]]
    assert sorted(p["stands_for"] for p in mesh["pairs"]) == [2, 2, 2]
    assert {(s["src"], s["dst"]) for s in said["sessions"]} == {(p["src"], p["dst"]) for p in mesh["pairs"]}
    assert all(s["received"] == 20 for s in said["sessions"])
    assert mesh["hosts"]["hv1"]["planned_pps"] <= 60 < mesh["hosts"]["hv1"]["wanted_pps"] == 120
    assert "mesh m: 3 guests, 6 pairs, 3 sessions, 3 saved" in done.stderr
    assert "slowed up to 2 times" in done.stderr
