"""Puts a relay into a port and takes it out again. What the relay does there is netprobe.lab.relay_core's.

The order keeps the port in use: the relay listens before the port moves to its far side, and leaves after the port has
moved back; only frames of the moment between are lost. Under the lock of netprobe.lab.control.
"""

import contextlib
import os
import select
import sys
from dataclasses import replace

from netprobe.errors import HostNotReadyError, UsageError, unknown_name
from netprobe.host import iproute, ovn_central, ovs, process
from netprobe.lab import guard
from netprobe.lab.build import central_of, log_tail, nic_spec, port_spec
from netprobe.lab.journal import Journal
from netprobe.lab.layout import FaultSpec, Placement, RelayPort, locate, plug_name, ports
from netprobe.lab.state import FaultRecord, Places, State
from netprobe.lab.targets import targets

READY_WAIT_S = 5.0
DELAY_MAX_NS = 10_000_000_000
SEED_MAX = (1 << 63) - 1


def check_spec(spec: FaultSpec) -> None:
    """Raise UsageError when a number is out of range."""
    for name in ("loss", "duplicate", "reorder", "share"):
        value = getattr(spec, name)
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"fault {name}", f"is {value!r}", allowed="0 to 1 (0 % to 100 %)")
    for name in ("delay_ns", "jitter_ns"):
        value = getattr(spec, name)
        if not 0 <= value <= DELAY_MAX_NS:
            raise UsageError(f"fault {name}", f"is {value!r}", allowed=f"0 to {DELAY_MAX_NS} ns")
    if not 0 <= spec.seed <= SEED_MAX:
        raise UsageError("fault seed", f"is {spec.seed!r}", allowed=f"0 to {SEED_MAX}")


def put(state: State, places: Places, segment: str, spec: FaultSpec) -> FaultRecord:
    """Put a fault into a segment; a relay that stands in the same port already is replaced.

    Args:
        state: of a complete lab; changed, and written down.
        places: where its files are.
        segment: its id, with or without the relays that stand now.
        spec: what to do to the frames.

    Raises:
        UsageError: no such segment, no place for a relay in it, or a number out of range.
        HostNotReadyError: the relay does not start, or the port does not move.
    """
    check_spec(spec)
    base = next((fault.splice.segment for fault in state.faults if segment in names(state, fault)), segment)
    splice = locate(base, state.shape, state.endpoints, expose=spec.expose)
    port = ports(state.shape, state.endpoints)[splice.port]
    journal = Journal(state, places.state)
    previous = state.fault_at(port.name)
    number = 1
    while places.truth(port.name, number).exists():
        number += 1
    log = places.truth(port.name, number)
    record = FaultRecord(splice, spec, str(log), str(log.with_suffix(".json")))
    _remember(journal, record)
    try:
        _splice(journal, places, port, record, is_spliced=previous is not None)
    except BaseException:
        _back_out(journal, places, port)
        raise
    record = replace(record, active=True)
    _remember(journal, record)
    return record


def _splice(journal: Journal, places: Places, port: RelayPort, record: FaultRecord, *, is_spliced: bool) -> None:
    """Start the relay and move the port behind it, or put it in the place of the relay that is there."""
    if is_spliced:
        _end_relay(journal, port)
    else:
        pair = f"link add {port.middle} mtu {port.mtu} type veth peer name {port.outer} mtu {port.mtu}"
        iproute.batch([pair, f"link set {port.middle} up", f"link set {port.outer} up"], netns=port.netns)
        iproute.offloads_off(port.netns, [port.middle, port.outer])
    _start_relay(journal, places, port, record)
    if not is_spliced:
        _move_port(journal.state, places, port, port.device, port.outer)


def _back_out(journal: Journal, places: Places, port: RelayPort) -> None:
    """After a failure or Ctrl-C: no relay in the port. If this fails too, the lab counts as broken; `up` repairs it."""
    with contextlib.suppress(HostNotReadyError):
        if not _is_in_place(places, port):
            _move_port(journal.state, places, port, port.outer, port.device)
        _remove_relay(journal, port)


def _is_in_place(places: Places, port: RelayPort) -> bool:
    """Whether a port's own device is in it."""
    if port.has_kernel_bridge:
        return iproute.master(port.netns, port.device) == port.bridge
    return _switch(places, port).ofport(port.device) > 0


def _remove_relay(journal: Journal, port: RelayPort) -> None:
    """End the relay of a port that no longer stands behind it, with its devices and its record."""
    _end_relay(journal, port)
    if iproute.link_exists(port.netns, port.middle):
        iproute.batch([f"link del {port.middle}"], netns=port.netns)
    state = journal.state
    state.faults = tuple(fault for fault in state.faults if fault.splice.port != port.name)
    journal.write()


