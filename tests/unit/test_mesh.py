"""Meshes and flows: which pairs remain and why, that no host exceeds its budget, how long 1,000 guests take."""

import sys
import time
from dataclasses import replace
from ipaddress import IPv4Network

import numpy as np
import pytest
from support.clouds import attachment, topology

from netprobe.errors import UsageError
from netprobe.model.probes import Protocol
from netprobe.plan.flows import slowed, spread_flows
from netprobe.plan.mesh import MAX_SESSIONS, compile_plan, traits_of
from netprobe.plan.plans import RunPlan, SessionPlan, parse_plan
from netprobe.plan.schedule import session_due_ns


def cloud(guests):
    plain = topology()
    hosts = tuple(replace(plain.hosts[0], name=name) for name in sorted({g.host for g in guests}))
    vswitches = {host.name: replace(plain.vswitches["hv1"], host=host.name) for host in hosts}
    return replace(plain, hosts=hosts, guests=tuple(guests), vswitches=vswitches)


def guests(count, hosts=4, kinds=3):
    """Guests in `kinds` tiers, dealt out to hosts in turn: hosts * kinds classes."""
    return [
        attachment(f"vm{i:04}", i % 250 + 1, host=f"hv{i % hosts}", groups=("default", f"tier{i // hosts % kinds}"))
        for i in range(count)
    ]


def compiled(text, where):
    return compile_plan(parse_plan(text, "p.toml"), where)


def test_a_mesh_of_all_guests_has_every_pair_but_oneself():
    """Without pruning: n * (n - 1), each with a name of its own."""
    done = compiled("[[mesh]]\nprune = false\n", cloud(guests(12)))
    (report,) = done.meshes
    ends = [(s.src, s.dst) for s in done.plan.sessions]
    assert len(ends) == len(set(ends)) == 12 * 11 == report.all_pairs == report.sessions
    assert all(a != b for a, b in ends)
    assert report.classes == report.pairs == ()
    assert done.plan.meshes == ()


def test_guests_that_are_alike_are_one_class_and_need_one_path():
    """24 guests in 12 classes: one session for each ordered pair of classes, a class of two to itself included."""
    done = compiled("[[mesh]]\n", cloud(guests(24)))
    (report,) = done.meshes
    assert report.all_pairs == 24 * 23
    assert len(report.classes) == 12
    assert report.sessions == 12 * 12 == len(done.plan.sessions)
    assert sum(pair.stands_for for pair in report.pairs) == report.all_pairs
    assert sorted(name for c in report.classes for name in c.members) == [g.name for g in guests(24)]
    assert report.classes[0].reason == "the same host hv0, groups default, tier0, points guest-backend"
    assert "24 guests, 552 pairs, 144 sessions, 408 saved: 12 classes" in report.line()


@pytest.mark.parametrize(
    "change",
    [
        {"host": "hv9"},
        {"network": "other"},
        {"groups": ("default",)},
        {"prefixes": (IPv4Network("10.9.0.0/24"),)},
        {"unobserved": "hardware offload"},
        {"floating": attachment("x", 1).ipv4},
        {"behind_nat": {"public": attachment("x", 1).ipv4}},
        {"chain": attachment("x", 1).chain[:1]},
    ],
)
def test_whatever_decides_a_path_makes_another_class(change):
    """Host, network, groups, prefix, kind of port, NAT, points on the way: a pair stands only for what is alike."""
    one = attachment("vm1", 1, groups=("default", "web"))
    assert traits_of(one) == traits_of(attachment("vm2", 2, groups=("web", "default")))
    assert traits_of(one) != traits_of(replace(one, **change))


def test_other_seeds_choose_other_pairs_and_in_time_all():
    """A representative is rotated by the seed: 5 * 4 ordered pairs of five guests all get their turn."""
    where = cloud(guests(5, hosts=1, kinds=1))
    chosen = [compiled(f"seed = {seed}\n[[mesh]]\n", where).plan.sessions for seed in range(25)]
    assert all(len(sessions) == 1 for sessions in chosen)
    assert len({(s[0].src, s[0].dst) for s in chosen}) == 20


