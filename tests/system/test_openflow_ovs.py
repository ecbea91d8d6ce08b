"""Talking to a real Open vSwitch: packet-out, counters, our own flows, conntrack by tuple, traces, counter patterns.

A private switch with the userspace datapath in a network namespace of its own, two guests' ports on veth.
"""

import contextlib
import itertools
import math
import os
import random
import socket
import threading
import time
from ipaddress import ip_address

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from netprobe.errors import HostNotReadyError
from netprobe.host import process
from netprobe.host.conntrack import Conntrack
from netprobe.host.netns import in_netns
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.ovs import PortSpec, PrivateSwitch
from netprobe.host.rule_counters import probe_rule, read_noise, read_rule
from netprobe.host.tracing import trace_flow, trace_probe
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.inject.packet_out import paced_sender, send_packet_outs
from netprobe.inject.packet_out_blocks import PacketOutBlocks
from netprobe.judge.conntrack import FiveTuple
from netprobe.judge.counter_pattern import PatternVerdict, fit_pattern, make_pattern
from netprobe.judge.ofproto_trace import Verdict, five_tuple, probe_flow
from netprobe.judge.reason import Evidence, ReasonCode, explain
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.wire.openflow_messages import OxmField, Version
from netprobe.wire.openflow_requests import NETPROBE_COOKIE, FlowAdd, apply_actions, output, oxm

pytestmark = pytest.mark.system

BRIDGE = "br-oft"
ZONE = 644
MAC_A, MAC_B = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02"
A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "fd00::1", "fd00::2"
ALL_VERSIONS = pytest.mark.parametrize("version", [Version.OF13, Version.OF14, Version.OF15])


@contextlib.contextmanager
def running_switch(netns, run_dir):
    """A switch with guests a (port 1) and b (port 2); gone at the end with all that belongs to it."""
    switch = PrivateSwitch(netns, run_dir)
    records = []
    process.run(["ip", "netns", "add", netns])
    try:
        process.run(process.netns_argv(netns, ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]))
        for guest in "ab":
            process.run(
                ["ip", "-n", netns, "link", "add", f"tap{guest}", "type", "veth", "peer", "name", f"eth{guest}"]
            )
            for device in (f"tap{guest}", f"eth{guest}"):
                process.run(["ip", "-n", netns, "link", "set", device, "up"])
        switch.create_database()
        records.append(switch.start_server())
        records[:0] = switch.start_switch()
        ports = [PortSpec("tapa", 1, "uuid-a", MAC_A), PortSpec("tapb", 2, "uuid-b", MAC_B)]
        switch.add_bridge(BRIDGE, ports)
        yield switch, records
    finally:
        process.end(records)
        process.run(["ip", "netns", "del", netns])


@pytest.fixture(scope="module")
def switch(tmp_path_factory):
    with running_switch(f"oft-{os.getpid()}", tmp_path_factory.mktemp("oft")) as (running, _records):
        yield running


@pytest.fixture
def unixctl(switch):
    with UnixctlClient(switch.run_dir) as client:
        client.call("dpctl/flush-conntrack")  # a switch of our own: nobody else's entries are in it
        yield client


@pytest.fixture
def client(switch):
    with OpenFlowClient(switch.run_dir, BRIDGE) as connection:
        yield connection


def packet_socket(switch, device):
    def opened():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((device, 0))
        sock.settimeout(2)
        return sock

    return in_netns(switch.netns, opened)


def udp(number, dst_port=53, *, src_port=61000):
    frame = (
        Ether(src=MAC_A, dst=MAC_B) / IP(src=A, dst=B) / UDP(sport=src_port, dport=dst_port) / number.to_bytes(4, "big")
    )
    return bytes(frame)


def tcp(src_port, dst_port=80, flags="S", seq=1):
    return bytes(
        Ether(src=MAC_A, dst=MAC_B) / IP(src=A, dst=B) / TCP(sport=src_port, dport=dst_port, flags=flags, seq=seq)
    )


def numbers_seen(sock, count):
    """The numbers in the payloads of the next `count` UDP frames that came in at a socket."""
    found = []
    while len(found) < count:
        frame = sock.recv(2048)
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            found.append(int.from_bytes(frame[42:46], "big"))
    return found


