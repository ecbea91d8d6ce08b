"""What a way of enforcement does otherwise by its nature: listed and explained in each result, never hidden. Pure."""

from dataclasses import dataclass

from netprobe.model.packets import Fragment, Step

USERSPACE = frozenset({"ovs-ct", "ovn", "ovs-dpdk"})
SILENT_REJECT = frozenset({"ovs-ct", "ovs-dpdk", "bridge"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One inherent difference.

    Attributes:
        id: its name in JSON.
        text: what differs, and why.
    """

    id: str
    text: str


FRAGMENTS = Difference(
    "fragments-userspace-conntrack",
    "Open vSwitch's userspace conntrack re-splits datagrams before the rules are asked: a first fragment matches no "
    "port (OVS's frag mode `normal` shows ports 0), a later one has none, so rules with ports or ICMP types drop "
    "fragmented datagrams that the policy allows. The kernel's datapath and iptables match whole datagrams.",
)
REJECT = Difference(
    "reject-is-silent",
    "`reject` drops without telling the sender: OpenFlow has no such action, and a bridge has no route for the RST or "
    "ICMP error. Only OVN answers, through ovn-controller.",
)
ALL = (FRAGMENTS, REJECT)


def inherent_difference(step: Step, backend: str, *, is_passed: bool) -> Difference | None:
    """The difference that explains why a step became something else than the policy says; None where none does.

    Args:
        step: its expectation was contradicted.
        backend: "ovs-ct", "bridge", "ovn" or "ovs-dpdk".
        is_passed: what became of it.
    """
    if step.packet.fragment is not Fragment.NONE and backend in USERSPACE and not is_passed:
        return FRAGMENTS
    return None


def silent_reject(step: Step, backend: str) -> Difference | None:
    """The difference behind a rejection that its sender is not told of."""
    return REJECT if step.expected.is_rejected and backend in SILENT_REJECT else None
