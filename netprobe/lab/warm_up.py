"""Sends echo requests between a lab's guests until each was answered once, so that no user meets a cold path.

The first frame between two hypervisors is lost while the tunnel's next hop is being resolved, and guests and router
learn their neighbours from the first packets. Only what the policy allows is sent, and waited for.
"""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.lab.config import LabConfig
from netprobe.lab.rule_lists import entries, is_stateless, lets_echo_pass
from netprobe.lab.shapes import Shape
from netprobe.lab.topology import Endpoint, bound_policy
from netprobe.model.policy import Policy, Way

WARM_UP_WAIT_S = 5.0
AGAIN_S = 0.05
IDENTIFIER = 0x6E70
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_IPV4_HEADER = 20
_SOCKETS = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}


@dataclass(frozen=True, slots=True)
class Ping:
    """An echo request: from an endpoint's namespace to an address."""

    source: str
    netns: str
    address: str

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4


def pings(config: LabConfig, ends: Sequence[Endpoint]) -> list[Ping]:
    """What shall cross: between hypervisors, from each endpoint to one of each hypervisor and network, and by NAT.

    Args:
        config: the policy, which says what may.
        ends: guests and bypass NICs.
    """
    hosts, policy = config.shape.hypervisors, bound_policy(config, ends)
    found = [Ping(a.name, a.netns, b.encap_ip) for a in hosts for b in hosts if a is not b]
    for source in ends:
        seen = set()
        for target in ends:
            if target.name == source.name:
                continue
            wanted = [] if (target.host, target.network) in seen else [target.ipv4, target.ipv6]
            if target.floating and source.network != target.network:
                wanted.append(target.floating)
            allowed = [address for address in wanted if _may(config.shape, policy, (source, target), address)]
            if target.ipv4 in allowed:
                seen.add((target.host, target.network))
            found += [Ping(source.name, source.netns, address) for address in allowed]
    return found


def _may(shape: Shape, policy: Policy, ends: tuple[Endpoint, Endpoint], address: str) -> bool:
    """Whether the policy lets an echo request and its answer pass, sent to one of the second endpoint's addresses."""
    source, target = ends
    family = 6 if ":" in address else 4
    sent_as = source.ipv6 if family == 6 else source.ipv4
    nat = shape.nat_address(source.network, source.floating).get(target.network)
    seen_as = nat if nat and family == 4 else sent_as
    ways = (source, Way.EGRESS), (target, Way.INGRESS)
    if not all(_allows(policy, end, way, (seen_as, address), _REQUEST[family]) for end, way in ways):
        return False
    back = (target, Way.EGRESS), (source, Way.INGRESS)
    return all(
        not _is_stateless(policy, end) or _allows(policy, end, way, (address, seen_as), _REPLY[family])
        for end, way in back
    )


def _is_stateless(policy: Policy, end: Endpoint) -> bool:
    return is_stateless(policy, policy.port(end.name))


def _allows(policy: Policy, end: Endpoint, way: Way, addresses: tuple[str, str], icmp_type: int) -> bool:
    port = policy.port(end.name)
    if not port.has_port_security:
        return True
    source, target = map(ip_address, addresses)
    return lets_echo_pass(entries(policy, port, way), source, target, icmp_type)


def warm_up(wanted: Iterable[Ping]) -> None:
    """Send until each was answered.

    Raises:
        HostNotReadyError: one was not, in WARM_UP_WAIT_S.
    """
    waiting = dict(enumerate(wanted, start=1))
    sockets: dict[tuple[str, int], socket.socket] = {}
    with contextlib.ExitStack() as stack:
        for ping in waiting.values():
            key = (ping.netns, ping.family)
            if key not in sockets:
                sockets[key] = stack.enter_context(in_netns(ping.netns, partial(_open, ping.family)))
        deadline = time.monotonic() + WARM_UP_WAIT_S
        while waiting:
            for number, ping in waiting.items():
                with contextlib.suppress(OSError):  # no route yet, or a neighbour that does not answer yet
                    sockets[ping.netns, ping.family].sendto(_request(ping.family, number), (ping.address, 0))
            again = time.monotonic() + AGAIN_S
            while waiting and (left := again - time.monotonic()) > 0:
                ready, _, _ = select.select(list(sockets.values()), [], [], left)
                for sock in ready:
                    waiting.pop(_answered(sock), None)
            if waiting and time.monotonic() > deadline:
                missing = ", ".join(f"{ping.source} to {ping.address}" for ping in waiting.values())
                raise HostNotReadyError("lab", f"no echo reply within {WARM_UP_WAIT_S:g} s: {missing}")


def _open(family: int) -> socket.socket:
    kind, protocol = _SOCKETS[family]
    sock = socket.socket(kind, socket.SOCK_RAW, protocol)
    sock.setblocking(False)
    return sock


def _request(family: int, number: int) -> bytes:
    """An echo request; the kernel fills in ICMPv6's checksum, not ICMP's."""
    request = struct.pack("!BBHHH", _REQUEST[family], 0, 0, IDENTIFIER, number)
    if family == 6:
        return request
    total = sum(struct.unpack("!4H", request))
    return request[:2] + struct.pack("!H", ~((total >> 16) + total) & 0xFFFF) + request[4:]


def _answered(sock: socket.socket) -> int:
    """The number of the request that the next message answers, 0 when it answers none of ours."""
    try:
        message = sock.recv(256)
    except OSError:
        return 0
    family = 6 if sock.family == socket.AF_INET6 else 4
    message = message[_IPV4_HEADER if family == 4 else 0 :]
    if len(message) < 8 or message[0] != _REPLY[family]:
        return 0
    identifier, number = struct.unpack_from("!HH", message, 4)
    return int(number) if identifier == IDENTIFIER else 0
