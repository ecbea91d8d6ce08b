"""An iptables verdict as an answer about a policy: the chain, the user's rule by its comment, and the point."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.state_files import OLD

from netprobe.errors import HostNotReadyError
from netprobe.judge.iptables_conditions import Crossing
from netprobe.judge.iptables_rules import parse_rules, parse_sets
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import SYN, ConnState, EnforcementPoint, Kind, Neighbour, Packet, Stage
from netprobe.model.points import Point, PointKind
from netprobe.service import bridge_models
from netprobe.service.bridge_models import Bridges, HostRules, crossing_of, is_behind_bridge
from netprobe.service.discovery import topology_of

DATA = Path(__file__).parent / "data"
RULES = parse_rules((DATA / "iptables_hybrid.txt").read_text())
READ = HostRules(
    {4: RULES, 6: parse_rules("")},
    parse_sets((DATA / "ipset_hybrid.txt").read_text()),
    parse_rules(""),
)
KNOWN = {"web[0]": {"id": "web[0]", "rule": "ingress tcp dport 22 from any", "kind": "security-group", "port": "b"}}
TOPOLOGY = replace(topology_of(OLD), rules=KNOWN)
GUEST = TOPOLOGY.guests[0]


def hybrid(letter, mac):
    chain = (
        Point(f"{letter}.guest", PointKind.GUEST, letter, letter, "eth0"),
        Point(f"{letter}.backend", PointKind.BACKEND, "hv1", "hv1", f"tap{letter}"),
        Point(f"{letter}.bridge", PointKind.BRIDGE, "hv1", "hv1", f"qvb{letter}"),
    )
    return replace(GUEST, name=letter, mac=mac, port_device=f"qvo{letter}", chain=chain)


A, B = hybrid("a", "fa:16:3e:00:01:11"), hybrid("b", "fa:16:3e:00:01:12")
PACKET = Packet(A.mac, B.mac, ip_address("10.0.1.11"), ip_address("10.0.1.12"), 6, 61000, 22, tcp_flags=SYN)


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(bridge_models, "read_host", lambda _host: READ)


FORWARDED = ModelAnswer(True, host="hv1", place="table 60")


def ask(state=ConnState.NEW, between=FORWARDED, **changes):
    question = ModelQuestion(replace(PACKET, **changes), A, B, state)
    return Bridges([question], TOPOLOGY).answer(question, between)


def test_a_bridge_is_crossed_from_the_tap_and_to_it():
    assert crossing_of(A, is_out=True) == Crossing("qbra", "tapa", "qvba")
    assert crossing_of(A, is_out=False) == Crossing("qbra", "qvba", "tapa")
    assert is_behind_bridge(A)
    assert not is_behind_bridge(GUEST)


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (ConnState.NEW, {}, (True, "ib", "security-group", "b", Stage.INGRESS)),
        (ConnState.NEW, {"dst_port": 23}, (False, "ib", "default-deny", "b", Stage.INGRESS)),
        (ConnState.REPLY, {"dst_port": 23}, (True, "ib", "plumbing", "b", Stage.INGRESS)),
        (ConnState.NEW, {"src_mac": B.mac}, (False, "sa", "anti-spoofing", "a", Stage.ANTI_SPOOFING)),
    ],
)
def test_the_first_bridge_that_stops_it_answers_else_the_targets(host, state, changes, expected):
    answer = ask(state, **changes)
    is_allowed, chain, kind, port, stage = expected
    assert (answer.is_allowed, answer.chain, answer.kind) == (is_allowed, f"neutron-openvswi-{chain}", kind)
    assert answer.point == EnforcementPoint(port, stage)
    assert answer.place.startswith(f"chain neutron-openvswi-{chain}, rule ")


def test_a_comment_names_the_users_rule(host):
    answer = ask()
    assert (answer.rule_id, answer.rule) == ("web[0]", "ingress tcp dport 22 from any")
    assert "--dports 22,8000:8007" in answer.match


def test_arp_passes_where_no_rule_looks_at_frames(host):
    body = Neighbour(A.mac, PACKET.src_ip, PACKET.dst_ip)
    assert ask(kind=Kind.ARP, protocol=0, neighbour=body).is_allowed is True


def test_what_the_vswitch_drops_between_the_bridges_is_the_vswitchs_unless_the_first_stopped_it(host):
    dropped = ModelAnswer(False, host="hv1", place="table 25")
    assert ask(between=dropped) == dropped
    assert ask(between=dropped, dst_port=23) == dropped
    assert ask(between=dropped, src_mac=B.mac).chain == "neutron-openvswi-sa"


def test_a_host_that_cannot_be_read_makes_an_answer_that_says_so(monkeypatch):
    def refuse(_host):
        raise HostNotReadyError("command iptables-save", "is not installed")

    monkeypatch.setattr(bridge_models, "read_host", refuse)
    answer = ask()
    assert (answer.is_allowed, "iptables-save" in answer.detail) == (None, True)


def test_a_condition_that_is_not_known_is_named(monkeypatch):
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m owner --uid-owner 7 -j DROP\nCOMMIT\n"
    monkeypatch.setattr(bridge_models, "read_host", lambda _host: replace(READ, by_family={4: parse_rules(text)}))
    answer = ask()
    assert (answer.is_allowed, "-m owner" in answer.detail) == (None, True)
