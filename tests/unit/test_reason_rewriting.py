"""What switches make of a packet: tunnels, tags and addresses, out of traces of Open vSwitch 3.1.0 under OVN."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprobe.errors import HostNotReadyError
from netprobe.host.tracing import Question, follow_probe, trace_flow
from netprobe.judge.conntrack import CtState, FiveTuple, parse_dump
from netprobe.judge.ofproto_trace import Trace, TracePass, parse_trace
from netprobe.judge.rewriting import (
    Output,
    SwitchPort,
    Tunnel,
    next_flow,
    next_states,
    output_of,
    parse_ports,
    tuples_behind,
)
from netprobe.model.points import Point, PointKind
from netprobe.model.topology import Host

DATA = Path(__file__).parent / "data"
IP1, IP2 = ip_address("172.30.0.1"), ip_address("172.30.0.2")
FLOW = (
    "in_port=2,tcp,dl_src=fa:16:3e:0a:00:01,dl_dst=fa:16:3e:0a:00:02,"
    "nw_src=10.1.0.1,nw_dst=10.1.0.2,nw_tos=12,nw_ttl=64"
)


def text(name):
    return (DATA / f"{name}.txt").read_text()


def trace(name):
    return parse_trace(text(f"trace_ovn_{name}"))


def through(actions):
    """A trace of one pass with these datapath actions."""
    return Trace((TracePass((), datapath=actions, flow="tcp,nw_src=10.1.0.1,nw_dst=10.1.0.2,tp_src=61001,tp_dst=80"),))


def test_a_tunnel_is_read_with_its_ends_its_identifier_and_ovns_ports():
    output = output_of(trace("into_tunnel"))
    assert output.tunnel == Tunnel(IP2, IP1, vni=2, option=0x20003)
    assert output.doubts == ()


def test_a_flow_at_the_tunnels_other_end_is_the_packet_that_the_router_and_the_nat_made():
    """Routed and translated: new MACs, one hop less, the floating IP as source, and what the tunnel says."""
    found = trace("snat")
    output = output_of(found)
    flow = next_flow(f"{FLOW},icmp_type=8,icmp_code=0".replace("tcp", "icmp"), output, 7)
    assert flow == (
        "in_port=7,tun_id=0x1,tun_dst=172.30.0.2,tun_src=172.30.0.1,tun_metadata0=0x10002,icmp,"
        "dl_src=00:00:00:02:00:fe,dl_dst=fa:16:3e:0a:00:04,nw_src=10.2.0.101,nw_dst=10.2.0.4,nw_tos=12,nw_ttl=63,"
        "icmp_type=8,icmp_code=0"
    )
    there = FiveTuple(1, ip_address("10.1.0.1"), ip_address("10.2.0.4"), 77, icmp_type=8)
    sources = [str(behind.src) for behind in tuples_behind(found, there)]
    assert sources == ["10.1.0.1", "10.1.0.1", "10.1.0.1", "10.2.0.101"]
    assert {behind.src_port for behind in tuples_behind(found, there)} == {77}  # an echo's identifier is in no flow


def test_a_provider_network_leads_out_of_the_nic_with_its_vlan():
    output = output_of(trace("provider"), ["und"])
    assert (output.tunnel, output.device, output.vlans) == (None, "und", (24,))
    flow = next_flow(FLOW, output, 1)
    assert flow.startswith("in_port=1,dl_vlan=24,tcp,dl_src=fa:16:3e:00:01:03,")
    assert "nw_src=172.24.0.101" in flow
    assert output_of(trace("provider")) is None  # nobody said which of its ports leads to other hosts


def test_what_stays_on_its_switch_has_no_output():
    for name in ("far_deny", "far_allow", "port_security"):
        assert output_of(trace(name), ["n-und"]) is None


def test_the_kernels_datapath_says_a_tunnel_in_another_way():
    """Written after odp-util.c: the lab has no kernel module to record it from."""
    actions = (
        "ct(commit,zone=6),set(eth(src=00:00:00:02:00:fe,dst=fa:16:3e:0a:00:04)),set(ipv4(ttl=63)),"
        "set(tunnel(tun_id=0x2,dst=172.30.0.2,ttl=64,tp_dst=6081,"
        "geneve({class=0x102,type=0x80,len=4,0x20003}),flags(df|csum|key))),genev_sys_6081"
    )
    output = output_of(through(actions))
    assert output.tunnel == Tunnel(IP2, None, vni=2, option=0x20003)
    assert dict(output.fields)["nw_ttl"] == "63"
    assert next_flow(FLOW, output, 3).startswith("in_port=3,tun_id=0x2,tun_dst=172.30.0.2,tun_metadata0=0x20003,tcp,")


@pytest.mark.parametrize(
    ("actions", "fields", "doubts"),
    [
        ("set(ipv4(tos=0x2b/0xff,ttl=63))", {"nw_tos": "40", "nw_ttl": "63"}, 0),
        ("set(ipv4(src=10.9.0.1/255.255.255.255))", {"nw_src": "10.9.0.1"}, 0),
        ("set(eth(dst=02:00:00:00:00:01/ff:ff:ff:ff:ff:ff))", {"dl_dst": "02:00:00:00:00:01"}, 0),
        ("set(ipv4(dst=10.9.0.0/255.255.0.0))", {}, 1),  # a part of an address: not followed, and said
        ("set(mpls(label=3))", {}, 1),
        ("ct(commit,zone=3,nat(src=10.2.0.101))", {}, 1),  # translated at once, and no pass behind it shows how
        ("clone(set(ipv4(ttl=9)),drop)", {}, 0),  # a copy's headers are the copy's
    ],
)
def test_what_is_rewritten_is_followed_or_doubted(actions, fields, doubts):
    output = output_of(through(f"{actions},und"), ["und"])
    before = {"nw_src": "10.1.0.1", "nw_dst": "10.1.0.2", "tp_src": "61001", "tp_dst": "80"}
    assert {k: v for k, v in output.fields if before.get(k) != v} == fields
    assert len(output.doubts) == doubts


def test_ports_are_read_with_their_bridges_and_tunnels():
    assert SwitchPort("br-int", "ovn-o1-0", 1, is_tunnel=True, remote=IP1) in parse_ports(text("dpif_show_ovn"))
    provider = parse_ports(text("dpif_show_provider"))
    assert SwitchPort("br-und", "und", 1) in provider
    assert [p.device for p in provider if p.is_tunnel] == ["ovn-hv1-0"]


def test_conntrack_is_asked_in_each_zone_with_the_addresses_that_the_packet_has_by_then():
    """An entry of the translated tuple in the router's zone makes that pass a reply or invalid, and no other."""
    found = trace("snat")
    assert found.zones == (6, 3, 3)
    tuple_ = FiveTuple(1, ip_address("10.1.0.1"), ip_address("10.2.0.4"), 77, icmp_type=8)
    entry = (
        "icmp,orig=(src={0},dst=10.2.0.4,id=77,type=8,code=0),reply=(src=10.2.0.4,dst={0},id=77,type=0,code=0),zone={1}"
    )

    def states(source, zone):
        entries = parse_dump(entry.format(source, zone)).entries
        return next_states(found, tuple_, entries, is_answered=True)

    est, new = CtState.ESTABLISHED, CtState.NEW
    assert states("10.1.0.1", 6) == (est, new, new)
    assert states("10.1.0.1", 3) == (new, est, est)
    assert states("10.2.0.101", 3) == (new, new, new)  # it is translated behind the last pass that looks it up
    assert states("10.1.0.1", 9) == (new, new, new)


