"""How policies are enforced where ports are: which backend, whose datapath forwards, and who tracks connections.

`backend_of` looks at the topology alone; what the vswitches themselves say, `real_backend` asks. service.verify and
service.stopwatch stand above.
"""

from collections.abc import Iterable

from netprobe.host.unixctl import UnixctlClient
from netprobe.model.points import PointKind
from netprobe.model.topology import Attachment, Topology


def backend_of(topology: Topology, attachments: Iterable[Attachment]) -> str:
    """How policies are enforced there: "ovn", "bridge" (iptables before the vswitch) or "ovs-ct"."""
    if topology.ovn is not None:
        return "ovn"
    if any(point.kind is PointKind.BRIDGE for one in attachments for point in one.chain):
        return "bridge"
    return "ovs-ct"


def backend_on(backend: str, datapaths: str, commands: str = "") -> str:
    """A backend where the kernel forwards, "ovs-kernel", "ovn-kernel", or DPDK, "ovs-dpdk"; iptables' is the kernel's.

    Where some hosts' userspace forwards, it is a userspace backend: what userspace does by its nature may be seen.

    Args:
        backend: from `backend_of`.
        datapaths: what `dpctl/dump-dps` prints, one "type@name" a line; a kernel's type is "system".
        commands: what `list-commands` prints; some are there only where DPDK is on.
    """
    kinds = {line.partition("@")[0] for line in datapaths.split()}
    if backend == "ovs-ct" and "dpdk/log-list" in commands:
        return "ovs-dpdk"
    if backend == "bridge" or kinds != {"system"}:
        return backend
    return "ovn-kernel" if backend == "ovn" else "ovs-kernel"


def is_kernel_datapath(backend: str) -> bool:
    """Whether the kernel's module forwards for Open vSwitch."""
    return backend.endswith("-kernel")


def is_tracked_by_kernel(backend: str) -> bool:
    """Whether the kernel tracks connections there: for iptables, or for its own datapath of Open vSwitch."""
    return backend == "bridge" or is_kernel_datapath(backend)


def real_backend(backend: str, attachments: Iterable[Attachment], topology: Topology) -> str:
    """A backend with what the vswitches of its hosts say of their datapaths; see `backend_on`.

    Args:
        backend: from `backend_of`.
        attachments: the ports that matter.
        topology: their hosts.

    Raises:
        HostNotReadyError: a vswitch does not answer.
    """
    names = {one.host for one in attachments}
    datapaths, commands = [], []
    for host in topology.hosts:
        if host.name in names:
            with UnixctlClient(host.ovs_rundir) as unixctl:
                datapaths.append(unixctl.call("dpctl/dump-dps"))
                commands.append(unixctl.call("list-commands"))
    return backend_on(backend, "\n".join(datapaths), "\n".join(commands))
