"""What the enforcement's own model says of many packets: the switches' tables, OVN's databases, iptables.

A packet is followed from the sender's switch to the one where it ends, with the conntrack state that the caller names.
Switches of several hosts are asked at the same time; their sockets stay open from one batch to the next.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

import trio

from netprobe.errors import NetprobeError
from netprobe.host.flow_trails import ManyAnswers, OpenManyAnswers, SwitchTracer, Trail
from netprobe.host.ovn_rule_index import OvnRuleIndex
from netprobe.host.tracing import MAX_SWITCHES, Passage
from netprobe.judge.packet_flow import packet_flow, states_of
from netprobe.judge.reason import Rules
from netprobe.judge.trace_answer import answer_of, arrives, ovn_answer, silent_answer
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.topology import Host, Topology
from netprobe.service.bridge_models import Bridges, is_behind_bridge
from netprobe.service.reasons import open_switch

MakeIndex = Callable[[Topology], OvnRuleIndex | None]


def _index_of(topology: Topology) -> OvnRuleIndex | None:
    return OvnRuleIndex(topology.ovn) if topology.ovn is not None else None


class ModelAsker:
    """Asks for many packets at once. Use it as a context manager.

    Args:
        switches: opens the control socket of a host's switch.
        index: makes the index of what stands behind OVN's rules, None without OVN; it is made once.
    """

    def __init__(self, *, switches: OpenManyAnswers = open_switch, index: MakeIndex = _index_of) -> None:
        self._open_switch = switches
        self._make_index = index
        self._index: OvnRuleIndex | None = None
        self._silence: NetprobeError | None = None
        self._stack = ExitStack()
        self._switches: dict[str, ManyAnswers] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._switches.clear()

    async def ask(self, questions: Sequence[ModelQuestion], topology: Topology) -> list[ModelAnswer]:
        """What the model says of each packet, in the order of the questions.

        A switch or database that does not answer makes answers `is_allowed=None`; nothing raises for that.
        """
        if topology.ovn is not None and self._index is None:
            self._index = self._make_index(topology)
        if self._index is not None:
            self._index.begin()
            self._silence = None
        trails = [_begin(question, topology) for question in questions]
        for _ in range(MAX_SWITCHES):
            waiting: dict[str, list[int]] = {}
            for number, trail in enumerate(trails):
                if trail.here is not None:
                    waiting.setdefault(trail.here.name, []).append(number)
            if not waiting:
                break
            async with trio.open_nursery() as nursery:
                for name, numbers in waiting.items():
                    tracer = SwitchTracer(topology.host(name), self._switch(topology.host(name)))
                    nursery.start_soon(trio.to_thread.run_sync, _follow, tracer, trails, numbers, topology.hosts)
        answers = await trio.to_thread.run_sync(self._answers, questions, trails, topology)
        if any(is_behind_bridge(end) for question in questions for end in (question.src, question.dst)):
            bridges = await trio.to_thread.run_sync(Bridges, questions, topology)
            answers = [bridges.answer(one, found) for one, found in zip(questions, answers, strict=True)]
        return answers

    def _switch(self, host: Host) -> ManyAnswers:
        """The control socket of a host's switch; it stays open."""
        if host.name not in self._switches:
            self._switches[host.name] = self._stack.enter_context(self._open_switch(host))
        return self._switches[host.name]

    def _answers(
        self, questions: Sequence[ModelQuestion], trails: Sequence[Trail], topology: Topology
    ) -> list[ModelAnswer]:
        return [
            self._answer(question, trail.passages, topology) for question, trail in zip(questions, trails, strict=True)
        ]

    def _answer(self, question: ModelQuestion, passages: Sequence[Passage], topology: Topology) -> ModelAnswer:
        if not passages:
            return silent_answer(f"{question.src.name} has no port on a switch that is known", question.src.host)
        last = passages[-1]
        if last.error is not None:
            return silent_answer(f"its switch does not tell: {last.error}", last.host.name)
        if self._index is None:
            return answer_of(last.trace, topology.rules, question, last.host.name)
        return self._ovn_answer(self._index, question, last, topology.rules)

    def _ovn_answer(self, index: OvnRuleIndex, question: ModelQuestion, last: Passage, rules: Rules) -> ModelAnswer:
        trace, host = last.trace, last.host
        decision = None
        try:
            if self._silence is None:  # databases that are lost are asked once a batch
                look_up = index.admitted if arrives(trace, question.dst.port_device) else index.decide
                decision = look_up(trace, host.bridge)
        except NetprobeError as error:
            self._silence = error
        if self._silence is not None:
            is_allowed = ovn_answer(trace, None, rules, question, host.name).is_allowed
            said = f"OVN's databases could not be asked: {self._silence}"
            return ModelAnswer(is_allowed, host=host.name, detail=said)
        return ovn_answer(trace, decision, rules, question, host.name)


def _follow(tracer: SwitchTracer, trails: list[Trail], numbers: Sequence[int], hosts: Sequence[Host]) -> None:
    """Follow some trails through one host's switch, in place."""
    for number, trail in zip(numbers, tracer.follow([trails[number] for number in numbers], hosts), strict=True):
        trails[number] = trail


def _begin(question: ModelQuestion, topology: Topology) -> Trail:
    src, dst = question.src, question.dst
    by_name = {host.name: host for host in topology.hosts}
    way = tuple(by_name[name] for name in dict.fromkeys((src.host, dst.host)) if name in by_name)
    here = by_name.get(src.host) if src.ofport else None
    return Trail(packet_flow(question.packet, src.ofport), here, states_of(question.state), way)
