"""What network devices were given to send and dropped, by the kernel's own counters.

A packet ring sees a frame before the device has it. What a tap drops then (`tx_dropped`), because the virtual machine
behind it does not take it, has passed the ring and was not delivered. Counters are of all traffic, tenants' too.
"""

from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns

TX_DROPPED = 11
"""Column of /proc/net/dev: eight figures of reception, then bytes, packets, errors and drops of transmission."""


def tx_dropped(netns: str) -> dict[str, int]:
    """Frames that each device of a network namespace dropped when it should send them; empty where nobody can tell.

    Args:
        netns: its name, "" for this process's own.
    """
    try:
        text = in_netns(netns, _read) if netns else _read()
    except (OSError, HostNotReadyError):
        return {}
    return _parse(text)


def _read() -> str:
    return Path("/proc/thread-self/net/dev").read_text()


def _parse(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines()[2:]:
        name, _, figures = line.partition(":")
        words = figures.split()
        if len(words) > TX_DROPPED:
            found[name.strip()] = int(words[TX_DROPPED])
    return found
