"""Where probes were lost decides whom to ask: the switches between the last stop that saw them and the next one.

Pure: from a path's stops to the switches on it, and from what each of them says to the one to blame. judge.reason says
what a switch does with a probe; service.reasons, above, asks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netprobe.judge.reason import Reason, ReasonCode, unknown_reason
from netprobe.model.points import Direction, PointKind, Stop
from netprobe.model.topology import Attachment, Host

PASSES = frozenset({ReasonCode.LINK_LOSS, ReasonCode.RATE_LIMIT})
"""What is said of a switch whose rules forward the probe."""

SILENT = frozenset({ReasonCode.UNKNOWN, ReasonCode.VSWITCH_DOWN})
"""What is said of a switch that did not tell."""


def switches_on_the_way(
    stops: Sequence[Stop], sender: Attachment, target: Attachment, hosts: Iterable[Host]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Which switches a probe passes, and how many of them before each stop.

    Args:
        stops: of the forward leg.
        sender: who sends.
        target: who is probed.
        hosts: all that are known, with their uplinks.

    Returns:
        Names of their hosts in the order of travel; and for each stop the number of those that it lies behind.
    """
    end = {point.id for point in target.chain}
    uplinks = {point.id: host.name for host in hosts for point in host.uplink}
    way: list[str] = []
    passed: list[int] = []
    was_leaving = has_arrived = False
    for stop in stops:
        point = stop.point
        if point.id in end:
            if not way and sender.host != point.host:
                way.append(sender.host)  # nobody could look between the two
            if not has_arrived:
                way.append(point.host)
            has_arrived = True
        elif point.id in uplinks:
            is_leaving = (stop.direction is Direction.OUT) == (point.kind is PointKind.NIC)
            if is_leaving and not was_leaving:
                way.append(uplinks[point.id])
            elif not way:
                way.append(sender.host)
            was_leaving = is_leaving
        passed.append(len(way))
    return tuple(way), tuple(passed)


@dataclass(frozen=True, slots=True)
class Span:
    """The switches between two stops: those of the numbers `start` to `end` on the way, `end` excluded.

    `reaches_the_target` says that no switch is left behind it.
    """

    start: int
    end: int
    reaches_the_target: bool

    def has(self, number: int) -> bool:
        """Whether a switch lies in it; the way that is traced may have more of them than the one that was planned."""
        return self.start <= number and (number < self.end or self.reaches_the_target)


def span_between(first: int, second: int, passed: Sequence[int]) -> Span | None:
    """The switches between two stops of a path, None where there is none: a link, a queue or a driver lost it.

    Args:
        first: last stop that saw the probe.
        second: first stop that missed it.
        passed: how many switches lie before each stop (switches_on_the_way).
    """
    start, end = passed[first], passed[second]
    return Span(start, end, reaches_the_target=end == passed[-1]) if end > start else None


def to_blame(said: Sequence[tuple[str, Reason]], span: Span) -> int | Reason:
    """Which of the switches on a probe's way lost it.

    Args:
        said: (host, what its switch does with the probe) in the order of travel, by the model.
        span: where the probe was lost.

    Returns:
        The number of the switch to blame; or the reason to give, where none is.
    """
    for host, reason in said[: span.start]:
        if reason.code in SILENT:
            return unknown_reason(f"what {host} made of the probes on their way is not known: {reason.detail}")
        if reason.code not in PASSES:
            what = reason.rule or reason.detail
            return unknown_reason(f"{host} would drop them by its rules ({what}), yet they were seen behind it")
    inside = [number for number in range(len(said)) if span.has(number)]
    if not inside:
        last = said[-1][0] if said else "nowhere"
        return unknown_reason(f"by the switches' rules their way ends on {last}, before where they were lost")
    for code in (None, ReasonCode.RATE_LIMIT):
        for number in inside:
            reason = said[number][1]
            if (code is None and reason.code not in PASSES) or reason.code is code:
                return number
    if len(inside) == 1:
        return inside[0]
    hosts = " and ".join(said[number][0] for number in inside)
    return unknown_reason(
        f"the switches of {hosts} forward them: lost outside their rules, and nobody looked in between"
    )
