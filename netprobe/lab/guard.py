"""The iptables rules and ipsets of the lab `bridge` on its hypervisor: installed, looked after, and taken along.

Rules name a guest's tap as the bridge's port. While a relay stands there its device is the port, so the rules are
renamed; for a moment then the port is in no bridge, and never in one without rules.
"""

from collections import Counter

from netprobe.errors import HostNotReadyError
from netprobe.host import iptables_restore
from netprobe.lab.iptables_rules import CompiledIptables
from netprobe.lab.layout import RelayPort, ports
from netprobe.lab.shapes import Shape
from netprobe.lab.state import Places, State

SHOWN_MAX = 3


def install(shape: Shape, compiled: CompiledIptables, places: Places) -> None:
    """Put sets and rules in, and remember how they look then.

    Raises:
        HostNotReadyError: a command refuses them.
    """
    (host,) = shape.hypervisors
    iptables_restore.restore_sets(host.netns, compiled.ipsets)
    for family, text in compiled.tables.items():
        iptables_restore.restore(host.netns, family, text)
    places.guard.write_text("".join(f"{line}\n" for line in sorted(_lines(host.netns).elements())))


def missing(state: State, places: Places) -> list[str]:
    """What was installed and is not there any more, for people; what others added is not ours to judge."""
    (host,) = state.shape.hypervisors
    try:
        wanted, there = Counter(places.guard.read_text().splitlines()), _lines(host.netns)
    except (OSError, HostNotReadyError) as error:
        return [f"the iptables rules cannot be looked at ({error})"]
    for port in _spliced(state):
        there = Counter({_renamed(line, port.outer, port.device): count for line, count in there.items()})
    gone = list((wanted - there).elements())
    if not gone:
        return []
    more = f", and {len(gone) - SHOWN_MAX} more" if len(gone) > SHOWN_MAX else ""
    return [f"of the iptables rules and ipsets are gone: {'; '.join(gone[:SHOWN_MAX])}{more}"]


def rename(netns: str, old: str, new: str) -> None:
    """Let the rules guard another device in the place of one; counters stay.

    Raises:
        HostNotReadyError: a command fails.
    """
    for family in iptables_restore.PROGRAMS:
        text = iptables_restore.save(netns, family)
        iptables_restore.restore(netns, family, "".join(f"{_renamed(line, old, new)}\n" for line in text.splitlines()))


def _spliced(state: State) -> list[RelayPort]:
    known = ports(state.shape, state.endpoints)
    return [port for fault in state.faults if (port := known[fault.splice.port]).is_guarded]


def _renamed(line: str, old: str, new: str) -> str:
    """A rule with another device where `-m physdev` names one; a comment that says the same word stays."""
    for option in ("--physdev-in", "--physdev-out"):
        line = line.replace(f"{option} {old} ", f"{option} {new} ")
    return line


def _lines(netns: str) -> Counter[str]:
    """Rules and members of sets, each with its family or as it is, without counters."""
    found = Counter(line for line in iptables_restore.save_sets(netns).splitlines() if line.startswith("add "))
    for family in iptables_restore.PROGRAMS:
        table = ""
        for line in iptables_restore.save(netns, family).splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("["):
                found[f"IPv{family} {table}: {line.split(' ', 1)[1]}"] += 1
    return found
