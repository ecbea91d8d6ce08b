"""The clocks of a run: from what its agents exchanged to maps of offsets (collect.domains). Pure.

A host's clock stamps what its agent reports. Each sender's clock is the reference of the sessions that it sends;
exchanges between it and another host count, whoever of the two asked. So an agent can ruin what is said of its own
clock, and nothing that is said of two others. A virtual machine's clock is its own: its host's agent compares the two,
and so a machine can ruin what is said of itself.
"""

from collections.abc import Mapping

from netprobe.collect import domains
from netprobe.collect.domains import ClockMap
from netprobe.service.collection import Collection


def clock_maps(
    collection: Collection, hosts: Mapping[str, str], own: frozenset[str] = frozenset()
) -> dict[int, ClockMap] | None:
    """The clocks of a run by session, None where one clock stamped everything.

    Args:
        collection: what was reported.
        hosts: the host of each part, by the part's name.
        own: points, by their ids, that are known to have a clock of their own, compared or not.
    """
    machines = _machines(collection, hosts, own)
    if len(hosts) < 2 and not machines:
        return None
    known = frozenset(hosts.values())
    exchanges = [
        (host, report)
        for part, host in hosts.items()
        for report in collection.parts[part].exchanges
        if (report.peer in known - {host} and report.peer not in machines) or machines.get(report.peer) == host
    ]
    names = {
        collection.points[index].host: host for part, host in hosts.items() for index in collection.parts[part].points
    }
    names |= {point: point for point in machines}
    references = {number: hosts[part] for part in hosts for number in collection.parts[part].sessions}
    maps = {host: domains.clock_map(host, exchanges, names=names, bases=machines) for host in set(references.values())}
    return {number: maps[host] for number, host in references.items()}


def _machines(collection: Collection, hosts: Mapping[str, str], own: frozenset[str]) -> dict[str, str]:
    """The host of each point that has a clock of its own: what a part said of clocks of points that it reports."""
    found: dict[str, str] = {}
    for part, host in hosts.items():
        record = collection.parts[part]
        mine = {collection.points[index].id for index in record.points}
        found |= dict.fromkeys(mine & (own | {report.peer for report in record.exchanges}), host)
    return found
