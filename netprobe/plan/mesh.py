"""Meshes to sessions: all paths between groups of guests, as few as prove the same, within a budget. Pure and seeded.

Guests that are alike in everything that decides a path (host, network, security groups, prefixes, kind of port, NAT)
form a class; one pair of guests stands for all pairs of two classes. The report says how many sessions that saves and
why. What a budget does not allow is sent more slowly, never left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from netprobe.errors import UsageError
from netprobe.model.points import Vantage
from netprobe.model.topology import Attachment, Topology
from netprobe.plan.flows import FlowGroup, slowed, spread_flows
from netprobe.plan.mesh_report import GuestClass, HostLoad, MeshReport, NoPath, StandIn
from netprobe.plan.paths import build_path, translations
from netprobe.plan.plans import MeshPlan, RunPlan, Selection, SessionPlan

MAX_SESSIONS = 10_000
"""In one run, flows counted: each has frames, keys and tables of its own in memory."""


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A plan of single sessions, and how it came about.

    Attributes:
        plan: has neither meshes nor flows any more.
        flows: which sessions are flows of one.
    """

    plan: RunPlan
    meshes: tuple[MeshReport, ...]
    flows: tuple[FlowGroup, ...]


def compile_plan(plan: RunPlan, topology: Topology) -> CompiledPlan:
    """A plan's meshes and flows as single sessions.

    Args:
        plan: as written.
        topology: whose guests they are about. The result depends on nothing else: the seed is the plan's.

    Raises:
        UsageError: a mesh has no path, two sessions would have one name, or there would be too many.
    """
    rng = np.random.default_rng(plan.seed)
    sessions, reports = list(plan.sessions), []
    for mesh in plan.meshes:
        found, report = compile_mesh(mesh, topology, plan.seed, rng)
        sessions += found
        reports.append(report)
    total = sum(session.flows for session in sessions)
    if total > MAX_SESSIONS:
        raise _too_many(f"plan {plan.name}", total)
    single: list[SessionPlan] = []
    groups = []
    for session in sessions:
        if session.flows > 1:
            groups.append(FlowGroup(session.name, len(single), session.flows))
        single += spread_flows(session)
    name, uses = Counter(s.name for s in single).most_common(1)[0]
    if uses > 1:
        raise UsageError(f"plan {plan.name}", f"two sessions would be called {name!r}", advice="rename one")
    return CompiledPlan(replace(plan, sessions=tuple(single), meshes=()), tuple(reports), tuple(groups))


def _too_many(where: str, total: int) -> UsageError:
    return UsageError(
        where,
        f"{total} sessions",
        allowed=f"up to {MAX_SESSIONS}",
        advice="choose fewer guests, or prune: guests that are alike need only one path",
    )


