"""Grants: who may report which points and inject where and how fast, and what no certificate may say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import RefusedError, UsageError
from netprobe.plan.grants import (
    DEFAULT_INJECT_PPS,
    MAX_GRANTS,
    Grants,
    InjectGrant,
    Role,
    check_name,
    default_report,
    format_uris,
    parse_glob,
    parse_inject,
    parse_role,
    parse_uris_untrusted,
)

laws = settings(deadline=None, derandomize=True, max_examples=200)

HV1 = Grants(("hv1/*",), (InjectGrant("vm*", 1000), InjectGrant("vm1", 5000)))


@pytest.mark.parametrize(
    ("glob", "place", "may"),
    [
        ("hv1/*", "hv1/vm1.backend", True),
        ("hv1/*", "hv10/vm1.backend", False),
        ("hv1/*", "hv2/hv1/x", False),
        ("*/vm1.guest", "hv2/vm1.guest", True),
        ("*/vm1.guest", "hv2/vm11.guest", False),
        ("*/vm1.guest", "hv2/vm1.guest2", False),
        ("hv?/nic", "hv3/nic", True),
        ("HV1/*", "hv1/nic", False),
        ("hv1/nic", "hv1/nic\n", False),
    ],
)
def test_a_place_may_be_reported_where_a_pattern_names_it(glob, place, may):
    assert Grants((glob,)).may_report(place) is may


def test_without_grants_nothing_may_be_done():
    assert not Grants().may_report("hv1/nic")
    with pytest.raises(RefusedError, match="allowed: none"):
        Grants().check_inject(["vm1"], 1)


@pytest.mark.parametrize("names", [["vm1"], ["tap-x", "vm1", "aa:bb"], ["vm2"]])
def test_any_name_of_a_port_may_fit(names):
    HV1.check_inject(names, 1000)


def test_a_port_that_no_grant_names_is_refused_with_what_is_granted():
    with pytest.raises(RefusedError) as caught:
        HV1.check_inject(["web1", "tap1"], 1)
    assert str(caught.value) == "port web1 / tap1: is not granted to this agent for injecting (allowed: vm*, vm1)."


@pytest.mark.parametrize("pps", [5001, 0, -1, float("nan"), float("inf")])
def test_a_rate_above_the_largest_grant_that_fits_or_none_at_all_is_refused(pps):
    with pytest.raises(RefusedError):
        HV1.check_inject(["vm1"], pps)


def test_a_rate_counts_for_everything_that_is_sent_at_a_time():
    HV1.check_orders([(["vm1"], 900), (["vm1"], 4900), (["vm2"], 100)])
    with pytest.raises(RefusedError, match="up to 100 packets/s beside what is being sent"):
        HV1.check_orders([(["vm1"], 900), (["vm1"], 4900), (["vm2"], 101)])


def test_defaults_name_nobody_else():
    assert Grants(default_report("hv1", Role.VSWITCH)).may_report("hv1/vm1.backend")
    assert not Grants(default_report("hv1", Role.VSWITCH)).may_report("hv2/vm1.backend")
    guest = Grants(default_report("vm1", Role.GUEST))
    guest.check_role("vm1", Role.GUEST)
    assert guest.may_report("hv2/vm1.guest")
    assert not guest.may_report("hv2/vm1.backend")
    assert Grants(default_report("byp1", Role.BYPASS)).may_report("hv1/byp1.guest")
    assert default_report("ops", Role.OPERATOR) == default_report("c", Role.COLLECTOR) == ()


@pytest.mark.parametrize("glob", ["*", "hv1/*", "*/*.guest", "*/vm?.guest", "*/vm1.backend", "hv1/nic"])
def test_a_guest_is_not_trusted_with_anybody_elses_points(glob):
    with pytest.raises(UsageError, match="its own point alone"):
        Grants((glob,)).check_role("vm1", Role.GUEST)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.COLLECTOR])
def test_only_agents_have_grants(role):
    Grants().check_role("x", role)
    for grants in (Grants(("x",)), Grants((), (InjectGrant("x", 1),))):
        with pytest.raises(UsageError, match="agents only"):
            grants.check_role("x", role)


@pytest.mark.parametrize(
    ("text", "grant"),
    [
        ("vm*", InjectGrant("vm*", DEFAULT_INJECT_PPS)),
        ("vm*@20000", InjectGrant("vm*", 20_000)),
        ("fa:16:3e:00:00:01@1", InjectGrant("fa:16:3e:00:00:01", 1)),
    ],
)
def test_inject_grants_are_read(text, grant):
    assert parse_inject(text, "x") == grant


@pytest.mark.parametrize(
    "text", ["", "@5", "vm@", "vm@0", "vm@-1", "vm@1e3", "vm@1000001", "vm@1@2", "vm[12]@5", "vm 1", "vm@٣"]
)
def test_what_is_no_inject_grant_is_refused(text):
    with pytest.raises(UsageError):
        parse_inject(text, "x")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hid", "-x", "a" * 64, "a\n", "ä", "a b"])
def test_names_that_could_leave_a_folder_are_refused(name):
    with pytest.raises(UsageError, match="cannot be used"):
        check_name(name, "x")
    assert check_name("hv1.rack-2_b", "x") == "hv1.rack-2_b"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["netprobe:role:vswitch", "netprobe:role:guest"],
        ["netprobe:role:root"],
        ["netprobe:role:vswitch", "netprobe:report:"],
        ["netprobe:role:vswitch", "netprobe:fly:*"],
        ["netprobe:role:vswitch", "https://example.org"],
        ["netprobe:role:vswitch", "netprobe:inject:vm*@x"],
        ["netprobe:role:vswitch"] + ["netprobe:report:x"] * MAX_GRANTS,
    ],
)
def test_a_certificate_that_says_anything_odd_is_refused(uris):
    with pytest.raises(RefusedError):
        parse_uris_untrusted(uris, "certificate")


def test_an_unknown_role_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'vswitch'"):
        parse_role("vswich", "--role")


globs = st.text("abz09.*?/:_-+", min_size=1, max_size=20)


@laws
@given(
    st.sampled_from(Role),
    st.lists(globs, max_size=4),
    st.lists(st.builds(InjectGrant, globs, st.integers(1, 10**6)), max_size=4),
)
def test_grants_survive_a_certificate(role, report, inject):
    grants = Grants(tuple(report), tuple(inject))
    assert parse_uris_untrusted(format_uris(role, grants), "x") == (role, grants)


@laws
@given(
    st.lists(
        st.text(max_size=30)
        | st.builds("netprobe:{}:{}".format, st.sampled_from(["role", "report", "inject"]), st.text(max_size=30)),
        max_size=4,
    )
)
def test_any_uris_are_grants_or_are_refused(uris):
    try:
        _, grants = parse_uris_untrusted(uris, "certificate")
    except RefusedError:
        return
    for glob in grants.report:
        parse_glob(glob, "x")
    grants.may_report("hv1/nic")
