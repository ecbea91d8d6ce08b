"""Conntrack entries of a run's own, out of the table of a host: the switch's, or the kernel's where iptables enforces.

Above: service.verify. The tables are host.conntrack's and host.nf_conntrack's, below.
"""

from collections.abc import Iterable

from netprobe.host.conntrack import Conntrack, Deletion
from netprobe.host.nf_conntrack import KernelConntrack
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import FiveTuple
from netprobe.model.topology import Host


def delete_tuples(host: Host, tuples: Iterable[FiveTuple], *, is_kernel: bool) -> Deletion:
    """Delete the entries that packets of ours made on a host. It blocks; call it in a thread where others wait.

    Args:
        host: whose table.
        tuples: originating direction of each, exact, as the table has it (behind NAT nothing is found). They must be
            ours: who names one without ports, or an ICMP identifier, has seen that it was not there before.
        is_kernel: connections are tracked by the kernel of the host's namespace, not by its switch.

    Returns:
        What was deleted, what was not there, and what could not be deleted, with the reason: of a switch ICMPv6 always.

    Raises:
        HostNotReadyError: the switch or the kernel does not answer.
    """
    wanted = tuple(dict.fromkeys(tuples))
    if not wanted:
        return Deletion((), (), ())
    if is_kernel:
        with KernelConntrack(host.netns) as kernel:
            return kernel.delete_own(wanted, None)
    with UnixctlClient(host.ovs_rundir) as unixctl:
        return Conntrack(unixctl).delete_present(wanted, host.zone)