def compile_mesh(
    mesh: MeshPlan, topology: Topology, seed: int, rng: np.random.Generator
) -> tuple[list[SessionPlan], MeshReport]:
    """The sessions of one mesh.

    Args:
        mesh: as written.
        topology: whose guests it is about.
        seed: which pair stands for its class: other seeds choose other pairs, and in time all of them.
        rng: of the starts.

    Raises:
        UsageError: no guest fits, no two guests are left, or there would be too many sessions.
    """
    sources = chosen(mesh.sources, topology, f"mesh {mesh.name}.from")
    targets = chosen(mesh.targets, topology, f"mesh {mesh.name}.to")
    guests = {g.name: g for g in (*sources, *targets)}
    all_pairs = len(sources) * len(targets) - len({g.name for g in sources} & {g.name for g in targets})
    if not all_pairs:
        raise UsageError(f"mesh {mesh.name}", "is one guest and itself", advice="choose more guests in from or to")
    classes: tuple[GuestClass, ...] = ()
    pairs: tuple[StandIn, ...] = ()
    if mesh.prune:
        classes = classes_of(list(guests.values()))
        pairs = tuple(_stand_ins(classes, {g.name for g in sources}, {g.name for g in targets}, seed))
        ends = [(pair.src, pair.dst) for pair in pairs]
    elif all_pairs > MAX_SESSIONS:
        raise _too_many(f"mesh {mesh.name}", all_pairs)
    else:
        ends = [(a.name, b.name) for a in sources for b in targets if a.name != b.name]
    if len(ends) > MAX_SESSIONS:
        raise _too_many(f"mesh {mesh.name}", len(ends))
    without = _without_path(mesh, topology, [(guests[a], guests[b]) for a, b in ends])
    ends = [pair for pair in ends if pair not in without]
    hosts = [frozenset({guests[a].host, guests[b].host}) for a, b in ends]
    slow, wanted = _factors(hosts, mesh.session.mean_pps, mesh.budget_pps)
    sessions = [
        replace(slowed(mesh.session, factor), name=f"{mesh.name}:{a}->{b}", src=a, dst=b)
        for (a, b), factor in zip(ends, slow, strict=True)
    ]
    report = MeshReport(
        name=mesh.name,
        guests=len(guests),
        all_pairs=all_pairs,
        sessions=len(sessions),
        classes=classes,
        pairs=pairs,
        budget_pps=mesh.budget_pps,
        loads=_loads(hosts, sessions, wanted),
        without_path=tuple(NoPath(a, b, why) for (a, b), why in without.items()),
        stretched=max(mesh.session.mean_pps / s.mean_pps for s in sessions),
    )
    return _spread(sessions, rng), report


def _without_path(
    mesh: MeshPlan, topology: Topology, pairs: Sequence[tuple[Attachment, Attachment]]
) -> dict[tuple[str, str], str]:
    """The pairs between which there is no path (no route, behind a NAT), and why.

    Raises:
        UsageError: there is none between any two; the first reason.
    """
    session = mesh.session
    found: dict[tuple[str, str], str] = {}
    first: UsageError | None = None
    for source, target in pairs:
        try:
            sender = topology.bypass_on(source.host, source) if session.vantage is Vantage.BYPASS else source
            build_path(topology, sender, target, session.vantage, session.protocol)
            translations(topology, sender, target, session.family)
        except UsageError as error:
            first = first or error
            found[source.name, target.name] = str(error)
    if first is not None and len(found) == len(pairs):
        raise first
    return found


def chosen(selection: Selection, topology: Topology, where: str) -> list[Attachment]:
    """The guests that a selection means, by name.

    Raises:
        UsageError: there is none.
    """

    def fits(patterns: Sequence[str], values: Sequence[str]) -> bool:
        return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns for value in values)

    found = [
        guest
        for guest in topology.guests
        if fits(selection.guests, (guest.name,))
        and fits(selection.groups, guest.groups)
        and fits(selection.hosts, (guest.host,))
        and fits(selection.networks, (guest.network,))
    ]
    if not found:
        asked = ", ".join(f"{k} {list(getattr(selection, k))}" for k in Selection.__slots__ if getattr(selection, k))
        raise UsageError(where, f"no guest fits {asked or 'it'}", advice="guests are named as in `netprobe lab status`")
    return sorted(found, key=lambda guest: guest.name)


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------

Traits = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...], str, bool, tuple[str, ...]]


def traits_of(guest: Attachment) -> Traits:
    """Everything that decides which way a guest's packets take and which rules they meet."""
    return (
        guest.host,
        guest.network,
        tuple(sorted(guest.groups)),
        tuple(sorted(str(prefix) for prefix in guest.prefixes)),
        tuple(point.kind.value for point in guest.chain),
        guest.unobserved,
        guest.floating is not None,
        tuple(sorted(guest.behind_nat)),
    )


