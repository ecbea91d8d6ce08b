"""A policy's packet as `ofproto/trace` wants it: each field by the name that Open vSwitch 3.1 takes it under."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netprobe.judge.conntrack import CtState
from netprobe.judge.packet_flow import packet_flow, states_of
from netprobe.model.packets import ACK, SYN, ConnState, Fragment, Kind, Neighbour, Packet

A, B = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02"
V4 = Packet(A, B, ip_address("10.0.0.1"), ip_address("10.0.0.2"), 6, 61000, 80, tcp_flags=SYN)
V6 = replace(V4, src_ip=ip_address("fd00::1"), dst_ip=ip_address("fd00::2"))
WHERE = f"dl_src={A},dl_dst={B}"
IPS = "nw_src=10.0.0.1,nw_dst=10.0.0.2"
IP6S = "ipv6_src=fd00::1,ipv6_dst=fd00::2"


@pytest.mark.parametrize(
    ("packet", "flow"),
    [
        (V4, f"tcp,{WHERE},{IPS},nw_ttl=64,tcp_src=61000,tcp_dst=80,tcp_flags=syn"),
        (replace(V4, tcp_flags=SYN | ACK), f"tcp,{WHERE},{IPS},nw_ttl=64,tcp_src=61000,tcp_dst=80,tcp_flags=syn|ack"),
        (replace(V4, tcp_flags=0), f"tcp,{WHERE},{IPS},nw_ttl=64,tcp_src=61000,tcp_dst=80,tcp_flags=0"),
        (V6, f"tcp6,{WHERE},{IP6S},nw_ttl=64,tcp_src=61000,tcp_dst=80,tcp_flags=syn"),
        (replace(V6, protocol=17), f"udp6,{WHERE},{IP6S},nw_ttl=64,udp_src=61000,udp_dst=80"),
        (replace(V4, protocol=132), f"sctp,{WHERE},{IPS},nw_ttl=64,sctp_src=61000,sctp_dst=80"),
        (replace(V4, protocol=33), f"ip,{WHERE},{IPS},nw_ttl=64,nw_proto=33"),
        (replace(V6, protocol=47), f"ipv6,{WHERE},{IP6S},nw_ttl=64,nw_proto=47"),
        (replace(V4, protocol=1, icmp_type=3, icmp_code=1), f"icmp,{WHERE},{IPS},nw_ttl=64,icmp_type=3,icmp_code=1"),
        (replace(V6, protocol=58, icmp_type=128), f"icmp6,{WHERE},{IP6S},nw_ttl=64,icmpv6_type=128,icmpv6_code=0"),
        (replace(V6, protocol=1), f"ipv6,{WHERE},{IP6S},nw_ttl=64,nw_proto=1"),
        (replace(V4, fragment=Fragment.LATER), f"tcp,{WHERE},{IPS},nw_ttl=64,nw_frag=later"),
        (
            replace(V4, protocol=17, fragment=Fragment.FIRST),
            f"udp,{WHERE},{IPS},nw_ttl=64,nw_frag=first,udp_src=61000,udp_dst=80",
        ),
    ],
)
def test_a_packet_is_said_in_the_words_of_its_protocol(packet, flow):
    assert packet_flow(packet, 3) == f"in_port=3,{flow}"


def test_an_arp_request_asks_everybody_and_an_answer_names_whom_it_tells():
    body = Neighbour(A, ip_address("10.0.0.9"), ip_address("10.0.0.2"))
    asked = replace(V4, protocol=0, kind=Kind.ARP, neighbour=body, dst_mac="ff:ff:ff:ff:ff:ff")
    words = packet_flow(asked, 1).split(",")
    assert {"arp", "arp_op=1", "arp_spa=10.0.0.9", "arp_tpa=10.0.0.2", f"arp_sha={A}"} <= set(words)
    assert "arp_tha=00:00:00:00:00:00" in words
    answered = packet_flow(replace(asked, dst_mac=B), 1).split(",")
    assert {"arp_op=2", f"arp_tha={B}"} <= set(answered)


@pytest.mark.parametrize(("icmp_type", "option"), [(135, "nd_sll"), (136, "nd_tll")])
def test_neighbour_discovery_carries_target_and_link_layer_address_with_a_full_hop_limit(icmp_type, option):
    body = Neighbour(A, ip_address("fd00::1"))
    packet = replace(V6, protocol=58, kind=Kind.ND, icmp_type=icmp_type, neighbour=body)
    words = packet_flow(packet, 1).split(",")
    assert {"nw_ttl=255", f"icmpv6_type={icmp_type}", "nd_target=fd00::1", f"{option}={A}"} <= set(words)
    bare = packet_flow(replace(packet, neighbour=replace(body, mac="")), 1)
    assert option not in bare


def test_router_discovery_has_no_fields_that_a_switch_knows():
    packet = replace(V6, protocol=58, kind=Kind.ND, icmp_type=134, neighbour=Neighbour(A, ip_address("fe80::1")))
    assert "nd_" not in packet_flow(packet, 1)


def test_every_state_is_said_for_more_passes_than_any_pipeline_has():
    assert {state: set(states_of(state)) for state in ConnState} == {
        ConnState.NEW: {CtState.NEW},
        ConnState.ESTABLISHED: {CtState.ESTABLISHED},
        ConnState.REPLY: {CtState.REPLY},
        ConnState.RELATED: {CtState.RELATED},
        ConnState.INVALID: {CtState.INVALID},
    }
    assert len(states_of(ConnState.NEW)) >= 6
