"""The ports of a policy found among what is attached somewhere: whose addresses they have, and by which UUID. Pure."""

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from netprobe.errors import UsageError, unknown_name
from netprobe.model.policy import IPAddress, Policy, PolicyPort
from netprobe.model.topology import Attachment
from netprobe.plan.policy_checks import check_policy

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

NOWHERE = "is attached nowhere that netprobe knows: nothing is sent from it or to it"


def bind(policy: Policy, attachments: Iterable[Attachment], where: str, *, must_exist: bool = True) -> Policy:
    """The policy with the MAC, addresses, network and UUID that its ports have where they are attached.

    A port's name may be the guest's name, an address, the MAC or the UUID; groups stay those of the policy.

    Args:
        policy: from any reader.
        attachments: guests, and NICs that stand in for them.
        where: what the policy was read from, for messages.
        must_exist: whether each port has to be attached. If not, as in a policy of a whole cloud, a port that is
            attached nowhere stays a member of its groups, without a MAC, and is told in a remark.

    Raises:
        UsageError: no guest, or more than one, is meant by a port; two ports mean one guest; what the policy says of a
            port's addresses is not what it has.
    """
    index: dict[str, list[Attachment]] = {}
    for each in attachments:
        for name in {_normal(name) for name in each.names if name}:
            index.setdefault(name, []).append(each)
    taken: dict[int, str] = {}
    ports: list[PolicyPort] = []
    remarks: list[str] = []
    for port in policy.ports:
        place = f"{where}: guest {port.name}"
        attachment = _found(port, index, place)
        if attachment is None:
            if must_exist:
                known = {each.name for same in index.values() for each in same}
                raise unknown_name(place, port.name, known, kind="guest")
            remarks.append(f"guest {port.name} {NOWHERE}")
            ports.append(replace(port, mac=""))
            continue
        other = taken.setdefault(id(attachment), port.name)
        if other != port.name:
            raise UsageError(place, f"is guest {attachment.name}, which guest {other} is too", advice="name it once")
        ports.append(_agreed(port, attachment, place))
    return check_policy(replace(policy, ports=tuple(ports), remarks=(*policy.remarks, *remarks)), where)


def _found(port: PolicyPort, index: dict[str, list[Attachment]], where: str) -> Attachment | None:
    """By UUID, else by name, else by MAC, else by address; None where it is not attached."""
    for name in (port.id, port.name, port.mac, *map(str, port.ips)):
        found = index.get(_normal(name), []) if name else []
        there = [attachment for attachment in found if _is_network(port, attachment)]
        if len(there or found) == 1:
            return (there or found)[0]
        if found:
            which = ", ".join(f"{a.name} on {a.network or a.host}" for a in there or found)
            raise UsageError(where, f"{name!r} is said of several guests", allowed=which, advice="name it by its UUID")
    return None


def _agreed(port: PolicyPort, attachment: Attachment, where: str) -> PolicyPort:
    real_ips: tuple[IPAddress, ...] = (attachment.ipv4, attachment.ipv6)
    ips = tuple(ip for ip in real_ips if not ip.is_unspecified)
    mac = attachment.mac.lower()
    for key, said, real in (("id", port.id, attachment.iface_id), ("mac", port.mac, mac)):
        if said and real and _normal(said) != _normal(real):
            raise _differs(f"{where}.{key}", said, real)
    if not _is_network(port, attachment):
        raise _differs(f"{where}.network", port.network, attachment.network)
    for ip in ips:
        if port.ips and ip not in port.ips:
            raise _differs(f"{where}.ips", ", ".join(map(str, port.ips)), str(ip))
    return replace(
        port,
        network=attachment.network or port.network,
        mac=mac or port.mac,
        ips=port.ips or ips,
        id=attachment.iface_id or port.id,
    )


def _differs(where: str, said: str, real: str) -> UsageError:
    return UsageError(where, f"the policy says {said}, and the guest has {real}", advice="correct one of them")


def _is_network(port: PolicyPort, attachment: Attachment) -> bool:
    """Whether the two may be on one network: a name and a UUID cannot be compared, but for OVN's names of networks."""
    said, real = port.network, attachment.network.removeprefix("neutron-")
    if not said or not real or said in {real, attachment.network}:
        return True
    return bool(_UUID.fullmatch(said)) != bool(_UUID.fullmatch(real))


def _normal(name: str) -> str:
    """A name in one spelling, as model.topology compares them."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()
