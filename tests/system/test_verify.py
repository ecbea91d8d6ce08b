"""`netprobe verify` as a command: vantages, what it leaves behind, bad input and bad days.

Network: the lab `single` with its own policy, unless a test says otherwise.
"""

import json
import signal
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from support.verifying import COMMAND, document, verify, worse
from support.waiting import until

from netprobe.host import tc
from netprobe.host.netns import NETNS_DIR
from netprobe.lab import control
from netprobe.service.discovery import base_dir

pytestmark = pytest.mark.system

POLICY = files("netprobe.lab").joinpath("single.toml")


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.read_text())
    return path


def left_behind():
    """What a verification makes on a hypervisor, as it is there now."""
    namespaces = [path.name for path in NETNS_DIR.iterdir() if path.name.startswith("np-verify-")]
    links = subprocess.run(["ip", "-n", "hv1", "-o", "link"], capture_output=True, text=True, check=True).stdout
    filters = [found for name in ("tapvm1", "tapvm2", "tapvm3") for found in tc.filters("hv1", name)]
    journals = list((base_dir() / "journal").glob("run-*.json"))
    return namespaces, [line for line in links.splitlines() if ": np" in line], filters, journals


NOTHING = ([], [], [], [])


@pytest.mark.parametrize("vantage", ["tap", "vswitch", "guest"])
def test_the_labs_own_policy_is_proved_from_each_vantage_and_nothing_is_left(lab, policy, vantage):
    code, found = document(policy, "--vantage", vantage)
    assert worse(found) == []
    assert (code, found["vantage"]) == (0, vantage)
    assert ("megaflows" in " ".join(found["notes"])) is (vantage == "vswitch")
    assert left_behind() == NOTHING


def test_no_guest_sees_any_of_it(lab, policy):
    """Absorbed before the guest: its own counters stay where they were, but for what the kernel sends by itself."""

    def received(guest):
        out = subprocess.run(
            ["ip", "-n", guest, "-s", "-j", "link", "show", "eth0"], capture_output=True, check=True, timeout=10
        ).stdout
        return json.loads(out)[0]["stats64"]["rx"]["packets"]

    guests = ("vm1", "vm2", "vm3")
    before = [received(guest) for guest in guests]
    _, found = document(policy)
    assert found["sent"] > 100
    assert [received(guest) for guest in guests] == before


def test_a_plan_says_what_would_be_sent_and_sends_nothing(lab, policy):
    code, found = document(policy, "--plan")
    assert code == 0
    assert found["plan"]["scenarios"] >= found["plan"]["lower_bound"] > 0
    assert "findings" not in found


def test_people_get_the_answer_first_the_matrix_and_the_numbers(lab, policy):
    done = verify(policy)
    lines = done.stdout.splitlines()
    assert lines[0] == "the policy is enforced: 0 findings"
    assert "all pairs x all ports" in done.stdout
    assert done.stderr == ""


def test_ctrl_c_judges_what_is_known_by_then_and_leaves_nothing(lab, policy):
    command = [*COMMAND, str(policy), "--no-store", "--json", "--rate", "50"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: left_behind()[2] != [])
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["stopped"] == "stopped by SIGINT"
    assert worse(json.loads(stdout)) == []
    assert left_behind() == NOTHING


def test_clean_undoes_what_a_killed_verification_left(lab, policy):
    command = [*COMMAND, str(policy), "--no-store", "--json", "--rate", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: left_behind()[2] != [])
    process.kill()
    process.wait(timeout=10)
    assert left_behind() != NOTHING
    done = subprocess.run([*COMMAND[:-1], "clean", "--json"], capture_output=True, text=True, timeout=30, check=False)
    assert json.loads(done.stdout)["taps_undone"] == 3, done.stderr
    assert left_behind() == NOTHING


def test_a_port_that_disappears_during_the_run_is_unproven_never_a_false_finding(lab, policy):
    command = [*COMMAND, str(policy), "--no-store", "--json", "--rate", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: left_behind()[2] != [])
    subprocess.run(["ip", "-n", "hv1", "link", "del", "tapvm3"], check=True, timeout=10)
    stdout, stderr = process.communicate(timeout=120)
    try:
        assert "Traceback" not in stderr
        found = json.loads(stdout)
        assert worse(found) == []
        assert found["counts"]["unproven"] > 0
        assert process.returncode == 4
    finally:
        control.up("single")  # repairs it


def test_a_host_that_does_not_allow_it_is_obeyed(lab, policy):
    path = Path(lab.state["hosts"][0]["allowlist"])
    before = path.read_text()
    try:
        path.write_text(before.replace("verify = true", "verify = false"))
        done = verify(policy)
    finally:
        path.write_text(before)
    assert done.returncode == 2
    assert "proving a policy is not allowed on this host (allowed: `verify = true`)" in done.stderr
    assert left_behind() == NOTHING


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no policy"),
        (("nowhere.toml",), "cannot be read: No such file or directory"),
        (("--neutron", "nowhere"), "is no folder"),
        (("{policy}", "--vantage", "bypass"), "a bypass NIC carries a copy of a port's groups"),
        (("{policy}", "--vantage", "guset"), "Did you mean 'guest'?"),
        (("{policy}", "--alpha", "2"), "between 0 and 1"),
        (("{policy}", "--tmax", "1us"), "1ms to 10s"),
        (("{policy}", "--rate", "0"), "1 to 100000"),
        (("{policy}", "--rate", "99999"), "packets/s"),
        (("{policy}", "--ovn", "unix:/nowhere"), "both POLICY and --ovn"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(lab, policy, words, message):
    done = verify(*(word.format(policy=policy) for word in words))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_guest_that_is_attached_nowhere_is_named_with_the_nearest(lab, policy):
    policy.write_text(policy.read_text().replace('name = "vm3"', 'name = "vm33"'))
    done = verify(policy)
    assert done.returncode == 2
    assert "vm33" in done.stderr
    assert "Did you mean 'vm3'?" in done.stderr


def test_a_stored_verification_is_printed_again(lab, policy, tmp_path):
    store = str(tmp_path / "results.duckdb")
    done = subprocess.run(
        [*COMMAND, str(policy), "--store", store, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    again = subprocess.run(
        [*COMMAND[:-1], "report", "--store", store, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(again.stdout)["run"] == json.loads(done.stdout)["run"]
    people = subprocess.run(
        [*COMMAND[:-1], "report", "--store", store], capture_output=True, text=True, timeout=60, check=False
    )
    assert "the policy is enforced" in people.stdout
