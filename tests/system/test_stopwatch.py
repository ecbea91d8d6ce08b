"""The stopwatch against the truth: OpenFlow's barrier and meters in `single`, iptables' own counters in `bridge`.

10,000 packets/s of a flow that is there and 1,000 new connections/s, while one rule is taken away or put back. The rule
is web[1]: vm2 takes TCP 80. The command stamps the time just before the change and just after it.

Flows' own counters are no truth around a change: Open vSwitch credits what a cached flow handled since it last looked
to the rule that holds afterwards. Meters are counted by the datapath itself, packet by packet.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import stamped_change
from support.switch_rules import ofctl
from support.waiting import until

from netprobe.lab import config, control

pytestmark = [pytest.mark.system, pytest.mark.alone(reason="10,000 packets a second, each of which is counted")]

MS = 1_000_000
RULE = "web[1]"
COMMAND = [sys.executable, "-m", "netprobe.cli.main"]
EXISTING_METER, NEW_METER = 1, 2

REVALIDATED_NS = 50 * MS
"""The barrier says that the tables are changed. Cached flows follow some milliseconds later: revalidators are woken."""


def gone(place):
    """No lab, and no connections that ports rest from."""
    control.down()
    (place / "ports.json").unlink(missing_ok=True)


def policy_file(tmp_path, name):
    """The lab's policy in IPv4 alone, so that all packets are one class's."""
    text = (Path(config.__file__).parent / f"{name}.toml").read_text(encoding="utf-8")
    path = tmp_path / "policy.toml"
    path.write_text(text.replace('"both"', '"ipv4"'), encoding="utf-8")
    return path


def watch(tmp_path, name, *change, rate=10_000, connections=1_000, more=()):
    """Watch a change. Returns the document, the exit code, and the times around the change."""
    stamps = tmp_path / "stamps"
    command = " ".join((sys.executable, "-S", stamped_change.__file__, str(stamps), *change))
    words = ["verify", str(policy_file(tmp_path, name)), "--watch-rule", RULE, "--watch-change", command]
    rates = ["--watch-rate", str(rate), "--watch-connections", str(connections)]
    times = ["--watch-before", "200ms", "--watch-after", "500ms"]
    done = subprocess.run(
        [*COMMAND, *words, *rates, *times, "--json", "--no-store", *more],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode, [int(one) for one in stamps.read_text().split()]


def the_class(document):
    (one,) = document["classes"]
    for kind in ("existing", "new"):
        change = one[kind]
        assert change["sent"] == change["passed"] + change["dropped"] + change["undecided"]
    return one


def check_moment(change, stamps, slack_ns):
    """The change was between the stamps: so is what the stopwatch says, within its own uncertainty.

    A packet that passed after its sending was judged after it, so the last packet with the old verdict cannot have been
    sent after the change; the next packet was judged at the latest when it would have arrived.
    """
    before_ns, after_ns = stamps
    print(f"last old verdict {(change['last_old_ns'] - before_ns) / MS:.3f} ms after the first stamp, the second "
          f"{(after_ns - before_ns) / MS:.3f} ms; +{change['uncertainty_ns'] / MS:.3f} ms")  # fmt: skip
    assert change["last_old_ns"] <= after_ns + slack_ns
    assert change["last_old_ns"] + change["uncertainty_ns"] >= before_ns
    assert change["interval_ns"] >= 0
    assert change["flaps"] == change["mixed"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Open vSwitch
# ---------------------------------------------------------------------------------------------------------------------


def management(place):
    return f"{place}/lab/hv1/br-int.mgmt"


def dump(place, what, *words):
    out = subprocess.run(
        ["ovs-ofctl", "-OOpenFlow15", "--timeout=5", what, f"unix:{management(place)}", *words],
        check=True, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    return out.stdout


def metered(place, meter):
    """Packets that a meter has counted."""
    return int(re.search(r"packet_in_count:(\d+)", dump(place, "meter-stats", f"meter={meter}")).group(1))


@pytest.fixture
def rule_flows(lab, lab_place):
    """The flows of the rule in IPv4, each with a meter that lets all pass and counts."""
    mine = [line for line in dump(lab_place, "dump-flows", "table=82").splitlines() if re.search(",tcp,.*=80 ", line)]
    cookie = re.search(r"cookie=(0x[0-9a-f]+)", mine[0]).group(1)
    flows = []
    for line in mine:
        match, actions = re.search(r"(priority=\S+) actions=(\S+)", line).groups()
        meter = NEW_METER if "+new" in match else EXISTING_METER
        flows.append(f"table=82,cookie={cookie},{match},actions=meter:{meter},{actions}")
    assert len(flows) == 2
    for meter in (EXISTING_METER, NEW_METER):
        ofctl(lab_place, "add-meter", f"meter={meter},pktps,stats,bands=type=drop,rate=10000000")
    for flow in flows:
        ofctl(lab_place, "add-flow", flow)
    try:
        yield cookie, flows
    finally:
        gone(lab_place)  # so that the next test has the lab's own flows


def test_a_rule_taken_out_of_open_vswitch_is_told_to_the_packet(rule_flows, lab_place, tmp_path):
    """The meters count what passed; the last of it was sent about the barrier; the connection is cut."""
    cookie, _ = rule_flows
    document, code, stamps = watch(tmp_path, "single", "delete", management(lab_place), "82", cookie)
    one = the_class(document)
    assert (one["connection"], one["was_open"]) == ("cut", True)
    for kind, meter in (("existing", EXISTING_METER), ("new", NEW_METER)):
        change = one[kind]
        assert (change["old"], change["new"]) == ("pass", "drop")
        assert change["passed"] + 1 == metered(lab_place, meter)  # the connection's own SYN, and its last ACK
        check_moment(change, stamps, REVALIDATED_NS)
    assert document["sent"] > 0.6 * 11_000 * 0.7, "a busy machine may send more slowly, not that much"
    assert code == (1 if one["existing"]["leaked"] or one["new"]["leaked"] else 0)
    assert document["conntrack"]["kept"] == 0


def test_a_rule_put_into_open_vswitch_is_told_to_the_packet(rule_flows, lab_place, tmp_path):
    """The other way round: what was dropped passes, the flow that tried all the while too."""
    cookie, flows = rule_flows
    ofctl(lab_place, "del-flows", f"table=82,cookie={cookie}/-1")
    (tmp_path / "flows").write_text("\n".join(flows), encoding="ascii")
    change = ("run", "ovs-ofctl", "-OOpenFlow15", "--bundle", "--timeout=5", "add-flows")
    document, code, stamps = watch(
        tmp_path, "single", *change, f"unix:{management(lab_place)}", str(tmp_path / "flows")
    )
    one = the_class(document)
    assert (one["connection"], one["was_open"]) == ("let in", False)
    for kind in ("existing", "new"):
        assert (one[kind]["old"], one[kind]["new"]) == ("drop", "pass")
        check_moment(one[kind], stamps, REVALIDATED_NS)
    passed = one["existing"]["passed"] + one["new"]["passed"]
    assert passed == metered(lab_place, EXISTING_METER) + metered(lab_place, NEW_METER)
    assert code == (1 if one["existing"]["blocked"] or one["new"]["blocked"] else 0)


def test_what_leaks_after_the_command_has_ended_is_counted(rule_flows, lab_place, tmp_path):
    """A command that only orders the change, which comes 100 ms later: all that passed in between has leaked."""
    cookie, _ = rule_flows
    stamped = (
        f"{sys.executable} -S {stamped_change.__file__} {tmp_path}/later delete {management(lab_place)} 82 {cookie}"
    )
    (tmp_path / "order").write_text(f"(sleep 0.1; exec {stamped}) &\n", encoding="ascii")
    document, code, _ = watch(tmp_path, "single", "run", "sh", str(tmp_path / "order"), rate=2000)
    one = the_class(document)
    stamps = [int(number) for number in (tmp_path / "later").read_text().split()]
    assert (document["answer"], code, one["connection"]) == ("violated", 1, "cut")
    late_ns = stamps[0] - document["change"]["ended_ns"]
    for kind, rate, meter in (("existing", 2000, EXISTING_METER), ("new", 1000, NEW_METER)):
        change = one[kind]
        check_moment(change, stamps, REVALIDATED_NS)
        assert change["passed"] + 1 == metered(lab_place, meter)
        assert change["leaked"] == pytest.approx(late_ns / 1e9 * rate, rel=0.3)
        assert change["after_commit_ns"] == change["last_old_ns"] - document["change"]["ended_ns"] > 50 * MS


def left(place):
    """What a run may leave behind: namespaces, links, filters, journals."""
    names = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=10).stdout
    links = subprocess.run(["ip", "-n", "hv1", "-br", "link"], check=True, capture_output=True, text=True, timeout=10)
    journals = list((place / "journal").glob("*"))
    return (
        [line for line in names.splitlines() if "verify" in line],
        re.findall("np[0-9a-f]{4}-", links.stdout),
        journals,
    )


def test_absorption_that_is_lost_is_told_and_no_verdict_is_made_of_it(lab, lab_place, tmp_path):
    """Open vSwitch may delete clsact at any time: so does the command. What is missed then was not dropped."""
    document, code, _ = watch(tmp_path, "single", "run", "tc", "-n", "hv1", "qdisc", "del", "dev", "tapvm2", "clsact")
    one = the_class(document)
    assert (document["answer"], code) == ("undecided", 4)
    assert one["existing"]["dropped"] == one["new"]["dropped"] == 0
    assert any("clsact of tapvm2 is gone" in note for note in document["notes"])
    assert left(lab_place) == ([], [], [])


def test_ctrl_c_ends_run_and_command_and_leaves_nothing(lab, lab_place, tmp_path):
    """The command gets SIGTERM; what was known by then is printed; connections are deleted."""
    words = ["verify", str(policy_file(tmp_path, "single")), "--watch-rule", RULE, "--watch-before", "200ms"]
    command = f"sh -c 'touch {tmp_path}/begun; exec sleep 50'"
    run = subprocess.Popen(
        [*COMMAND, *words, "--watch-change", command, "--json", "--no-store"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until((tmp_path / "begun").exists, timeout_s=30)
    run.send_signal(signal.SIGINT)
    out, said = run.communicate(timeout=30)
    assert "Traceback" not in said
    document = json.loads(out)
    assert (run.returncode, document["change"]["exit_code"], document["stopped"]) == (130, -15, "stopped by SIGINT")
    assert document["conntrack"]["deleted"] > 0
    assert document["conntrack"]["kept"] == 0
    assert left(lab_place) == ([], [], [])


def test_loss_is_no_change(lab, tmp_path):
    """5 % of all packets are lost at random, and nothing changes: no verdict changes, nothing is called blocked."""
    control.fault_set("vm1.backend..vm2.backend", loss=0.05, seed=7)
    control.fault_set("vm3.backend..vm2.backend", loss=0.05, seed=8)
    try:
        document, code, _ = watch(tmp_path, "single", "run", "true", rate=1000, connections=200)
    finally:
        control.fault_clear()
    one = the_class(document)
    assert (document["answer"], code, one["connection"]) == ("unchanged", 4, "kept")
    assert document["loss"]["upper"] > 0.03
    for kind in ("existing", "new"):
        assert one[kind]["undecided"] > 0
        assert one[kind]["dropped"] == one[kind]["flaps"] == one[kind]["blocked"] == 0


def test_a_failing_command_is_told_and_is_no_answer(lab, tmp_path):
    """Its exit code stands in the document."""
    words = ["verify", str(policy_file(tmp_path, "single")), "--watch-rule", RULE, "--watch-change", "sh -c 'exit 7'"]
    done = subprocess.run(
        [*COMMAND, *words, "--watch-before", "200ms", "--watch-after", "500ms", "--json", "--no-store"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert json.loads(done.stdout)["change"]["exit_code"] == 7
    assert "exit code 7" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Linux bridges with iptables
# ---------------------------------------------------------------------------------------------------------------------


def iptables(*words):
    command = ["ip", "netns", "exec", "hv1", "iptables", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def counted(chain):
    """Packets by target and comment of a chain's rules."""
    found = {}
    for line in iptables("-w", "-nvxL", chain).splitlines()[2:]:
        packets, _, target, *_ = line.split()
        comment = re.search(r"/\* (.*) \*/", line)
        found[target, comment.group(1) if comment else ""] = int(packets)
    return found