def two_tables(*drops):
    """A pipeline that passes guest a's UDP to b through two tables, with a cookie of its own for each rule."""
    return [
        "cookie=0x10,table=0,priority=10,in_port=1,udp,actions=resubmit(,1)",
        "cookie=0x11,table=1,priority=10,udp,tp_dst=53,actions=output:2",
        "cookie=0x12,table=1,priority=5,actions=drop",
        *drops,
    ]


# -- packet-out and counters ------------------------------------------------------------------------------------------


@ALL_VERSIONS
def test_packet_out_runs_the_pipeline_and_the_counters_are_those_of_ovs_ofctl(switch, unixctl, version):
    switch.replace_flows(BRIDGE, two_tables())
    with packet_socket(switch, "ethb") as ethb, OpenFlowClient(switch.run_dir, BRIDGE, versions=(version,)) as client:
        assert client.version is version
        passed, dropped = (read_rule(client, unixctl, 1, cookie) for cookie in (0x11, 0x12))
        frames = [udp(i) for i in range(100)] + [udp(i, dst_port=54) for i in range(7)]
        assert client.packet_out(1, frames) == 107
        assert numbers_seen(ethb, 100) == list(range(100))
        assert read_rule(client, unixctl, 1, 0x11) - passed == 100
        assert read_rule(client, unixctl, 1, 0x12) - dropped == 7
        whole = client.aggregate(1, 0, 0)
    said = switch._run(
        ["ovs-ofctl", "--timeout=5", "-OOpenFlow15", "dump-aggregate", switch.management(BRIDGE), "table=1"]
    )
    assert f"packet_count={whole.packet_count} byte_count={whole.byte_count} flow_count={whole.flow_count}" in said
    assert whole.flow_count == 2


@ALL_VERSIONS
def test_deleting_our_flows_leaves_those_of_others(switch, version):
    switch.replace_flows(BRIDGE, two_tables())
    with OpenFlowClient(switch.run_dir, BRIDGE, versions=(version,)) as client:
        match = oxm(OxmField.ETH_TYPE, 0x0800) + oxm(OxmField.IP_DSCP, 3)
        for label in (5, 6):
            flow = FlowAdd(2, 100 + label, label, 30, match, apply_actions(output(2)))
            client.add_flow(flow)
            client.add_flow(flow)  # refreshed, not doubled
        found = {f.cookie: (f.table, f.priority, f.hard_timeout_s) for f in client.flows()}
        assert found == {NETPROBE_COOKIE | 5: (2, 105, 30), NETPROBE_COOKIE | 6: (2, 106, 30)}
        client.delete_own_flows(label=5)
        assert [f.cookie for f in client.flows()] == [NETPROBE_COOKIE | 6]
        client.delete_own_flows()
        assert client.flows() == ()
        assert sorted(f.cookie for f in client.flows(0, 0)) == [0x10, 0x11, 0x12]


@ALL_VERSIONS
def test_what_the_switch_refuses_comes_back_with_its_openflow_name(switch, version):
    with OpenFlowClient(switch.run_dir, BRIDGE, versions=(version,)) as client:
        with pytest.raises(HostNotReadyError, match="BAD_REQUEST/BAD_PORT"):
            client.packet_out(0xFFFFFF7F, [udp(1)])
        client.barrier()  # the connection lives on
        assert client.datapath_id() > 0


def test_timed_packet_outs_arrive_and_tell_when_they_left(switch, client):
    switch.replace_flows(BRIDGE, two_tables())
    frames = np.array([np.frombuffer(udp(i), np.uint8) for i in range(150)])
    with packet_socket(switch, "ethb") as ethb:
        start = time.monotonic_ns()
        due = [start + i * 1_000_000 for i in range(150)]
        done = send_packet_outs(client, frames, 1, due, cap_pps=1_000)
        assert numbers_seen(ethb, 150) == list(range(150))
    assert (done.failure, done.unconfirmed) == (None, 0)
    assert (np.diff(done.times_ns) >= 0).all()
    assert (done.times_ns > 0).all()