class FakeSwitch:
    """A switch that gives recorded answers, and remembers what it was asked."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def call(self, command, *arguments):
        self.asked.append((command, *arguments))
        said = self.answers.get(command.replace("/", "_").replace("-", "_"), "")
        if isinstance(said, Exception):
            raise said
        return said.pop(0) if isinstance(said, list) else said


def host(number, **changes):
    nic = Point(f"o{number}.nic", PointKind.NIC, f"o{number}", "ns", changes.pop("nic", "und"))
    given = {"zone": None, "uplink": (nic,), "encap_ips": (ip_address(f"172.30.0.{number}"),)}
    return Host(f"o{number}", "ns", "br-int", "", "", **(given | changes))


TUPLE = FiveTuple(6, ip_address("10.1.0.1"), ip_address("10.1.0.2"), 61001, 9999)


def follow(switches, way=("o1", "o2"), **changes):
    hosts = [host(1, **changes), host(2, **changes)]
    return follow_probe(Question(FLOW, TUPLE), way, hosts, lambda here: switches[here.name])


def test_a_probe_is_followed_through_the_tunnel_to_the_switch_that_drops_it():
    """The second switch is asked at its own tunnel port, with what the first one's trace says."""
    near = FakeSwitch(ofproto_trace=text("trace_ovn_into_tunnel"))
    far = FakeSwitch(ofproto_trace=text("trace_ovn_far_deny"), dpif_show=text("dpif_show_ovn"))
    passages = follow({"o1": near, "o2": far})
    assert [(one.host.name, one.output is not None, one.error) for one in passages] == [
        ("o1", True, None),
        ("o2", False, None),
    ]
    command = next(asked for asked in far.asked if asked[0] == "ofproto/trace")
    assert command[:3] == ("ofproto/trace", "--names", "br-int")
    assert command[3].startswith(
        "in_port=1,tun_id=0x2,tun_dst=172.30.0.2,tun_src=172.30.0.1,tun_metadata0=0x20003,tcp,"
    )


