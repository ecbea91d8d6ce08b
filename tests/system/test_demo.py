"""What README and demo promise: their commands run, and print what is printed there (figures aside).

Network: README's commands on the lab `pair`; the demo makes `single` itself.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from netprobe.host import netns
from netprobe.lab import control

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "netprobe.cli.main"]
FIGURE = re.compile(r"∞|-?\d+(?:\.\d+)?(?: (?:ns|us|ms|s|%)(?![a-z]))?")


def netprobe(*words):
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=90, check=False)


def shape(line):
    """A line without its figures and spacing."""
    return re.sub(r"\s+", " ", FIGURE.sub("#", line)).strip()


def blocks():
    """(words of the command, lines that README shows) of each fenced block."""
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"```\n\$ netprobe (.*?)\n```", text, re.DOTALL):
        command, *lines = block.splitlines()
        yield command.split(), lines


def test_readmes_commands_print_what_readme_shows(pair_lab, tmp_path):
    """Every line of README's blocks is printed by its command, in that order, but for figures and left-out columns."""
    store = ["--store", str(tmp_path / "x.duckdb")]
    first, second, _ = blocks()
    control.fault_set("hv1.nic..fabric.hv1", delay_ns=300_000, loss=0.02, seed=7)
    try:
        slow = netprobe(*first[0], *store)
    finally:
        control.fault_clear()
    blocked = netprobe(*second[0], *store)
    assert (slow.returncode, blocked.returncode) == (0, 1)
    for (_, lines), done in ((first, slow), (second, blocked)):
        check(lines, done)


def check(lines, done):
    printed = iter([shape(line) for line in done.stdout.splitlines()])
    for line in lines:
        assert any(one.startswith(shape(line)) for one in printed), (line, done.stdout)


def test_readmes_verification_prints_what_readme_shows(lab, tmp_path, monkeypatch):
    """A flow of web's port 443 is deleted, in both families."""
    (tmp_path / "policy.toml").write_text((ROOT / "netprobe/lab/single.toml").read_text())
    place = f"unix:{lab.state['hosts'][0]['ovs_rundir']}/br-int.mgmt"
    for protocol in ("tcp", "tcp6"):
        flow = f"table=82,{protocol},reg5=2,tp_dst=443"
        subprocess.run(["ovs-ofctl", "-OOpenFlow15", "del-flows", place, flow], check=True, timeout=10)
    *_, (words, lines) = blocks()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = netprobe(*words, "--no-store")
    control.down()  # it is not whole any more
    assert done.returncode == 1
    check(lines, done)


def test_the_demo_comes_out_as_told_and_leaves_nothing(lab_place):
    """Every step has the exit code that the story says; namespaces and the lab are gone."""
    control.down()
    done = netprobe("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    for heading in ("1. A lab comes up", "2. One path", "3. A fault", "4. A packet", "5. Nothing is left"):
        assert heading in done.stdout
    assert done.stdout.count("delivered to vm2.guest, seen at every point") == 3
    assert "changed: vm1.backend..vm2.backend:" in done.stdout
    assert "security group rule: vm2 [default, web]" in done.stdout
    assert "not as told" not in done.stdout
    assert not any(netns.exists(name) for name in ("hv1", "vm1", "vm2", "vm3", "byp1"))
    assert not control.status().is_up
