"""Single values of a policy as people and clouds write them: protocols, ports, prefixes, addresses, MACs. Pure.

Shared by the readers of policies. Each function says who, what value and what is allowed.
"""

import re
from ipaddress import ip_address, ip_network

from netprobe.errors import UsageError
from netprobe.model.policy import PROTOCOL_NAMES, WITH_PORTS, IPAddress, IPNetwork, protocol_name

PROTOCOL_MAX, PORT_MAX, ICMP_MAX = 255, 65535, 255

_PORTS = re.compile(r"(\d{1,5})(?:[-:](\d{1,5}))?", re.ASCII)
_NUMBER = re.compile(r"\d{1,5}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)


def read_protocol(value: object, where: str) -> int | None:
    """A protocol's number from its name or number; None for "any".

    Raises:
        UsageError: there is no such protocol.
    """
    if isinstance(value, str):
        name = value.lower()
        if name == "any":
            return None
        if name in PROTOCOL_NAMES:
            return PROTOCOL_NAMES[name]
        if _NUMBER.fullmatch(name):
            value = int(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= PROTOCOL_MAX:
        names = ", ".join(sorted(PROTOCOL_NAMES))
        raise UsageError(where, f"got {value!r}", allowed=f"any, a number from 0 to {PROTOCOL_MAX}, or one of {names}")
    return value


def read_ports(value: object, where: str) -> tuple[int, int]:
    """First and last port of 80, "80" or "5000-5009".

    Raises:
        UsageError: no port, too high, or the range is the wrong way round.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _PORTS.fullmatch(text) if isinstance(text, str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if match and last < first <= PORT_MAX:
        raise UsageError(where, f"{value!r} is a range the wrong way round", allowed=f'"{last}-{first}"')
    if not 0 <= first <= last <= PORT_MAX:
        raise UsageError(where, f"got {value!r}", allowed=f'0 to {PORT_MAX}, or a range such as "5000-5009"')
    return first, last


def read_prefix(value: object, where: str) -> IPNetwork:
    """A prefix, or one address as a prefix.

    Raises:
        UsageError: it is none, or has bits beyond its length.
    """
    wrong = UsageError(where, f"got {value!r}", allowed="a prefix such as 10.0.0.0/24 or fd00::/64, or one address")
    if not isinstance(value, str):
        raise wrong
    try:
        prefix = ip_network(value, strict=False)
        address = ip_address(value.partition("/")[0])
    except ValueError:
        raise wrong from None
    if getattr(address, "scope_id", None):
        raise wrong
    if address != prefix.network_address:
        raise UsageError(where, f"{value!r} has bits beyond its length", allowed=str(prefix))
    return prefix


def read_address(value: object, where: str) -> IPAddress:
    """An address that one port can have.

    Raises:
        UsageError: it is none, or stands for many or for nobody.
    """
    try:
        address = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or getattr(address, "scope_id", None) or address.is_unspecified or address.is_multicast:
        raise UsageError(where, f"got {value!r}", allowed="a unicast address such as 10.0.0.1 or fd00::1")
    return address


def read_mac(value: object, where: str) -> str:
    """A MAC in lower case with colons.

    Raises:
        UsageError: it is none, or stands for many or for nobody.
    """
    mac = value.lower().replace("-", ":") if isinstance(value, str) else ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise UsageError(where, f"got {value!r}", allowed="a unicast MAC such as 02:00:00:00:00:01")
    return mac


def check_has_ports(protocol: int | None, where: str) -> None:
    """Refuse ports with a protocol that has none.

    Raises:
        UsageError: it has none.
    """
    if protocol not in WITH_PORTS:
        named = "any protocol" if protocol is None else protocol_name(protocol)
        allowed = "protocol " + ", ".join(protocol_name(number) for number in sorted(WITH_PORTS))
        raise UsageError(where, f"there are no ports in {named}", allowed=allowed)