@ALL_VERSIONS
def test_packet_outs_by_the_block_all_arrive_in_order_and_leave_what_comes_after_alone(switch, unixctl, version):
    """Flat out, in a window of 64: not one is shed, the rule's counter agrees, and the connection works on."""
    switch.replace_flows(BRIDGE, two_tables())
    count = 3_000
    frames = np.repeat(np.frombuffer(udp(0), np.uint8)[None], count, axis=0)
    frames[:, 42:46].view(">u4")[:, 0] = np.arange(count)  # the switch does not look at checksums
    with packet_socket(switch, "ethb") as ethb, OpenFlowClient(switch.run_dir, BRIDGE, versions=(version,)) as client:
        ethb.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: all fit in unread
        passed = read_rule(client, unixctl, 1, 0x11)
        sender = PacketOutBlocks(client, 1, cap_pps=math.inf, burst_frames=None)
        times = np.concatenate([sender.send(frames[:1_000]), sender.send(frames[1_000:])])
        sender.finish()
        assert (sender.failure, sender.outstanding) == (None, 0)
        assert (times > 0).all()
        assert numbers_seen(ethb, count) == list(range(count))
        assert read_rule(client, unixctl, 1, 0x11) - passed == count


def test_a_block_that_the_switch_refuses_is_told_and_the_next_sender_works(switch, client):
    switch.replace_flows(BRIDGE, two_tables())
    frames = np.array([np.frombuffer(udp(i), np.uint8) for i in range(200)])
    with packet_socket(switch, "ethb") as ethb:
        wrong = PacketOutBlocks(client, 0xFFFFFF7F, cap_pps=math.inf)
        wrong.send(frames)
        wrong.finish()
        assert "BAD_REQUEST/BAD_PORT (and 31 more errors)" in str(wrong.failure)
        assert wrong.outstanding == 64
        right = PacketOutBlocks(client, 1, cap_pps=20_000)
        right.send(frames)
        right.finish()
        assert right.failure is None
        assert numbers_seen(ethb, 200) == list(range(200))


def test_a_switch_that_dies_on_the_way_leaves_what_was_sent_and_a_clear_error(tmp_path):
    frames = np.array([np.frombuffer(udp(i), np.uint8) for i in range(200)])
    with running_switch(f"oftx-{os.getpid()}", tmp_path) as (switch, records):
        switch.replace_flows(BRIDGE, two_tables())
        with UnixctlClient(switch.run_dir) as unixctl, OpenFlowClient(switch.run_dir, BRIDGE) as client:
            assert "ovs-vswitchd" in unixctl.call("version")
            calls = itertools.count()

            def die_on_the_way():
                if next(calls) == 100:
                    process.end(records[:2], force=True)
                return False

            done = send_packet_outs(
                client, frames, 1, list(range(0, 200_000_000, 1_000_000)), cap_pps=1_000, stopped=die_on_the_way
            )
            assert isinstance(done.failure, HostNotReadyError)
            assert "Is ovs-vswitchd running" in str(done.failure)
            assert 64 <= np.count_nonzero(done.times_ns) <= 129
            with pytest.raises(HostNotReadyError):
                client.aggregate(0, 0)
            with pytest.raises(HostNotReadyError):
                unixctl.call("version")
        with pytest.raises(HostNotReadyError, match="cannot be reached"):
            OpenFlowClient(switch.run_dir, BRIDGE)


def test_a_bridge_that_is_not_there_is_named(switch):
    with pytest.raises(HostNotReadyError, match="bridge br-none: cannot be reached"):
        OpenFlowClient(switch.run_dir, "br-none")


def test_a_bridge_that_speaks_no_version_of_ours_is_refused_clearly(switch):
    switch.vsctl("set", "bridge", BRIDGE, "protocols=OpenFlow10")
    try:
        with pytest.raises(HostNotReadyError, match=r"speak OpenFlow|closed|HELLO_FAILED"):
            OpenFlowClient(switch.run_dir, BRIDGE)
    finally:
        switch.vsctl("set", "bridge", BRIDGE, "protocols=OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15")


# -- conntrack --------------------------------------------------------------------------------------------------------

