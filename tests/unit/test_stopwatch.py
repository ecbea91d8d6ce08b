"""The stopwatch's verdicts on rows of packets whose fate is known, and its frames, lanes and classes."""

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from netprobe.errors import RefusedError, UsageError
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.proof import loss_bound
from netprobe.judge.stopwatch import (
    Change,
    Command,
    Connection,
    Fate,
    Stream,
    connection,
    fates,
    judge_change,
    measured_loss,
    misses_needed,
)
from netprobe.model.packets import Packet, Scenario
from netprobe.model.policy import ICMP, SCTP, TCP, UDP, Group, GroupRule, Policy, PolicyPort, Way
from netprobe.plan.covering import cover
from netprobe.service.stopwatch_permits import reserve
from netprobe.service.stopwatch_streams import (
    MAX_CLASSES,
    Arrivals,
    Conversation,
    Frames,
    Lane,
    Schedule,
    Watched,
    choose_classes,
    stream_of,
    tuple_of,
)
from netprobe.wire.policy_decode import PolicyDecoder, SentTable
from netprobe.wire.policy_layout import PolicyMark

MS = 1_000_000
DELAY = MS // 10
NEEDED = 4
COMMAND = Command(100 * MS, 120 * MS)


def stream(text, gap_ns=MS):
    """One packet a character: `p` arrived, `.` did not."""
    sent = (np.arange(len(text)) + 1) * gap_ns
    came = np.array([letter == "p" for letter in text])
    return Stream(sent, np.where(came, sent + DELAY, 0))


def alive(packets=300):
    return stream("p" * packets)


def judged(text, command=COMMAND, controls=None):
    one = stream(text)
    return judge_change(one, fates(one, controls or alive(len(text)), NEEDED, command.begin_ns), command)


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------------------------------


def test_a_change_from_pass_to_drop_is_told_to_the_packet():
    """The last packet that passed, the next one, what it took, and nothing wrong, for it came before the commit."""
    change = judged("p" * 110 + "." * 100)
    assert (change.old, change.new, change.is_changed) == (Fate.PASSED, Fate.DROPPED, True)
    assert (change.last_old_ns, change.first_new_ns) == (110 * MS, 111 * MS)
    assert (change.interval_ns, change.delay_ns, change.uncertainty_ns) == (MS, DELAY, MS + DELAY)
    assert (change.leaked, change.blocked, change.mixed, change.flaps) == (0, 0, 0, 0)
    assert (change.sent, change.passed, change.dropped) == (210, 110, 100)


def test_what_passes_after_the_commit_has_leaked():
    """The command ended at 120 ms; packets 121 to 130 still passed."""
    change = judged("p" * 130 + "." * 100)
    assert (change.last_old_ns, change.leaked, change.blocked) == (130 * MS, 10, 0)


def test_what_is_dropped_after_the_commit_was_blocked():
    """The other way round."""
    change = judged("." * 130 + "p" * 100)
    assert (change.old, change.new) == (Fate.DROPPED, Fate.PASSED)
    assert (change.last_old_ns, change.first_new_ns) == (130 * MS, 131 * MS)
    assert (change.leaked, change.blocked) == (0, 10)


def test_a_mixed_phase_is_counted_and_the_last_old_verdict_is_its_last():
    """Dropped, passed again, then dropped for good: two of the old verdict after the first of the new one."""
    change = judged("p" * 105 + "." * 10 + "pp" + "." * 100)
    assert (change.last_old_ns, change.first_new_ns) == (117 * MS, 106 * MS)
    assert (change.mixed, change.flaps, change.interval_ns) == (2, 2, MS)


def test_a_lone_miss_is_loss_and_no_verdict():
    """Runs shorter than what loss explains say nothing, wherever they are."""
    change = judged("p" * 50 + "..." + "p" * 60 + "." + "p" * 100)
    assert (change.old, change.new, change.flaps, change.blocked) == (Fate.PASSED, Fate.PASSED, 0, 0)
    assert change.sent - change.passed - change.dropped == 4


def test_a_gap_while_controls_are_missed_too_is_no_drop():
    """The path was dead: nobody knows what the policy would have said."""
    text = "p" * 130 + "." * 20 + "p" * 60
    assert judged(text).blocked == 20
    assert judged(text, controls=stream(text)).blocked == 0


def test_a_run_of_misses_without_any_control_in_it_is_no_drop():
    """Nothing vouches for the path in between."""
    sparse = stream("p" * 20, gap_ns=10 * MS)
    one = stream("p" * 131 + "." * 7 + "p" * 60)
    assert judge_change(one, fates(one, sparse, NEEDED, COMMAND.begin_ns), COMMAND).blocked == 0
    assert judge_change(one, fates(one, None, NEEDED, COMMAND.begin_ns), COMMAND).blocked == 7


