"""Two ends of a link, and what the messages in their tests look like."""

from netprobe.wire.flow_control import Limits
from netprobe.wire.link import AgentLink, CollectorLink, OperatorLink
from netprobe.wire.report import Hello, PartKey

MS = 1_000_000
S = 1_000_000_000
BOOT = "0" * 31 + "1"
COLLECTOR_BOOT = "c" * 32
PART = PartKey("run-1", BOOT)


def hello(role="vswitch", **fields):
    return Hello(**{"version": 1, "name": "hv1", "role": role, "boot": BOOT, "software": "0.1", **fields})


def exchange(first, second, now_ns):
    """Carry octets both ways until nobody says anything; the events of each."""
    events = ([], [])
    while True:
        there, back = first.data_to_send(), second.data_to_send()
        if not there and not back:
            return events
        if there:
            events[1].extend(second.feed(there, now_ns))
        if back:
            events[0].extend(first.feed(back, now_ns))


def open_links(limits=None, role="vswitch", resume=None, now_ns=0):
    """A dialler and its collector, past the handshake."""
    dialler = (OperatorLink if role == "operator" else AgentLink)(hello(role), now_ns)
    collector = CollectorLink(limits or Limits(), now_ns)
    exchange(dialler, collector, now_ns)
    collector.let_in(COLLECTOR_BOOT, 1_700_000_000 * S, resume or {})
    exchange(dialler, collector, now_ns)
    assert dialler.is_open
    assert collector.is_open
    return dialler, collector
