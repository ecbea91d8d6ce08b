"""The state file as the service reads it: old ones and new ones, and nothing but HostNotReadyError for wrong ones."""

import json
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.state_files import OLD, new

from netprobe.errors import HostNotReadyError
from netprobe.model.points import PointKind
from netprobe.model.topology import ManagementPlace, OvnPlaces, RouterLink
from netprobe.service.discovery import read_topology, topology_of


def test_a_file_of_a_lab_with_one_host_is_read_as_ever():
    """Everything new is optional."""
    cloud = topology_of(OLD)
    (vm1,), (hv1,) = cloud.guests, cloud.hosts
    assert (vm1.mac, vm1.network, vm1.prefixes, vm1.floating, dict(vm1.behind_nat)) == (
        "fa:16:3e:00:00:01",
        "",
        (),
        None,
        {},
    )
    assert (hv1.zone, hv1.uplink, hv1.encap_ips, cloud.ovn, cloud.management, cloud.routers) == (
        1,
        (),
        (),
        None,
        None,
        (),
    )


def test_a_file_of_a_lab_with_two_hosts_has_uplinks_networks_and_databases():
    """Each new field, as docs/lab.md has it."""
    cloud = topology_of(new())
    (vm1,), (hv1,) = cloud.guests, cloud.hosts
    assert [p.kind for p in hv1.uplink] == [PointKind.NIC, PointKind.FABRIC]
    assert (hv1.zone, hv1.encap_ips, hv1.chassis, hv1.management_ip) == (
        None,
        (ip_address("172.30.0.1"),),
        "hv1",
        "172.31.0.1",
    )
    assert vm1.prefixes == (ip_network("10.0.0.0/24"), ip_network("fd00:10::/64"))
    assert (vm1.network, vm1.gateway_mac, vm1.floating) == ("net1", "00:00:00:01:00:fe", IPv4Address("172.24.0.11"))
    assert vm1.behind_nat == {"ext": IPv4Address("172.24.0.100")}
    assert cloud.ovn == OvnPlaces("unix:/nb.sock", "unix:/sb.sock")
    assert cloud.management == ManagementPlace("central", "172.31.0.254")
    assert cloud.routers == (RouterLink("r1", "net1"), RouterLink("r1", "ext", is_central=True, gateway="hv1"))


def test_null_is_as_good_as_leaving_out():
    """`floating` is null where there is none."""
    state = new()
    state["guests"][0] |= {"floating": None, "behind_nat": None, "gateway_mac": None}
    state |= {"ovn": None, "management": None}
    cloud = topology_of(state)
    assert (cloud.guests[0].floating, cloud.guests[0].gateway_mac, cloud.ovn) == (None, "", None)


def test_a_port_that_cannot_be_seen_has_no_device_to_look_at():
    """Whoever opened a ring there would call lost what it does not see."""
    state = new()
    state["guests"][0]["unobserved"] = "SR-IOV without a representor"
    cloud = topology_of(state)
    assert [(p.id, p.device) for p in cloud.guests[0].chain] == [("vm1.guest", "eth0"), ("vm1.backend", "")]
    assert cloud.unobserved == {"vm1.backend": "SR-IOV without a representor"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"uplink": ["nowhere"]},
        {"uplink": "hv1.nic"},
        {"encap_ips": ["172.30.0"]},
        {"zone": "1"},
    ],
)
def test_a_wrong_field_is_said_with_the_files_name(tmp_path, wrong):
    """Exit code 3, and what to do."""
    state = new()
    state["hosts"][0] |= wrong
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state))
    with pytest.raises(HostNotReadyError, match=f"{path} is no state file of this version"):
        read_topology(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(
    [
        *((key,) for key in new()),
        *(("hosts", 0, key) for key in new()["hosts"][0]),
        *(("guests", 0, key) for key in new()["guests"][0]),
        *(("points", 0, key) for key in new()["points"][0]),
        ("routers", 0),
        ("ovn", "southbound"),
        ("guests", 0, "port", "ofport"),
    ]
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(places, json_values)
def test_whatever_stands_in_a_field_is_read_or_refused(tmp_path_factory, place, value):
    """A state file is outside input."""
    state = new()
    *way, last = place
    inner = state
    for step in way:
        inner = inner[step]
    inner[last] = value
    path = tmp_path_factory.getbasetemp() / "state.json"
    path.write_text(json.dumps(state))
    with suppress(HostNotReadyError):
        read_topology(path)
