"""Links and filters that lead netprobe's packets into guests' ports and out of them: made, and undone to the last one.

    netprobe's own namespace          the hypervisor's namespace
    p0  ------- veth pair ------- np….0 --ingress filter--> ingress of the tap   (as if the guest had sent it)
                                  np….0 <--egress filter--- egress of the tap    (absorbed: the guest never sees it)

A value (`TapLinks`) says all that will be made; service.journal writes it down before, and `netprobe clean` undoes it
from there after a `kill -9`. On a tap only one filter is ours, by its handle, and the clsact that it hangs on if there
was none. Undoing what is not there is nothing.
"""

import itertools
import re
import secrets
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, tc
from netprobe.host.netns import exists, in_netns
from netprobe.host.process import run

NAMESPACE = re.compile(r"np-verify-[0-9a-f]{4}")
LINK = re.compile(r"np[0-9a-f]{4}-[0-9]{1,5}")
MAX_PORTS = 10_000
LINK_MTU = 65_535  # whatever a tap's is: a veth drops what is longer than its own
QUIET_SYSCTLS = {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}

READY_S = 5.0
"""A new link drops frames without a word until the kernel has noticed its carrier, some milliseconds later."""

GONE_S = 5.0
LOOK_AGAIN_S = 0.005

Table = dict[str, object]


@dataclass(frozen=True, slots=True)
class TapPort:
    """A port that packets go into and come out of.

    Attributes:
        name: its guest's.
        netns: the hypervisor's namespace, "" for the caller's own.
        device: its device there, a tap or what stands for one.
    """

    name: str
    netns: str
    device: str


@dataclass(frozen=True, slots=True)
class TapLink:
    """What is made for one port.

    Attributes:
        netns, tap: the port's device.
        link: the near end of its veth pair, in the same namespace.
        peer: the far end, in netprobe's own.
        adds_clsact: the tap has no clsact before.
    """

    netns: str
    tap: str
    link: str
    peer: str
    adds_clsact: bool


@dataclass(frozen=True, slots=True)
class TapLinks:
    """All that one run makes.

    Attributes:
        namespace: netprobe's own.
        handle: of its filters.
        links: one a port.
    """

    namespace: str
    handle: int
    links: tuple[TapLink, ...]

    def to_json(self) -> Table:
        """As it stands in a journal."""
        rows = [[one.netns, one.tap, one.link, one.peer, one.adds_clsact] for one in self.links]
        return {"namespace": self.namespace, "handle": self.handle, "links": rows}

    @classmethod
    def from_json(cls, table: Table) -> "TapLinks":
        """Out of a journal.

        Raises:
            ValueError, LookupError, TypeError: it is damaged; nothing that it names may be touched.
        """
        namespace, handle, rows = str(table["namespace"]), int(str(table["handle"])), table["links"]
        if not NAMESPACE.fullmatch(namespace) or not isinstance(rows, list) or handle <= 0:
            raise ValueError(f"namespace {namespace!r}, handle {handle}")
        links = []
        for netns, tap, link, peer, adds_clsact in rows:
            if not tc.DEVICE.fullmatch(tap) or not LINK.fullmatch(link) or not isinstance(netns, str) or "/" in netns:
                raise ValueError(f"device {tap!r} with link {link!r} in {netns!r}")
            links.append(TapLink(netns, tap, link, str(peer), bool(adds_clsact)))
        return cls(namespace, handle, tuple(links))

    def by_netns(self) -> Iterable[tuple[str, tuple[TapLink, ...]]]:
        """Its links, by the namespace of the hypervisor."""
        ordered = sorted(self.links, key=lambda one: one.netns)
        return ((netns, tuple(group)) for netns, group in itertools.groupby(ordered, key=lambda one: one.netns))


@dataclass(frozen=True, slots=True)
class PlannedLinks:
    """What can be made: its links stand for the ports of the same index.

    Attributes:
        failures: why a port can have none, by its name.
    """

    ports: tuple[TapPort, ...]
    links: TapLinks
    failures: dict[str, str]