TRACKED = [
    f"table=0,priority=10,ip,ct_state=-trk,actions=ct(table=1,zone={ZONE})",
    f"table=0,priority=10,ipv6,ct_state=-trk,actions=ct(table=1,zone={ZONE})",
    f"table=1,priority=10,ip,ct_state=+new,actions=ct(commit,zone={ZONE}),output:2",
    f"table=1,priority=10,ipv6,ct_state=+new,actions=ct(commit,zone={ZONE}),output:2",
    "table=1,priority=10,ct_state=+est,actions=output:2",
]


def ours_and_others():
    """Frames of probes and of tenants that differ in one field, with the probes' tuples."""
    ether = Ether(src=MAC_A, dst=MAC_B)
    ours, others, tuples = [], [], []
    for ip, (src, dst) in ((IP(src=A, dst=B), (A, B)), (IPv6(src=A6, dst=B6), (A6, B6))):
        ends = (ip_address(src), ip_address(dst))
        for layer, number, port in ((TCP, 6, 80), (UDP, 17, 53)):
            ours.append(ether / ip / layer(sport=61000, dport=port))
            others.append(ether / ip / layer(sport=61001, dport=port))
            tuples.append(FiveTuple(number, *ends, 61000, port))
        echo, number, kind = (ICMP, 1, 8) if src == A else (ICMPv6EchoRequest, 58, 128)
        ours.append(ether / ip / echo(id=77))
        others.append(ether / ip / echo(id=78))
        tuples.append(FiveTuple(number, *ends, 77, 0, kind, 0))
    return [bytes(f) for f in ours], [bytes(f) for f in others], tuples


def test_our_entries_go_by_exact_tuple_tenants_entries_stay_and_the_switch_lives(switch, client, unixctl):
    switch.replace_flows(BRIDGE, TRACKED)
    ours, others, tuples = ours_and_others()
    client.packet_out(1, ours + others)
    table = Conntrack(unixctl)
    assert table.use().used == 12
    assert len(table.entries_matching(tuples, ZONE)) == 6
    pid = (switch.run_dir / "ovs-vswitchd.pid").read_text()

    gone = FiveTuple(17, ip_address(A), ip_address(B), 61002, 53)
    result = table.delete_own([*tuples, gone], ZONE)

    assert result.deleted == tuple(t for t in tuples if t.protocol != 58)
    assert result.absent == (gone,)
    assert result.kept == ((tuples[5], "is ICMPv6"),)
    left = table.dump(ZONE)
    assert left.bad_lines == 0
    assert [e.original for e in left.entries if e.original in tuples] == [tuples[5]]
    assert len(left.entries) == 7
    assert (switch.run_dir / "ovs-vswitchd.pid").read_text() == pid
    assert table.use().free == table.use().limit - 7


def test_entries_of_another_zone_are_not_ours(switch, client, unixctl):
    switch.replace_flows(BRIDGE, TRACKED)
    ours, _, tuples = ours_and_others()
    client.packet_out(1, ours[:1])
    assert Conntrack(unixctl).delete_own(tuples[:1], ZONE + 1).absent == (tuples[0],)
    assert Conntrack(unixctl).use().used == 1


# -- traces -----------------------------------------------------------------------------------------------------------

DENY, INVALID, PERMIT, SPOOF = 0x1AB0_0005, 0x1AB0_0006, 0x1AB0_0007, 0x1AB0_0008
RULES = {
    f"{DENY:#x}": {
        "port": "b",
        "group": "",
        "direction": "ingress",
        "rule": "no rule allows it",
        "kind": "default-deny",
    },
    f"{INVALID:#x}": {
        "port": "b",
        "group": "",
        "direction": "ingress",
        "rule": "no connection",
        "kind": "conntrack-invalid",
    },
    f"{PERMIT:#x}": {
        "port": "b",
        "group": "web",
        "direction": "ingress",
        "rule": "allow tcp 80",
        "kind": "security-group",
    },
    f"{SPOOF:#x}": {"port": "a", "group": "", "direction": "egress", "rule": "own addresses", "kind": "anti-spoofing"},
}
ACCEPT = "ct(commit,zone=NXM_NX_REG6[0..15]),output:2,resubmit(,92)"
FIREWALL = [
    "table=0,priority=0,actions=resubmit(,60)",
    f"table=60,priority=100,in_port=1,actions=load:1->NXM_NX_REG5[],load:{ZONE}->NXM_NX_REG6[],resubmit(,71)",
    f"table=71,priority=65,ip,reg5=1,nw_src={A},actions=ct(table=72,zone=NXM_NX_REG6[0..15])",
    f"cookie={SPOOF:#x},table=71,priority=10,reg5=1,actions=resubmit(,93)",
    "table=72,priority=77,ct_state=+new-est,ip,actions=load:2->NXM_NX_REG5[],resubmit(,82)",
    "table=72,priority=77,ct_state=+est,ip,actions=load:2->NXM_NX_REG5[],resubmit(,82)",
    f"cookie={INVALID:#x},table=72,priority=78,ct_state=+inv+trk,actions=resubmit(,93)",
    f"cookie={PERMIT:#x},table=82,priority=77,ct_state=+new-est,tcp,reg5=2,tp_dst=80,actions={ACCEPT}",
    f"cookie={DENY:#x},table=82,priority=40,ct_state=-est,reg5=2,actions=resubmit(,93)",
    "table=92,priority=0,actions=drop",
    "table=93,priority=0,actions=drop",
]


