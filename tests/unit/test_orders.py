"""Orders to agents: what goes out comes in, and what is no order is refused by name."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wire_frames import all_sessions

from netprobe.errors import UsageError, WireError
from netprobe.model.points import Point, PointKind
from netprobe.service.collector_config import parse_config
from netprobe.wire.orders import PartSpec, place_of_untrusted, place_spec, probe_of_untrusted, probe_spec
from netprobe.wire.report import pack_value, unpack_value_untrusted


@pytest.mark.parametrize("probe", all_sessions(dscp=3), ids=lambda p: f"{p.type_p.protocol.value}{p.type_p.family}")
def test_a_session_survives_the_way(probe):
    """Every kind, with its key, ports and translations."""
    assert probe_of_untrusted(probe_spec(probe)) == replace(probe, src_ports=tuple(probe.src_ports))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"short"},
        {"src_mac": b"\x00"},
        {"src_ip": "10.0.0.1.2"},
        {"src_ip": "fd00::1"},
        {"protocol": "sctp"},
        {"flow": "both"},
        {"count": 0},
        {"count": 1 << 40},
        {"session": -1},
        {"size_bytes": 3},
        {"ttl": 0},
        {"translations": [("10.0.0.1", "nonsense")]},
    ],
)
def test_a_session_that_cannot_be_is_refused(change):
    """Each with the one error that decoders may raise."""
    spec = probe_spec(all_sessions(dscp=3)[0])
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__} | change
    with pytest.raises(WireError):
        probe_of_untrusted(type(spec)(**fields))


@given(st.binary(max_size=200))
def test_any_octets_give_an_order_or_an_error(data):
    """Total."""
    try:
        unpack_value_untrusted(data, PartSpec)
    except WireError:
        return


def test_a_point_is_on_the_agents_own_host_and_namespace():
    """Whatever the collector says, an agent looks where it is itself; a path is no device."""
    point = Point("vm1.backend", PointKind.BACKEND, "hv7", "some-netns", "tapvm1")
    index, there = place_of_untrusted(place_spec(4, point), "hv1")
    assert (index, there.host, there.netns, there.device) == (4, "hv1", "", "tapvm1")
    for odd in ({"device": "../etc"}, {"device": "x" * 16}, {"kind": "moon"}, {"index": 1 << 20}):
        spec = place_spec(4, point)
        fields = {name: getattr(spec, name) for name in spec.__struct_fields__} | odd
        with pytest.raises(WireError):
            place_of_untrusted(type(spec)(**fields), "hv1")


def test_values_pack_and_unpack():
    """Orders travel as packed values."""
    spec = PartSpec("r", [], [], [], [], 1.5)
    assert unpack_value_untrusted(pack_value(spec), PartSpec) == spec


CONFIG = """
schema = 1
[[ovn]]
northbound = "tcp:192.0.2.1:6641"
southbound = "tcp:192.0.2.1:6642"
[[host]]
name = "compute1"
uplink = "eth1"
[[host]]
name = "compute2"
chassis = "c2"
"""


def test_a_collectors_configuration_names_hosts_and_databases():
    """A NIC is a point; what is left out has the defaults of OVN."""
    cloud = parse_config(CONFIG, "collector.toml")
    first, second = cloud.hosts
    assert [p.id for p in first.uplink] == ["compute1.nic"]
    assert (second.uplink, second.chassis, second.bridge) == ((), "c2", "br-int")
    assert cloud.ovn.southbound == "tcp:192.0.2.1:6642"


@pytest.mark.parametrize(
    "text",
    ["", "schema = 2", "schema = 1", CONFIG + '[[host]]\nname = "compute1"', CONFIG.replace("uplink", "uplnik"), "{"],
)
def test_a_configuration_that_is_none_is_refused_by_name(text):
    """Who, what, and what is allowed."""
    with pytest.raises(UsageError, match=r"collector\.toml"):
        parse_config(text, "collector.toml")