def plan_links(ports: Sequence[TapPort]) -> PlannedLinks:
    """Look at the ports and say what will be made; nothing is changed.

    Raises:
        HostNotReadyError: a namespace is not there, or a tool.
    """
    suffix = secrets.token_hex(2)
    found: dict[str, tuple[frozenset[str], dict[str, frozenset[str]]]] = {}
    for netns in dict.fromkeys(port.netns for port in ports):
        found[netns] = (devices(netns), tc.qdiscs(netns))
    good: list[TapPort] = []
    links: list[TapLink] = []
    failures: dict[str, str] = {}
    for port in ports:
        there, qdiscs = found[port.netns]
        kinds = qdiscs.get(port.device, frozenset())
        if why := _unfit(port, there, kinds):
            failures[port.name] = why
            continue
        number = len(links)
        adds = "clsact" not in kinds or _is_all_ours(port)
        links.append(TapLink(port.netns, port.device, f"np{suffix}-{number}", f"p{number}", adds))
        good.append(port)
    handle = secrets.randbelow(0x7FFF_0000) + 0x1_0000
    return PlannedLinks(tuple(good), TapLinks(f"np-verify-{suffix}", handle, tuple(links)), failures)


def _unfit(port: TapPort, there: Collection[str], kinds: Collection[str]) -> str:
    if not port.device:
        return "no device of the kernel stands for it (vhost-user): nothing could go in there, or be absorbed"
    if not tc.DEVICE.fullmatch(port.device):
        return f"{port.device!r} is no name of a device that tc could be told"
    if port.device not in there:
        return f"device {port.device} is not there"
    if "ingress" in kinds:
        return f"{port.device} has an ingress qdisc (Open vSwitch's policing makes one), beside which no clsact can be"
    return ""


def _is_all_ours(port: TapPort) -> bool:
    """Whether a clsact holds nothing but filters of other runs: whoever ends last takes it away."""
    found = tc.filters(port.netns, port.device)
    return bool(found) and all(one.is_ours for one in found)


def devices(netns: str) -> frozenset[str]:
    """Names of all devices of a namespace."""
    return in_netns(netns, lambda: frozenset(name for _, name in socket.if_nameindex()))


# ---------------------------------------------------------------------------------------------------------------------
# Making
# ---------------------------------------------------------------------------------------------------------------------


def make_links(links: TapLinks) -> None:
    """Make the namespace and the veth pairs; nothing of them is on a tap yet. Returns when all of them carry frames.

    Raises:
        HostNotReadyError: one cannot be made; what was made stays, for `undo_links`.
    """
    own = links.namespace
    iproute.add_namespaces([own])
    iproute.set_sysctls(own, QUIET_SYSCTLS)
    for netns, group in links.by_netns():
        size = f"mtu {LINK_MTU}"
        pairs = [f"link add {one.link} {size} type veth peer name {one.peer} {size} netns {own}" for one in group]
        iproute.batch([*pairs, *(f"link set {one.link} addrgenmode none arp off" for one in group)], netns=netns)
        iproute.set_sysctls(netns, {f"ipv6/conf/{one.link}/disable_ipv6": "1" for one in group})
        iproute.batch([f"link set {one.link} up" for one in group], netns=netns)
        iproute.offloads_off(netns, [one.link for one in group])
    iproute.batch((f"link set {one.peer} arp off up" for one in links.links), netns=own)
    iproute.offloads_off(own, [one.peer for one in links.links])
    _wait_ready(links)


def _wait_ready(links: TapLinks) -> None:
    wanted = {links.namespace: {one.peer for one in links.links}}
    for netns, group in links.by_netns():
        wanted.setdefault(netns, set()).update(one.link for one in group)
    deadline = time.monotonic() + READY_S
    for netns, names in wanted.items():
        while missing := names - _ready(netns):
            if time.monotonic() > deadline:
                raise HostNotReadyError(f"link {min(missing)}", f"is not up {READY_S:g} s after it was made")
            time.sleep(LOOK_AGAIN_S)


def _ready(netns: str) -> set[str]:
    """Devices that send: until the kernel has noticed the carrier, the qdisc is `noop`, which drops."""
    return {name for name, kinds in tc.qdiscs(netns).items() if "noop" not in kinds}


