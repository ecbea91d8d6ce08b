"""The devices of the lab `bridge`, and what Open vSwitch does there. Pure.

As in OpenStack's hybrid plugging: a guest's tap is in a Linux bridge of its own (qbr), where iptables guard it
(netprobe.lab.iptables_rules); a veth pair (qvb in that bridge, qvo in br-int) leads on. What iptables cannot see is
Open vSwitch's to guard, as in Neutron's agent: ARP and neighbour discovery about other addresses than the port's own
(table 24), and other MACs (table 25). Table 60 forwards, by MAC where it is known.
"""

from collections.abc import Sequence
from ipaddress import ip_network

from netprobe.lab.config import LabConfig
from netprobe.lab.flow_table import LISTENER_REPORTS, NA, NS, RS, CompiledFlows, FlowTable, neighbour_matches
from netprobe.lab.rule_lists import RuleInfo
from netprobe.lab.topology import Endpoint, bound_policy
from netprobe.model.policy import PolicyPort

NEIGHBOURS, MACS, FORWARD = 24, 25, 60
"""Tables, numbered as Neutron's: ARP_SPOOF_TABLE, MAC_SPOOF_TABLE, TRANSIENT_TABLE."""

QBR = "type bridge forward_delay 0 ageing_time 0 mcast_snooping 0"
"""As Neutron makes it: without a memory for MACs it has two ports and takes everything to the other one."""

SYSCTLS = {f"bridge/bridge-nf-call-{name}tables": "1" for name in ("ip", "ip6", "arp")}


def link_commands(ends: Sequence[Endpoint]) -> list[str]:
    """What `ip` shall do on the hypervisor, after the taps are there."""
    commands = []
    for end in ends:
        inner, outer, bridge = end.qvb, end.qvo, end.qbr
        commands += [f"link add {bridge} {QBR}", f"link add {inner} type veth peer name {outer}"]
        commands += [f"link set {device} master {bridge}" for device in (end.tap, inner)]
        commands += [f"link set {device} up" for device in (bridge, inner, outer)]
    return commands


def compile_forwarding(config: LabConfig, ends: Sequence[Endpoint]) -> CompiledFlows:
    """The flows of br-int.

    Args:
        config: whose ports have no port security, or allowed pairs.
        ends: guests and bypass NICs.
    """
    policy, table = bound_policy(config, ends), FlowTable()
    shared = table.cookie(RuleInfo("", "", "", "tables that all ports share", "plumbing", "br-int"))
    table.add(shared, 0, 0, "", "drop")
    table.add(shared, FORWARD, 1, "", "normal")
    for end in ends:
        _port(table, end, policy.port(end.name))
    return table.compiled()


def _port(table: FlowTable, end: Endpoint, port: PolicyPort) -> None:
    came = f"in_port={end.ofport}"
    plumbing = table.cookie(
        RuleInfo(end.name, "", "", f"forwarding of {end.name}", "plumbing", f"forward {end.name}"), end.ofport
    )
    if not port.has_port_security:
        table.add(plumbing, 0, 9, came, f"resubmit(,{FORWARD})")
        table.add(plumbing, FORWARD, 10, f"dl_dst={end.mac}", f"output:{end.ofport}")
        return
    table.add(plumbing, 0, 9, came, f"resubmit(,{MACS})")
    for protocol in ("arp", *(f"icmp6,icmp_type={kind}" for kind in (RS, NS, NA))):
        table.add(plumbing, 0, 10, f"{protocol},{came}", f"resubmit(,{NEIGHBOURS})")
    own: list[tuple[str, str]] = [(end.mac, str(ip)) for ip in port.ips]
    own += [(pair.mac or end.mac, str(pair.prefix)) for pair in port.allowed_pairs]
    for mac, prefix in dict.fromkeys(own):
        for match in neighbour_matches(f"{came},dl_src={mac}", mac, ip_network(prefix)):
            table.add(plumbing, NEIGHBOURS, 2, match, f"resubmit(,{MACS})")
    for mac in dict.fromkeys(mac for mac, _ in own):
        table.add(plumbing, MACS, 2, f"{came},dl_src={mac}", f"resubmit(,{FORWARD})")
        table.add(plumbing, FORWARD, 10, f"dl_dst={mac}", f"output:{end.ofport}")
    text = "listener reports: the bridge floods multicast"
    quiet = RuleInfo(end.name, "", "egress", text, "plumbing", f"quiet {end.name}")
    cookie = table.cookie(quiet, end.ofport)
    for kind in LISTENER_REPORTS:
        table.add(cookie, 0, 20, f"icmp6,{came},icmp_type={kind}", "drop")
    text = "ARP and neighbour discovery only about the port's own addresses, and no other MAC"
    spoof = table.cookie(RuleInfo(end.name, "", "egress", text, "anti-spoofing"), end.ofport)
    for number in (NEIGHBOURS, MACS):
        table.add(spoof, number, 1, came, "drop")
