"""Carry a counter pattern out against a live switch: send a burst, wait for the counters, read the rule's, again.

No sleeps: a barrier says that the packets are through the tables, `revalidator/wait` that the datapath's counts are in
them. OVS pushes them every half second when it is idle, so each read takes that long, and tenants' traffic of that time
is the noise that a pattern has to stand out of. The pattern and its test are judge.counter_pattern's, below; what a
burst consists of is the caller's business.
"""

from collections.abc import Callable

from netprobe.host.openflow import OpenFlowClient
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.counter_pattern import BurstPattern, PatternResult, judge_pattern


def read_rule(client: OpenFlowClient, unixctl: UnixctlClient, table: int, cookie: int) -> int:
    """Packets that the flows of one cookie in one table have matched, everything until now included.

    Raises:
        HostNotReadyError: the switch is gone.
    """
    client.barrier()
    unixctl.wait_revalidators()
    return client.aggregate(table, cookie).packet_count


def read_noise(client: OpenFlowClient, unixctl: UnixctlClient, table: int, cookie: int) -> int:
    """Packets that others send through a rule between two reads; for judge.counter_pattern.fit_pattern.

    Raises:
        HostNotReadyError: the switch is gone.
    """
    before = read_rule(client, unixctl, table, cookie)
    return max(read_rule(client, unixctl, table, cookie) - before, 0)


def probe_rule(
    client: OpenFlowClient,
    unixctl: UnixctlClient,
    pattern: BurstPattern,
    send: Callable[[int], int],
    *,
    table: int,
    cookie: int,
) -> PatternResult:
    """Send a pattern and say whether the rule's counter followed it.

    Args:
        client: the bridge.
        unixctl: the control socket of the same switch.
        pattern: fresh, from a random seed.
        send: takes a number of probes, sends them, returns once the switch has them, and says how many it sent.
        table: the rule's table.
        cookie: the rule's cookie; it must name this rule alone.

    Raises:
        HostNotReadyError: the switch is gone.
    """
    counts = [read_rule(client, unixctl, table, cookie)]
    sent = []
    for size in pattern.sizes:
        sent.append(send(size) if size else 0)
        counts.append(read_rule(client, unixctl, table, cookie))
    return judge_pattern(pattern, counts, sent=sent)
