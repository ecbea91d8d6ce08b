"""Who is in a lab and where: guests and bypass NICs, with their addresses, ports and hypervisors. Pure.

What it is made of: netprobe.lab.config (groups, guests) and netprobe.lab.shapes (hypervisors, networks). The points and
segments between them are netprobe.lab.layout's.
"""

import uuid
from dataclasses import dataclass, replace

from netprobe.lab.config import Bypass, LabConfig
from netprobe.lab.shapes import Shape

_SINGLE_BYPASS_NUMBER = 100
_BYPASS_NUMBER = 240
"""Bypass NICs are numbered from here on; guests from 1 (at most config.GUESTS_MAX)."""
_OVN_PORTS = 100
"""With OVN, requested OpenFlow numbers lie above those that it lets the switch choose for tunnels and patch ports."""
_IFACE_IDS = uuid.UUID("6c1b2f6e-7d0a-4f2b-9c55-6e7470726f62")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A guest, or a bypass NIC: a tiny host in a namespace, behind a port of a hypervisor's bridge.

    Attributes:
        device: its NIC, in `netns`.
        host: the hypervisor that it is on.
        network: its logical switch.
        mac, ipv4, ipv6: its addresses; the only ones that it may send from.
        ofport: OpenFlow number of its port, the same on every hypervisor.
        iface_id: the cloud's UUID of its port.
        copy_of: the guest whose groups a bypass NIC has; empty for guests.
        floating: its address on the provider network, empty where it has none.
    """

    name: str
    netns: str
    device: str
    host: str
    network: str
    mac: str
    ipv4: str
    ipv6: str
    groups: tuple[str, ...]
    ofport: int
    iface_id: str
    copy_of: str = ""
    floating: str = ""

    @property
    def tap(self) -> str:
        """The other end of its NIC, on the hypervisor; the port's device unless a relay stands there."""
        return f"tap{self.netns}" if not self.copy_of else f"tap{self.name.replace('bypass', 'byp')}"


def endpoints(config: LabConfig) -> tuple[Endpoint, ...]:
    """The guests in the order of the configuration, then the bypass NICs."""
    shape = config.shape
    made = []
    for number, guest in enumerate(config.guests, start=1):
        ofport = number + (_OVN_PORTS if shape.has_ovn else 0)
        end = _endpoint(shape, guest.name, (guest.host, guest.network), (number, ofport))
        floating = shape.floating_address(number) if guest.floating else ""
        made.append(replace(end, groups=guest.groups, floating=floating))
    return (*made, *(_bypass(config, bypass) for bypass in config.bypasses))


def _bypass(config: LabConfig, bypass: Bypass) -> Endpoint:
    shape, guest = config.shape, config.guest(bypass.copy_of)
    host = shape.hypervisor(bypass.host).number
    if shape.has_ovn:
        name, number, ofport = f"bypass{host}", _BYPASS_NUMBER + host, _OVN_PORTS + _BYPASS_NUMBER + host
    else:
        name, number, ofport = "bypass", _SINGLE_BYPASS_NUMBER, len(config.guests) + 1
    end = _endpoint(shape, name, (bypass.host, guest.network), (number, ofport))
    return replace(end, netns=f"byp{host}", device="byp0", groups=guest.groups, copy_of=guest.name)


def _endpoint(shape: Shape, name: str, place: tuple[str, str], numbers: tuple[int, int]) -> Endpoint:
    host, network = place
    number, ofport = numbers
    ipv4, ipv6 = shape.network(network).addresses(number)
    return Endpoint(
        name=name,
        netns=name,
        device="eth0",
        host=host,
        network=network,
        mac=f"fa:16:3e:00:00:{number:02x}",
        ipv4=ipv4,
        ipv6=ipv6,
        groups=(),
        ofport=ofport,
        iface_id=str(uuid.uuid5(_IFACE_IDS, name)),
    )


def leaves_host(shape: Shape, source: Endpoint, target: Endpoint, *, by_floating: bool = False) -> bool:
    """Whether what one endpoint sends to another leaves its hypervisor.

    What crosses between the provider network and the others goes through the gateway's hypervisor, wherever its ends
    are; so does what is sent to a floating address.

    Args:
        shape: of their lab.
        source: who sends.
        target: to whom.
        by_floating: sent to the target's floating address.
    """
    if source.host != target.host:
        return True
    crosses_gateway = by_floating or (
        source.network != target.network and shape.provider in (source.network, target.network)
    )
    return crosses_gateway and source.host != shape.gateway