def question(dst_port, src=A, src_port=61000):
    macs = f"dl_src={MAC_A},dl_dst={MAC_B}"
    flow = f"in_port=1,tcp,{macs},nw_src={src},nw_dst={B},nw_ttl=64,tcp_src={src_port},tcp_dst={dst_port},tcp_flags=syn"
    return flow, FiveTuple(6, ip_address(src), ip_address(B), src_port, dst_port)


@pytest.mark.parametrize(
    ("dst_port", "src", "code", "cookie"),
    [
        (8080, A, ReasonCode.SECURITY_GROUP, DENY),
        (80, "10.0.0.9", ReasonCode.ANTI_SPOOFING, SPOOF),
        (80, A, ReasonCode.LINK_LOSS, None),
    ],
)
def test_a_trace_names_the_rule_that_a_firewall_drops_by(switch, unixctl, dst_port, src, code, cookie):
    switch.replace_flows(BRIDGE, FIREWALL)
    trace = trace_probe(unixctl, BRIDGE, *question(dst_port, src), ())
    assert trace.unread_lines == 0
    reason = explain(trace, RULES, expected_port="tapb")
    assert (reason.code, reason.cookie) == (code, cookie)
    assert trace.verdict is (Verdict.FORWARDED if cookie is None else Verdict.DROPPED)


def test_the_state_of_the_real_conntrack_table_decides_the_trace(switch, client, unixctl):
    switch.replace_flows(BRIDGE, FIREWALL)
    flow, tuple_ = question(80)
    client.packet_out(1, [tcp(61000)])
    answer = Ether(src=MAC_B, dst=MAC_A) / IP(src=B, dst=A) / TCP(sport=80, dport=61000, flags="SA", seq=9, ack=2)
    switch.replace_flows(BRIDGE, [*FIREWALL, f"table=0,priority=9,in_port=2,ip,actions=ct(table=99,zone={ZONE})"])
    client.packet_out(2, [bytes(answer)])
    entries = Conntrack(unixctl).dump(ZONE).entries
    assert [e.state for e in entries] == ["ESTABLISHED"]
    trace = trace_probe(unixctl, BRIDGE, flow, tuple_, entries)
    assert explain(trace, RULES).code is ReasonCode.CONNTRACK_INVALID
    client.packet_out(1, [tcp(61000, seq=0x7777_7777)])
    assert read_rule(client, unixctl, 72, INVALID) == 1  # and so does the switch


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_kind_of_probe_can_be_asked_about(switch, unixctl, protocol, family):
    ips = (A, B) if family == 4 else (A6, B6)
    number = {Protocol.TCP: 6, Protocol.ICMP: 1 if family == 4 else 58}.get(protocol, 17)
    ports = "" if protocol is Protocol.ICMP else ",tp_src=61003,tp_dst=443"
    matches = f"{'eth_type=0x0800' if family == 4 else 'eth_type=0x86dd'},ip_proto={number},ip_dscp=3{ports}"
    switch.replace_flows(
        BRIDGE, [f"cookie=0x21,priority=9,in_port=1,dl_src={MAC_A},dl_dst={MAC_B},{matches},actions=output:2"]
    )
    type_p = TypeP(protocol, family, 200, 3, 61003, 443, Flow.SAME)
    macs = (bytes.fromhex(mac.replace(":", "")) for mac in (MAC_A, MAC_B))
    session = ProbeSession(7, bytes(16), type_p, *macs, *map(ip_address, ips), 1)
    trace = trace_probe(unixctl, BRIDGE, probe_flow(session, 0, 1), five_tuple(session, 0), ())
    assert (trace.ports, trace.steps[-1].cookie) == (("tapb",), 0x21)