def test_a_plan_compiles_to_the_same_sessions_every_time():
    """Nothing but the plan and the topology decides."""
    text = "seed = 9\n[[mesh]]\nbudget_pps = 40\n[[mesh]]\nname = 'b'\nprune = false\n"
    assert compiled(text, cloud(guests(20))) == compiled(text, cloud(guests(20)))


@pytest.mark.parametrize(
    ("mesh", "pairs"),
    [
        ('from = { guests = ["vm0000", "vm0001"] }', {("vm0000", "vm0001"), ("vm0001", "vm0000")}),
        ('from = { guests = ["vm000?"], hosts = ["hv1"] }\nto = { groups = ["tier0"], hosts = ["hv0"] }',
         {("vm0001", "vm0000"), ("vm0005", "vm0000")}),
        ('from = { guests = ["vm0003"] }\nto = { guests = ["vm0003", "vm0004"] }', {("vm0003", "vm0004")}),
    ],
)  # fmt: skip
def test_from_and_to_choose_by_name_group_and_host(mesh, pairs):
    """Shell patterns; all keys of one selection must fit; `to` is `from` where it is missing."""
    done = compiled(f"[[mesh]]\nprune = false\n{mesh}\n", cloud(guests(8)))
    assert {(s.src, s.dst) for s in done.plan.sessions} == pairs


@pytest.mark.parametrize("prune", ["true", "false"])
@pytest.mark.parametrize("budget", [7, 50, 333, 5000])
def test_no_host_exceeds_its_budget_and_no_pair_is_dropped(prune, budget):
    """Rates are stretched, below one probe a second where it must be; the report says by how much."""
    where = cloud(guests(16, hosts=3))
    text = f"[[mesh]]\nrate = 20\nbudget_pps = {budget}\nprune = {prune}\n"
    done, free = compiled(text, where), compiled(text.replace(f"budget_pps = {budget}", ""), where)
    (report,) = done.meshes
    assert [(s.src, s.dst) for s in done.plan.sessions] == [(s.src, s.dst) for s in free.plan.sessions]
    host_of = {g.name: g.host for g in where.guests}
    for load in report.loads:
        here = [s.mean_pps for s in done.plan.sessions if load.host in (host_of[s.src], host_of[s.dst])]
        assert sum(here) == pytest.approx(load.planned_pps)
        assert load.planned_pps <= min(load.wanted_pps, budget) * (1 + 1e-9)
    fullest = max(report.loads, key=lambda load: load.wanted_pps)
    assert fullest.planned_pps >= 0.9 * min(fullest.wanted_pps, budget)
    is_short = any(load.wanted_pps > budget for load in report.loads)
    assert (report.stretched > 1) == is_short
    assert ("slowed" in report.line()) == is_short


def test_starts_are_spread_like_a_poisson_stream():
    """Over about one gap between probes, in random order, with exponential gaps; the seed decides."""
    sessions = compiled("[[mesh]]\nrate = 10\nprune = false\n", cloud(guests(60))).plan.sessions
    starts = np.sort([s.start_ns for s in sessions])
    gaps = np.diff(starts)
    assert 0.7e8 < starts[-1] < 1.3e8  # 100 ms at 10 probes a second
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert [s.start_ns for s in sessions] != sorted(s.start_ns for s in sessions)
    again = compiled("seed = 2\n[[mesh]]\nrate = 10\nprune = false\n", cloud(guests(60))).plan.sessions
    assert [s.start_ns for s in sessions] != [s.start_ns for s in again]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[mesh]]\nfrom = { guests = ["db*"] }\n', "mesh mesh0.from: no guest fits guests ['db*']"),
        ('[[mesh]]\nfrom = { guests = ["vm0001"] }\n', "is one guest and itself"),
        ('[[mesh]]\nfrom = { guest = ["vm1"] }\n', "Did you mean 'guests'?"),
        ('[[mesh]]\nfrom = ["vm1"]\n', "mesh[0].from: got ['vm1'] (allowed: a table)"),
        ("[[mesh]]\nfrom = { guests = [] }\n", "an array of non-empty strings"),
        ("[[mesh]]\nbudget_pps = 0\n", "budget_pps: got 0"),
        ('[[mesh]]\nprune = "no"\n', "true or false"),
        ('[[mesh]]\nproto = "tcp"\n', "tcp needs a destination port"),
        ('[[mesh]]\nname = "a"\n[[mesh]]\nname = "a"\n', "two sessions are called 'a'"),
        ('[[mesh]]\nsrc = "vm1"\n', "unknown key 'src'"),
        ("[watch]\nwindow = '10s'\n", "plans no session"),
    ],
)
def test_a_wrong_mesh_is_refused(text, message):
    """Who, what, what is allowed; never an empty plan that proves nothing."""
    with pytest.raises(UsageError) as caught:
        compiled(text, cloud(guests(8)))
    assert message in str(caught.value)