def test_what_is_dropped_since_the_command_began_was_blocked_where_nothing_should_change():
    """A window in which the rule was gone, already before the commit."""
    change = judged("p" * 105 + "." * 8 + "p" * 100)
    assert (change.is_changed, change.blocked, change.leaked, change.flaps) == (False, 8, 0, 2)


def test_what_passes_since_the_command_began_leaked_where_nothing_should_change():
    """A window in which everything was open."""
    change = judged("." * 105 + "ppp" + "." * 100)
    assert (change.old, change.new, change.leaked) == (Fate.DROPPED, Fate.DROPPED, 3)


@pytest.mark.parametrize("text", ["", "..", "p" * 50, "." * 99, "..." + "." * 97 + "p" * 100, "p.p"])
def test_without_packets_on_both_sides_of_the_command_nothing_is_decided(text):
    """Nothing is guessed; a long run of misses before is a verdict."""
    change = judged(text)
    assert change.is_decided == (text.startswith("...") and "p" in text)
    assert not change.is_changed or change.old is Fate.DROPPED


def test_where_too_much_is_lost_nothing_is_called_dropped():
    """Half of all controls are missed: no number of misses is enough, and arrivals still prove."""
    assert misses_needed(loss_bound(100, 50), 1000, 1e-3) == 0
    one = stream("p" * 110 + "." * 100)
    assert judge_change(one, fates(one, alive(), 0, COMMAND.begin_ns), COMMAND).new is Fate.UNKNOWN


def test_loss_is_measured_with_controls_and_with_what_passed_before():
    """Streams that were dropped before the command say nothing of loss, nor does what came after it began."""
    streams = (stream("p" * 98 + "." + "p" * 100), stream("." * 200), stream("p" * 99 + "." * 100))
    bound = measured_loss(stream("p" * 99 + "."), streams, COMMAND)
    assert (bound.trials, bound.misses) == (100 + 99 + 99, 2)


def test_more_loss_and_more_packets_need_more_misses():
    """The bound is that of all packets together."""
    few, many = misses_needed(loss_bound(1000, 0), 100, 1e-3), misses_needed(loss_bound(1000, 50), 10**6, 1e-3)
    assert 1 <= few < many < 15


def change(old, new):
    return Change(old, new)


P, D, U = Fate.PASSED, Fate.DROPPED, Fate.UNKNOWN


@pytest.mark.parametrize(
    ("existing", "new", "word"),
    [
        ((P, D), (P, D), Connection.CUT),
        ((P, D), None, Connection.CUT),
        ((P, P), (P, D), Connection.LIVES_ON),
        ((P, P), (P, P), Connection.KEPT),
        ((P, P), None, Connection.KEPT),
        ((D, P), (D, P), Connection.LET_IN),
        ((D, D), (D, P), Connection.STAYS_OUT),
        ((D, D), (D, D), Connection.KEPT_OUT),
        ((U, U), (P, D), Connection.UNKNOWN),
    ],
)
def test_what_became_of_the_connection(existing, new, word):
    """Seen beside what new connections met."""
    assert connection(Change(*existing), None if new is None else Change(*new)) is word


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def policy_of(*rules):
    ports = [
        PolicyPort(name, "net", f"02:00:00:00:00:0{n}", (ip_address(f"10.0.0.{n}"), ip_address(f"fd00::{n}")), ("g",))
        for n, name in enumerate(("a", "b"), 1)
    ]
    out = GroupRule("g[out]", Way.EGRESS, (4, 6))
    return Policy((Group("g", (out, *rules)),), tuple(ports))


def rule(number, protocol, port=None, families=(4, 6), **more):
    return GroupRule(f"g[{number}]", Way.INGRESS, families, protocol, port and (port, port), **more)


def classes_of(policy, name=""):
    return choose_classes(cover(policy, Evaluator(policy)), policy, name)


def test_a_rule_is_watched_once_for_each_family():
    """Each may be enforced by itself."""
    classes, left_out = classes_of(policy_of(rule(0, TCP, 80), rule(1, UDP, 53)), "g[0]")
    assert sorted(watched.packet.family for watched in classes) == [4, 6]
    assert {(watched.rule, watched.packet.dst_port) for watched in classes} == {("g[0]", 80)}
    assert left_out == ()


def test_all_rules_that_allow_are_watched_as_far_as_there_is_room():
    """The rest is named."""
    rules = [rule(n, TCP, 100 + 2 * n, (4,)) for n in range(MAX_CLASSES + 3)]
    classes, left_out = classes_of(policy_of(*rules))
    assert len(classes) == MAX_CLASSES
    named = " ".join([*(watched.rule for watched in classes), *left_out])
    assert all(one.id in named for one in rules)


