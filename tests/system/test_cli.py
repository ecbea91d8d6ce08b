"""The command line as other programs use it: documents, exit codes, bad input and bad days.

Network: the lab; every command is a process of its own.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from ipaddress import ip_address
from pathlib import Path

import duckdb
import pytest
from support.waiting import until

from netprobe.host.conntrack import Conntrack
from netprobe.host.netns import in_netns
from netprobe.host.unixctl import UnixctlClient
from netprobe.lab import control
from netprobe.service.discovery import base_dir, read_topology

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "netprobe.cli.main"]


@pytest.fixture
def store(tmp_path):
    return ["--store", str(tmp_path / "results.duckdb")]


def netprobe(*words, timeout=60):
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=timeout, check=False)


def start(*words):
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def document(done):
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def closes(leg):
    received = leg.get("received", leg.get("delivered"))
    return leg["planned"] == leg["unsent"] + received + leg["lost"] + leg["unobserved"] + leg["pending"]


def passed_tap(device):
    """Frames that a port on hv1 has received until now."""
    out = subprocess.run(
        ["ip", "-n", "hv1", "-s", "-j", "link", "show", device], capture_output=True, check=True, timeout=10
    ).stdout
    return json.loads(out)[0]["stats64"]["rx"]["packets"]


def entries_of_ours():
    """Entries between vm1 and vm2 that a run may have made: others' may rest in the same table for a minute."""
    host = read_topology().host("hv1")
    with UnixctlClient(host.ovs_rundir) as unixctl:
        entries = Conntrack(unixctl).dump(host.zone).entries
    ends = {ip_address(each) for each in ("10.0.0.1", "10.0.0.2", "fd00:10::1", "fd00:10::2")}
    return [e for e in entries if 61000 <= e.original.src_port <= 65535 and {e.original.src, e.original.dst} <= ends]


def test_the_document_of_a_blocked_port_has_everything_that_the_contract_names(lab, store):
    """The example of the contract, field by field, with exit code 1."""
    words = "trace vm1 vm2 --proto tcp --dport 8080 --vantage vswitch --count 100 --json"
    done = netprobe(*words.split(), *store)
    said = document(done)
    assert done.returncode == 1
    assert (said["schema"], said["src"], said["dst"], said["vantage"]) == (1, "vm1", "vm2", "vswitch")
    assert said["type_p"]["proto"] == "tcp"
    assert said["delivered"] is False
    numbers = {"planned": 100, "sent": 100, "received": 0, "lost": 100, "unobserved": 0, "pending": 0, "late": 0}
    assert {k: said[k] for k in numbers} == numbers
    assert (said["forged"], said["tmax_ms"], said["seed"], said["overflow"]) == (0, 1000.0, 1, False)
    segment = said["segments"][0]
    assert (segment["from"], segment["to"], segment["kind"]) == ("hv1.vswitch", "vm2.backend", "vswitch-backend")
    assert (segment["sent"], segment["received"], segment["lost"], segment["loss_ratio"]) == (100, 0, 100, 1.0)
    assert 0.96 < segment["loss_interval_95"][0] < 1.0 == segment["loss_interval_95"][1]
    assert segment["delay_ns"] is None
    assert segment["pdv_ns"] is None
    assert (segment["reordered"], segment["duplicated"]) == (0, 0)
    assert segment["stamp"] == "sender/kernel-rx"
    assert (said["last_seen"], said["first_missing"]) == ("hv1.vswitch", "vm2.backend")
    reason = said["reason"]
    assert (reason["code"], reason["table"], reason["evidence"]) == ("security-group", 82, "counter-pattern")
    assert reason["cookie"].startswith("0x")
    assert reason["rule"] == "vm2 [default, web]: default deny: no ingress rule allows it"