@pytest.fixture
def chain_rule(lab_place):
    """The chain of the rule, its place there and its words, with all counters at 0."""
    gone(lab_place)
    control.up("bridge")
    try:
        lines = iptables("-S").splitlines()
        (mine,) = [line for line in lines if f'"{RULE}"' in line]
        chain = mine.split()[1]
        place = [line for line in lines if line.startswith(f"-A {chain} ")].index(mine) + 1
        iptables("-Z")
        yield chain, place, mine.split(maxsplit=2)[2].replace('"', "")
    finally:
        gone(lab_place)


def fallback():
    (count,) = counted("neutron-openvswi-sg-fallback").values()
    return count


def test_a_rule_taken_out_of_iptables_is_told_to_the_packet_and_its_connection_lives_on(chain_rule, tmp_path):
    """The fallback's counter is what was dropped; conntrack's ESTABLISHED keeps the old connection alive: code 1."""
    chain, _, rule = chain_rule
    words = ("run", "ip", "netns", "exec", "hv1", "iptables", "-w")
    document, code, stamps = watch(tmp_path, "bridge", *words, "-D", chain, *rule.split())
    one = the_class(document)
    assert (one["connection"], one["was_open"], document["answer"], code) == ("lives on", True, "violated", 1)
    assert (one["existing"]["old"], one["existing"]["new"], one["existing"]["dropped"]) == ("pass", "pass", 0)
    assert (one["new"]["old"], one["new"]["new"]) == ("pass", "drop")
    assert one["new"]["dropped"] == fallback()
    answers = next(n for (_, comment), n in counted(chain).items() if comment == "answers vm2 ingress")
    assert one["existing"]["passed"] + 1 == answers  # the last segment of the handshake
    check_moment(one["new"], stamps, 0)


def test_a_rule_put_into_iptables_is_told_to_the_packet(chain_rule, tmp_path):
    """The rule's own counter is what passed, the fallback's what did not."""
    chain, place, rule = chain_rule
    iptables("-D", chain, *rule.split())
    words = ("run", "ip", "netns", "exec", "hv1", "iptables", "-w")
    document, code, stamps = watch(tmp_path, "bridge", *words, "-I", chain, str(place), *rule.split())
    one = the_class(document)
    assert (one["connection"], one["was_open"]) == ("let in", False)
    tries = 3
    assert one["existing"]["dropped"] + one["new"]["dropped"] + tries == fallback()
    counts = counted(chain)
    rule_count, answers = counts["RETURN", RULE], counts["RETURN", "answers vm2 ingress"]
    assert one["existing"]["passed"] + one["new"]["passed"] == rule_count + answers
    for kind in ("existing", "new"):
        assert (one[kind]["old"], one[kind]["new"]) == ("drop", "pass")
        check_moment(one[kind], stamps, 0)
    assert code == (1 if one["existing"]["blocked"] or one["new"]["blocked"] else 0)
