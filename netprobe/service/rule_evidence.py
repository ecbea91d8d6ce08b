"""Proves that a rule which the model blames is the one that really decided: a secret pattern of bursts in its counter.

For one finding at a time: a pattern takes a second with iptables, and half a second a burst with a switch. What a burst
consists of, and what permits it, is the caller's business.
"""

import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace

import trio

from netprobe.errors import NetprobeError
from netprobe.host.iptables import read_rules
from netprobe.host.iptables_counters import probe_iptables_rule, read_counter
from netprobe.host.rule_counters import probe_rule, read_noise
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.counter_pattern import PatternResult, PatternVerdict, fit_pattern
from netprobe.judge.iptables_rules import IptablesRule, parse_rules
from netprobe.judge.reason import Evidence
from netprobe.model.model_answers import ModelAnswer
from netprobe.model.topology import Host, Topology
from netprobe.service.rule_testing import OpenBridge, open_bridge

Send = Callable[[int], int]
"""Takes a number, sends that many packets like the one that the answer is about, each on a tuple of its own, returns
once they had the time to reach the rule, and says how many it sent."""

_RULE_NUMBER = re.compile(r"chain \S+, rule (\d{1,6})")
MOST_PACKETS = 768
"""Packets of the longest pattern: 24 bursts of up to 64."""


def prove_rule(
    answer: ModelAnswer, family: int, topology: Topology, send: Send, *, bridges: OpenBridge = open_bridge
) -> ModelAnswer:
    """The same answer, with what its rule's counter says of it. It blocks.

    Args:
        answer: what the model says; its rule must be the last word about packets that `send` sends.
        family: of the packets, 4 or 6.
        topology: where the rule's host is.
        send: see Send.
        bridges: opens a bridge's OpenFlow management.

    Returns:
        With evidence `counter-pattern` where the counter followed the bursts. Where it missed some, the detail says
        that model and reality disagree; where nothing could be tested, why.
    """
    if answer.is_allowed is None:
        return answer
    try:
        result = _result(answer, family, topology.host(answer.host), send, bridges)
    except NetprobeError as error:
        return _with(answer, f"its counter could not be tested: {error}")
    except StopIteration:
        return _with(answer, f"its counter could not be tested: no host {answer.host!r} is known")
    return _judged(answer, result)


def _judged(answer: ModelAnswer, result: PatternResult | None) -> ModelAnswer:
    if result is None:
        return _with(answer, "it has no counter of its own, or others' traffic would drown a test")
    if result.verdict is PatternVerdict.CONFIRMED:
        said = f"its counter followed our bursts (p = {result.p_value:.2g})"
        return replace(_with(answer, said), evidence=Evidence.COUNTER_PATTERN.value)
    if result.verdict is PatternVerdict.NOT_HIT:
        missed = sum(max(n - delta, 0) for n, delta in zip(result.sent, result.deltas, strict=True))
        said = f"model and reality disagree: its counter missed {missed} of our {sum(result.sent)} packets"
        return _with(answer, said)
    return _with(answer, "its counter is drowned in other traffic")


async def prove(
    answer: ModelAnswer, family: int, topology: Topology, send: Callable[[int], Awaitable[int]]
) -> ModelAnswer:
    """As prove_rule, with a `send` that is awaited in the caller's own task loop."""

    def send_there(count: int) -> int:
        return trio.from_thread.run(send, count)

    return await trio.to_thread.run_sync(prove_rule, answer, family, topology, send_there)


def _with(answer: ModelAnswer, said: str) -> ModelAnswer:
    return replace(answer, detail="; ".join(filter(None, (answer.detail, said))))


def _result(answer: ModelAnswer, family: int, host: Host, send: Send, bridges: OpenBridge) -> PatternResult | None:
    """What the counter says; None where it cannot be tested.

    Raises:
        NetprobeError: switch or iptables do not answer, or the sending failed.
    """
    if answer.chain:
        rule = _iptables_rule(answer, family, host)
        return None if rule is None else _iptables_result(rule, family, host, send)
    if answer.table is None or not answer.cookie:
        return None
    cookie = int(answer.cookie, 16)
    with ExitStack() as stack:
        unixctl = stack.enter_context(UnixctlClient(host.ovs_rundir))
        client = stack.enter_context(bridges(host))
        noise = read_noise(client, unixctl, answer.table, cookie)
        pattern = fit_pattern(secrets.randbits(32), noise)
        if pattern is None or pattern.total > MOST_PACKETS:
            return None
        return probe_rule(client, unixctl, pattern, send, table=answer.table, cookie=cookie)


def _iptables_rule(answer: ModelAnswer, family: int, host: Host) -> IptablesRule | None:
    """The rule that the answer names, if it has not changed."""
    number = _RULE_NUMBER.fullmatch(answer.place)
    chain = parse_rules(read_rules(host.netns, family)).chain("filter", answer.chain)
    if number is None or chain is None or not 0 < int(number[1]) <= len(chain.rules):
        return None
    rule = chain.rules[int(number[1]) - 1]
    return rule if rule.match == answer.match else None


def _iptables_result(rule: IptablesRule, family: int, host: Host, send: Send) -> PatternResult | None:
    before = read_counter(host.netns, family, rule)
    noise = read_counter(host.netns, family, rule) - before
    pattern = fit_pattern(secrets.randbits(32), max(noise, 0))
    if pattern is None or pattern.total > MOST_PACKETS:
        return None
    return probe_iptables_rule(host.netns, family, rule, pattern, send)
