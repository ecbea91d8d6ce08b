"""Plans, paths, schedules and the topology's names: what is accepted, and the whole message where it is not."""

import numpy as np
import pytest
from support.clouds import topology

from netprobe.errors import UsageError
from netprobe.model.points import Leg, Stamp, Vantage
from netprobe.model.probes import Flow, Protocol
from netprobe.plan.fields import parse_duration_ns, parse_ratio
from netprobe.plan.paths import build_path
from netprobe.plan.plans import RunPlan, Schedule, parse_plan
from netprobe.plan.schedule import due_offsets_ns
from netprobe.service.prepare import prepare_run, resolve

MINIMAL = '[[session]]\nsrc = "vm1"\ndst = "vm2"\n'


def test_a_minimal_plan_gets_the_documented_defaults():
    """Only src and dst are needed."""
    plan = parse_plan(MINIMAL, "p.toml")
    (session,) = plan.sessions
    assert (plan.seed, plan.tmax_ns, session.vantage) == (1, 1_000_000_000, Vantage.GUEST)
    assert (session.protocol, session.dst_port, session.dscp, session.flow) == (Protocol.UDP, 862, 3, Flow.SAME)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + 'vantge = "guest"\n', "p.toml: session[0]: unknown key 'vantge' (allowed: "),
        ("sede = 1\n" + MINIMAL, "Did you mean 'seed'?"),
        (MINIMAL + "count = 0\n", "session[0].count: got 0 (allowed: an integer from 1 to 10000000)"),
        (MINIMAL + "count = true\n", "got True"),
        (MINIMAL + "family = 5\n", "allowed: 4 or 6"),
        (MINIMAL + 'proto = "upd"\n', "unknown value 'upd'"),
        (MINIMAL + 'proto = "tcp"\n', "tcp needs a destination port"),
        (MINIMAL + 'proto = "tcp"\ndport = 80\nsport = 9\n', "takes a source port of its own for each probe"),
        (MINIMAL + 'proto = "icmp"\ndport = 80\n', "ICMP echo has no ports"),
        (MINIMAL + "class_mark = 64\n", "a DSCP from 1 to 63"),
        (MINIMAL + MINIMAL + 'name = "session0"\n', "two sessions are called 'session0'"),
        ('tmax = "1h"\n' + MINIMAL, "'1h' is no duration"),
        ('tmax = "61s"\n' + MINIMAL, "up to 60000000000 ns"),
        ("schema = 2\n" + MINIMAL, "p.toml.schema: got 2"),
        ("", "plans no session"),
        ("[[session", "is no TOML"),
        ('[[session]]\nsrc = "vm1"\n', "session[0].dst: got None"),
        ("session = 3\n", "an array of tables"),
    ],
)
def test_a_wrong_plan_is_refused_with_who_what_and_what_is_allowed(text, message):
    """Never a traceback, always exit code 2."""
    with pytest.raises(UsageError) as caught:
        parse_plan(text, "p.toml")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("text", "ns"), [("300us", 300_000), ("1.5ms", 1_500_000), ("2s", 2 * 10**9), ("0ns", 0)])
def test_durations(text, ns):
    """Numbers with a unit."""
    assert parse_duration_ns(text, "x") == ns


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.5", 0.5), ("100 %", 1.0)])
def test_ratios(text, share):
    """Percent or a share."""
    assert parse_ratio(text, "x") == share


@pytest.mark.parametrize("text", ["-1%", "101%", "2", "x", ""])
def test_a_ratio_outside_0_to_1_is_refused(text):
    """Nothing is clamped."""
    with pytest.raises(UsageError):
        parse_ratio(text, "--loss")


def test_schedules_are_seeded_start_at_0_and_keep_the_mean_rate():
    """Periodic exactly; Poisson in the mean, with exponential gaps (mean = standard deviation)."""
    assert due_offsets_ns(Schedule.PERIODIC, 4, 1000, 1).tolist() == [0, 10**6, 2 * 10**6, 3 * 10**6]
    poisson = due_offsets_ns(Schedule.POISSON, 20_000, 1000, 3)
    gaps = np.diff(poisson)
    assert poisson[0] == 0
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1e6, rel=0.03)
    assert gaps.std() == pytest.approx(1e6, rel=0.05)
    assert (poisson == due_offsets_ns(Schedule.POISSON, 20_000, 1000, 3)).all()
    assert (poisson != due_offsets_ns(Schedule.POISSON, 20_000, 1000, 4)).any()


