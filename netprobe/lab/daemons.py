"""Starts the lab's daemons, each journaled before it runs: Open vSwitch, OVN's databases and northd, controllers."""

import time

from netprobe.host import ovn_central, ovs
from netprobe.lab.journal import Journal

SERVER = "ovsdb-server"
SWITCH = "ovs-vswitchd"
GUARD = "ovs-vswitchd monitor"
CONTROLLER = "ovn-controller"
NORTHD = "ovn-northd"

PROCESSORS_SINCE_S = 11.0
"""By the clock since boot. ovs-vswitchd (3.1) counts processors only from the tenth second on; started before it has no
thread for what the kernel's datapath has no flow for yet, and all of that is lost for good."""


def daemon_name(host: str, program: str) -> str:
    """The name of a host's daemon in the journal."""
    return f"{host} {program}"


def is_guard(name: str) -> bool:
    """Whether a journaled name is that of a process that starts its daemon again when that dies."""
    return name.endswith(GUARD)


def start_switch(host: str, switch: ovs.PrivateSwitch, journal: Journal) -> None:
    """A hypervisor's ovsdb-server and ovs-vswitchd, without any bridge."""
    server, guard, daemon = (daemon_name(host, program) for program in (SERVER, GUARD, SWITCH))
    switch.create_database()
    journal.intend(server, switch.server_argv)
    journal.started(server, switch.start_server())
    switch.configure()
    _wait_for_processors()
    journal.intend(guard, switch.switch_argv)
    journal.intend(daemon, switch.switch_argv)
    guard_record, daemon_record = switch.start_switch()
    journal.started(guard, guard_record)
    journal.started(daemon, daemon_record)


def _wait_for_processors() -> None:
    """On a machine that has just booted; see PROCESSORS_SINCE_S."""
    missing_s = PROCESSORS_SINCE_S - time.monotonic()
    if missing_s > 0:
        time.sleep(missing_s)


def start_central(host: str, central: ovn_central.PrivateCentral, journal: Journal) -> None:
    """OVN's databases, and northd between them."""
    central.create_databases()
    for database in ("nb", "sb"):
        name = daemon_name(host, f"{SERVER} {database}")
        journal.intend(name, central.server_argv(database))
        journal.started(name, central.start_server(database))
    name = daemon_name(host, NORTHD)
    journal.intend(name, central.northd_argv)
    journal.started(name, central.start_northd())


def start_controller(host: str, switch: ovs.PrivateSwitch, journal: Journal) -> None:
    """A hypervisor's ovn-controller."""
    name = daemon_name(host, CONTROLLER)
    journal.intend(name, ovn_central.controller_argv(switch))
    journal.started(name, ovn_central.start_controller(switch))