def test_a_question_that_the_switch_does_not_understand_is_refused(unixctl):
    with pytest.raises(CommandError, match="unknown field foo"):
        trace_flow(unixctl, BRIDGE, "foo=1")
    with pytest.raises(CommandError):
        trace_flow(unixctl, "br-none", "in_port=1")


# -- counter patterns -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tenant(switch, frame, pps):
    """A tenant on guest a's NIC that sends all the while, in bursts of its own."""
    stop, begun = threading.Event(), threading.Event()
    rng = random.Random(5)

    def send():
        with packet_socket(switch, "etha") as etha:
            while not stop.wait(rng.expovariate(pps / 2)):
                for _ in range(rng.randrange(1, 4)):
                    etha.send(frame)
                begun.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert begun.wait(5)
        yield
    finally:
        stop.set()
        thread.join()


DROP_THE_REST = {"0x12": {"group": "web", "rule": "drop the rest", "kind": "default-deny"}}


def burst_frames(count, dst_port):
    return np.array([np.frombuffer(udp(i, dst_port), np.uint8) for i in range(count)])


def test_our_pattern_confirms_a_rule_that_a_tenant_hits_all_the_while(switch, client, unixctl):
    switch.replace_flows(BRIDGE, two_tables())
    with tenant(switch, udp(0, dst_port=54, src_port=40000), pps=20):
        pattern = fit_pattern(11, max(read_noise(client, unixctl, 1, 0x12), 20))
        send = paced_sender(client, burst_frames(pattern.total, 54), 1, cap_pps=2_000)
        result = probe_rule(client, unixctl, pattern, send, table=1, cookie=0x12)
    assert result.sent == pattern.sizes
    assert sum(result.deltas) > pattern.total  # the tenant did hit the same rule
    assert result.verdict is PatternVerdict.CONFIRMED
    flow = f"in_port=1,udp,nw_src={A},nw_dst={B},udp_src=61000,udp_dst=54"
    trace = trace_probe(unixctl, BRIDGE, flow, FiveTuple(17, ip_address(A), ip_address(B), 61000, 54), ())
    reason = explain(trace, DROP_THE_REST, result)
    assert (reason.code, reason.evidence) == (ReasonCode.SECURITY_GROUP, Evidence.COUNTER_PATTERN)
    assert reason.rule == "[web]: drop the rest"


def test_a_tenant_alone_never_confirms_a_rule_that_our_probes_do_not_take(switch, client, unixctl):
    switch.replace_flows(BRIDGE, two_tables())
    pattern = make_pattern(12)
    with tenant(switch, udp(0, dst_port=54, src_port=40000), pps=200):
        send = paced_sender(client, burst_frames(pattern.total, 53), 1, cap_pps=2_000)
        result = probe_rule(client, unixctl, pattern, send, table=1, cookie=0x12)
    assert sum(result.deltas) > 0
    assert result.verdict in (PatternVerdict.UNDECIDED, PatternVerdict.NOT_HIT)


def test_a_pattern_is_counted_exactly_behind_conntrack_too(switch, client, unixctl):
    """Behind a recirculation the datapath's megaflows count, and only revalidators push that into the tables."""
    switch.replace_flows(BRIDGE, FIREWALL)
    pattern = make_pattern(13, slots=9)
    frames = np.array([np.frombuffer(tcp(62000 + i, 8080), np.uint8) for i in range(pattern.total)])
    send = paced_sender(client, frames, 1, cap_pps=2_000)
    result = probe_rule(client, unixctl, pattern, send, table=82, cookie=DENY)
    assert result.deltas == pattern.sizes
    assert result.verdict is PatternVerdict.CONFIRMED
