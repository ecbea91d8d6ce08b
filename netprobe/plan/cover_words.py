"""Ports and protocols that a policy is about, where something may change, and some that it is not about. Pure."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from netprobe.model.policy import ICMP, ICMPV6, Policy
from netprobe.model.rule_lists import EPHEMERAL, FAMILIES
from netprobe.plan.cover_places import Header
from netprobe.plan.port_masks import ALL_ONES

SAMPLES_MAX = 10
"""Ports that are tried for one block of ports where the natural one proves nothing."""
_QUIET_PORTS = (7, 20011, 40009, 50021, 9, 60013)
_QUIET_PROTOCOLS = (253, 254, 252, 251)  # RFC 3692: for experiments; then unassigned ones


class Vocabulary:
    """Ports and protocols that a policy is about, and some that it is not."""

    def __init__(self, policy: Policy) -> None:
        rules = [rule for group in policy.groups for rule in group.rules]
        matches = [match for acl in policy.acls for match in acl.matches]
        named = {rule.protocol for rule in rules} | {match.protocol for match in matches}
        ranges = {rule.ports for rule in rules if rule.ports} | {m.dst_ports for m in matches if m.dst_ports}
        edges = {edge for first, last in ranges for edge in (first, last, first - 1, last + 1)}
        self._edges = sorted(edge for edge in edges if 0 <= edge <= ALL_ONES)
        both = ranges | {match.src_ports for match in matches if match.src_ports}
        self._block_edges = sorted({edge for first, last in both for edge in (first, last + 1)})
        self.protocols = tuple(sorted(number for number in named if number not in (None, ICMP, ICMPV6)))
        self._samples: dict[int, tuple[Header, ...]] = dict.fromkeys(FAMILIES, ())
        self.quiet_port = min(_QUIET_PORTS, key=lambda port: sum(first <= port <= last for first, last in ranges))
        self.quiet_protocol = next(number for number in _QUIET_PROTOCOLS if number not in named)

    def samples(self, family: int) -> tuple[Header, ...]:
        """One header that each rule names: what is let pass somewhere."""
        return self._samples[family]

    def add_samples(self, headers: Iterable[Header]) -> None:
        """Remember headers; more than SAMPLES_MAX a family and protocol add nothing."""
        counts: Counter[tuple[int, int]] = Counter()
        for header in dict.fromkeys(headers):
            kind = (header.family, header.protocol)
            counts[kind] += 1
            if counts[kind] <= SAMPLES_MAX:
                self._samples[header.family] += (header,)

    def cuts(self) -> tuple[int, ...]:
        """Ports that stand for all that an attempt may choose: one of each stretch that rules tell apart."""
        first, last = EPHEMERAL
        return (first, *(edge for edge in self._block_edges if first < edge <= last))

    def ports_in(self, first: int, last: int) -> list[int]:
        """Edges of rules within a range: where something may change."""
        at = bisect_left(self._edges, first)
        found = self._edges[at : at + SAMPLES_MAX]
        return [edge for edge in found if edge <= last]

    def any_port(self) -> list[int]:
        """Ports to try where any would do."""
        return [self.quiet_port, *self._edges[: 2 * SAMPLES_MAX]]
