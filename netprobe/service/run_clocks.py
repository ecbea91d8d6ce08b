"""The clocks of a spread run: from what its agents exchanged to a map of offsets (collect.domains). Pure.

A host's clock stamps what its agent reports. The first sender's is the reference; exchanges between it and another host
count, whoever of the two asked. An agent is believed about its own clock only: it can ruin what is said of that.
"""

from collections.abc import Mapping, Sequence

from netprobe.collect import domains
from netprobe.collect.domains import ClockMap
from netprobe.service.collection import Collection


def clock_map(collection: Collection, hosts: Mapping[str, str], senders: Sequence[str]) -> ClockMap | None:
    """The clocks of a run, None where one agent stamped everything.

    Args:
        collection: what was reported.
        hosts: the host of each part, by the part's name.
        senders: parts that send, in the order of the plan.
    """
    if len(hosts) < 2:
        return None
    reference = hosts[senders[0]] if senders else min(hosts.values())
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
    return domains.clock_map(reference, exchanges, names=names)
