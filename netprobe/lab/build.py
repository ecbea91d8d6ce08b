"""Makes a lab: namespaces, links, Open vSwitch, flows or OVN, agents. Each thing is journaled before it is made.

Switches, databases and guests do not wait for each other: daemons start in threads while the links are made. The
reverse is netprobe.lab.teardown; who calls both is netprobe.lab.control.
"""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, netns, ovn_central, ovs, ovs_dpdk, process, qemu
from netprobe.lab import guard, links, logical, machines
from netprobe.lab.acls import compile_acls
from netprobe.lab.config import LabConfig
from netprobe.lab.daemons import SWITCH, start_central, start_controller, start_switch
from netprobe.lab.flows import compile_flows
from netprobe.lab.hybrid import compile_forwarding
from netprobe.lab.iptables_rules import compile_iptables
from netprobe.lab.journal import Journal
from netprobe.lab.shapes import (
    BRIDGE,
    CENTRAL,
    MANAGEMENT_IP,
    NIC,
    UNDERLAY_BRIDGE,
    UNDERLAY_MTU,
    Hypervisor,
    Shape,
)
from netprobe.lab.state import NamespaceRecord, Places, State
from netprobe.lab.topology import Endpoint, bound_policy, endpoints
from netprobe.lab.warm_up import pings, warm_up

