"""What a switch lacks of what OVN's database wants there: flows in the shape that OVN 23.03 makes them, some taken out.

A logical flow about two ports, with a range of ports or addresses, becomes a conjunction; about one port it becomes
single flows.
"""

from dataclasses import replace

import pytest

from netprobe.judge.ovn_consistency import (
    Lack,
    LocalPort,
    Southbound,
    WantedFlow,
    compare_flows,
    parse_flows,
)
from netprobe.judge.ovn_flows import EGRESS, LogicalFlow

SECURED = "fa:16:3e:00:00:01 10.1.0.1 fd00::1"
A = LocalPort("a", "aaaaaaaa-0", 1, 2, SECURED)
B = LocalPort("b", "bbbbbbbb-0", 1, 6, SECURED)


def lflow(uuid, match, priority=2002):
    return LogicalFlow(f"{uuid}-0000", EGRESS, 4, priority, match, "next;", "ls_out_acl", "11111111")


WEB = lflow("e2c456ac", "reg0[7] == 1 && (outport == @web && tcp && tcp.dst == 80)")
RANGE = lflow("8cfb9b62", "reg0[7] == 1 && (outport == @web && udp && 5000 <= udp.dst <= 5001)")
PEERS = lflow("0369898b", "reg0[7] == 1 && (outport == @none && ip4 && ip4.src == $nobody_ip4)")
ESTABLISHED = lflow("2f437883", "ct.est && ct.rpl", 65532)
WANTED = Southbound(
    tuple(WantedFlow(flow, (1, 9)) for flow in (WEB, RANGE, PEERS, ESTABLISHED)),
    {"1_web": ("a", "b", "far"), "9_web": ("elsewhere",)},
    {"nobody_ip4": ()},
    {1: "net1", 9: "net9"},
)


def security(port):
    lines = []
    for table, register in ((73, "reg14"), (74, "reg14"), (75, "reg15")):
        where = f" cookie=0x{port.uuid[:8]}, table={table}"
        rest = f"{register}={port.key:#x},metadata=0x1"
        lines += [f"{where}, priority=80,{rest} actions=set_field:0x1000/0x1000->reg10"]
        lines += [
            f"{where}, priority=90,ip,{rest},dl_src=fa:16:3e:00:00:0{port.key},nw_src=10.1.0.{port.key} actions=x"
        ]
    return lines


FLOWS = [
    *(
        f" cookie=0xe2c456ac, table=46, priority=2002,{word},reg0=0x80/0x80,reg15={key},metadata=0x1,tp_dst=80 actions="
        for word in ("tcp", "tcp6")
        for key in ("0x2", "0x6")
    ),
    *(
        f" table=46, priority=2002,{word},reg0=0x80/0x80,reg15={key},metadata=0x1 actions=conjunction({number},1/2)"
        for word, number in (("udp", 77), ("udp6", 78))
        for key in ("0x2", "0x6")
    ),
    *(
        f" table=46, priority=2002,{word},reg0=0x80/0x80,metadata=0x1,tp_dst={port} actions=conjunction({number},2/2)"
        for word, number in (("udp", 77), ("udp6", 78))
        for port in (5000, 5001)
    ),
    " cookie=0x8cfb9b62, table=46, priority=2002,conj_id=77,udp,reg0=0x80/0x80,metadata=0x1 actions=resubmit(,47)",
    " cookie=0x8cfb9b62, table=46, priority=2002,conj_id=78,udp6,reg0=0x80/0x80,metadata=0x1 actions=resubmit(,47)",
    " cookie=0x2f437883, table=46, priority=65532,ct_state=+est+rpl+trk,metadata=0x1 actions=resubmit(,47)",
    *security(A),
    *security(B),
]


def compare(flows, ports=(A, B), wanted=WANTED):
    return compare_flows(wanted, ports, parse_flows("OFPST_FLOW reply (OF1.5):\n" + "\n".join(flows)))


def without(*words):
    return [line for line in FLOWS if not all(word in line for word in words)]


def test_a_switch_that_has_all_is_not_complained_about():
    """Not even for an address set that is empty, and a datapath that has no port here."""
    assert compare(FLOWS) == []


def test_both_forms_of_a_dump_are_read():
    line = " cookie=0xe2, duration=1.5s, table=46, n_packets=3, n_bytes=42, idle_age=9, priority=5,tcp,metadata=0x1"
    (long,) = parse_flows(line + ",reg15=0x2 actions=resubmit(,47)")
    (short,) = parse_flows(" cookie=0xe2, table=46, priority=5,tcp,metadata=0x1,reg15=0x2 actions=resubmit(,47)")
    assert long == short
    assert (long.cookie, long.table, long.priority, long.metadata, long.port, long.rest) == (0xE2, 46, 5, 1, 2, "tcp")
    assert parse_flows("OFPST_FLOW reply (OF1.5) (xid=0x6): flags=[more]\novs-ofctl: is gone\n") == ()


