"""The rules of iptables-save, ip6tables-save and ipset save as values. Pure.

Total: any text is a rule set or a RulesTextError. What a rule says that is not known here is kept as an unknown
condition, so that whoever evaluates can tell that he cannot tell. judge.iptables, above, walks the chains;
judge.iptables_conditions, below, says what holds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range

from netprobe.errors import NoAnswerError
from netprobe.judge.iptables_conditions import IPTABLES, Condition, Dialect, IpSet, negated, never_known


class RulesTextError(NoAnswerError):
    """A text that no iptables-save or ipset save can have printed."""


@dataclass(frozen=True, slots=True)
class IptablesRule:
    """One rule of a chain.

    Attributes:
        number: from 1, in its chain.
        target: a verdict, an extension's name, or another chain; "" where it only counts.
        options: the target's own words.
        is_goto: `-g`: a return from its target leaves this chain, too.
        packets, octets: its counters; 0 where they were not printed.
        text: the rule as printed, without counters.
    """

    chain: str
    number: int
    conditions: tuple[Condition, ...]
    target: str = ""
    options: tuple[str, ...] = ()
    comment: str = ""
    is_goto: bool = False
    packets: int = 0
    octets: int = 0
    text: str = ""

    @property
    def match(self) -> str:
        """Its conditions, as iptables prints them."""
        return " ".join(condition.text for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain. `policy` is what becomes of what falls through; "-" in chains of the user's own."""

    name: str
    policy: str
    rules: tuple[IptablesRule, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Tables by name, each with its chains by name."""

    tables: Mapping[str, Mapping[str, Chain]]

    def chain(self, table: str, name: str) -> Chain | None:
        """A chain, None where there is none of that name."""
        return self.tables.get(table, {}).get(name)

    @property
    def rules(self) -> Iterator[IptablesRule]:
        """All rules of all tables."""
        return (rule for chains in self.tables.values() for chain in chains.values() for rule in chain.rules)


_COUNTED = re.compile(r"\[(\d{1,20}):(\d{1,20})\] (.*)")
_CHAIN_LINE = re.compile(r":(\S+) (\S+)(?: \[\d{1,20}:\d{1,20}\])?")


@dataclass(slots=True)
class _Draft:
    """A chain whose rules are still being read."""

    name: str
    policy: str
    rules: list[IptablesRule] = field(default_factory=list)


@dataclass(slots=True)
class _Words:
    """The words of a rule, read one after the other."""

    words: list[str]
    dialect: Dialect
    at: int = 0

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.words)

    def next(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def take(self, count: int) -> list[str]:
        taken = self.words[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("words are missing")
        self.at += count
        return taken

    def rest_of_option(self) -> list[str]:
        """The words up to the next option."""
        start = self.at
        while not self.is_over and not self.words[self.at].startswith("-") and self.words[self.at] != "!":
            self.at += 1
        return self.words[start : self.at]


def parse_rules(text: str, dialect: Dialect = IPTABLES) -> RuleSet:
    """The output of iptables-save, ip6tables-save or ebtables-save, with or without counters.

    Raises:
        RulesTextError: it is none.
    """
    tables: dict[str, dict[str, _Draft]] = {}
    chains: dict[str, _Draft] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.startswith("*"):
            chains = tables.setdefault(stripped[1:], {})
        elif stripped == "COMMIT":
            chains = None
        elif chains is None:
            raise RulesTextError(f"iptables, line {number}", f"{stripped[:80]!r} stands in no table")
        elif (made := _CHAIN_LINE.fullmatch(stripped)) is not None:
            chains.setdefault(made[1], _Draft(made[1], made[2]))
        else:
            _add_rule(chains, stripped, number, dialect)
    return RuleSet(
        {
            table: {name: Chain(name, draft.policy, tuple(draft.rules)) for name, draft in drafts.items()}
            for table, drafts in tables.items()
        }
    )


def _add_rule(chains: dict[str, _Draft], line: str, number: int, dialect: Dialect) -> None:
    counted = _COUNTED.fullmatch(line)
    packets, octets, text = (int(counted[1]), int(counted[2]), counted[3]) if counted else (0, 0, line)
    words = _split(text)
    if len(words) < 2 or words[0] != "-A" or words[1] not in chains:
        raise RulesTextError(f"iptables, line {number}", f"{text[:80]!r} is no rule of a chain that is known")
    chain = chains[words[1]]
    chain.rules.append(_rule(chain, _Words(words, dialect, 2), (packets, octets), text))


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|([^\s"]\S*)')


def _split(text: str) -> list[str]:
    """The words of a rule; one with blanks stands in quotation marks. Empty where those do not match."""
    if '"' not in text:
        return text.split()
    words, at = [], 0
    for found in _WORD.finditer(text):
        if text[at : found.start()].strip():
            return []
        words.append(found[2] if found[1] is None else re.sub(r"\\(.)", r"\1", found[1]))
        at = found.end()
    return [] if text[at:].strip() else words


def _rule(chain: _Draft, words: _Words, counts: tuple[int, int], text: str) -> IptablesRule:
    conditions: list[Condition] = []
    comment = target = ""
    options: tuple[str, ...] = ()
    is_goto = False
    while not words.is_over:
        word = words.next()
        if word in ("-j", "-g") and not words.is_over:
            target, is_goto = words.next(), word == "-g"
            options = tuple(words.take(len(words.words) - words.at))
        elif word == "--comment" and not words.is_over:
            comment = words.next()
        elif word == "-m" and not words.is_over:
            module = words.next()
            if module not in words.dialect.modules:
                conditions.append(Condition(f"-m {module}", never_known))
        else:
            conditions.append(_condition(word, words))
    number = len(chain.rules) + 1
    return IptablesRule(
        chain.name, number, tuple(conditions), target, options, comment, is_goto, counts[0], counts[1], text
    )


def _condition(word: str, words: _Words) -> Condition:
    """One condition; one that is not known takes all words up to the next option."""
    is_negated = word == "!" and not words.is_over
    option = words.next() if is_negated else word
    known = words.dialect.options.get(option)
    if known is not None and words.words[words.at : words.at + 1] == ["!"]:  # ebtables writes it behind the option
        is_negated = bool(words.next())
    start = words.at
    if known is not None:
        count, make = known
        try:
            given = words.take(count)
            holds = make(*given)
        except (ValueError, KeyError):  # a value that is not known here
            words.at = start
        else:
            text = " ".join(["!"] * is_negated + [option, *given])
            return Condition(text, negated(holds) if is_negated else holds)
    text = " ".join(["!"] * is_negated + [option, *words.rest_of_option()])
    return Condition(text, never_known)


def zones_by_device(rules: RuleSet) -> dict[str, int]:
    """The conntrack zone that table raw gives to what comes in by each port of a bridge."""
    zones: dict[str, int] = {}
    for chain in rules.tables.get("raw", {}).values():
        for rule in chain.rules:
            words = [condition.text.split() for condition in rule.conditions]
            devices = [word[1] for word in words if word[0] == "--physdev-in" and len(word) == 2]
            given = rule.options[-1] if rule.target == "CT" and rule.options[:1] == ("--zone",) else ""
            if devices and given.isascii() and given.isdigit():
                zones.setdefault(devices[0], int(given))
    return zones


def parse_sets(text: str) -> dict[str, IpSet]:
    """The output of `ipset save`.

    Raises:
        RulesTextError: it is none.
    """
    kinds: dict[str, str] = {}
    members: dict[str, list[IPv4Network | IPv6Network]] = {}
    exceptions: dict[str, list[IPv4Network | IPv6Network]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "create" and len(words) >= 3:
            kinds[words[1]] = words[2]
        elif words[0] == "add" and len(words) >= 3 and words[1] in kinds:
            into = exceptions if "nomatch" in words[3:] else members
            if kinds[words[1]] in {"hash:ip", "hash:net"}:
                into.setdefault(words[1], []).extend(_networks(words[2], number))
        else:
            raise RulesTextError(f"ipset, line {number}", f"{line[:80]!r} is neither a set nor a member of one")
    return {
        name: IpSet(name, kind, tuple(members.get(name, ())), tuple(exceptions.get(name, ())))
        for name, kind in kinds.items()
    }


def _networks(word: str, number: int) -> list[IPv4Network | IPv6Network]:
    first, dash, last = word.partition("-")
    try:
        if dash:
            return list(summarize_address_range(ip_address(first), ip_address(last)))
        return [ip_network(word, strict=False)]
    except (ValueError, TypeError) as error:
        raise RulesTextError(f"ipset, line {number}", f"{word!r} is no address") from error