def take_out(state: State, places: Places, record: FaultRecord) -> None:
    """Take a relay out; the port is as it was before.

    Raises:
        HostNotReadyError: the port does not move back.
    """
    port = ports(state.shape, state.endpoints)[record.splice.port]
    journal = Journal(state, places.state)
    _remember(journal, replace(record, active=False))
    _move_port(state, places, port, port.outer, port.device)
    _remove_relay(journal, port)


def names(state: State, fault: FaultRecord) -> set[str]:
    """The segment ids that mean a fault: the one it was asked for, and the one that has it now."""
    carried = {segment.id for segment in state.layout().segments if segment.fault_at == fault.splice.port}
    return {fault.splice.segment, *carried}


def chosen(state: State, segment: str | None) -> list[FaultRecord]:
    """The faults that `fault clear` means.

    Args:
        state: of a complete lab.
        segment: a segment's id, None for all faults.

    Raises:
        UsageError: no fault is in that segment.
    """
    found = [fault for fault in state.faults if segment is None or segment in names(state, fault)]
    if segment is not None and not found:
        raise unknown_name("fault clear", segment, (f.splice.segment for f in state.faults), kind="faulty segment")
    return found


def _remember(journal: Journal, record: FaultRecord) -> None:
    others = (fault for fault in journal.state.faults if fault.splice.port != record.splice.port)
    journal.state.faults = (*others, record)
    journal.write()


def relay_name(port: RelayPort) -> str:
    """The name of a port's relay in the journal, and of its log."""
    return f"relay-{port.name}"


def _relay_argv(state: State, port: RelayPort, record: FaultRecord) -> tuple[str, ...]:
    splice, spec = record.splice, record.spec
    meant = targets(splice, state.shape, state.endpoints)
    direction = "to" if splice.placement in (Placement.TO, Placement.OUTWARD) else "from"
    values = {
        name: getattr(spec, name) for name in ("delay_ns", "jitter_ns", "loss", "duplicate", "reorder", "seed", "share")
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    options += [f"--macs={','.join(meant.macs)}", f"--addresses={','.join(meant.addresses)}"]
    places = [f"--inner={port.device}", f"--outer={port.middle}", f"--direction={direction}"]
    return (
        *(sys.executable, "-m", "netprobe.lab.relay", *(["--inside"] if meant.inside else [])),
        *(*places, *options, f"--log={record.log}", f"--counters={record.counters}"),
    )


def _start_relay(journal: Journal, places: Places, port: RelayPort, record: FaultRecord) -> None:
    """Start the relay and wait until both its sockets are open."""
    argv = _relay_argv(journal.state, port, record)
    name = relay_name(port)
    journal.intend(name, argv)
    log = places.log(name)
    reader, writer = os.pipe()
    try:
        try:
            journal.started(name, process.spawn(argv, log=log, netns=port.netns, stdout_fd=writer))
        finally:
            os.close(writer)
        ready, _, _ = select.select([reader], [], [], READY_WAIT_S)
        if not ready or not os.read(reader, 16):
            raise HostNotReadyError(f"relay in {record.splice.segment}", f"does not start: {log_tail(log)}")
    finally:
        os.close(reader)


def _end_relay(journal: Journal, port: RelayPort) -> None:
    name = relay_name(port)
    process.end(record for record in journal.state.processes if record.name == name)
    journal.forget(name)


def _switch(places: Places, port: RelayPort) -> ovs.PrivateSwitch:
    return ovs.PrivateSwitch(port.netns, places.switch(port.netns))


def _move_port(state: State, places: Places, port: RelayPort, old: str, new: str) -> None:
    """Put `new` into a port in the place of `old`."""
    if port.has_kernel_bridge:
        iproute.batch([f"link set {old} nomaster"], netns=port.netns)
        if port.is_guarded:
            guard.rename(port.netns, old, new)
        iproute.batch([f"link set {new} master {port.bridge}"], netns=port.netns)
        return
    end = next((end for end in state.endpoints if plug_name(state.shape, end) == port.name), None)
    spec = nic_spec(new) if end is None else port_spec(end, new, state.shape, places)
    switch = _switch(places, port)
    switch.swap_port(port.bridge, old, spec)
    got = switch.ofport(new)
    if got != spec.ofport:
        raise HostNotReadyError(
            f"port {new}",
            f"got OpenFlow number {got}, not {spec.ofport}",
            advice="run `netprobe lab up`, which rebuilds the lab",
        )
    if end is not None and state.shape.has_ovn:  # to OVN it is a port that went and one that came
        ovn_central.wait_until_installed(switch, new)
        central_of(places).wait_for_hosts()