TOOLS = ("ip", "ethtool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "ovsdb-tool", "ovsdb-server", "ovs-vswitchd")
OVN_TOOLS = ("ovn-nbctl", "ovn-northd", "ovn-controller")
HYBRID_TOOLS = ("iptables-restore", "iptables-save", "ip6tables-restore", "ip6tables-save", "ipset")
PACKAGES = "iproute2 ethtool openvswitch-switch"
OVN_PACKAGES = "ovn-central ovn-host"
HYBRID_PACKAGES = "iptables ipset"
VIRTUAL_TOOLS, VIRTUAL_PACKAGES = (qemu.PROGRAM,), qemu.PACKAGE

OPENVSWITCH_MODULE = Path("/sys/module/openvswitch")
DISK_TOOLS, DISK_PACKAGES = ("mke2fs", "ldd", "depmod", "dpkg"), "e2fsprogs libc-bin kmod dpkg"
"""What makes the disks of a lab in a machine of its own."""

AGENT_WAIT_S = 10.0
AGENT_LOOK_S = 0.005
STAMP_PORT = 862  # RFC 8762 §4.1
NIC_OFPORT = 1
RELAYED = 500
"""Added to a port's number where DPDK counts its devices and a relay stands in the port."""

NEIGHBOUR_AGE_S = 3600
"""How long a tunnel's next hop is remembered without use (OVS's own: 900 s); when it is forgotten, a frame is lost."""

ALLOWLIST = """\
# What a collector may order on this host (netprobe's own check, not the cloud's). Root's file.
schema = 1
ports = [{ports}]
protocols = ["udp", "raw-udp", "icmp", "tcp"]
max_pps = 20000
packet_out_pps = {packet_out_pps}
verify = true
vring_uprobes_s = 3600
"""


def check_host(shape: Shape | None = None) -> None:
    """Raise HostNotReadyError unless this process is root and every tool is installed."""
    if os.geteuid():
        raise HostNotReadyError("lab", "needs root, for network namespaces", advice="run it as root")
    tools, packages = list(TOOLS), PACKAGES
    if shape is not None and shape.has_ovn:
        tools, packages = [*tools, *OVN_TOOLS], f"{packages} {OVN_PACKAGES}"
    if shape is not None and shape.is_hybrid:
        tools, packages = [*tools, *HYBRID_TOOLS], f"{packages} {HYBRID_PACKAGES}"
    if shape is not None and shape.is_virtual:
        tools, packages = [*tools, *VIRTUAL_TOOLS], f"{packages} {VIRTUAL_PACKAGES}"
    if shape is not None and shape.is_dpdk:
        tools, packages = [*tools, str(ovs_dpdk.PROGRAM)], f"{packages} {ovs_dpdk.PACKAGES}"
    if shape is not None and needs_machine(shape):
        tools, packages = [*tools, *VIRTUAL_TOOLS, *DISK_TOOLS], f"{packages} {VIRTUAL_PACKAGES} {DISK_PACKAGES}"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise HostNotReadyError("lab", f"needs {', '.join(missing)}", advice=f"apt-get install {packages}")


def needs_machine(shape: Shape) -> bool:
    """Whether a lab needs a kernel that this one is not, and so a machine of its own (netprobe.lab.hypervisor)."""
    return shape.is_kernel and not OPENVSWITCH_MODULE.exists()


def rules_of(config: LabConfig) -> dict[str, dict[str, str]]:
    """What the state file says about a configuration's rules: by cookie, by the ACL's name, or by the comment."""
    ends = endpoints(config)
    if config.shape.is_hybrid:
        return compile_iptables(config, ends).rules_json() | compile_forwarding(config, ends).rules_json()
    if config.shape.has_ovn:
        return compile_acls(config, ends).rules_json()
    return compile_flows(config, ends, _zone(config.shape)).rules_json()


def _zone(shape: Shape) -> int:
    zone = shape.hypervisors[0].zone
    assert zone is not None, shape.name
    return zone


def build(config: LabConfig, places: Places, *, with_agents: bool) -> State:
    """Make a lab from nothing.

    Args:
        config: which lab, its groups and guests.
        places: where its files go.
        with_agents: start the guest agents and wait for them.

    Raises:
        HostNotReadyError: something failed; what was made is in the state file.
    """
    shape, ends = config.shape, endpoints(config)
    image = machines.guest_image() if any(end.is_machine for end in ends) else None
    journal = _claim(shape, ends, places)
    switches = {host.name: _switch(shape, host, places, ends) for host in shape.hypervisors}
    with ThreadPoolExecutor(max_workers=len(switches) + 2) as pool:
        started = [pool.submit(start_switch, name, switch, journal) for name, switch in switches.items()]
        if shape.has_ovn:
            started.append(pool.submit(_make_central, config, ends, places, journal))
        _make_links(shape, ends)
        if image is not None and not shape.is_dpdk:
            started.append(pool.submit(machines.start, image, ends, places, journal, with_agents=with_agents))
        if with_agents:
            _start_agents(ends, places, journal)
        for each in started:
            each.result()
        if shape.has_ovn:
            hosts = [shape.hypervisor(name) for name in switches]
            list(pool.map(lambda host: _plug_host(host, switches[host.name], ends, journal), hosts))
    if shape.has_ovn:
        _settle(config, ends, switches, places)
    else:
        (switch,) = switches.values()
        _make_bridge(switch, config, ends, places)
    if image is not None and shape.is_dpdk:  # QEMU waits in its start until the switch has connected
        machines.start(image, ends, places, journal, with_agents=with_agents)
    if shape.is_hybrid:
        guard.install(shape, compile_iptables(config, ends), places)
    if with_agents:
        _wait_agents(ends, places, journal)
    journal.state.rules = rules_of(config)
    journal.state.endpoints = ends
    journal.write()
    return journal.state


def _switch(shape: Shape, host: Hypervisor, places: Places, ends: Sequence[Endpoint]) -> ovs.PrivateSwitch:
    run_dir = places.switch(host.name)
    if not shape.is_dpdk:
        return ovs.PrivateSwitch(host.netns, run_dir)
    return ovs_dpdk.DpdkSwitch(host.netns, run_dir, ports=len(ends) + 2)  # the bridge's own, and a relay's or mirror's


def _claim(shape: Shape, ends: Sequence[Endpoint], places: Places) -> Journal:
    """The lab's directory with its state file and allowlists, and its namespaces."""
    names = [*(host.netns for host in shape.hypervisors), *shape.others, *(e.netns for e in ends if not e.is_machine)]
    _refuse_foreign(names)
    places.lab.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal(State(shape.name, places.lab), places.state)
    journal.set_namespaces(*map(NamespaceRecord, names))
    iproute.add_namespaces(names)
    journal.set_namespaces(*(NamespaceRecord(each, iproute.namespace_cookie(each)) for each in names))
    for host in shape.hypervisors:
        _write_allowlist(places.allowlist(shape, host.name), shape)
    return journal


def _make_links(shape: Shape, ends: Sequence[Endpoint]) -> None:
    links.make_hosts(shape)
    links.make_endpoints(shape, ends)


def _refuse_foreign(names: Sequence[str]) -> None:
    """Nothing is adopted: a namespace that is there and not in our state is somebody else's."""
    taken = [name for name in names if netns.exists(name)]
    if taken:
        raise HostNotReadyError(
            f"network namespace {', '.join(taken)}",
            "exists and was not made by this lab",
            advice=f"if nothing needs it, run {', '.join(f'`ip netns del {name}`' for name in taken)} and try again",
        )


def _write_allowlist(path: Path, shape: Shape) -> None:
    names = ["vm*", "ext*", "bypass*"] if shape.has_ovn else ["vm*", "bypass"]
    quoted = ", ".join(f'"{name}"' for name in names)
    text = ALLOWLIST.format(ports=quoted, packet_out_pps=20000 if shape.has_ovn else 5000)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def port_spec(end: Endpoint, device: str, shape: Shape, places: Places) -> ovs.PortSpec:
    """An endpoint's port, on one device or another."""
    spec = ovs.PortSpec(device, end.ofport, end.iface_id, end.mac)
    if end.is_vhost(shape):
        return ovs_dpdk.vhost_port(device, places.vhost(end.name), spec)
    if shape.is_dpdk:
        # A relay's device is not there for long, and another driver's instance than that of the port's own device.
        number = end.ofport + (RELAYED if device != end.tap else 0)
        return ovs_dpdk.packet_port(device, device, number, spec)
    return spec


def _make_bridge(switch: ovs.PrivateSwitch, config: LabConfig, ends: Sequence[Endpoint], places: Places) -> None:
    """The one hypervisor's bridge, with the policy, or what is left of it there, as flows."""
    shape = config.shape
    datapath = "system" if shape.is_kernel else "netdev"
    switch.add_bridge(BRIDGE, (port_spec(end, end.plug(shape), shape, places) for end in ends), datapath=datapath)
    flows = compile_forwarding(config, ends) if shape.is_hybrid else compile_flows(config, ends, _zone(shape))
    switch.replace_flows(BRIDGE, flows.flows)
    check_ofports(switch, {end.plug(shape): end.ofport for end in ends})


def check_ofports(switch: ovs.PrivateSwitch, wanted: Mapping[str, int]) -> None:
    """Raise HostNotReadyError unless each device has the OpenFlow number that it shall have."""
    for device, ofport in wanted.items():
        got = switch.ofport(device)
        if got != ofport:
            raise HostNotReadyError(
                f"port {device}",
                f"got OpenFlow number {got}, not {ofport}",
                advice=f"see {switch.run_dir}/{SWITCH}.log",
            )


def central_of(places: Places) -> ovn_central.PrivateCentral:
    """The lab's OVN."""
    return ovn_central.PrivateCentral(CENTRAL, places.central)


def _make_central(config: LabConfig, ends: Sequence[Endpoint], places: Places, journal: Journal) -> None:
    central = central_of(places)
    start_central(CENTRAL, central, journal)
    central.nbctl(*logical.commands(config.shape, ends, bound_policy(config, ends), compile_acls(config, ends)))


def _plug_host(host: Hypervisor, switch: ovs.PrivateSwitch, ends: Sequence[Endpoint], journal: Journal) -> None:
    """A hypervisor's bridges with its guests, its tunnel address, its controller."""
    here = [end for end in ends if end.host == host.name]
    switch.add_bridges(
        ovs.BridgeSpec(
            UNDERLAY_BRIDGE, (nic_spec(NIC),), fail_mode="standalone", mac=host.underlay_mac, mtu=UNDERLAY_MTU
        ),
        ovs.BridgeSpec(BRIDGE, tuple(ovs.PortSpec(end.tap, end.ofport, end.iface_id, end.mac) for end in here)),
    )
    links.give_tunnel_address(host)
    remote = f"tcp:{MANAGEMENT_IP}:{ovn_central.SOUTHBOUND_PORT}"
    switch.set_external_ids(
        ovn_central.controller_ids(host.name, remote=remote, encap_ip=host.encap_ip, mappings=logical.MAPPINGS)
    )
    start_controller(host.name, switch, journal)


def nic_spec(device: str) -> ovs.PortSpec:
    """A hypervisor's own NIC as a port, on one device or another."""
    return ovs.PortSpec(device, NIC_OFPORT)


def _settle(
    config: LabConfig, ends: Sequence[Endpoint], switches: dict[str, ovs.PrivateSwitch], places: Places
) -> None:
    """Wait until OVN has bound every port and every hypervisor has its flows; then let every way be used once."""
    central = central_of(places)
    central.wait_for_ports([end.iface_id for end in ends])
    central.wait_for_hosts()
    for name, switch in switches.items():
        check_ofports(switch, {end.tap: end.ofport for end in ends if end.host == name})
        switch.appctl("tnl/neigh/aging", str(NEIGHBOUR_AGE_S))
    warm_up(pings(config, ends))
    for switch in switches.values():
        # OVS 3.1 aborts when a connection comes back within some 18 s of its end, where OVN committed it with NAT.
        switch.appctl("dpctl/flush-conntrack")


def agent_name(endpoint: str) -> str:
    """The name of an endpoint's agent in the journal, and of its log."""
    return f"agent-{endpoint}"


def _start_agents(ends: Sequence[Endpoint], places: Places, journal: Journal) -> None:
    """Where there are namespaces; a virtual machine starts its own."""
    for end in ends:
        if not end.is_machine:
            _start_agent(end, places, journal)


def _start_agent(end: Endpoint, places: Places, journal: Journal) -> None:
    name = agent_name(end.name)
    argv = (
        *(sys.executable, "-m", "netprobe_agents.guest", "--control", str(places.agent(end.name))),
        *("--device", end.device, "--reflect-port", "0" if end.copy_of else str(STAMP_PORT)),
    )
    journal.intend(name, argv)
    journal.started(name, process.spawn(argv, log=places.log(name), netns=end.netns))


def _wait_agents(ends: Sequence[Endpoint], places: Places, journal: Journal) -> None:
    """Wait until each agent's control socket is there."""
    records = {record.name: record for record in journal.state.processes}
    deadline = time.monotonic() + AGENT_WAIT_S
    waiting = [end for end in ends if not end.is_machine]
    while waiting := [end for end in waiting if not places.agent(end.name).is_socket()]:
        for end in waiting:
            name = agent_name(end.name)
            if not process.is_alive(records[name]) or time.monotonic() > deadline:
                raise HostNotReadyError(f"agent of {end.name}", f"does not listen: {log_tail(places.log(name))}")
        time.sleep(AGENT_LOOK_S)


def log_tail(path: Path, lines: int = 3) -> str:
    """The end of a log, in one line, for an error's text."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return "it left no log"
    return " / ".join(text.strip().splitlines()[-lines:]) or "its log is empty"