def test_pairs_without_a_path_are_named_and_the_others_are_run():
    """A guest on a host of which nothing is known: its pairs are in the report, with the reason; none is silent."""
    where = cloud(guests(4, hosts=1))
    lost = attachment("zz", 200, host="hv9")
    done = compiled("[[mesh]]\nprune = false\n", replace(where, guests=(*where.guests, lost)))
    (report,) = done.meshes
    assert (report.all_pairs, report.sessions, len(report.without_path)) == (20, 12, 8)
    assert report.saved == 0
    assert {p.src for p in report.without_path} | {p.dst for p in report.without_path} >= {"zz", "vm0000"}
    assert "of which nothing is known" in report.without_path[0].why
    assert "8 have no path, such as" in report.line()
    with pytest.raises(UsageError, match="of which nothing is known"):
        compiled('[[mesh]]\nfrom = { guests = ["zz"] }\nto = {}\n', replace(where, guests=(*where.guests, lost)))


def test_too_many_sessions_are_refused_before_they_are_made():
    """999,000 pairs are no plan; the advice is to prune."""
    with pytest.raises(UsageError, match=rf"999000 sessions \(allowed: up to {MAX_SESSIONS}\)"):
        compiled("[[mesh]]\nprune = false\n", cloud(guests(1000)))


@pytest.mark.parametrize(("kinds", "classes"), [(1, 20), (4, 80)])
def test_a_thousand_guests_are_compiled_by_classes(kinds, classes, capsys):
    """999,000 pairs, never looked at one by one: the work is that of the classes' pairs. The time is printed."""
    where = cloud(guests(1000, hosts=20, kinds=kinds))
    plan = parse_plan("[[mesh]]\nrate = 10\nbudget_pps = 100\n", "p.toml")
    started = time.perf_counter()
    done = compile_plan(plan, where)
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f" 1,000 guests, {classes} classes: {1e3 * seconds:.0f} ms", end="")
    (report,) = done.meshes
    assert report.all_pairs == 999_000
    assert len(report.classes) == classes
    assert report.sessions == classes**2
    assert calls(lambda: compile_plan(plan, where)) < report.all_pairs


def calls(work):
    """How many Python functions are called."""
    count = 0

    def count_one(_frame, event, _argument):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(count_one)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


# ---------------------------------------------------------------------------------------------------------------------
# Flows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 7, 100, 20_000])
@pytest.mark.parametrize("factor", [1, 1.01, 3, 7.5, 400])
def test_a_slowed_session_is_never_faster_than_asked_and_hardly_slower(rate, factor):
    """Rates are fractions of integers; rounding takes a tenth at most."""
    one = slowed(SessionPlan("s", "a", "b", rate_pps=rate), factor)
    assert one.mean_pps <= rate / factor * (1 + 1e-9)
    assert one.mean_pps >= 0.9 * rate / factor


def test_flows_share_the_rate_and_take_turns():
    """Sixteen flows at 100 probes a second: merged, they are one stream of about that rate; each has the count."""
    flows = spread_flows(SessionPlan("s", "a", "b", rate_pps=100, count=20, flows=16))
    assert [f.name for f in flows] == [f"s#{i}" for i in range(16)]
    assert {f.flows for f in flows} == {1}
    due = np.sort(np.concatenate([session_due_ns(f, 1) for f in flows]))
    assert len(due) == 320
    assert due[0] == 0
    assert np.diff(due[:16]).tolist() == [10_000_000] * 15
    assert sum(f.mean_pps for f in flows) == pytest.approx(100, rel=0.1)
    assert sum(f.mean_pps for f in flows) <= 100