def test_a_probe_is_followed_out_of_a_nic_along_the_planned_way():
    """Nothing in the frame says whose NIC takes it; the plan does. It comes in on the bridge that has the NIC."""
    near = FakeSwitch(ofproto_trace=text("trace_ovn_provider"))
    far = FakeSwitch(ofproto_trace=text("trace_ovn_provider_far"), dpif_show=text("dpif_show_provider"))
    passages = follow({"o1": near, "o2": far})
    assert [one.host.name for one in passages] == ["o1", "o2"]
    command = next(asked for asked in far.asked if asked[0] == "ofproto/trace")
    assert command[2] == "br-und"
    assert command[3].startswith("in_port=1,dl_vlan=24,tcp,")
    assert len(follow({"o1": near}, way=("o1",))) == 1


def test_a_switch_that_does_not_answer_ends_the_trail_with_its_error():
    near = FakeSwitch(ofproto_trace=text("trace_ovn_into_tunnel"))
    dead = FakeSwitch(dpif_show=HostNotReadyError("ovs-vswitchd", "is gone"))
    passages = follow({"o1": near, "o2": dead})
    assert [(one.host.name, one.error is None, one.trace.passes == ()) for one in passages] == [
        ("o1", True, False),
        ("o2", False, True),
    ]


def test_a_host_without_a_tunnel_back_cannot_be_asked_further():
    near = FakeSwitch(ofproto_trace=text("trace_ovn_into_tunnel"))
    far = FakeSwitch(dpif_show="netdev@ovs-netdev: hit:1 missed:1\n  br-int:\n    tapv2 2/5: (system)\n")
    assert "has no tunnel to o1" in str(follow({"o1": near, "o2": far})[-1].error)


def test_a_tunnel_to_an_unknown_address_leads_nowhere():
    near = FakeSwitch(ofproto_trace=text("trace_ovn_into_tunnel"))
    passages = follow({"o1": near}, encap_ips=(ip_address("192.0.2.1"),))
    assert [one.host.name for one in passages] == ["o1"]
    assert passages[0].output.tunnel.dst == IP2


def test_a_trace_that_makes_the_switch_ask_for_its_neighbour_is_made_again(monkeypatch):
    """A forgotten ARP entry of the underlay is no verdict on the probe."""
    monkeypatch.setattr("netprobe.host.tracing.NEIGHBOUR_WAIT_S", 0)
    switch = FakeSwitch(ofproto_trace=[text("trace_ovn_no_neighbour"), text("trace_ovn_into_tunnel")])
    assert not trace_flow(switch, "br-int", FLOW).missing_neighbour
    stubborn = FakeSwitch(ofproto_trace=text("trace_ovn_no_neighbour"))
    assert "172.30.0.2" in trace_flow(stubborn, "br-int", FLOW).missing_neighbour


words = st.sampled_from(
    ["tnl_push(", "clone(", "set(eth(src=", "set(ipv4(tos=", "set(tunnel(", "geneve({class=0x102,type=0x80,len=4,",
     "dst=", "172.30.0.2", ",", ")", "))", "vni=0x", "push_vlan(vid=", "9999", "und", "nat(src=", "tos=0x", "/0xff"]
)  # fmt: skip


@given(st.lists(words | st.text(max_size=5), max_size=30).map("".join))
def test_actions_of_any_shape_are_followed_without_an_error(actions):
    found = through(actions)
    output = output_of(found, ["und"])
    assert output is None or isinstance(output, Output)
    tuples_behind(found, TUPLE)
    next_flow(FLOW, output or Output(), 1)
    parse_ports(actions)
    parse_ports(f"  br:\n    {actions} 1/2: (geneve: remote_ip={actions})")
