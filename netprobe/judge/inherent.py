"""What a way of enforcement does otherwise by its nature: listed and explained in each result, never hidden. Pure."""

from dataclasses import dataclass

from netprobe.model.model_answers import ModelAnswer
from netprobe.model.packets import ConnState, EnforcementPoint, Fragment, Kind, Packet, Stage, Step
from netprobe.model.policy import ICMP

USERSPACE = frozenset({"ovs-ct", "ovn", "ovs-dpdk"})
"""Those whose connections Open vSwitch's own conntrack tracks, not the kernel's."""
OVN = frozenset({"ovn", "ovn-kernel"})
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION = 133, 134, 135  # RFC 4861 §4.1 to §4.3
SILENT_REJECT = frozenset({"ovs-ct", "ovs-kernel", "ovs-dpdk", "bridge"})

ADDRESS_MASK_REQUEST = 17


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
ICMP_CODE = Difference(
    "icmp-code-userspace-conntrack",
    "Open vSwitch's userspace conntrack takes an ICMP query with a code other than 0 for invalid, so a rule that "
    "leaves the code open lets code 0 pass alone. No ICMP query has another code (RFC 792, RFC 4443). It knows no "
    "address mask requests (type 17, RFC 950, deprecated by RFC 6918) either; the kernel's does.",
)


ROUTER_ADVERTISEMENTS = Difference(
    "ovn-router-advertisements",
    "OVN lets router advertisements of guests pass, above every ACL (priority 65532 of ls_in_acl and ls_out_acl); "
    "Neutron's other drivers drop them. A guest that believes them must not share a network with one that is not "
    "trusted.",
)
NEIGHBOURS = Difference(
    "ovn-answers-neighbours",
    "OVN answers ARP requests and neighbour solicitations about ports that it knows in their name: they do not arrive.",
)
SOLICITATIONS = Difference(
    "ovn-solicitations-unchecked",
    "OVN's port security does not look at the link-layer address in a neighbour solicitation: the last of its flows "
    "for them, which should drop, lets pass (OVN 23.03, table 74, priority 80). A guest can claim a neighbour's "
    "address by asking.",
)
SOLICITATIONS_FROM_NOBODY = Difference(
    "ovn-router-solicitations-from-nobody",
    "OVN's port security lets guests without an address solicit neighbours, but not routers; RFC 4861 §6.3.7 permits "
    "both.",
)
CONNTRACK_EVERYWHERE = Difference(
    "ovn-conntrack-on-every-port",
    "Where a logical switch has any stateful ACL, OVN tracks the connections of all its ports, so what belongs to no "
    "connection is dropped at its sender's port already, even if that has no port security.",
)


def inherent_difference(
    step: Step, backend: str, *, is_passed: bool, model: ModelAnswer | None = None
) -> Difference | None:
    """The difference that explains why a step became something else than the policy says; None where none does.

    It explains nothing where the enforcement's own rules say that the step should not have become that.

    Args:
        step: its expectation was contradicted.
        backend: "ovs-ct", "bridge", "ovn" or "ovs-dpdk"; "ovs-kernel" and "ovn-kernel" where the kernel forwards.
        is_passed: what became of it.
        model: what the enforcement's own model says of it.
    """
    packet = step.packet
    said = None if model is None else model.is_allowed
    if backend in USERSPACE and not is_passed:
        if packet.fragment is not Fragment.NONE and said is not True:
            return FRAGMENTS
        is_odd = packet.icmp_code != 0 or (packet.protocol, packet.icmp_type) == (ICMP, ADDRESS_MASK_REQUEST)
        if packet.is_icmp and is_odd and step.state is ConnState.NEW:
            return ICMP_CODE
    if backend not in OVN or packet.kind is not Kind.ND or (is_passed and said is False):
        return None
    return _discovery_in_ovn(packet, is_passed=is_passed)


def _discovery_in_ovn(packet: Packet, *, is_passed: bool) -> Difference | None:
    if is_passed:
        body = packet.neighbour
        if packet.icmp_type == NEIGHBOUR_SOLICITATION and body is not None and body.mac not in ("", packet.src_mac):
            return SOLICITATIONS
        return ROUTER_ADVERTISEMENTS if packet.icmp_type == ROUTER_ADVERTISEMENT else None
    if packet.icmp_type == ROUTER_SOLICITATION and packet.src_ip.is_unspecified:
        return SOLICITATIONS_FROM_NOBODY
    return NEIGHBOURS if packet.icmp_type == NEIGHBOUR_SOLICITATION else None


def inherent_place(step: Step, backend: str, point: EnforcementPoint) -> Difference | None:
    """The difference that explains why a step was dropped at another point than the policy says.

    Args:
        step: dropped, as it should be.
        backend: how it is enforced.
        point: where it was dropped.
    """
    is_early = point.stage is Stage.EGRESS and step.expected.point.stage is Stage.INGRESS
    return CONNTRACK_EVERYWHERE if backend in OVN and step.state is ConnState.INVALID and is_early else None


def silent_reject(step: Step, backend: str) -> Difference | None:
    """The difference behind a rejection that its sender is not told of."""
    return REJECT if step.expected.is_rejected and backend in SILENT_REJECT else None