def test_a_delivered_path_is_exit_code_0_and_comes_back_from_the_store(lab, store):
    """What `report --last` prints is what `trace` printed."""
    done = netprobe("trace", "vm1", "vm2", "--count", "50", "--rate", "500", "--json", *store)
    said = document(done)
    assert done.returncode == 0
    assert (said["delivered"], said["received"], said["stored"]) == (True, 50, True)
    delay = {"min", "p50", "p90", "p99", "max", "samples", "p50_interval_95", "p99_interval_95", "histogram"}
    assert set(said["segments"][1]["delay_ns"]) == delay
    again = document(netprobe("report", "--last", "--json", *store))
    assert {k: v for k, v in said.items() if k != "stored"} == again
    table = netprobe("report", *store).stdout
    assert "vm1.backend..vm2.backend" in table
    with duckdb.connect(store[1], read_only=True) as db:
        assert db.execute("SELECT count(*) FROM hops").fetchone()[0] == 50 * 5  # rings and the source's agent
        assert db.execute("SELECT planned, delivered, lost FROM sessions").fetchall() == [(50, 50, 0)]
        assert db.execute("SELECT count(*) FROM segments").fetchone()[0] == 6


def test_every_segment_is_one_that_lab_status_lists(lab, store):
    """SEGMENT ids are the same everywhere."""
    listed = {s["id"] for s in document(netprobe("lab", "status", "--json"))["segments"]}
    said = document(netprobe("trace", "vm1", "vm2", "--count", "5", "--json", *store))
    used = {s["id"] for s in (*said["segments"], *said["return"]["segments"])}
    assert used <= listed


