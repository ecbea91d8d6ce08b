"""Flows on their way to a bridge: cookies that tell rules apart, and matches that several labs need. Pure.

Used by netprobe.lab.flows (lab single) and netprobe.lab.hybrid (lab bridge).
"""

from dataclasses import dataclass

from netprobe.errors import UsageError
from netprobe.lab.rule_lists import RuleInfo
from netprobe.model.policy import IPNetwork

COOKIE_PREFIX = 0x1AB0 << 48
"""The lab's own flows; it differs from netprobe's own cookies, because these flows are the cloud's, not netprobe's."""
COOKIE_MASK = 0xFFFF << 48
RULES_MAX = (1 << 12) - 1

_DIRECTION_CODES = {"": 0, "egress": 1, "ingress": 2}

RS, RA, NS, NA = 133, 134, 135, 136  # RFC 4861
LISTENER_REPORTS = (131, 132, 143)  # RFC 2710, RFC 3810


@dataclass(frozen=True, slots=True)
class CompiledFlows:
    """Flows for `ovs-ofctl replace-flows`, and what their cookies mean."""

    flows: tuple[str, ...]
    rules: dict[int, RuleInfo]

    def rules_json(self) -> dict[str, dict[str, str]]:
        """As in the state file: cookies as OVS prints them."""
        return {f"{cookie:#x}": info.to_json() for cookie, info in self.rules.items()}


class FlowTable:
    """Collects flows. A match that is there already keeps its first rule: two flows cannot share one match."""

    def __init__(self) -> None:
        self.flows: list[str] = []
        self.rules: dict[int, RuleInfo] = {}
        self._matches: set[tuple[int, int, str]] = set()
        self._numbers: dict[tuple[int, int], int] = {}

    def cookie(self, info: RuleInfo, ofport: int = 0) -> int:
        """A cookie of its own for a rule at a port.

        Raises:
            UsageError: cookies cannot tell so many rules apart.
        """
        code = _DIRECTION_CODES[info.direction]
        number = self._numbers.get((ofport, code), 0)
        if number > RULES_MAX:
            raise UsageError(f"port of {info.port}", f"has more than {RULES_MAX} {info.direction} rules")
        self._numbers[ofport, code] = number + 1
        cookie = COOKIE_PREFIX | ofport << 16 | code << 12 | number
        self.rules[cookie] = info
        return cookie

    def add(self, cookie: int, table: int, priority: int, match: str, actions: str) -> None:
        """One flow, unless its match is taken."""
        key = (table, priority, match)
        if key not in self._matches:
            self._matches.add(key)
            where = f"cookie={cookie:#x},table={table},priority={priority}"
            self.flows.append(f"{where},{match},actions={actions}" if match else f"{where},actions={actions}")

    def compiled(self) -> CompiledFlows:
        """What was collected."""
        return CompiledFlows(tuple(self.flows), self.rules)


def neighbour_matches(sender: str, mac: str, prefix: IPNetwork) -> list[str]:
    """The matches of ARP, or of neighbour discovery, that a port may send about one of its addresses.

    Args:
        sender: the match of its port, and of its MAC.
        mac: that MAC.
        prefix: the address, or all those of an allowed pair.
    """
    address = plain(prefix)
    if prefix.version == 4:
        return [f"arp,{sender},arp_sha={mac},arp_spa={address}"]
    found = [f"icmp6,{sender},ipv6_src={source},icmp_type={RS}" for source in (address, "::")]
    found.append(f"icmp6,{sender},ipv6_src={address},icmp_type={NS},nd_sll={mac}")
    # Duplicate address detection (RFC 4862 §5.4.2) asks from the unspecified address, for its own.
    found.append(f"icmp6,{sender},ipv6_src=::,icmp_type={NS},nd_target={address}")
    # The answer to a unicast solicitation may leave the link-layer address out (RFC 4861 §4.4).
    for target_mac in (mac, "00:00:00:00:00:00"):
        advert = f"icmp6,{sender},ipv6_src={address},icmp_type={NA},nd_target={address},nd_tll={target_mac}"
        found.append(advert)
    return found


def plain(prefix: IPNetwork) -> str:
    """A prefix as Open vSwitch prints it: without its length where it is one address."""
    return str(prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix)
