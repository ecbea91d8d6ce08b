"""Moves a running guest to another hypervisor, as a live migration looks from the network.

The host's end of the guest's veth goes to the other namespace, and the port with it, under the same UUID; the guest's
own NIC, addresses and programs stay. While it lasts the state file says so (`moving`): a move that was killed half-way
leaves a broken lab, which `up` repairs. Under the lock of netprobe.lab.control.
"""

from dataclasses import replace

from netprobe.errors import UsageError, unknown_name
from netprobe.host import iproute, ovn_central, ovs
from netprobe.lab.build import central_of, check_ofports, port_spec
from netprobe.lab.journal import Journal
from netprobe.lab.layout import Placement
from netprobe.lab.shapes import BRIDGE
from netprobe.lab.state import FaultRecord, Places, State
from netprobe.lab.topology import Endpoint


def move(state: State, places: Places, guest: str, host: str) -> str:
    """Move a guest, and wait until OVN has bound it there and every hypervisor knows.

    Args:
        state: of a complete lab; changed, and written down.
        places: where its files are.
        guest: its name.
        host: the hypervisor that it shall be on.

    Returns:
        The hypervisor that it was on.

    Raises:
        UsageError: no such guest or hypervisor, or a fault is in the way.
        HostNotReadyError: a step failed; the lab is broken now.
    """
    end = _checked(state, guest, host)
    if end.host == host:
        return host
    journal = Journal(state, places.state)
    state.moving = guest
    journal.write()
    old, new = (ovs.PrivateSwitch(name, places.switch(name)) for name in (end.host, host))
    old.remove_port(BRIDGE, end.tap)
    iproute.batch([f"link set {end.tap} netns {new.netns}"], netns=old.netns)
    iproute.batch([f"link set {end.tap} up"], netns=new.netns)
    iproute.offloads_off(new.netns, [end.tap])
    moved = replace(end, host=host)
    new.add_port(BRIDGE, port_spec(moved, moved.tap, state.shape, places))
    check_ofports(new, {moved.tap: moved.ofport})
    ovn_central.wait_until_installed(new, moved.tap)
    central = central_of(places)
    central.wait_for_binding(moved.iface_id, host)
    central.wait_for_hosts()
    state.endpoints = tuple(moved if each.name == guest else each for each in state.endpoints)
    state.moving = ""
    journal.write()
    return end.host


def _checked(state: State, guest: str, host: str) -> Endpoint:
    """The guest, if it can be moved there."""
    hosts = [each.name for each in state.shape.hypervisors]
    if len(hosts) == 1:
        raise UsageError(f"lab {state.name}", "has one hypervisor alone", advice="use `netprobe lab up pair`")
    movable = {end.name: end for end in state.endpoints if not end.copy_of}
    if guest not in movable:
        if any(end.name == guest for end in state.endpoints):
            raise UsageError("lab move", f"{guest} is its host's probe NIC", allowed=", ".join(movable))
        raise unknown_name("lab move", guest, movable, kind="guest")
    if host not in hosts:
        raise unknown_name("lab move", host, hosts, kind="hypervisor")
    in_the_way = [fault.splice.segment for fault in state.faults if _depends_on(fault, guest)]
    if in_the_way and movable[guest].host != host:
        raise UsageError(
            f"lab move {guest}",
            f"a fault is in {', '.join(in_the_way)}",
            advice=f"run `netprobe lab fault clear {in_the_way[0]}` first",
        )
    return movable[guest]


def _depends_on(fault: FaultRecord, guest: str) -> bool:
    """Whether a relay stands in the guest's port, or was told where the guest is."""
    splice = fault.splice
    return guest in (splice.port, splice.peer) or splice.placement is Placement.LEAVING