def ids(stops):
    return [s.point.id for s in stops]


def test_a_guests_path_leads_there_and_back():
    """Guest, its port, the other's port, the other guest; and the answer's way."""
    cloud = topology()
    vm1, vm2 = cloud.guests[:2]
    path = build_path(cloud, vm1, vm2, Vantage.GUEST, Protocol.UDP)
    assert ids(path.forward) == ["vm1.guest", "vm1.backend", "vm2.backend", "vm2.guest"]
    assert ids(path.leg(Leg.RETURN)) == ["vm2.guest", "vm2.backend", "vm1.backend", "vm1.guest"]
    assert [s.stamp for s in path.forward] == [Stamp.SENDER, Stamp.KERNEL_RX, Stamp.KERNEL_RX, Stamp.PACKET]
    assert [int(s.direction) for s in path.forward] == [1, 0, 1, 0]
    assert [int(s.direction) for s in path.returned] == [1, 0, 1, 0]


def test_from_the_vswitch_the_path_starts_there_and_the_guest_is_not_asked():
    """Nothing before the vswitch is claimed, and the real source guest is no observer."""
    cloud = topology()
    path = build_path(cloud, cloud.guests[0], cloud.guests[1], Vantage.VSWITCH, Protocol.TCP)
    assert ids(path.forward) == ["hv1.vswitch", "vm2.backend", "vm2.guest"]
    assert ids(path.returned)[-1] == "vm1.backend"
    assert path.forward[-1].stamp is Stamp.INFERRED


def test_raw_udp_ends_at_the_backend():
    """Nobody answers it, so nobody can say more."""
    cloud = topology()
    path = build_path(cloud, cloud.guests[0], cloud.guests[1], Vantage.GUEST, Protocol.RAW_UDP)
    assert ids(path.forward)[-1] == "vm2.backend"
    assert path.returned == ()


@pytest.mark.parametrize(
    "name",
    [
        "vm2",
        "VM2",
        "fd00:0010:0::2",
        "10.0.0.2",
        "fd00:10::2",
        "FA:16:3E:00:00:02",
        "00000000-0000-0000-0000-000000000002",
    ],
)
def test_a_guest_may_be_called_by_name_ip_mac_or_port(name):
    """All of them mean the same guest."""
    assert topology().guest(name, "x").name == "vm2"


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ('src = "vm1"\ndst = "vm4"', "unknown guest 'vm4' (allowed: vm1, vm2, vm3, vm9). Did you mean"),
        ('src = "vm1"\ndst = "vm1"', "source and destination are both 'vm1'"),
        ('src = "vm1"\ndst = "vm9"', "vm9 is on 'hv3', of which nothing is known"),
        ('src = "vm2"\ndst = "vm1"\nvantage = "bypass"', "no bypass NIC on hv1 carries its groups (default, web)"),
        ('src = "vm1"\ndst = "10.0.0.2"\nfamily = 6', "10.0.0.2 is no IPv6 address. Ask for family 4"),
        (
            'src = "vm1"\ndst = "vm2"\nsize = 60',
            "60 bytes cannot carry the mark of IPv4 udp (allowed: 110 bytes and more",
        ),
        ('src = "vm1"\ndst = "vm2"\nsport = 65500\nflow = "new-per-probe"', "leaves 36 ports for 100 probes"),
    ],
)
def test_what_does_not_fit_the_cloud_is_refused(session, message):
    """Names, hosts, families, sizes and ports are checked before anything is sent."""
    plan = parse_plan(f"[[session]]\n{session}\n", "p")
    with pytest.raises(UsageError) as caught:
        prepare_run(plan, topology(), lambda *_: [61000])
    assert message in str(caught.value)


def test_a_prepared_run_has_fresh_keys_and_numbers():
    """Two runs of one plan share neither: records of the first are stale in the second."""
    plan = parse_plan(MINIMAL, "p")
    assert isinstance(plan, RunPlan)
    (one,), (two,) = (prepare_run(plan, topology(), lambda *_: [61000]) for _ in range(2))
    assert one.probe.key != two.probe.key
    assert one.probe.session != two.probe.session
    assert one.block.frames.shape == (100, 110)


def test_the_bypass_nic_sends_in_the_guests_place():
    """Its own addresses, the target's MAC; the source is still the guest that was named."""
    plan = parse_plan(MINIMAL + 'vantage = "bypass"\n', "p")
    source, target, sender = resolve(plan.sessions[0], topology())
    assert (source.name, target.name, sender.name) == ("vm1", "vm2", "bypass")