def test_a_sender_of_the_targets_own_network_is_preferred():
    """Between networks one needs a router, and nothing vouches for the path."""
    policy = policy_of(rule(0, TCP, 80, (4,)))
    ports = [
        replace(port, network=network)
        for port, network in zip((*policy.ports, *policy.ports), ("one", "two", "one", "two"), strict=True)
    ]
    ports[2:] = [
        replace(port, name=name, mac=f"02:00:00:00:00:1{n}", ips=(ip_address(f"10.0.1.{n}"),))
        for n, (port, name) in enumerate(zip(ports[2:], ("c", "d"), strict=True))
    ]
    (watched,), _ = classes_of(replace(policy, ports=tuple(ports)), "g[0]")
    src, dst = watched.scenario.src, watched.scenario.dst
    networks = {port.name: port.network for port in ports}
    assert networks[src] == networks[dst]
    assert watched.scenario.key.startswith(f"{src}>{dst} ")
    owners = {port.mac: port.name for port in ports} | {str(port.ips[0]): port.name for port in ports}
    packet = watched.packet
    assert [owners[str(one)] for one in (packet.src_mac, packet.src_ip, packet.dst_mac, packet.dst_ip)] == [
        src, src, dst, dst,
    ]  # fmt: skip


def test_an_unknown_rule_is_refused_with_the_nearest():
    """As everywhere."""
    with pytest.raises(UsageError, match=r"unknown rule 'g\[9\]'.*Did you mean 'g\[0\]'"):
        classes_of(policy_of(rule(0, TCP, 80)), "g[9]")


def test_a_rule_that_no_connection_can_show_is_refused():
    """ICMP errors begin none."""
    policy = policy_of(rule(0, ICMP, families=(4,), icmp_type=3))
    with pytest.raises(UsageError, match="no connection that rule"):
        classes_of(policy, "g[0]")


# ---------------------------------------------------------------------------------------------------------------------
# Frames, lanes, arrivals
# ---------------------------------------------------------------------------------------------------------------------

MARK = PolicyMark(session=7, key=bytes(range(16)), dscp=3, ip_id=0x1234, flow_label=0x54321)


def conversation(protocol, port=80):
    policy = policy_of(rule(0, protocol, port, (4,)))
    (watched,), _ = classes_of(policy, "g[0]")
    frames = Frames(MARK)
    return Conversation(watched, 61_000, frames), frames


@pytest.mark.parametrize(("protocol", "port", "parts"), [(TCP, 80, 3), (UDP, 53, 2), (SCTP, 80, 2), (ICMP, None, 2)])
@pytest.mark.parametrize("is_open", [False, True])
def test_every_frame_of_a_conversation_is_decoded_to_its_number(protocol, port, parts, is_open):
    """Handshake and data; numbered without a gap, each frame distinct."""
    one, frames = conversation(protocol, port)
    assert [part.seq for part in one.parts] == list(range(parts))
    assert [part.is_forward for part in one.parts] == [True, False, True][:parts]
    one.is_open = is_open
    data = one.data(20)
    made = frames.take()
    assert made[parts:] == data
    assert len(set(made)) == len(made) == frames.count
    table = SentTable()
    table.append(made)
    lengths = np.array([len(frame) for frame in made])
    decoded = PolicyDecoder(MARK, table).decode(
        np.frombuffer(b"".join(made), np.uint8), np.cumsum(lengths) - lengths, lengths
    )
    assert decoded.seq.tolist() == list(range(len(made)))


def tcp_numbers(frame):
    return int.from_bytes(frame[38:42], "big"), int.from_bytes(frame[42:46], "big")


def test_a_tcp_connection_has_the_numbers_of_a_real_one():
    """Each acknowledges the other; data follows the handshake, and is the same octets of the stream each time."""
    one, _ = conversation(TCP)
    syn, answer, last = (tcp_numbers(part.frame) for part in one.parts)
    assert answer[1] == (syn[0] + 1) % 2**32
    assert last == ((syn[0] + 1) % 2**32, (answer[0] + 1) % 2**32)
    one.is_open = True
    data = {tcp_numbers(frame) for frame in one.data(5)}
    assert data == {((last[0] + 20) % 2**32, last[1])}


