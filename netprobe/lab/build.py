"""Makes a lab: namespaces, links, Open vSwitch, flows, agents. Each thing is journaled before it is made.

The switch and the guests do not wait for each other: its daemons start in a thread while the links are made. The
reverse is netprobe.lab.teardown; who calls both is netprobe.lab.control.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, netns, ovs, process
from netprobe.lab.config import LabConfig
from netprobe.lab.flows import CompiledFlows, compile_flows
from netprobe.lab.journal import Journal
from netprobe.lab.state import NamespaceRecord, Places, State
from netprobe.lab.topology import BRIDGE, BYPASS, HOST, ZONE, Endpoint, endpoints

TOOLS = ("ip", "ethtool", "ovs-vsctl", "ovs-ofctl", "ovsdb-tool", "ovsdb-server", "ovs-vswitchd")
PACKAGES = "iproute2 ethtool openvswitch-switch"

AGENT_WAIT_S = 10.0
AGENT_LOOK_S = 0.005
STAMP_PORT = 862  # RFC 8762 §4.1
SERVER = "ovsdb-server"
SWITCH = "ovs-vswitchd"
GUARD = "ovs-vswitchd monitor"

ALLOWLIST = """\
# What a collector may order on this host (netprobe's own check, not the cloud's). Root's file.
schema = 1
ports = ["vm*", "bypass"]
protocols = ["udp", "raw-udp", "icmp", "tcp"]
max_pps = 20000
packet_out_pps = 5000
"""

HOST_SYSCTLS = {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}
GUEST_SYSCTLS = {
    f"ipv6/conf/default/{name}": value
    for name, value in {
        "accept_ra": "0",
        "autoconf": "0",
        "router_solicitations": "0",
        "dad_transmits": "0",
        "addr_gen_mode": "1",  # no link-local address, so nothing is announced for one
    }.items()
}


def check_host() -> None:
    """Raise HostNotReadyError unless this process is root and every tool is installed."""
    if os.geteuid():
        raise HostNotReadyError("lab", "needs root, for network namespaces", advice="run it as root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise HostNotReadyError("lab", f"needs {', '.join(missing)}", advice=f"apt-get install {PACKAGES}")


def build(name: str, config: LabConfig, places: Places, *, with_agents: bool) -> State:
    """Make a lab from nothing.

    Args:
        name: of the lab.
        config: its groups and guests.
        places: where its files go.
        with_agents: start the guest agents and wait for them.

    Raises:
        HostNotReadyError: something failed; what was made is in the state file.
    """
    ends = endpoints(config)
    compiled = compile_flows(config, ends, ZONE)
    names = [HOST, *(end.netns for end in ends)]
    _refuse_foreign(names)
    places.lab.mkdir(mode=0o700, parents=True, exist_ok=True)
    journal = Journal(State(name, places.lab), places.state)
    journal.set_namespaces(*map(NamespaceRecord, names))
    iproute.add_namespaces(names)
    journal.set_namespaces(*(NamespaceRecord(each, iproute.namespace_cookie(each)) for each in names))
    _write_allowlist(places.allowlist)
    switch = ovs.PrivateSwitch(HOST, places.ovs)
    with ThreadPoolExecutor(max_workers=1) as pool:
        daemons = pool.submit(_start_switch, switch, journal)
        _make_links(ends)
        if with_agents:
            for end in ends:
                _start_agent(end, places, journal)
        daemons.result()
    _make_bridge(switch, ends, compiled)
    if with_agents:
        _wait_agents(ends, places, journal)
    journal.state.rules = compiled.rules_json()
    journal.state.endpoints = ends
    journal.write()
    return journal.state


def _refuse_foreign(names: Sequence[str]) -> None:
    """Nothing is adopted: a namespace that is there and not in our state is somebody else's."""
    taken = [name for name in names if netns.exists(name)]
    if taken:
        raise HostNotReadyError(
            f"network namespace {', '.join(taken)}",
            "exists and was not made by this lab",
            advice=f"if nothing needs it, run {', '.join(f'`ip netns del {name}`' for name in taken)} and try again",
        )


def _write_allowlist(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(ALLOWLIST)


def _start_switch(switch: ovs.PrivateSwitch, journal: Journal) -> None:
    switch.create_database()
    journal.intend(SERVER, switch.server_argv)
    journal.started(SERVER, switch.start_server())
    journal.intend(GUARD, switch.switch_argv)
    journal.intend(SWITCH, switch.switch_argv)
    guard, daemon = switch.start_switch()
    journal.started(GUARD, guard)
    journal.started(SWITCH, daemon)


def _make_links(ends: Sequence[Endpoint]) -> None:
    """A veth pair for each endpoint, quiet, with its addresses, without offloads."""
    iproute.set_sysctls(HOST, HOST_SYSCTLS)
    for end in ends:
        iproute.set_sysctls(end.netns, GUEST_SYSCTLS)
    pairs = [f"link add {end.tap} type veth peer name {end.device} netns {end.netns} address {end.mac}" for end in ends]
    iproute.batch([*pairs, *(f"link set {end.tap} up" for end in ends), "link set lo up"], netns=HOST)
    iproute.offloads_off(HOST, [end.tap for end in ends])
    for end in ends:
        iproute.offloads_off(end.netns, [end.device])
        iproute.batch(
            [
                "link set lo up",
                f"addr add {end.ipv4}/24 dev {end.device}",
                f"addr add {end.ipv6}/64 dev {end.device} nodad",
                f"link set {end.device} up",
            ],
            netns=end.netns,
        )


def port_spec(end: Endpoint, device: str) -> ovs.PortSpec:
    """An endpoint's port, on one device or another."""
    return ovs.PortSpec(device, end.ofport, end.iface_id, end.mac)


def _make_bridge(switch: ovs.PrivateSwitch, ends: Sequence[Endpoint], compiled: CompiledFlows) -> None:
    switch.add_bridge(BRIDGE, (port_spec(end, end.tap) for end in ends))
    switch.replace_flows(BRIDGE, compiled.flows)
    for end in ends:
        got = switch.ofport(end.tap)
        if got != end.ofport:
            raise HostNotReadyError(
                f"port {end.tap}",
                f"got OpenFlow number {got}, not {end.ofport}",
                advice=f"see {switch.run_dir}/{SWITCH}.log",
            )


def agent_name(endpoint: str) -> str:
    """The name of an endpoint's agent in the journal, and of its log."""
    return f"agent-{endpoint}"


def _start_agent(end: Endpoint, places: Places, journal: Journal) -> None:
    name = agent_name(end.name)
    argv = (
        *(sys.executable, "-m", "netprobe_agents.guest", "--control", str(places.agent(end.name))),
        *("--device", end.device, "--reflect-port", "0" if end.name == BYPASS else str(STAMP_PORT)),
    )
    journal.intend(name, argv)
    journal.started(name, process.spawn(argv, log=places.log(name), netns=end.netns))


def _wait_agents(ends: Sequence[Endpoint], places: Places, journal: Journal) -> None:
    """Wait until each agent's control socket is there."""
    records = {record.name: record for record in journal.state.processes}
    deadline = time.monotonic() + AGENT_WAIT_S
    waiting = list(ends)
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