def _in_words(traits: Traits) -> str:
    host, network, groups, prefixes, kinds, unobserved, is_floating, nats = traits
    words = [f"host {host}"]
    words += [f"network {network}"] if network else []
    words += [f"prefix {' and '.join(prefixes)}"] if prefixes else []
    words += [f"groups {', '.join(groups) or 'none'}", f"points {'-'.join(kinds)}"]
    words += [f"unobserved port ({unobserved})"] if unobserved else []
    words += ["a floating IP"] if is_floating else []
    words += [f"NAT toward {', '.join(nats)}"] if nats else []
    return ", ".join(words)


def classes_of(guests: Sequence[Attachment]) -> tuple[GuestClass, ...]:
    """Guests by their traits, in a fixed order."""
    members: dict[Traits, list[str]] = {}
    for guest in guests:
        members.setdefault(traits_of(guest), []).append(guest.name)
    return tuple(
        GuestClass(f"c{i}", tuple(sorted(members[traits])), f"the same {_in_words(traits)}")
        for i, traits in enumerate(sorted(members))
    )


def _stand_ins(classes: Sequence[GuestClass], sources: set[str], targets: set[str], seed: int) -> Iterator[StandIn]:
    """One pair for each two classes (a class and itself too) between which there is one."""
    sides = [([m for m in c.members if m in sources], [m for m in c.members if m in targets]) for c in classes]
    for first, (senders, _) in zip(classes, sides, strict=True):
        for second, (_, receivers) in zip(classes, sides, strict=True):
            same = len(set(senders) & set(receivers)) if first is second else 0
            pairs = len(senders) * len(receivers) - same
            if pairs:
                src, dst = _rotated(senders, receivers, seed)
                yield StandIn(first.id, second.id, src, dst, pairs)


def _rotated(senders: Sequence[str], receivers: Sequence[str], seed: int) -> tuple[str, str]:
    """The pair of different guests that this seed chooses; as many seeds in a row choose every pair."""
    number = seed
    while True:
        row, column = divmod(number % (len(senders) * len(receivers)), len(receivers))
        if senders[row] != receivers[column]:
            return senders[row], receivers[column]
        number += 1


# ---------------------------------------------------------------------------------------------------------------------
# Budget and starts
# ---------------------------------------------------------------------------------------------------------------------


def _factors(
    hosts: Sequence[frozenset[str]], rate_pps: float, budget_pps: int | None
) -> tuple[list[float], Mapping[str, float]]:
    """By how much each path must be slower, and what each host would have without that.

    A path weighs on both its hosts (once where it is one), and is as slow as the fuller of them needs. So no host
    exceeds the budget.
    """
    paths = Counter(host for ends in hosts for host in ends)
    wanted = {host: n * rate_pps for host, n in paths.items()}
    if budget_pps is None:
        return [1.0] * len(hosts), wanted
    need = {host: max(1.0, load / budget_pps) for host, load in wanted.items()}
    return [max(need[host] for host in ends) for ends in hosts], wanted


def _loads(
    hosts: Sequence[frozenset[str]], sessions: Sequence[SessionPlan], wanted: Mapping[str, float]
) -> tuple[HostLoad, ...]:
    planned: Counter[str] = Counter()
    for ends, session in zip(hosts, sessions, strict=True):
        for host in ends:
            planned[host] += session.mean_pps  # type: ignore[assignment]  # a Counter adds floats too
    return tuple(HostLoad(host, wanted[host], float(planned[host])) for host in sorted(wanted))


def _spread(sessions: Sequence[SessionPlan], rng: np.random.Generator) -> list[SessionPlan]:
    """Starts as a Poisson stream, in random order, over about one gap between probes: not all paths fire together."""
    count = len(sessions)
    shares = np.empty(count)
    shares[rng.permutation(count)] = np.cumsum(rng.exponential(1 / count, count))
    return [
        replace(session, start_ns=int(share * session.stretch * 1e9 / session.rate_pps))
        for session, share in zip(sessions, shares.tolist(), strict=True)
    ]
