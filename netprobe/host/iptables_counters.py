"""Carry a counter pattern out against an iptables rule: its counter is exact and at once up to date.

The pattern and its test are judge.counter_pattern's, below; host.rule_counters does the same for OpenFlow rules.
"""

from collections.abc import Callable

from netprobe.errors import NoAnswerError
from netprobe.host.iptables import read_rules
from netprobe.judge.counter_pattern import BurstPattern, PatternResult, judge_pattern
from netprobe.judge.iptables_rules import IptablesRule, parse_rules

ReadText = Callable[[str, int], str]


def read_counter(netns: str, family: int, rule: IptablesRule, read: ReadText = read_rules) -> int:
    """Packets that one rule of table filter has matched.

    Args:
        netns: its network namespace.
        family: 4 or 6.
        rule: as it was when the question arose.
        read: gives the text of iptables-save -c.

    Raises:
        NoAnswerError: the rule is not there any more, or not in its place.
        HostNotReadyError: iptables does not answer.
    """
    chain = parse_rules(read(netns, family)).chain("filter", rule.chain)
    found = chain.rules[rule.number - 1] if chain is not None and rule.number <= len(chain.rules) else None
    if found is None or found.text != rule.text:
        raise NoAnswerError(
            f"chain {rule.chain}, rule {rule.number}", "is not the rule that it was", advice="verify again"
        )
    return found.packets


def probe_iptables_rule(
    netns: str,
    family: int,
    rule: IptablesRule,
    pattern: BurstPattern,
    send: Callable[[int], int],
    *,
    read: ReadText = read_rules,
) -> PatternResult:
    """Send a pattern and say whether a rule's counter followed it.

    Args:
        netns: its network namespace.
        family: 4 or 6.
        rule: whose counter is read.
        pattern: fresh, from a random seed.
        send: takes a number of packets, sends them, returns once they had the time to reach the rule, and says how
            many it sent.
        read: gives the text of iptables-save -c.

    Raises:
        NoAnswerError: the rule changed meanwhile.
        HostNotReadyError: iptables does not answer.
    """
    counts = [read_counter(netns, family, rule, read)]
    sent = []
    for size in pattern.sizes:
        sent.append(send(size) if size else 0)
        counts.append(read_counter(netns, family, rule, read))
    return judge_pattern(pattern, counts, sent=sent)
