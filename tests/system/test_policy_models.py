"""What the enforcement's own rules say of random packets, against the reference evaluator: 40 rules, three labs.

Asked are the switch's tables, OVN's databases and iptables as they really are; nothing is sent.
"""

import random
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio
from support.policy_texts import forty_file

from netprobe.host.ovn_consistency import OvnConsistency
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

COUNT = 3000


@pytest.fixture(scope="module", params=("single", "bridge", "pair"))
def forty_lab(request, lab_place, tmp_path_factory):
    """Each lab in turn, with the policy of 40 rules: its name and its configuration."""
    control.down()
    path = forty_file(tmp_path_factory.mktemp("policy"), request.param)
    control.up(request.param, config_path=path)
    yield request.param, config.load(request.param, path)
    control.down()


def boundaries(policy):
    """Ports at and next to the ends of each rule's."""
    ends = {port for group in policy.groups for rule in group.rules for port in rule.ports or ()}
    ends |= {port for acl in policy.acls for match in acl.matches for port in match.dst_ports or ()}
    return sorted({min(max(port + step, 1), 65535) for port in ends for step in (-1, 0, 1)})


def some_packet(rng, src, dst, family, ports):
    """A packet between two guests of one network, its addresses now and then another's."""
    protocol = rng.choice((TCP, TCP, TCP, UDP, UDP, ICMP if family == 4 else ICMPV6, SCTP, 47, 33))
    kind = rng.choice(sorted(ANSWERS[family])) if protocol in (ICMP, ICMPV6) else 0
    has_ports = protocol in (TCP, UDP, SCTP, 33)
    liar = rng.random() < 0.1
    source = dst if liar else src
    return Packet(
        src_mac=rng.choice((src, source)).mac,
        dst_mac=dst.mac,
        src_ip=source.address(family),
        dst_ip=dst.address(family),
        protocol=protocol,
        src_port=rng.randrange(61000, 65536) if has_ports else 0,
        dst_port=rng.choice(ports) if has_ports else 0,
        icmp_type=kind,
        tcp_flags=rng.choice((SYN, ACK)) if protocol == TCP else 0,
    )


def error_about(packet):
    """An ICMP error of the packet's sender about one that it got."""
    is_v4 = packet.family == 4
    plain = replace(packet, src_port=0, dst_port=0, tcp_flags=0, quoted=packet.reversed())
    return replace(plain, protocol=ICMP if is_v4 else ICMPV6, icmp_type=3 if is_v4 else 1, icmp_code=3 if is_v4 else 4)


def some_questions(topology, policy, count, seed=7):
    rng = random.Random(seed)
    names = {port.name for port in policy.ports}
    guests = [guest for guest in topology.guests if guest.name in names]
    pairs = [(a, b) for a in guests for b in guests if a is not b and a.network == b.network]
    ports = boundaries(policy)
    for number in range(count):
        src, dst = rng.choice(pairs)
        packet = some_packet(rng, src, dst, rng.choice((4, 6)), ports)
        state = rng.choice((ConnState.NEW, ConnState.NEW, ConnState.NEW, *ConnState))
        if state is ConnState.RELATED:
            packet = error_about(packet)
        yield ModelQuestion(packet, src, dst, state, number)


def ask(questions):
    async def go():
        with ModelAsker() as asker:
            await asker.ask(questions[:200], read_topology())  # what OVN's databases say is read once
            begin = time.monotonic()
            answers = await asker.ask(questions, read_topology())
            return answers, len(questions) / (time.monotonic() - begin)

    return trio.run(go)


def test_the_enforcements_own_rules_say_what_the_evaluator_says(forty_lab):
    """Passes or not, at which point it is stopped, and by which of the user's rules it is let in.

    With iptables, connections that are established already are left out: no rule is asked about them.
    """
    name, lab_config = forty_lab
    policy = bound_policy(lab_config, endpoints(lab_config))
    evaluator = Evaluator(policy)
    questions = list(some_questions(read_topology(), policy, COUNT))
    answers, rate = ask(questions)
    wrong, elsewhere, other_rule, seen = [], [], [], Counter()
    for question, answer in zip(questions, answers, strict=True):
        expected = evaluator.decide(question.packet, question.src.name, question.dst.name, question.state)
        if name == "bridge" and question.state is ConnState.ESTABLISHED and not expected.is_allowed:
            continue
        if name == "pair" and answer.kind == "conntrack-invalid" and answer.point.port == question.src.name:
            assert not expected.is_allowed  # inherent: a stateful switch of OVN's asks so at every port, guarded or not
            continue
        seen[expected.is_allowed, expected.point.stage] += 1
        what = (question.state.value, question.packet.text(), expected.checks[-1], answer)
        if answer.is_allowed is not expected.is_allowed:
            wrong.append(what)
        elif not expected.is_allowed and answer.point != expected.point:
            elsewhere.append(what)
        elif answer.kind == "security-group" and question.state is ConnState.NEW:
            permits = {rule.id for group in policy.groups for rule in group.rules}
            other_rule += [what] if answer.rule_id not in permits else []
    assert not wrong, f"{len(wrong)}: {wrong[:3]}"
    assert not elsewhere, f"{len(elsewhere)}: {elsewhere[:3]}"
    assert not other_rule, f"{len(other_rule)}: {other_rule[:3]}"
    assert all(count > 20 for count in seen.values()), seen
    print(f"{name}: {rate:.0f} questions/s, {dict(seen)}")


@pytest.mark.parametrize("forty_lab", ["pair"], indirect=True)
def test_ovns_chassis_have_all_flows_of_forty_rules(forty_lab):
    topology = read_topology()
    assert OvnConsistency(topology.ovn).check(topology.hosts) == []


def arp(topology, spa):
    src, dst = (topology.guest(name, "test") for name in ("vm1", "vm2"))
    body = Neighbour(src.mac, ip_address(spa), dst.ipv4)
    packet = Packet(src.mac, dst.mac, src.ipv4, dst.ipv4, 0, kind=Kind.ARP, neighbour=body)
    return ModelQuestion(packet, src, dst, ConnState.NEW)


def test_spoofed_arp_is_stopped_at_its_senders_port_and_ovn_answers_honest_questions_itself(forty_lab):
    topology = read_topology()
    honest = arp(topology, str(topology.guest("vm1", "test").ipv4))
    asking = replace(honest, packet=replace(honest.packet, dst_mac="ff:ff:ff:ff:ff:ff"))
    spoofed, asked = ask([arp(topology, "10.1.0.77"), asking])[0]
    assert (spoofed.is_allowed, spoofed.point.stage, spoofed.point.port) == (False, Stage.ANTI_SPOOFING, "vm1")
    answered = "answered" if forty_lab[0] == "pair" else "plumbing"
    assert (asked.is_allowed, asked.kind) == (forty_lab[0] != "pair", answered)
