"""What a plan takes from what tenants share: conntrack entries, packets per second, source ports.

Pure: what is free comes in as numbers and time as now_ns. host.conntrack reads the numbers, host.port_ledger keeps the
file of ports. The limits are those of design §6a.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netprobe.errors import RefusedError

MAX_SHARE_OF_FREE = 0.01
MAX_FULL = 0.80
PORT_BLOCK = (61000, 65535)
"""Source ports of probes: above Linux's ephemeral range (32768-60999), so that no tenant's socket has one."""

PORT_REST_NS = 20_000_000_000
"""A tuple rests this long after its entry is gone: Debian's OVS 3.1 aborted when one came back within 18 s."""

MAX_BURST = 64  # design §6a, in BURST_WINDOW_NS
BURST_WINDOW_NS = 1_000_000
_SIGMAS = 5  # a Poisson schedule whose mean is the cap exceeds 5 standard deviations once in three million windows


# ---------------------------------------------------------------------------------------------------------------------
# Conntrack entries
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demand:
    """Entries that a session will create in one zone of one host (None: in zones of ports and routers, OVN).

    A session whose flow is new per probe creates `count` of them in each zone on its way, others one.
    """

    host: str
    zone: int | None
    entries: int


@dataclass(frozen=True, slots=True)
class Room:
    """How full the conntrack table of a host is now, entries of all zones."""

    used: int
    limit: int

    @property
    def free(self) -> int:
        """Entries that fit in yet."""
        return max(self.limit - self.used, 0)


def check_conntrack(demands: Iterable[Demand], rooms: Mapping[str, Room]) -> dict[tuple[str, int | None], int]:
    """Refuse a plan that takes too large a share of a table, or one that is nearly full.

    Args:
        demands: of all sessions of the plan together.
        rooms: the table of each host that has one; a host without conntrack is left out.

    Returns:
        Entries by (host, zone).

    Raises:
        RefusedError: the plan takes more than MAX_SHARE_OF_FREE of what is free on a host, or it is MAX_FULL full.
    """
    by_zone: Counter[tuple[str, int | None]] = Counter()
    by_host: Counter[str] = Counter()
    for demand in demands:
        by_zone[demand.host, demand.zone] += demand.entries
        by_host[demand.host] += demand.entries
    for host, entries in by_host.items():
        room = rooms.get(host)
        if room is None or not entries:
            continue
        if is_too_full(room.used, room.limit):
            raise RefusedError(
                f"conntrack table of {host}",
                f"{room.used} of {room.limit} entries are in use",
                allowed=f"less than {MAX_FULL:.0%}",
                advice="wait until it is emptier: probes would take room from tenants' connections",
            )
        allowed = int(room.free * MAX_SHARE_OF_FREE)
        if entries > allowed:
            zones = ", ".join(f"zone {zone}: {n}" for (name, zone), n in by_zone.items() if name == host)
            raise RefusedError(
                f"conntrack table of {host}",
                f"the plan would create {entries} entries ({zones})",
                allowed=f"{allowed}, {MAX_SHARE_OF_FREE:.0%} of the {room.free} that are free",
                advice='send fewer probes, or use flow = "same"',
            )
    return dict(by_zone)


def is_too_full(used: int, limit: int) -> bool:
    """Whether sending must stop: the table is MAX_FULL full. A table without room is always too full."""
    return used >= limit * MAX_FULL


# ---------------------------------------------------------------------------------------------------------------------
# Rates
# ---------------------------------------------------------------------------------------------------------------------


