"""What the ports of a userspace datapath say that they dropped: `dpctl/show -s`, read before and after a run.

A userspace vswitch sheds bursts at its ports; what it counted while we were sending is shown with the result (design
§6a). The parser is total: lines that say nothing known are skipped.
"""

import re
from dataclasses import dataclass

from netprobe.host.unixctl import UnixctlClient

_PORT = re.compile(r"\s*port \d+: (\S+)")
_COUNTERS = re.compile(r"\s*([RT]X) packets:\S+ errors:(\d+|\?) dropped:(\d+|\?) ")
_LOOKUPS = re.compile(r"\s*lookups: .*\blost:(\d+)")


@dataclass(frozen=True, slots=True)
class DatapathDrops:
    """Drops since the datapath came up.

    Attributes:
        ports: errors and drops of both directions, by port name.
        lost: packets that found the queue to the slow path full.
    """

    ports: dict[str, int]
    lost: int

    def since(self, before: "DatapathDrops", names: frozenset[str]) -> int:
        """What was dropped after `before`, at the named ports and on the way to the slow path.

        A counter that went back (the switch was restarted) counts from 0.
        """
        grown = [self.ports.get(n, 0) - before.ports.get(n, 0) for n in names]
        return sum(max(n, 0) for n in grown) + max(self.lost - before.lost, 0)


def parse_drops(text: str) -> DatapathDrops:
    """The counters in what `dpctl/show -s` printed. Never raises."""
    ports: dict[str, int] = {}
    lost, port = 0, ""
    for line in text.splitlines():
        if found := _PORT.match(line):
            port = found[1]
            ports.setdefault(port, 0)
        elif (found := _COUNTERS.match(line)) and port:
            ports[port] += sum(int(n) for n in found.groups()[1:] if n.isdigit())
        elif found := _LOOKUPS.match(line):
            lost += int(found[1])
    return DatapathDrops(ports, lost)


def read_drops(rundir: str) -> DatapathDrops:
    """The counters of a switch now.

    Raises:
        HostNotReadyError: the switch does not answer.
    """
    with UnixctlClient(rundir) as unixctl:
        return parse_drops(unixctl.call("dpctl/show", "-s"))