def divert(links: TapLinks, bytecode: str) -> dict[int, str]:
    """Put the filters in: on links first, then on taps.

    Args:
        links: made.
        bytecode: what is absorbed, as tc reads it ("N,code jt jf k,...").

    Returns:
        Why it could not be done for a link, by its index; such a tap has no filter of ours.

    Raises:
        HostNotReadyError: tc is not there.
    """
    failures: dict[int, str] = {}
    index = {one.link: number for number, one in enumerate(links.links)}
    for netns, group in links.by_netns():
        lines: list[str] = []
        filters: dict[int, int] = {}
        for one in group:
            # A clsact that is there already is refused and stays; whether there is one is what the filter tells.
            lines += [tc.clsact_command(one.link), tc.inject_command(one.link, links.handle, one.tap)]
            filters[len(lines) - 1] = index[one.link]
            lines += [tc.clsact_command(one.tap), tc.absorb_command(one.tap, links.handle, bytecode, one.link)]
            filters[len(lines) - 1] = index[one.link]
        for at, why in tc.batch(netns, lines).items():
            if at in filters:
                failures.setdefault(filters[at], f"tc {lines[at].partition(' protocol')[0]}: {why}")
    return failures


def lost_in_links(links: TapLinks) -> tuple[int, int]:
    """Frames that the pairs had no room for: on the way to the taps, and on the way back."""
    towards = _sent_in_vain(links.namespace, {one.peer for one in links.links})
    back = sum(_sent_in_vain(netns, {one.link for one in group}) for netns, group in links.by_netns())
    return towards, back


def _sent_in_vain(netns: str, names: Collection[str]) -> int:
    """Dropped in transmission, in /proc/net/dev: the column 12th after the name (net/core/net-procfs.c)."""
    lines = in_netns(netns, lambda: Path("/proc/thread-self/net/dev").read_text(encoding="ascii")).splitlines()
    rows = (line.partition(":") for line in lines[2:])
    return sum(int(counters.split()[11]) for name, _, counters in rows if name.strip() in names)


# ---------------------------------------------------------------------------------------------------------------------
# Undoing
# ---------------------------------------------------------------------------------------------------------------------


def undo_links(links: TapLinks) -> tuple[str, ...]:
    """Take everything away: filters first, then an empty clsact that was ours, then the pairs and the namespace.

    Returns:
        What could not be taken away, and why, one line each; empty when nothing is left.
    """
    problems: list[str] = []
    for netns, group in links.by_netns():
        if netns and not exists(netns):
            continue  # gone with everything in it
        try:
            problems += _undo_filters(netns, group, links.handle)
        except HostNotReadyError as error:
            problems.append(str(error))
    try:
        iproute.delete_namespaces([links.namespace])
        _wait_gone(links)
    except HostNotReadyError as error:
        problems.append(str(error))
    return tuple(problems)


def _undo_filters(netns: str, group: Sequence[TapLink], handle: int) -> list[str]:
    there = devices(netns)
    taps = [one for one in group if one.tap in there]
    failed = tc.batch(netns, [tc.remove_command(one.tap, tc.Way.EGRESS, handle) for one in taps])
    problems = []
    for number, one in enumerate(taps):
        if number in failed or one.adds_clsact:
            found = tc.filters(netns, one.tap)
            if any(f.is_ours and f.handle == handle for f in found):
                problems.append(f"filter of {one.tap} in {netns or 'this namespace'}: {failed.get(number, 'is left')}")
            elif one.adds_clsact and not found:
                tc.batch(netns, [tc.clsact_command(one.tap, add=False)])  # it may be gone, as it should
    return problems


def _wait_gone(links: TapLinks) -> None:
    """The kernel takes the pairs down with their far ends, all at once but a little later; one by one takes 30 ms each.

    What a namespace that somebody else holds open keeps alive is deleted by name.
    """
    deadline = time.monotonic() + GONE_S
    for netns, group in links.by_netns():
        names = {one.link for one in group}
        if netns and not exists(netns):
            continue
        while left := names & devices(netns):
            if time.monotonic() > deadline:
                for name in sorted(left):
                    with suppress(HostNotReadyError):
                        run(["ip", *(["-n", netns] if netns else []), "link", "del", name])
                break
            time.sleep(LOOK_AGAIN_S)
        if left := names & devices(netns):
            raise HostNotReadyError(f"link {min(left)} in {netns or 'this namespace'}", "cannot be deleted")
