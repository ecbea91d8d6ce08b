"""What a trace says of a policy's packet: passes or not, by whose rule, at which port; recorded traces, no switch."""

from contextlib import nullcontext
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from support.state_files import OLD

from netprobe.errors import HostNotReadyError
from netprobe.host.ovn_rule_index import OvnRuleIndex
from netprobe.host.unixctl import CommandError
from netprobe.judge.ofproto_trace import Trace, parse_trace
from netprobe.judge.trace_answer import answer_of
from netprobe.model.model_answers import ModelQuestion
from netprobe.model.packets import SYN, ConnState, EnforcementPoint, Packet, Stage
from netprobe.model.topology import OvnPlaces
from netprobe.service.discovery import topology_of
from netprobe.service.policy_models import ModelAsker

DATA = Path(__file__).parent / "data"
TOPOLOGY = topology_of(OLD)
VM1 = TOPOLOGY.guests[0]
VM2 = replace(VM1, name="vm2", mac="fa:16:3e:00:00:02", port_device="tapb", ofport=2)
PACKET = Packet(VM1.mac, VM2.mac, ip_address("10.0.0.1"), ip_address("10.0.0.2"), 6, 61000, 80, tcp_flags=SYN)
NEW = ModelQuestion(PACKET, VM1, VM2, ConnState.NEW)
DENY = 0x1AB0000000022005
RULES = {
    f"{DENY:#x}": {"port": "vm2", "id": "default deny", "direction": "ingress", "rule": "no", "kind": "default-deny"}
}


def text(name):
    return (DATA / f"trace_{name}.txt").read_text()


class Switch:
    """Answers every question with one text, and remembers the questions."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def call(self, *words):
        self.asked.append(words)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call_each(self, command, arguments):
        found = []
        for words in arguments:
            try:
                found.append(self.call(command, *words))
            except CommandError as error:
                found.append(error)
            except HostNotReadyError as error:
                return found + [error] * (len(arguments) - len(found))
        return found


def ask(switch, *questions, topology=TOPOLOGY):
    async def go():
        with ModelAsker(switches=lambda _host: nullcontext(switch)) as asker:
            return await asker.ask(questions, topology)

    return trio.run(go)


def test_a_drop_names_the_rule_the_user_wrote_and_the_point_where_it_holds():
    (answer,) = ask(Switch(text("default_deny")), NEW, topology=replace(TOPOLOGY, rules=RULES))
    assert (answer.is_allowed, answer.host, answer.place, answer.cookie) == (False, "hv1", "table 82", f"{DENY:#x}")
    assert (answer.rule_id, answer.kind, answer.priority) == ("default deny", "default-deny", 40)
    assert answer.point == EnforcementPoint("vm2", Stage.INGRESS)
    assert answer.evidence == "predicted"


def test_without_a_map_of_rules_the_table_still_says_where():
    (answer,) = ask(Switch(text("anti_spoofing")), NEW)
    assert answer.is_allowed is False
    assert answer.point == EnforcementPoint("vm1", Stage.ANTI_SPOOFING)
    assert (answer.rule, answer.rule_id) == ("", "")


def test_a_packet_that_goes_to_another_port_did_not_arrive_and_the_answer_says_where_it_went():
    (there,) = ask(Switch(text("forwarded")), NEW)
    assert there.is_allowed is True
    elsewhere = ask(Switch(text("forwarded")), replace(NEW, dst=replace(VM2, port_device="tapc")))[0]
    assert (elsewhere.is_allowed, elsewhere.detail) == (False, "the switch sends it to tapb")


def test_the_state_goes_with_every_pass_and_no_conntrack_table_is_read():
    switch = Switch(text("forwarded"))
    ask(switch, *[replace(NEW, state=state) for state in ConnState])
    assert {words[0] for words in switch.asked} == {"ofproto/trace"}
    states = [words[words.index("--ct-next") + 1] for words in switch.asked]
    assert states == ["trk,new", "trk,est", "trk,est,rpl", "trk,rel,rpl", "trk,inv"]


@pytest.mark.parametrize(
    ("error", "times"),
    [(HostNotReadyError("switch", "is gone"), 1), (CommandError("switch", "ofproto/trace", "bad flow"), 3)],
)
def test_a_switch_that_does_not_tell_makes_answers_and_a_lost_one_is_asked_once(error, times):
    switch = Switch(error)
    answers = ask(switch, NEW, NEW, NEW)
    assert [answer.is_allowed for answer in answers] == [None] * 3
    assert all("does not tell" in answer.detail for answer in answers)
    assert len(switch.asked) == times


def test_ovns_databases_that_are_lost_are_asked_once_a_batch():
    """The verdict is the switch's and stands; only the rule's name is missing."""
    commands = []

    def lost(command):
        commands.append(command)
        raise HostNotReadyError("OVN southbound", "does not answer")

    topology = replace(TOPOLOGY, ovn=OvnPlaces("unix:/nb", "unix:/sb"))
    switch = Switch(text("ovn_admitted"))

    def index(one):
        return OvnRuleIndex(one.ovn, client=lost)

    async def go():
        with ModelAsker(switches=lambda _host: nullcontext(switch), index=index) as asker:
            there = replace(NEW, dst=replace(VM2, port_device="tapvm2"))
            return [*await asker.ask([there, there], topology), *await asker.ask([there], topology)]

    answers = trio.run(go)
    assert [answer.is_allowed for answer in answers] == [True] * 3
    assert all("could not be asked" in answer.detail for answer in answers)
    assert len(commands) == 2


def test_a_port_that_no_switch_has_cannot_be_asked_about():
    switch = Switch(text("forwarded"))
    (answer,) = ask(switch, replace(NEW, src=replace(VM1, ofport=0)))
    assert (answer.is_allowed, switch.asked) == (None, [])


def test_a_trace_that_cannot_be_read_says_nothing():
    assert answer_of(Trace(), {}, NEW, "hv1").is_allowed is None
    assert answer_of(parse_trace("Bad openflow flow syntax"), {}, NEW, "hv1").is_allowed is None


def test_an_answer_is_json():
    answer = answer_of(parse_trace(text("default_deny")), RULES, NEW, "hv1")
    assert answer.to_json()["point"] == {"port": "vm2", "stage": "ingress"}