def check_rate(due_ns: Sequence[int], cap_pps: float, where: str) -> None:
    """Refuse a schedule that is faster than a host permits, or that bursts. MAX_BURST frames in all always pass.

    Args:
        due_ns: planned times, not decreasing, ns.
        cap_pps: mean rate that is allowed; random schedules may exceed it by chance in any one second.
        where: what the cap belongs to, for the error.

    Raises:
        RefusedError: too fast on the whole or in some second, or more than MAX_BURST in BURST_WINDOW_NS.
    """
    if len(due_ns) < 2:
        return
    span_s = max((due_ns[-1] - due_ns[0]) / 1e9, 1e-9)
    mean = (len(due_ns) - 1) / span_s
    allowed = _by_chance(cap_pps * span_s)
    worst_s = _most_within(due_ns, 1_000_000_000)
    if len(due_ns) > max(allowed, MAX_BURST) or worst_s > max(_by_chance(cap_pps), MAX_BURST):
        raise RefusedError(
            where,
            f"{mean:.0f} packets/s (up to {worst_s} in one second)",
            allowed=f"{cap_pps:g} packets/s",
            advice="send more slowly, or raise the cap in the host's allowlist",
        )
    check_burst(due_ns, where)


def check_burst(due_ns: Sequence[int], where: str) -> None:
    """Refuse a schedule that bursts.

    Args:
        due_ns: planned times, not decreasing, ns.
        where: whose, for the error.

    Raises:
        RefusedError: more than MAX_BURST in BURST_WINDOW_NS.
    """
    if (burst := _most_within(due_ns, BURST_WINDOW_NS)) > MAX_BURST:
        raise RefusedError(
            where,
            f"a burst of {burst} frames in {BURST_WINDOW_NS / 1e6:g} ms",
            allowed=f"at most {MAX_BURST}",
            advice="spread the probes: a userspace vswitch drops such bursts",
        )


def _by_chance(expected: float) -> float:
    """How many a schedule of this mean may have."""
    return 1 + expected + _SIGMAS * math.sqrt(expected)


def _most_within(due_ns: Sequence[int], window_ns: int) -> int:
    """The largest number of times in any half-open window."""
    most = first = 0
    for i, due in enumerate(due_ns):
        while due - due_ns[first] >= window_ns:
            first += 1
        most = max(most, i - first + 1)
    return most


# ---------------------------------------------------------------------------------------------------------------------
# Source ports
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortUse:
    """Ports first..last were given out, and may come again at `free_at_ns` (CLOCK_REALTIME)."""

    first: int
    last: int
    free_at_ns: int


def allocate_ports(
    block: tuple[int, int],
    in_use: Iterable[int],
    count: int,
    now_ns: int,
    *,
    resting: Iterable[PortUse] = (),
    where: str = "source ports",
) -> tuple[int, ...]:
    """The lowest `count` ports of a block that are neither in conntrack nor resting.

    Args:
        block: first and last port.
        in_use: ports of tuples that conntrack has now, whoever made them.
        count: how many are needed.
        now_ns: CLOCK_REALTIME.
        resting: what the ledger says about the same addresses and destination port.
        where: the flow that they are for, for the error.

    Raises:
        RefusedError: there are not enough; it says how many are free, and when there will be enough.
    """
    first, last = block
    taken = set(in_use)
    until = {
        port: use.free_at_ns
        for use in sorted(resting, key=lambda use: use.free_at_ns)
        if use.free_at_ns > now_ns
        for port in range(max(use.first, first), min(use.last, last) + 1)
    }
    free = [port for port in range(first, last + 1) if port not in taken and port not in until]
    if len(free) >= count:
        return tuple(free[:count])
    waiting = sorted(at for port, at in until.items() if port not in taken)
    missing = count - len(free)
    if missing <= len(waiting):
        wait_s = (waiting[missing - 1] - now_ns) / 1e9
        advice = f"send fewer probes, or wait: in {wait_s:.0f} s there are enough"
    else:
        advice = f"send fewer probes: the whole block has {last - first + 1} ports, {len(taken)} are in conntrack"
    raise RefusedError(where, f"{count} ports are needed, {len(free)} of {first}-{last} are free", advice=advice)


def ranges_of(ports: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted ports as first-last ranges."""
    found = []
    for _, group in itertools.groupby(enumerate(sorted(set(ports))), key=lambda pair: pair[1] - pair[0]):
        run = [port for _, port in group]
        found.append((run[0], run[-1]))
    return found