def test_a_logical_flow_without_any_flow_is_missing_at_its_local_ports():
    (found,) = compare(without("0xe2c456ac"))
    assert (found.lack, found.flow, found.switch, found.ports) == (Lack.MISSING, WEB, "net1", ("a", "b"))


@pytest.mark.parametrize(
    ("words", "said", "ports"),
    [
        (("0xe2c456ac", "reg15=0x6"), "port b lacks", ("b",)),
        (("0xe2c456ac", "tcp6", "reg15=0x6"), "port b lacks tcp6", ("b",)),
        (("0xe2c456ac", "tcp6"), "one address family lacks", ()),
        (("conjunction(77,1/2)",), "clause 1 of 2", ()),
        (("conjunction(77,1/2)", "reg15=0x6"), "lacks port b", ("b",)),
        (("conjunction(78,2/2)", "tp_dst=5001"), "one address family lacks a clause", ()),
        (("conj_id=78",), "", None),
    ],
)
def test_a_flow_that_its_like_have_is_missed(words, said, ports):
    found = compare(without(*words))
    if ports is None:  # nothing is known of a conjunction whose end is gone, but its clauses serve nobody
        assert found == []
        return
    assert Lack.INCOMPLETE in {one.lack for one in found}
    assert any(said in one.detail and one.ports == ports for one in found)


ONE_PORT = [
    (uuid, bit, f"reg0[{bit}] == 1 && (outport == @db && tcp && 3306 <= tcp.dst <= 3307 && ip4.src == $peers_ip4)")
    for uuid, bit in (("51111111", 7), ("52222222", 8))
]


def compare_hints(lost=lambda _line: False):
    """An ACL about one port: single flows for each source and port, for new packets and for those of connections."""
    flows = tuple(WantedFlow(lflow(uuid, match), (1,)) for uuid, _, match in ONE_PORT)
    wanted = replace(WANTED, flows=flows, groups={"1_db": ("a",)}, sets={"peers_ip4": ("10.1.0.3", "10.1.0.4")})
    lines = [
        f" cookie=0x{uuid}, table=46, priority=2002,tcp,reg0={1 << bit:#x}/{1 << bit:#x},reg15=0x2,metadata=0x1,"
        f"nw_src=10.1.0.{source},tp_dst={port} actions=resubmit(,47)"
        for uuid, bit, _ in ONE_PORT
        for source in (3, 4)
        for port in (3306, 3307)
    ]
    return compare([*security(A), *security(B), *(line for line in lines if not lost(line))], wanted=wanted)


def test_a_flow_for_packets_of_connections_alone_is_missed_since_new_ones_have_it():
    assert compare_hints() == []
    (found,) = compare_hints(lambda line: "0x52222222" in line and "tp_dst=3307" in line and ".0.3" in line)
    assert (found.lack, found.flow.uuid[:8]) == (Lack.INCOMPLETE, "51111111")
    assert "there for reg0[7], not for reg0[8]: tcp,nw_src=10.1.0.3,tp_dst=3307 (" in found.detail
    (found,) = compare_hints(lambda line: "0x52222222" in line)
    assert (found.lack, found.flow.uuid[:8]) == (Lack.MISSING, "52222222")


def test_what_all_have_lost_alike_is_not_seen_here():
    """The page says so: probes find it."""
    assert compare(without("tp_dst=5001")) == []


def test_a_twin_that_is_there_stands_for_a_logical_flow():
    """OVN installs one of two logical flows that match the same."""
    twin = replace(WEB, uuid="12345678-0000", match=WEB.match.replace("@web", "@web2"))
    groups = dict(WANTED.groups) | {"1_web2": ("a", "b")}
    wanted = replace(WANTED, flows=(*WANTED.flows, WantedFlow(twin, (1,))), groups=groups)
    assert compare(FLOWS, wanted=wanted) == []


def test_port_security_that_is_off_or_has_a_hole_is_told_by_port():
    (off,) = compare(without("0xbbbbbbbb"))
    assert (off.lack, off.ports, "is off" in off.detail) == (Lack.MISSING, ("b",), True)
    (hole,) = compare(without("0xbbbbbbbb", "table=73", "priority=80"))
    assert (hole.lack, hole.ports) == (Lack.INCOMPLETE, ("b",))
    open_port = replace(B, security="")
    assert compare(without("0xbbbbbbbb"), ports=(A, open_port)) == []


def test_a_flow_that_nobody_wants_is_told():
    (found,) = compare(
        [*FLOWS, " cookie=0x77, table=46, priority=3000,tcp,metadata=0x1,tp_dst=99 actions=resubmit(,47)"]
    )
    assert (found.lack, "0x77" in found.detail) == (Lack.EXTRA, True)
