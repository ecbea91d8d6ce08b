"""Conntrack entries of a run's own, out of the table of a host: the switch's, or the kernel's where iptables enforces.

Above: service.journal. The tables are host.conntrack's and host.nf_conntrack's, below.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from netprobe.host.conntrack import Conntrack, Deletion
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import FiveTuple
from netprobe.model.topology import Host


@dataclass(frozen=True, slots=True)
class Table:
    """A conntrack table, or one zone of it.

    Attributes:
        rundir: of the switch; empty for the kernel's table of namespace `netns`.
        zone: None for all of them (OVN and iptables have one a port).
    """

    rundir: str
    zone: int | None
    netns: str = ""


def table_of(host: Host, *, is_kernel: bool) -> Table:
    """The table of a host: the kernel's, where iptables guards its ports, or its switch's."""
    return Table("", None, host.netns) if is_kernel else Table(host.ovs_rundir, host.zone)


def delete_tuples(table: Table, tuples: Iterable[FiveTuple]) -> Deletion:
    """Delete the entries that packets of ours made. It blocks; call it in a thread where others wait.

    Args:
        table: where they are.
        tuples: originating direction of each, exact, as the table has it (behind NAT nothing is found). They must be
            ours: who names one without ports, or an ICMP identifier, has seen that it was not there before.

    Returns:
        What was deleted, what was not there, and what could not be deleted, with the reason: of a switch ICMPv6 always.

    Raises:
        HostNotReadyError: the switch or the kernel does not answer.
    """
    wanted = tuple(dict.fromkeys(tuples))
    if not wanted:
        return Deletion((), (), ())
    if not table.rundir:
        with KernelConntrack(table.netns) as kernel:
            return kernel.delete_own(wanted, table.zone)
    with UnixctlClient(table.rundir) as unixctl:
        return Conntrack(unixctl).delete_present(wanted, table.zone)