def test_a_plan_runs_its_sessions_together(lab, store, tmp_path):
    """Two vantages, both families, one document; every ledger closes."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "two"\nseed = 5\ntmax = "500ms"\n'
        '[[session]]\nname = "a"\nsrc = "vm1"\ndst = "vm2"\ncount = 100\nrate = 500\nschedule = "poisson"\n'
        '[[session]]\nname = "b"\nsrc = "vm3"\ndst = "vm1"\nproto = "icmp"\nfamily = 6\ncount = 100\nrate = 500\n'
    )
    done = netprobe("run", str(plan), "--json", *store)
    said = document(done)
    assert done.returncode == 0
    assert [s["name"] for s in said["sessions"]] == ["a", "b"]
    assert [s["received"] for s in said["sessions"]] == [100, 100]
    assert all(closes(s) and closes(s["return"]) for s in said["sessions"])
    assert said["sessions"][1]["type_p"]["family"] == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trace", "vm1", "vm4"], 2, "unknown guest 'vm4'"),
        (["trace", "vm1", "vm1"], 2, "source and destination are both"),
        (["trace", "vm1", "vm2", "--count", "0"], 2, "--count: got 0 (allowed: 1 to "),
        (["trace", "vm1", "vm2", "--vantage", "gest"], 2, "Did you mean 'guest'?"),
        (["trace", "vm1", "vm2", "--proto", "tcp"], 2, "Give dport"),
        (["trace", "vm1", "vm2", "--size", "60"], 2, "cannot carry the mark"),
        (["trace", "vm1", "vm2", "--size", "9000"], 2, "the path's MTU is 1500 (allowed: up to 1514 bytes)"),
        (["trace", "bypass", "vm2"], 2, "is a bypass NIC, not a guest"),
        (["trace", "vm1", "vm2", "--proto", "tcp", "--dport", "80", "--flow", "same"], 2, "Leave sport and flow out"),
        (["trace", "vm1", "vm2", "--count", "1000000", "--rate", "1000"], 2, "more than one order can hold"),
        (["trace", "vm1", "10.0.0.2", "--family", "6"], 2, "is no IPv6 address"),
        (["trace", "vm1", "vm2", "--rate", "100000", "--count", "1000"], 2, "max_pps"),
        (["trace", "vm1", "vm2", "--tmax", "soon"], 2, "'soon' is no duration"),
        (["trace", "vm1"], 2, "the following arguments are required: DST"),
        (["run", "/nowhere/plan.toml"], 2, "cannot be read"),
        (["lab", "fault", "set", "vm1.backend..vm4.backend"], 2, "vm1.backend..vm"),
        (["lab", "fault", "set", "vm1.guest..vm1.backend", "--loss", "200%"], 2, "is no share"),
        (["agent", "host"], 2, "allowed: guest"),
        (["frobnicate"], 2, "invalid choice"),
        (["report", "--store", "/proc/nowhere/x"], 3, "there is no such file"),
    ],
)
def test_bad_input_gets_one_clear_line_and_its_exit_code(lab, words, code, message):
    """Who, what, what is allowed: on stderr, never a traceback, nothing on stdout."""
    done = netprobe(*words)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_host_that_allows_less_is_obeyed_and_nothing_is_sent(lab, store):
    """The host decides for itself: another allowlist, and the same command is refused with the line that forbids it."""
    path = Path(read_topology().host("hv1").allowlist)
    before = path.read_text()
    try:
        path.write_text('schema = 1\nports = ["vm3"]\nprotocols = ["icmp"]\nmax_pps = 10\n')
        sent_before = passed_tap("tapvm1")
        done = netprobe("trace", "vm1", "vm2", *store)
        assert (done.returncode, passed_tap("tapvm1")) == (2, sent_before)
        assert "line 2, ports" in done.stderr
        path.chmod(0o666)
        assert "others can write it" in netprobe("trace", "vm3", "vm2", *store).stderr
        path.unlink()
        assert "has no allowlist" in netprobe("trace", "vm3", "vm2", *store).stderr
    finally:
        path.write_text(before)
        path.chmod(0o600)


def test_every_order_is_in_the_audit_log(lab, store, tmp_path):
    """Who, where, what, how many: a line before the first probe."""
    netprobe("trace", "vm1", "vm2", "--count", "7", *store)
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["port"], entry["vantage"], entry["count"], entry["uid"]) == ("vm1", "guest", 7, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("vantage", ["guest", "vswitch"])
def test_ctrl_c_gives_the_result_of_what_was_sent_and_leaves_nothing(lab, store, vantage, number):
    """The rest is unsent; the ledger closes; no entry, no journal, and the agents are free again."""
    before = passed_tap("tapvm2")
    run = start("trace", "vm1", "vm2", "--vantage", vantage, "--count", "3000", "--rate", "300", "--json", *store)
    until(lambda: passed_tap("tapvm2") > before + 20)  # answers come back: probes are under way
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "Traceback" not in err
    said = json.loads(out)
    assert 0 < said["sent"] < 3000
    assert said["unsent"] == 3000 - said["sent"]
    assert closes(said)
    assert said["lost"] == 0
    assert entries_of_ours() == []
    assert list((base_dir() / "journal").iterdir()) == []
    assert netprobe("trace", "vm1", "vm2", "--count", "5", *store).returncode == 0


def test_clean_undoes_what_a_killed_run_left(lab, store):
    """After kill -9 conntrack entries and journal stay until `netprobe clean`."""
    before = passed_tap("tapvm2")
    words = ("--proto", "tcp", "--dport", "80", "--vantage", "vswitch", "--count", "3000", "--rate", "300")
    run = start("trace", "vm1", "vm2", *words, *store)
    until(lambda: passed_tap("tapvm2") > before + 20)
    run.kill()
    run.communicate(timeout=10)
    assert entries_of_ours()
    said = document(netprobe("clean", "--json"))
    assert said["journals"] == 1
    assert said["conntrack_deleted"] > 0
    assert entries_of_ours() == []
    assert document(netprobe("clean", "--json"))["journals"] == 0


def test_a_switch_that_dies_in_the_middle_of_a_run(lab, store):
    """A result that says where it stopped, or a clear error; then `lab up` repairs, and all is well again."""
    before = passed_tap("tapvm2")
    run = start("trace", "vm1", "vm2", "--count", "900", "--rate", "300", "--tmax", "300ms", "--json", *store)
    until(lambda: passed_tap("tapvm2") > before + 20)
    victims = [p for p in control.status().state["processes"] if "vswitchd" in p["name"]]
    for victim in sorted(victims, key=lambda p: "monitor" not in p["name"]):
        os.kill(victim["pid"], signal.SIGKILL)
    out, err = run.communicate(timeout=30)
    assert "Traceback" not in err
    assert run.returncode in (0, 1)
    said = json.loads(out)
    assert closes(said)
    assert said["lost"] > 0
    assert (said["last_seen"], said["first_missing"]) == ("vm1.backend", "vm2.backend")
    assert (said["reason"]["code"], said["reason"]["evidence"]) == ("vswitch-down", "observed")
    done = netprobe("trace", "vm1", "vm2", "--vantage", "vswitch", *store)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert netprobe("lab", "up").returncode == 0
    assert netprobe("trace", "vm1", "vm2", "--count", "5", *store).returncode == 0


def test_an_agent_that_is_gone_is_said_with_what_to_do(lab, store):
    """No agent, no guest vantage: exit code 3, and the vswitch vantage still works."""
    victim = next(p for p in lab.state["processes"] if p["name"] == "agent-vm1")
    os.kill(victim["pid"], signal.SIGKILL)
    done = netprobe("trace", "vm1", "vm2", *store)
    assert done.returncode == 3
    assert "is the agent running?" in done.stderr.lower()
    assert netprobe("trace", "vm1", "vm2", "--vantage", "vswitch", "--count", "5", *store).returncode == 0


def test_a_store_that_cannot_be_written_loses_no_result(lab, tmp_path):
    """A full disk, and a file of a newer version: the result is printed, and says that it was not stored."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True, timeout=10)
    try:
        done = netprobe(
            "trace", "vm1", "vm2", "--count", "200", "--rate", "1000", "--json", "--store", str(full / "db")
        )
        said = document(done)
        assert (done.returncode, said["received"], said["stored"]) == (0, 200, False)
        assert "was not stored" in done.stderr
    finally:
        subprocess.run(["umount", str(full)], check=True, timeout=10)
    newer = tmp_path / "newer.duckdb"
    with duckdb.connect(str(newer)) as db:
        db.execute("CREATE TABLE meta (version INTEGER)")
        db.execute("INSERT INTO meta VALUES (99)")
    done = netprobe("trace", "vm1", "vm2", "--count", "5", "--json", "--store", str(newer))
    assert (done.returncode, document(done)["stored"]) == (0, False)
    done = netprobe("report", "--store", str(newer))
    assert done.returncode == 2
    assert "its tables are of version 99 (allowed: version 3)" in done.stderr
    (tmp_path / "garbage.duckdb").write_bytes(b"no database" * 1000)
    assert netprobe("report", "--store", str(tmp_path / "garbage.duckdb")).returncode == 3