def test_a_flow_of_tcp_is_one_probe():
    """Each SYN has a source port of its own."""
    flows = spread_flows(SessionPlan("s", "a", "b", protocol=Protocol.TCP, dst_port=80, count=20, flows=4))
    assert [f.count for f in flows] == [1] * 4


def test_flows_of_a_plan_are_grouped():
    """Which sessions of the compiled plan belong together."""
    text = '[[session]]\nsrc = "vm1"\ndst = "vm2"\n[[session]]\nname = "e"\nsrc = "vm1"\ndst = "vm2"\nflows = 3\n'
    done = compiled(text, topology())
    assert [s.name for s in done.plan.sessions] == ["session0", "e#0", "e#1", "e#2"]
    assert [(g.name, g.first, g.count) for g in done.flows] == [("e", 1, 3)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('proto = "icmp"', "ICMP echo has no ports to vary"),
        ("sport = 61000", "need a source port each"),
        ('flow = "new-per-probe"', "need a source port each"),
    ],
)
def test_flows_that_cannot_be_had_are_refused(more, message):
    """Source ports are what varies."""
    with pytest.raises(UsageError, match=message):
        parse_plan(f'[[session]]\nsrc = "a"\ndst = "b"\nflows = 4\n{more}\n', "p")


def test_a_name_that_a_flow_would_have_twice_is_refused():
    """`a#0` and flow 0 of `a`."""
    text = '[[session]]\nname = "a"\nsrc = "vm1"\ndst = "vm2"\nflows = 2\n'
    text += '[[session]]\nname = "a#0"\nsrc = "vm1"\ndst = "vm2"\n'
    with pytest.raises(UsageError, match="two sessions would be called 'a#0'"):
        compiled(text, topology())


def test_a_stretched_session_keeps_its_schedule_and_its_start():
    """One probe in 4 s, beginning 1 s late."""
    plan = SessionPlan("s", "a", "b", count=3, rate_pps=1, stretch=4, start_ns=10**9)
    assert session_due_ns(plan, 1).tolist() == [10**9, 5 * 10**9, 9 * 10**9]
    assert (plan.mean_pps, plan.duration_ns) == (0.25, 13 * 10**9)


def test_watch_settings_have_documented_defaults_and_bounds():
    """What docs/watch.md says."""
    text = '[[session]]\nsrc = "a"\ndst = "b"\n'
    assert isinstance(parse_plan(text, "p"), RunPlan)
    watch = parse_plan(text, "p").watch
    assert (watch.window_ns, watch.max_loss, watch.max_p99_ns) == (10**10, None, None)
    assert (watch.factor, watch.alpha, watch.beta) == (2.0, 0.001, 0.001)
    full = '[watch]\nwindow = "2s"\nmax_loss = "1%"\nmax_p99 = "5ms"\nfactor = 3\nalpha = 0.01\nbeta = 0.02\n'
    watch = parse_plan(full + text, "p").watch
    assert (watch.window_ns, watch.max_loss, watch.max_p99_ns) == (2 * 10**9, 0.01, 5_000_000)
    assert (watch.factor, watch.alpha, watch.beta) == (3.0, 0.01, 0.02)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('window = "1ms"', "p.watch.window: got 0.001 s (allowed: 100 ms to 3600 s)"),
        ("factor = 1", "a number between 1 and 1000"),
        ("alpha = 0.7", "a number between 0 and 0.5"),
        ("alpha = nan", "a number between 0 and 0.5"),
        ('max_loss = "100%"', "less than 100%"),
        ('max_p99 = "fast"', "'fast' is no duration"),
        ("max_jitter = 1", "unknown key 'max_jitter'"),
    ],
)
def test_wrong_watch_settings_are_refused(line, message):
    """Nothing is clamped."""
    with pytest.raises(UsageError) as caught:
        parse_plan(f'[watch]\n{line}\n[[session]]\nsrc = "a"\ndst = "b"\n', "p")
    assert message in str(caught.value)
