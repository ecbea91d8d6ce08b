"""What people are shown of a finding's evidence: no more than was seen."""

import pytest
from rich.console import Console

from netprobe.judge.findings import Evidence, Finding, FindingKind
from netprobe.show.policy import print_explanation

SEEN = Evidence(3, 0, 0, "a.backend", "b.backend")


def explained(*findings, number=1):
    rows = [{"number": i, **finding.to_json()} for i, finding in enumerate(findings, 1)]
    console = Console(width=200)
    with console.capture() as shown:
        print_explanation(console, {"findings": rows}, number)
    return shown.get()


def finding(evidence, **more):
    return Finding(FindingKind.OVERBLOCK, "b should let it pass", "a", "b", packet="udp", evidence=evidence, **more)


@pytest.mark.parametrize("count", [0, 2])
def test_a_number_that_no_finding_has_is_told_and_is_no_failure(count):
    text = explained(*[finding(SEEN)] * count, number=7)
    assert "there is no finding 7" in text
    assert ("they are 1 to 2" if count else "there are no findings") in text


def test_a_packet_that_nobody_saw_go_in_was_seen_nowhere():
    text = explained(finding(Evidence(3, 0, 0, "", "b.backend")))
    assert "1. went in  3 packets, seen nowhere on their way\n" in text
    assert "3. stopped  before b.backend\n" in text
    assert "the sender" not in text


def test_a_packet_that_was_seen_has_its_last_point_told():
    text = explained(finding(SEEN))
    assert "1. went in  3 packets, seen at a.backend\n" in text
    assert "3. stopped  between a.backend and b.backend\n" in text


def test_what_no_packet_was_sent_for_has_no_hops():
    assert "1. went in" not in explained(finding(None))


def test_findings_that_are_alike_are_named_as_far_as_there_is_room():
    text = explained(finding(SEEN, alike=tuple(f"s{i}#0" for i in range(12))))
    assert "s0#0, s1#0" in text
    assert "s9#0 and 2 more, in --json" in text