def test_a_guest_that_forges_marks_changes_no_ledger(lab, store):
    """vm1 sends 500 frames on the session's own tuple with our magic and made-up tags: counted, never a hop."""
    forged = bytearray(62)
    forged[0:14] = bytes.fromhex("fa163e000002fa163e0000010800")
    forged[14:34] = bytes.fromhex("450c0030000000004011000 00a0000010a000002".replace(" ", ""))
    total = sum(int.from_bytes(forged[i : i + 2], "big") for i in range(14, 34, 2))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    forged[24:26] = checksum.to_bytes(2, "big")
    forged[34:42] = struct.pack("!HHHH", 40_123, 862, 28, 0)
    sock = in_netns("vm1", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    sock.bind(("eth0", 0))
    before = passed_tap("tapvm2")
    run = start("trace", "vm1", "vm2", "--sport", "40123", "--count", "400", "--rate", "400", "--json", *store)
    until(lambda: passed_tap("tapvm2") > before + 20)
    pause = threading.Event()
    for i in range(500):
        forged[42:62] = b"nprb" + i.to_bytes(4, "big") * 2 + os.urandom(8)
        sock.send(forged)
        if i % 20 == 0:
            pause.wait(0.005)  # a burst of 500 would make the switch drop honest frames too
    sock.close()
    out, err = run.communicate(timeout=30)
    said = json.loads(out)
    assert run.returncode == 0, err
    assert (said["received"], said["lost"], said["unobserved"]) == (400, 0, 0)
    assert said["forged"] >= 500
    assert all(s["duplicated"] == 0 for s in said["segments"])


def test_two_runs_at_the_same_time_tell_each_other_apart(lab, store, tmp_path):
    """They share points; the other's probes are on other tuples, and end in the kernel: no forgeries, no hops."""
    first = start("trace", "vm1", "vm2", "--count", "300", "--rate", "300", "--json", *store)
    second = netprobe(
        "trace", "vm1", "vm2", "--vantage", "bypass", "--count", "300", "--rate", "300", "--json",
        "--store", str(tmp_path / "second.duckdb"),
    )  # fmt: skip
    out, err = first.communicate(timeout=30)
    said = [json.loads(out), document(second)]
    assert (first.returncode, second.returncode) == (0, 0), err
    assert [s["received"] for s in said] == [300, 300]
    assert [(s["forged"], s["counters"]["foreign"]) for s in said] == [(0, 0), (0, 0)]


def test_a_guest_may_be_source_and_destination_in_one_plan(lab, store, tmp_path):
    """Its agent sees the probes that come to it too: they are told by their answers already, and counted once."""
    plan = tmp_path / "both.toml"
    plan.write_text(
        '[[session]]\nsrc = "vm1"\ndst = "vm2"\ncount = 100\nrate = 500\n'
        '[[session]]\nsrc = "vm2"\ndst = "vm1"\nproto = "icmp"\ncount = 100\nrate = 500\n'
        '[[session]]\nsrc = "vm3"\ndst = "vm1"\nproto = "raw-udp"\ndport = 5001\ncount = 100\nrate = 500\n'
    )
    said = document(netprobe("run", str(plan), "--json", *store))
    assert [s["received"] for s in said["sessions"]] == [100, 100, 100]
    assert said["sessions"][0]["forged"] == 0
    for session in said["sessions"]:
        legs = [session, *([session["return"]] if session["return"] else [])]
        assert not any(s["duplicated"] or s["reordered"] for leg in legs for s in leg["segments"])


def test_a_sender_that_dies_leaves_what_was_seen(lab, store):
    """vm1's agent is killed: what a point saw was sent, the rest is unsent, nothing is called lost on the way back."""
    victim = next(p for p in lab.state["processes"] if p["name"] == "agent-vm1")
    before = passed_tap("tapvm2")
    run = start("trace", "vm1", "vm2", "--count", "900", "--rate", "300", "--json", *store)
    until(lambda: passed_tap("tapvm2") > before + 50)
    os.kill(victim["pid"], signal.SIGKILL)
    out, err = run.communicate(timeout=30)
    assert "Traceback" not in err
    said = json.loads(out)
    assert closes(said)
    assert 50 < said["sent"] < 900
    assert said["lost"] == 0
    assert said["return"]["lost"] == 0
    assert any("ended early" in note for note in said["notes"])
    assert run.returncode == 4


def test_probes_that_come_after_tmax_are_late_not_lost_on_a_link(lab, store):
    """350 ms of delay and a Tmax of 300 ms: all late, and the reason says so."""
    control.fault_set("vm1.backend..vm2.backend", delay_ns=350_000_000)
    try:
        done = netprobe("trace", "vm1", "vm2", "--count", "50", "--rate", "100", "--tmax", "300ms", "--json", *store)
    finally:
        control.fault_clear()
    said = document(done)
    assert done.returncode == 1
    assert (said["lost"], said["reason"]["code"], said["reason"]["evidence"]) == (50, "late", "observed")
    assert said["late"] > 25


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_number_is_cut_short_however_narrow_the_terminal(lab, store, width, monkeypatch):
    """Fewer columns, never half a number."""
    netprobe("trace", "vm1", "vm2", "--count", "20", "--rate", "500", *store)
    monkeypatch.setenv("COLUMNS", str(width))
    code = (
        "from pathlib import Path; from netprobe.show import tables\n"
        "from netprobe.store.duckdb_file import open_store\n"
        f"out = tables.console(width={width})\n"
        f"with open_store(Path({store[1]!r}), read_only=True) as s: tables.print_document(out, s.last_document())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "…" not in done.stdout
    assert "vm1.backend..vm2.backend" in done.stdout


def test_a_reader_that_goes_away_changes_no_exit_code(lab, store):
    """`| head -1`: the answer stays the answer."""
    words = " ".join([*COMMAND, "trace", "vm1", "vm2", "--count", "5", *store])
    script = f"{words} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "0"
    full = subprocess.run(
        ["bash", "-c", f"{words} >/dev/full"], capture_output=True, text=True, check=False, timeout=30
    )
    assert full.returncode == 3
    assert "stdout: cannot be written" in full.stderr


def test_help_imports_nothing_heavy():
    """`--help` starts in a blink because of what it does not import."""
    code = (
        "import sys; from netprobe.cli.main import main; main(['--help']); "
        "print([m for m in ('numpy', 'scapy', 'duckdb', 'trio', 'rich', 'scipy', 'pyroute2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_says_that_this_host_is_ready(lab):
    """Every required check passes here, the lab's switch and agents among them."""
    done = netprobe("doctor", "--json")
    said = document(done)
    assert (done.returncode, said["ready"]) == (0, True)
    names = {c["name"] for c in said["checks"] if c["ok"]}
    assert {"packet rings", "vswitch of hv1", "agent of vm1", "allowlist of hv1"} <= names
