"""Looks whether a lab still is what its state file says, and names what isn't. Changes nothing."""

from netprobe.errors import HostNotReadyError
from netprobe.host import iproute, netns, ovs, process
from netprobe.lab import guard, hypervisor
from netprobe.lab.build import agent_name
from netprobe.lab.flow_table import COOKIE_MASK, COOKIE_PREFIX
from netprobe.lab.layout import ports
from netprobe.lab.machines import machine_name
from netprobe.lab.shapes import BRIDGE
from netprobe.lab.state import Places, State


def problems(state: State, places: Places) -> list[str]:
    """What is broken in a lab, for people; empty when it is healthy.

    Args:
        state: as read from its state file.
        places: where its files are.
    """
    if not state.is_complete:
        return ["it was left half-made"]
    if state.machine:  # what is in there, a netprobe in there can see
        return _processes(state) or list(filter(None, [hypervisor.ping(state, places)]))
    found = [*_processes(state), *_namespaces(state)]
    found += [f"the relay in {f.splice.segment} was left half-made" for f in state.faults if not f.active]
    found += [f"the move of {state.moving} was left half-made"] if state.moving else []
    if not found:
        found = [*_devices(state), *_sockets(state, places), *_switches(state, places), *_guards(state, places)]
    return found


def _processes(state: State) -> list[str]:
    return [f"{r.name} (process {r.pid}) is gone" for r in state.processes if not process.is_alive(r)]


def _namespaces(state: State) -> list[str]:
    found = []
    for record in state.namespaces:
        if not netns.exists(record.name):
            found.append(f"network namespace {record.name} is gone")
        elif iproute.namespace_cookie(record.name) != record.cookie:
            found.append(f"network namespace {record.name} was made anew by somebody else")
    return found


def _devices(state: State) -> list[str]:
    wanted = [(point.netns, point.device) for point in state.layout().points if point.device]
    known = ports(state.shape, state.endpoints)
    for port in (known[fault.splice.port] for fault in state.faults):
        wanted += [(port.netns, device) for device in (port.device, port.middle, port.outer)]
    return [f"device {device} in {place} is gone" for place, device in wanted if not iproute.link_exists(place, device)]


def _sockets(state: State, places: Places) -> list[str]:
    started = {record.name for record in state.processes}
    found = [
        f"the virtio-serial port of {end.name}'s agent is gone"
        for end in state.endpoints
        if machine_name(end.name) in started and not places.agent_port(end.name).is_socket()
    ]
    return found + [
        f"the control socket of {end.name}'s agent is gone"
        for end in state.endpoints
        if agent_name(end.name) in started and not places.agent(end.name).is_socket()
    ]


def _switches(state: State, places: Places) -> list[str]:
    # With OVN the flows are its own, and any will do; otherwise they are the lab's.
    cookie, mask = (0, 0) if state.shape.has_ovn else (COOKIE_PREFIX, COOKIE_MASK)
    found = []
    for host in state.shape.hypervisors:
        where = f" of {host.name}" if len(state.shape.hypervisors) > 1 else ""
        try:
            flows = ovs.PrivateSwitch(host.netns, places.switch(host.name)).flow_count(BRIDGE, cookie, mask)
        except HostNotReadyError as error:
            found.append(f"the vswitch{where} does not answer ({error})")
        else:
            found += [] if flows else [f"the security groups' flows{where} are gone"]
    return found


def _guards(state: State, places: Places) -> list[str]:
    return guard.missing(state, places) if state.shape.is_hybrid else []
