"""Laws of the iptables reader: any text is a rule set or one kind of error, and a walk always ends."""

import re
from ipaddress import ip_address
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.judge.iptables import evaluate
from netprobe.judge.iptables_conditions import Crossing
from netprobe.judge.iptables_rules import RulesTextError, parse_rules, parse_sets
from netprobe.model.packets import ConnState, Packet

DATA = Path(__file__).parents[1] / "unit" / "data"
REAL = (DATA / "iptables_hybrid.txt").read_text()
WORDS = sorted(set(re.split(r"\s+", REAL)) | {"!", "-f", "-g", "--syn", "REJECT", '"', "-m", "\n", "*raw", ":X -"})
PACKET = Packet("a", "b", ip_address("10.0.1.11"), ip_address("10.0.1.12"), 6, 61000, 80, tcp_flags=2)
INTO_B = Crossing("qbrb", "qvbb", "tapb")

rule_words = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
made_up = st.lists(rule_words, max_size=12).map(
    lambda rules: "*filter\n:FORWARD ACCEPT [0:0]\n:X - [0:0]\n" + "\n".join(f"-A FORWARD {r}" for r in rules)
)


@st.composite
def damaged(draw):
    """The real text with some lines lost, doubled or cut."""
    lines = REAL.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at : at + 1] = draw(st.sampled_from([[], [lines[at]] * 2, [lines[at][: draw(st.integers(0, 60))]]]))
    return "\n".join(lines)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), made_up, damaged()), st.sampled_from(list(ConnState)))
def test_any_text_is_rules_that_can_be_walked_or_one_error(text, state):
    try:
        rules = parse_rules(text)
    except RulesTextError:
        return
    found = evaluate(rules, {}, PACKET, state, INTO_B)
    assert (found.is_allowed is None) == bool(found.unknown)
    assert found.is_allowed or found.rule is not None or found.chain


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="creatdhsnip:/.-0123456789 \n", max_size=200))
def test_any_text_is_sets_or_one_error(text):
    try:
        parse_sets(text)
    except RulesTextError:
        return
