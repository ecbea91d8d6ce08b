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
from netprobe.host import iproute, ovs, process
from netprobe.lab.build import log_tail, port_spec
from netprobe.lab.journal import Journal
from netprobe.lab.state import FaultRecord, Places, State
from netprobe.lab.topology import BRIDGE, HOST, Endpoint, FaultSpec, Placement, locate

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
    splice = locate(base, state.endpoints, expose=spec.expose)
    end = _endpoint(state, splice.endpoint)
    journal = Journal(state, places.state)
    previous = state.fault_at(end.name)
    number = 1
    while places.truth(end.name, number).exists():
        number += 1
    log = places.truth(end.name, number)
    record = FaultRecord(splice, spec, str(log), str(log.with_suffix(".json")))
    _remember(journal, record)
    try:
        _splice(journal, places, end, record, is_spliced=previous is not None)
    except BaseException:
        _back_out(journal, places, end)
        raise
    record = replace(record, active=True)
    _remember(journal, record)
    return record


def _splice(journal: Journal, places: Places, end: Endpoint, record: FaultRecord, *, is_spliced: bool) -> None:
    """Start the relay and move the port behind it, or put it in the place of the relay that is there."""
    if is_spliced:
        _end_relay(journal, end)
    else:
        commands = [f"link add {end.middle} type veth peer name {end.outer}"]
        iproute.batch([*commands, f"link set {end.middle} up", f"link set {end.outer} up"], netns=HOST)
        iproute.offloads_off(HOST, [end.middle, end.outer])
    _start_relay(journal, places, end, record)
    if not is_spliced:
        _move_port(places, end, end.tap, end.outer)


def _back_out(journal: Journal, places: Places, end: Endpoint) -> None:
    """After a failure or Ctrl-C: no relay in the port. If this fails too, the lab counts as broken; `up` repairs it."""
    with contextlib.suppress(HostNotReadyError):
        if ovs.PrivateSwitch(HOST, places.ovs).ofport(end.tap) != end.ofport:
            _move_port(places, end, end.outer, end.tap)
        _remove_relay(journal, end)


def _remove_relay(journal: Journal, end: Endpoint) -> None:
    """End the relay of a port that no longer stands behind it, with its devices and its record."""
    _end_relay(journal, end)
    if iproute.link_exists(HOST, end.middle):
        iproute.batch([f"link del {end.middle}"], netns=HOST)
    state = journal.state
    state.faults = tuple(fault for fault in state.faults if fault.splice.endpoint != end.name)
    journal.write()


def take_out(state: State, places: Places, record: FaultRecord) -> None:
    """Take a relay out; the port is as it was before.

    Raises:
        HostNotReadyError: the port does not move back.
    """
    end = _endpoint(state, record.splice.endpoint)
    journal = Journal(state, places.state)
    _remember(journal, replace(record, active=False))
    _move_port(places, end, end.outer, end.tap)
    _remove_relay(journal, end)


def names(state: State, fault: FaultRecord) -> set[str]:
    """The segment ids that mean a fault: the one it was asked for, and the one that has it now."""
    carried = {segment.id for segment in state.layout().segments if segment.fault_at == fault.splice.endpoint}
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


def _endpoint(state: State, name: str) -> Endpoint:
    return next(end for end in state.endpoints if end.name == name)


def _remember(journal: Journal, record: FaultRecord) -> None:
    others = (fault for fault in journal.state.faults if fault.splice.endpoint != record.splice.endpoint)
    journal.state.faults = (*others, record)
    journal.write()


def relay_name(end: Endpoint) -> str:
    """The name of a port's relay in the journal, and of its log."""
    return f"relay-{end.name}"


def _relay_argv(end: Endpoint, peer_mac: str, record: FaultRecord) -> tuple[str, ...]:
    splice, spec = record.splice, record.spec
    direction = "to-guest" if splice.placement is Placement.TO_GUEST else "from-guest"
    values = {
        name: getattr(spec, name) for name in ("delay_ns", "jitter_ns", "loss", "duplicate", "reorder", "seed", "share")
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    places = [f"--inner={end.tap}", f"--outer={end.middle}", f"--direction={direction}", f"--match-mac={peer_mac}"]
    return (
        *(sys.executable, "-m", "netprobe.lab.relay"),
        *(*places, *options, f"--log={record.log}", f"--counters={record.counters}"),
    )


def _start_relay(journal: Journal, places: Places, end: Endpoint, record: FaultRecord) -> None:
    """Start the relay and wait until both its sockets are open."""
    peer_mac = _endpoint(journal.state, record.splice.peer).mac if record.splice.peer else ""
    argv = _relay_argv(end, peer_mac, record)
    name = relay_name(end)
    journal.intend(name, argv)
    log = places.log(name)
    reader, writer = os.pipe()
    try:
        try:
            journal.started(name, process.spawn(argv, log=log, netns=HOST, stdout_fd=writer))
        finally:
            os.close(writer)
        ready, _, _ = select.select([reader], [], [], READY_WAIT_S)
        if not ready or not os.read(reader, 16):
            raise HostNotReadyError(f"relay in {record.splice.segment}", f"does not start: {log_tail(log)}")
    finally:
        os.close(reader)


def _end_relay(journal: Journal, end: Endpoint) -> None:
    name = relay_name(end)
    process.end(record for record in journal.state.processes if record.name == name)
    journal.forget(name)


def _move_port(places: Places, end: Endpoint, old: str, new: str) -> None:
    switch = ovs.PrivateSwitch(HOST, places.ovs)
    switch.swap_port(BRIDGE, old, port_spec(end, new))
    got = switch.ofport(new)
    if got != end.ofport:
        raise HostNotReadyError(
            f"port {new}",
            f"got OpenFlow number {got}, not {end.ofport}",
            advice="run `netprobe lab up`, which rebuilds the lab",
        )
