"""What the enforcement's own rules say of random packets, against the reference evaluator: three labs, one policy.

Asked are the switch's tables, OVN's databases and iptables as they really are; nothing is sent.
"""

import random
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio

from netprobe.judge.evaluator import Evaluator
from netprobe.lab import config, control
from netprobe.lab.topology import bound_policy, endpoints
from netprobe.model.conntrack_rules import ANSWERS
from netprobe.model.model_answers import ModelQuestion
from netprobe.model.packets import ACK, SYN, ConnState, Kind, Neighbour, Packet, Stage
from netprobe.model.policy import ICMP, ICMPV6, SCTP, TCP, UDP
from netprobe.service.discovery import read_topology
from netprobe.service.policy_models import ModelAsker

pytestmark = pytest.mark.system

PORTS = (21, 22, 23, 79, 80, 81, 443, 444, 862, 4999, 5000, 5003, 5009, 5010)
RATES = {"single": 500, "bridge": 500, "pair": 100}
"""Questions a second that a verification needs."""


@pytest.fixture
def bridge_lab(lab_place):
    """The same guests behind Linux bridges, guarded by iptables."""
    if control.status().state.get("name", "bridge") != "bridge":
        control.down()
    return control.up("bridge")


def some_packet(rng, src, dst, family):
    """A packet between two guests of one network, its addresses now and then another's."""
    protocol = rng.choice((TCP, TCP, UDP, UDP, ICMP if family == 4 else ICMPV6, SCTP, 47, 33))
    flags, kind = (rng.choice((SYN, ACK)), 0) if protocol == TCP else (0, 0)
    if protocol in (ICMP, ICMPV6):
        kind = rng.choice(sorted(ANSWERS[family]))
    has_ports = protocol in (TCP, UDP, SCTP, 33)
    source = rng.choice((src, src, src, src, dst))
    return Packet(
        src_mac=rng.choice((src, src, src, source)).mac,
        dst_mac=dst.mac,
        src_ip=source.address(family),
        dst_ip=dst.address(family),
        protocol=protocol,
        src_port=rng.randrange(61000, 65536) if has_ports else 0,
        dst_port=rng.choice(PORTS) if has_ports else 0,
        icmp_type=kind,
        tcp_flags=flags,
    )


def some_questions(topology, policy, count, seed=7):
    rng = random.Random(seed)
    names = {port.name for port in policy.ports}
    guests = [guest for guest in topology.guests if guest.name in names]
    pairs = [(a, b) for a in guests for b in guests if a is not b and a.network == b.network]
    for number in range(count):
        src, dst = rng.choice(pairs)
        packet = some_packet(rng, src, dst, rng.choice((4, 6)))
        state = rng.choice((ConnState.NEW, ConnState.NEW, ConnState.NEW, ConnState.ESTABLISHED, ConnState.REPLY))
        yield ModelQuestion(packet, src, dst, state, number)


def ask(questions):
    async def go():
        with ModelAsker() as asker:
            await asker.ask(questions[:200], read_topology())  # what OVN's databases say is read once
            begin = time.monotonic()
            answers = await asker.ask(questions, read_topology())
            return answers, len(questions) / (time.monotonic() - begin)

    return trio.run(go)


def check(name):
    topology = read_topology()
    lab_config = config.load(name)
    policy = bound_policy(lab_config, endpoints(lab_config))
    evaluator = Evaluator(policy)
    questions = list(some_questions(topology, policy, 2000))
    answers, rate = ask(questions)
    wrong, elsewhere = [], []
    for question, answer in zip(questions, answers, strict=True):
        expected = evaluator.decide(question.packet, question.src.name, question.dst.name, question.state)
        if name == "bridge" and question.state is ConnState.ESTABLISHED and not expected.is_allowed:
            continue  # inherent: iptables let an established connection live on without a rule
        if answer.is_allowed is not expected.is_allowed:
            wrong.append((question.state.value, question.packet.text(), expected.point, answer))
        elif not expected.is_allowed and answer.point != expected.point:
            elsewhere.append((question.packet.text(), str(expected.point), str(answer.point), answer.place))
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert not elsewhere, f"{len(elsewhere)}: {elsewhere[:5]}"
    named = [answer for answer in answers if answer.kind == "security-group"]
    ids = {rule.id for group in policy.groups for rule in group.rules}
    assert named
    assert {answer.rule_id for answer in named} <= ids
    assert {answer.evidence for answer in answers} == {"predicted"}
    assert rate >= RATES[name]
    print(f"{name}: {rate:.0f} questions/s, {sum(a.is_allowed for a in answers)} of {len(answers)} pass")


def test_the_switchs_tables_say_what_the_evaluator_says(lab):
    check("single")


def test_iptables_say_what_the_evaluator_says(bridge_lab):
    """Apart from connections that are established already, which iptables ask no rule about."""
    check("bridge")


def test_ovn_says_what_the_evaluator_says(pair_lab):
    check("pair")


def arp(topology, spa):
    src, dst = topology.guests[0], topology.guests[1]
    body = Neighbour(src.mac, ip_address(spa), dst.ipv4)
    packet = Packet(src.mac, dst.mac, src.ipv4, dst.ipv4, 0, kind=Kind.ARP, neighbour=body)
    return ModelQuestion(packet, src, dst, ConnState.NEW)


def test_spoofed_arp_is_stopped_at_its_senders_port(lab):
    topology = read_topology()
    honest, spoofed = ask([arp(topology, "10.0.0.1"), arp(topology, "10.0.0.9")])[0]
    assert honest.is_allowed is True
    assert (spoofed.is_allowed, spoofed.point.stage, spoofed.point.port) == (False, Stage.ANTI_SPOOFING, "vm1")


def test_ovn_answers_a_question_for_an_address_in_the_targets_stead(pair_lab):
    topology = read_topology()
    question = arp(topology, str(topology.guests[0].ipv4))
    question = replace(question, packet=replace(question.packet, dst_mac="ff:ff:ff:ff:ff:ff"))
    (answer,) = ask([question])[0]
    assert (answer.is_allowed, answer.kind) == (False, "answered")
