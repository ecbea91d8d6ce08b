"""The clocks of a spread run: from what its agents exchanged to maps of offsets (collect.domains). Pure.

A host's clock stamps what its agent reports. Each sender's clock is the reference of the sessions that it sends;
exchanges between it and another host count, whoever of the two asked. So an agent can ruin what is said of its own
clock, and nothing that is said of two others.
"""

from collections.abc import Mapping

from netprobe.collect import domains
from netprobe.collect.domains import ClockMap
from netprobe.service.collection import Collection


def clock_maps(collection: Collection, hosts: Mapping[str, str]) -> dict[int, ClockMap] | None:
    """The clocks of a run by session, None where one agent stamped everything.

    Args:
        collection: what was reported.
        hosts: the host of each part, by the part's name.
    """
    if len(hosts) < 2:
        return None
    known = frozenset(hosts.values())
    exchanges = [
        (host, report)
        for part, host in hosts.items()
        for report in collection.parts[part].exchanges
        if report.peer in known - {host}
    ]
    names = {
        collection.points[index].host: host for part, host in hosts.items() for index in collection.parts[part].points
    }
    references = {number: hosts[part] for part in hosts for number in collection.parts[part].sessions}
    maps = {host: domains.clock_map(host, exchanges, names=names) for host in set(references.values())}
    return {number: maps[host] for number, host in references.items()}