def test_the_tuple_of_a_class_is_what_conntrack_says():
    """Ports, identifier of an echo, or neither."""
    tcp = Packet(
        "02:00:00:00:00:01", "02:00:00:00:00:02", ip_address("10.0.0.1"), ip_address("10.0.0.2"), TCP, None, 80
    )

    def of(packet):
        (watched,), _ = classes_of(policy_of(rule(0, TCP, 80, (4,))), "g[0]")
        step = replace(watched.scenario.steps[0], packet=packet)
        found = tuple_of(Watched("x", replace(watched.scenario, steps=(step,))), 61_000)
        return found.src_port, found.dst_port, found.icmp_type

    assert of(tcp) == (61_000, 80, 0)
    assert of(replace(tcp, protocol=ICMP, src_port=0, dst_port=0, icmp_type=8)) == (61_000, 0, 8)
    assert of(replace(tcp, protocol=47, src_port=0, dst_port=0)) == (0, 0, 0)


def lane(first, count, rate, *, goes_round=True):
    return Lane(first, [(0, b"%d" % n) for n in range(first, first + count)], rate, goes_round)


def test_a_schedule_sends_each_lane_at_its_own_rate():
    """Merged evenly: in any tenth of a second each lane has its share."""
    schedule = Schedule([lane(0, 50, 1000), lane(50, 1000, 100, goes_round=False), lane(1050, 10, 50)], 1.0)
    assert len(schedule) == 1150
    assert schedule.gap_ns == pytest.approx(1e9 / 1150, abs=1)
    frames = [int(schedule[n][1]) for n in range(len(schedule))]
    for begin in range(0, 1150, 115):
        part = frames[begin : begin + 115]
        assert sum(frame < 50 for frame in part) == pytest.approx(100, abs=1)
        assert sum(50 <= frame < 1050 for frame in part) == pytest.approx(10, abs=1)
    assert [frame for frame in frames if frame < 50] == [n % 50 for n in range(1000)]
    assert schedule.asked == 1150
    assert (np.diff(schedule.asked_ns) >= 0).all()


def test_a_lane_at_its_end_is_replaced_and_never_goes_round():
    """New connections do not come again: the flow goes on in their place."""
    schedule = Schedule([lane(0, 20, 100), lane(20, 30, 100, goes_round=False)], 1.0)
    frames = [int(schedule[n][1]) for n in range(len(schedule))]
    new = [frame for frame in frames if frame >= 20]
    assert new == list(range(20, 50))
    assert len(frames) == 200


def test_an_arrival_is_that_of_the_last_time_its_frame_was_sent():
    """Four frames go round three times; one gets lost each time, one is duplicated, one could not be sent."""
    one = lane(10, 4, 1000)
    sent_ns = np.arange(1, 13) * MS
    sent_ns[6] = 0
    arrivals = Arrivals()
    for n in range(12):
        if n % 5 and n != 6:
            arrivals.add(np.array([10 + n % 4]), np.array([sent_ns[n] + DELAY]))
    arrivals.add(np.array([10 + 1, 99]), np.array([2 * MS + 2 * DELAY, 2 * MS]))
    found = stream_of(one, sent_ns, arrivals)
    expected = [n % 5 > 0 for n in range(12) if n != 6]
    assert found.arrived.tolist() == expected
    assert set((found.arrived_ns - found.sent_ns)[found.arrived].tolist()) == {DELAY}


def test_nothing_sent_and_nothing_arrived_are_empty_streams():
    """No special case for whoever reads them."""
    assert len(stream_of(lane(0, 4, 10), np.empty(0, np.int64), Arrivals()).sent_ns) == 0
    assert not stream_of(lane(0, 4, 10), np.array([5]), Arrivals()).arrived.any()


def test_scenarios_of_a_cover_are_left_as_they_are():
    """Choosing changes nothing."""
    policy = policy_of(rule(0, TCP, 80))
    whole = cover(policy, Evaluator(policy))
    assert all(isinstance(watched.scenario, Scenario) for watched in choose_classes(whole, policy, "")[0])
    assert whole == cover(policy, Evaluator(policy))


def test_ports_that_somebody_uses_or_that_rest_are_not_taken(monkeypatch, tmp_path):
    """Of the same class only: a port to another target is free."""
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(tmp_path))
    (watched,), _ = classes_of(policy_of(rule(0, TCP, 80, (4,))), "g[0]")
    taken = tuple_of(watched, 61_001)
    known = frozenset(
        {taken, replace(taken, src_port=61_002, dst_port=81), replace(taken, src_port=61_003, protocol=UDP)}
    )
    assert reserve(watched, 3, 0, known) == (61_000, 61_002, 61_003)
    assert reserve(watched, 2, 0, known) == (61_004, 61_005)
    with pytest.raises(RefusedError, match="4531 ports are needed, 4530 of 61000-65535 are free"):
        reserve(watched, 4531, 0, known)
