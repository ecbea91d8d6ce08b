"""Ports whose packets bypass the kernel's taps: a packet ring there would see the first packet of a flow and no more.

Flows that a NIC forwards by itself (Open vSwitch's `hw-offload` over tc or rte_flow, SR-IOV with representors), and
ports that no kernel device stands behind. Each finding has its evidence. Nothing is ever switched off. The parsers are
total: what says nothing known is skipped.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns
from netprobe.host.process import run
from netprobe.host.unixctl import UnixctlClient
from netprobe.model.inventory import HostInventory, InterfaceRow

NO_KERNEL_DEVICE = frozenset({"dpdk", "dpdkr", "dpdkvhostuser", "dpdkvhostuserclient", "afxdp", "afxdp-nonpmd"})
"""Values of Interface's `type` whose frames never reach AF_PACKET; ovs-vswitchd.conf.db(5)."""

REPRESENTOR = re.compile(r"(?:c\d+)?pf\d+(?:vf|sf)\d+")
"""phys_port_name of a VF's or subfunction's representor; Linux, Documentation/networking/devlink/devlink-port.rst."""

_IN_HW = re.compile(r"^\s*in_hw(?:\s|$)", re.MULTILINE)
_IN_PORT = re.compile(r"\bin_port\(([^)]+)\)")
_OFFLOADED = re.compile(r"\boffloaded:yes\b")  # "partial" only marks packets: they pass the software all the same
COMMAND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of a device of a NIC with an embedded switch.

    Attributes:
        port_name: phys_port_name: "p0" for the NIC's own port, "pf0vf1" for a VF's representor.
        switch_id: phys_switch_id, "" where the device belongs to no such switch.
    """

    port_name: str = ""
    switch_id: str = ""


@dataclass(frozen=True, slots=True)
class OffloadFacts:
    """What was found out about a host, as its tools print it.

    Attributes:
        links: by device.
        filters: `tc -s filter show dev DEVICE ingress`, by device.
        flows: `ovs-appctl dpctl/dump-flows --names type=offloaded`.
    """

    links: Mapping[str, Link] = field(default_factory=dict)
    filters: Mapping[str, str] = field(default_factory=dict)
    flows: str = ""


def parse_links(text: str) -> dict[str, Link]:
    """Devices in `ip -details -json link show`."""
    try:
        rows = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return {}
    links = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("ifname"), str):
            links[row["ifname"]] = Link(str(row.get("phys_port_name", "")), str(row.get("phys_switch_id", "")))
    return links


def count_in_hardware(text: str) -> int:
    """How many filters in `tc -s filter show` a NIC carries out; `not_in_hw` ones are software, and seen by rings."""
    return len(_IN_HW.findall(text))


def offloaded_ports(text: str) -> dict[str, int]:
    """How many offloaded flows enter by each port, in `dpctl/dump-flows --names type=offloaded`."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        port = _IN_PORT.search(line)
        if port and _OFFLOADED.search(line):
            found[port[1]] = found.get(port[1], 0) + 1
    return found


def find_offloaded(
    interfaces: Iterable[InterfaceRow], uplinks: Collection[str], facts: OffloadFacts | None
) -> dict[str, str]:
    """Why rings do not see what passes a device, by device; only devices where that is so.

    Args:
        interfaces: the switch's ports.
        uplinks: the host's own NICs toward the fabric.
        facts: what was found out, None where `hw-offload` is off.
    """
    rows = {row.name: row.kind for row in interfaces if not row.packet_device} | dict.fromkeys(uplinks, "")
    ports = offloaded_ports(facts.flows) if facts else {}
    reasons = {}
    for name, kind in rows.items():
        if kind in NO_KERNEL_DEVICE:
            reasons[name] = f"a port of type {kind} has no kernel device that could be looked at"
        elif facts:
            reasons[name] = _reason(name, facts, ports, is_uplink=name in uplinks)
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(name: str, facts: OffloadFacts, ports: Mapping[str, int], *, is_uplink: bool) -> str:
    link = facts.links.get(name, Link())
    in_hardware = count_in_hardware(facts.filters.get(name, ""))
    if in_hardware:
        return f"hw-offload is on, and its NIC carries out {in_hardware} of its tc filters (in_hw)"
    if ports.get(name):
        return f"hw-offload is on, and {ports[name]} of its flows are offloaded (dpctl/dump-flows type=offloaded)"
    if link.switch_id and REPRESENTOR.fullmatch(link.port_name):
        return f"hw-offload is on, and it is the representor of {link.port_name} (SR-IOV): flows may leave it any time"
    if link.switch_id and is_uplink:
        return f"hw-offload is on, and it is the uplink of the NIC's own switch {link.switch_id} ({link.port_name})"
    return ""


def look_for_offload(
    inventory: HostInventory, netns: str, rundir: str, uplinks: Collection[str] = ()
) -> dict[str, str]:
    """Look at a host: `offloaded` for its inventory. Asks the tools only where `hw-offload` is on.

    Args:
        inventory: its ports.
        netns: namespace of its devices.
        rundir: its switch's run directory.
        uplinks: its own NICs.
    """
    facts = read_facts(inventory, netns, rundir, uplinks) if inventory.is_offload_on else None
    return find_offloaded(inventory.interfaces, uplinks, facts)


def read_facts(inventory: HostInventory, netns: str, rundir: str, uplinks: Collection[str]) -> OffloadFacts:
    """Ask ip, tc and the switch. A tool that does not answer leaves its part empty: the others' evidence stands."""
    links = parse_links(_output(netns, "ip", "-details", "-json", "link", "show"))
    devices = [row.name for row in inventory.interfaces if row.ofport > 0 and row.kind in {"", "system"}]
    # A filter can only be in hardware on a device of a NIC that has a switch, or on a tunnel's device of the kernel.
    asked = [d for d in {*devices, *uplinks} if links.get(d, Link()).switch_id]
    filters = {d: _output(netns, "tc", "-s", "filter", "show", "dev", d, "ingress") for d in sorted(asked)}
    flows = ""
    with suppress(HostNotReadyError), UnixctlClient(rundir) as switch:
        flows = switch.call("dpctl/dump-flows", "--names", "type=offloaded")
    return OffloadFacts(links, filters, flows)


def _output(netns: str, *command: str) -> str:
    with suppress(HostNotReadyError):
        return in_netns(netns, lambda: run(command, timeout_s=COMMAND_TIMEOUT_S))
    return ""
