"""What a plan may take of conntrack, of a bridge's rate and of source ports; and the audit log before it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import RefusedError, UsageError
from netprobe.host.audit import InjectionOrder, record_order
from netprobe.host.port_ledger import reserve_ports
from netprobe.plan.budget import (
    MAX_BURST,
    PORT_REST_NS,
    Demand,
    PortUse,
    Room,
    allocate_ports,
    check_conntrack,
    check_rate,
    is_too_full,
    ranges_of,
)
from netprobe.plan.port_ledger import PortLedger, flow_key

S = 1_000_000_000
LAWS = settings(deadline=None, derandomize=True, max_examples=100)


def test_one_per_cent_of_what_is_free_passes_and_one_entry_more_does_not():
    rooms = {"hv1": Room(used=1_000, limit=101_000)}
    assert check_conntrack([Demand("hv1", 1, 600), Demand("hv1", 2, 400)], rooms) == {("hv1", 1): 600, ("hv1", 2): 400}
    with pytest.raises(RefusedError, match=r"hv1: the plan would create 1001 entries \(zone 1: 601, zone 2: 400\)"):
        check_conntrack([Demand("hv1", 1, 600), Demand("hv1", 2, 400), Demand("hv1", 1, 1)], rooms)


def test_a_table_that_is_nearly_full_is_left_alone():
    with pytest.raises(RefusedError, match="80 of 100 entries are in use"):
        check_conntrack([Demand("hv1", 1, 1)], {"hv1": Room(80, 100)})
    assert is_too_full(80, 100)
    assert not is_too_full(79, 100)
    assert is_too_full(0, 0)


def test_a_host_without_conntrack_has_no_budget():
    assert check_conntrack([Demand("hv2", 0, 10**9)], {}) == {("hv2", 0): 10**9}


@LAWS
@given(
    st.lists(st.builds(Demand, st.sampled_from(["a", "b"]), st.integers(0, 3), st.integers(0, 5_000)), max_size=8),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_what_passes_the_budget_never_takes_more_than_its_share(demands, used, limit):
    room = Room(min(used, limit), limit)
    try:
        by_zone = check_conntrack(demands, {"a": room, "b": room})
    except RefusedError:
        return
    for host in ("a", "b"):
        entries = sum(n for (name, _), n in by_zone.items() if name == host)
        assert entries == sum(d.entries for d in demands if d.host == host)
        assert entries * 100 <= room.free
        assert not entries or not is_too_full(room.used, room.limit)


def periodic(count, pps):
    return [i * S // pps for i in range(count)]


def test_a_schedule_at_the_cap_passes_and_a_faster_one_is_refused():
    check_rate(periodic(2_000, 100), 100, "bridge")
    with pytest.raises(RefusedError, match=r"bridge: 200 packets/s.*\(allowed: 100 packets/s\)"):
        check_rate(periodic(2_000, 200), 100, "bridge")


def test_one_fast_second_in_a_slow_schedule_is_refused():
    due = sorted([i * S for i in range(100)] + [50 * S + t for t in periodic(300, 1_000)])
    with pytest.raises(RefusedError, match="up to 301 in one second"):
        check_rate(due, 100, "bridge")


@pytest.mark.parametrize("seed", range(20))
def test_a_random_schedule_whose_mean_is_the_cap_is_not_refused_by_chance(seed):
    gaps = np.random.default_rng(seed).exponential(S / 100, 2_000)
    check_rate(np.cumsum(gaps).astype(int).tolist(), 100, "bridge")


def test_a_burst_that_a_userspace_vswitch_would_drop_is_refused():
    check_rate([0] * MAX_BURST, 100_000, "bridge")
    with pytest.raises(RefusedError, match="a burst of 65 frames"):
        check_rate([*range(MAX_BURST + 1), 10 * S], 100_000, "bridge")


def test_ports_in_conntrack_and_resting_ports_are_not_given_out():
    resting = [PortUse(61002, 61003, 50 * S), PortUse(61004, 61004, 10 * S)]
    got = allocate_ports((61000, 61009), {61000}, 4, 20 * S, resting=resting)
    assert got == (61001, 61004, 61005, 61006)


def test_too_few_ports_say_how_many_are_free_and_when_there_are_enough():
    resting = [PortUse(61000, 61006, 50 * S), PortUse(61007, 61008, 80 * S)]
    with pytest.raises(
        RefusedError, match=r"9 ports are needed, 1 of 61000-61009 are free. Send fewer probes, or wait: in 60 s"
    ):
        allocate_ports((61000, 61009), (), 9, 20 * S, resting=resting)
    with pytest.raises(RefusedError, match="whole block has 10 ports"):
        allocate_ports((61000, 61009), (), 11, 20 * S, resting=resting)


@LAWS
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 100), st.integers(1, 60)), max_size=12),
    st.sets(st.integers(0, 199)),
)
def test_no_port_comes_again_before_its_rest_is_over(steps, in_use):
    block = (61000, 61199)
    taken = {61000 + p for p in in_use}
    ledger, now_ns, free_at = PortLedger(), 0, {}
    for count, step_s, timeout_s in steps:
        now_ns += step_s * S
        ledger.forget_old(now_ns)
        try:
            ports = allocate_ports(block, taken, count, now_ns, resting=ledger.resting("k", now_ns))
        except RefusedError:
            waiting = sum(at > now_ns and port not in taken for port, at in free_at.items())
            assert count > 200 - len(taken) - waiting
            continue
        assert len(set(ports)) == count
        assert all(port not in taken and free_at.get(port, 0) <= now_ns for port in ports)
        ledger.add("k", ports, now_ns, timeout_s=timeout_s)
        free_at.update(dict.fromkeys(ports, now_ns + timeout_s * S + PORT_REST_NS))
        ledger = PortLedger.from_json(ledger.to_json(), "ledger")


@LAWS
@given(st.sets(st.integers(0, 300)))
def test_ranges_hold_exactly_the_ports(ports):
    assert [p for a, b in ranges_of(ports) for p in range(a, b + 1)] == sorted(ports)


@LAWS
@given(
    st.one_of(
        st.text(max_size=80),
        st.builds(
            lambda v: json.dumps({"schema": 1, "resting": v}),
            st.recursive(
                st.one_of(st.none(), st.integers(), st.text(max_size=5)),
                lambda inner: st.one_of(
                    st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
                ),
                max_leaves=10,
            ),
        ),
    )
)
def test_any_ledger_file_is_read_or_refused(text):
    try:
        ledger = PortLedger.from_json(text, "ledger")
    except UsageError:
        return
    assert PortLedger.from_json(ledger.to_json(), "ledger") == ledger


def test_a_ledger_of_a_newer_netprobe_is_refused():
    with pytest.raises(UsageError, match="schema 2"):
        PortLedger.from_json('{"schema": 2, "resting": {}}', "ledger")


def test_two_runs_share_the_ledger_file(tmp_path):
    path = tmp_path / "new" / "ports.json"
    key, other = flow_key("tcp", "10.0.0.1", "10.0.0.2", 443), flow_key("tcp", "10.0.0.1", "10.0.0.2", 80)
    first = reserve_ports(key, 3, 100 * S, timeout_s=30, path=path)
    second = reserve_ports(key, 3, 149 * S, timeout_s=30, path=path)
    assert (first, second) == ((61000, 61001, 61002), (61003, 61004, 61005))
    assert reserve_ports(other, 1, 149 * S, path=path) == (61000,)
    assert reserve_ports(key, 1, 150 * S, path=path) == (61000,)
    assert path.stat().st_size < 1_000


def order(**changes):
    values = {
        "host": "hv1",
        "port": "vm1",
        "vantage": "vswitch",
        "type_p": {"protocol": "udp"},
        "count": 5,
        "pps": 1.0,
        "session": 7,
    }
    return InjectionOrder(**{**values, **changes})


def test_each_order_is_one_line_and_earlier_lines_stay(tmp_path):
    path = tmp_path / "log" / "audit.jsonl"
    record_order(order(), 11, path=path)
    record_order(order(port="vm\n2"), 12, path=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["time_ns"], line["port"], line["uid"], line["session"]) for line in lines] == [
        (11, "vm1", os.getuid(), 7),
        (12, "vm\n2", os.getuid(), 7),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_audit_line_means_no_injection(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path, tmp_path / "file" / "audit.jsonl", tmp_path / "link"):
        with pytest.raises(RefusedError, match="nothing is injected"):
            record_order(order(), 11, path=path)
    with pytest.raises(RefusedError, match="more than 4096"):
        record_order(order(port="x" * 5_000), 11, path=tmp_path / "audit.jsonl")


def test_a_full_disk_means_no_injection():
    with pytest.raises(RefusedError, match="No space left"):
        record_order(order(), 11, path=Path("/dev/full"))
