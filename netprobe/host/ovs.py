"""A private Open vSwitch: its daemons, ovs-vsctl transactions, ovs-ofctl bundles, ovs-appctl calls.

Every command has a timeout: the tools wait for ever when ovs-vswitchd is dead. `--unixctl` is never passed, since
ovs-appctl looks for RUNDIR/ovs-vswitchd.PID.ctl. Used by netprobe.lab; reading a foreign switch is another file's job.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host import process

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
TOOL_TIMEOUT_S = int(os.environ.get("NETPROBE_TOOL_TIMEOUT_S", "5"))
"""For how long OVS's tools may wait; an emulated machine needs more."""

PLACES = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR", "OVN_RUNDIR", "OVN_DBDIR", "OVN_LOGDIR")
"""Environment variables that tell the programs of OVS and OVN where to look."""

GUARD_WAIT_S = 2.0
GUARD_LOOK_S = 0.002
OPENFLOW = "OpenFlow15"
"""Needed for bundles; the switch speaks older versions too, for its other clients."""

BRIDGE_PROTOCOLS = "OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A port as the cloud would make it.

    Attributes:
        device: the network device.
        ofport: its fixed OpenFlow number; 0 for one that the switch chooses.
        iface_id: the cloud's UUID of the port; empty where no guest is behind it.
        mac: the address of the guest behind it.
        kind: column `type`; empty for a device of the kernel.
        options: column `options`.
    """

    device: str
    ofport: int
    iface_id: str = ""
    mac: str = ""
    kind: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A bridge.

    Attributes:
        fail_mode: `secure` (no flow, no traffic) or `standalone` (a learning switch).
        mac: of its own port; empty for one that the switch makes up.
        mtu: of its own port, octets; 0 for what follows from its other ports.
        datapath: `netdev` (userspace) or `system` (the kernel's module openvswitch).
    """

    name: str
    ports: tuple[PortSpec, ...] = ()
    fail_mode: str = "secure"
    mac: str = ""
    mtu: int = 0
    datapath: str = "netdev"


@dataclass(frozen=True, slots=True)
class PrivateSwitch:
    """The daemons of one host, with a run directory of their own, in a network namespace.

    Attributes:
        netns: where ovs-vswitchd looks for devices.
        run_dir: absolute; sockets, database, pid files and logs.
    """

    netns: str
    run_dir: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment that makes OVS's programs look into the run directory."""
        place = str(self.run_dir)
        return {**os.environ, **dict.fromkeys((*PLACES, *self.more_places), place)}

    @property
    def more_places(self) -> tuple[str, ...]:
        """Environment variables that tell what ovs-vswitchd is built with where to look."""
        return ()

    @property
    def program(self) -> str:
        """The program; the last part of its path names its control socket and its guard."""
        return "ovs-vswitchd"

    @property
    def db_socket(self) -> Path:
        """OVSDB's socket."""
        return self.run_dir / "db.sock"

    @property
    def server_argv(self) -> tuple[str, ...]:
        """The command line of ovsdb-server."""
        place = self.run_dir
        return (
            *("ovsdb-server", "-vconsole:off", f"{place}/conf.db", f"--remote=punix:{self.db_socket}"),
            *(f"--pidfile={place}/ovsdb-server.pid", "--detach", "--no-chdir", f"--log-file={place}/ovsdb-server.log"),
        )

    @property
    def switch_argv(self) -> tuple[str, ...]:
        """The command line of ovs-vswitchd."""
        place = self.run_dir
        return (
            *(self.program, "-vconsole:off", f"unix:{self.db_socket}", f"--pidfile={place}/ovs-vswitchd.pid"),
            *("--detach", "--monitor", "--no-chdir", f"--log-file={place}/ovs-vswitchd.log"),
        )

    def create_database(self) -> None:
        """Make the run directory and an empty database in it."""
        self.run_dir.mkdir(mode=0o755, exist_ok=True)
        self._run(["ovsdb-tool", "create", f"{self.run_dir}/conf.db", str(SCHEMA)])

    def configure(self) -> None:
        """What must be set before ovs-vswitchd runs: nothing."""

    def start_server(self) -> process.ProcessRecord:
        """Start ovsdb-server and make its one row. Raises HostNotReadyError."""
        self._run(process.netns_argv(self.netns, self.server_argv))
        self.vsctl("--no-wait", "init")
        return self._record("ovsdb-server", self.server_argv, "ovsdb-server.pid")

    def start_switch(self) -> tuple[process.ProcessRecord, process.ProcessRecord]:
        """Start ovs-vswitchd. Returns its guard (`--monitor`) and the daemon itself."""
        self._run(process.netns_argv(self.netns, self.switch_argv))
        daemon = self._record("ovs-vswitchd", self.switch_argv, "ovs-vswitchd.pid")
        guard = process.parent(daemon.pid)
        # It takes its title a moment later; until then it looks like its daemon, and in between like neither.
        deadline = time.monotonic() + GUARD_WAIT_S
        while not process.is_guard(guard):
            if time.monotonic() > deadline:
                raise HostNotReadyError(
                    "ovs-vswitchd", "has no monitor process", advice=f"see {self.run_dir}/ovs-vswitchd.log"
                )
            time.sleep(GUARD_LOOK_S)
        ticks = process.start_ticks(guard)
        return process.ProcessRecord("ovs-vswitchd monitor", self.switch_argv, guard, ticks), daemon

    def vsctl(self, *words: str) -> str:
        """Run one ovs-vsctl transaction and wait until the switch has taken it over."""
        return self._run(["ovs-vsctl", f"--timeout={TOOL_TIMEOUT_S}", f"--db=unix:{self.db_socket}", *words])

    def add_bridge(self, bridge: str, ports: Iterable[PortSpec], *, datapath: str = "netdev") -> None:
        """Make a bridge with its ports, in one transaction."""
        self.add_bridges(BridgeSpec(bridge, tuple(ports), datapath=datapath))

    def add_bridges(self, *bridges: BridgeSpec) -> None:
        """Make bridges with their ports, in one transaction."""
        words: list[str] = []
        for bridge in bridges:
            words += ["--", *_add_bridge(bridge)]
        self.vsctl(*words)

    def set_external_ids(self, values: Mapping[str, str]) -> None:
        """Set keys of the whole switch's external-ids; waits for nobody, so that it works before the daemon runs."""
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *(f'external_ids:{k}="{v}"' for k, v in values.items()))

    def add_port(self, bridge: str, port: PortSpec) -> None:
        """Add a port."""
        self.vsctl(*_add_port(bridge, port))

    def remove_port(self, bridge: str, device: str) -> None:
        """Remove a port; fine when it is not there."""
        self.vsctl("--if-exists", "del-port", bridge, device)

    def swap_port(self, bridge: str, old_device: str, port: PortSpec) -> None:
        """Put another device in a port's place, in one transaction."""
        self.vsctl("del-port", bridge, old_device, "--", *_add_port(bridge, port))

    def has_port(self, device: str) -> bool:
        """Whether a device is a port of any bridge."""
        return bool(self.vsctl("--bare", "--columns=name", "find", "interface", f"name={device}").strip())

    def appctl(self, *words: str) -> str:
        """Ask ovs-vswitchd over its control socket."""
        return self._run(["ovs-appctl", f"--timeout={TOOL_TIMEOUT_S}", "--target=ovs-vswitchd", *words])

    def ofport(self, device: str) -> int:
        """The OpenFlow number that the switch gave a device; negative when it could not open it."""
        text = self.vsctl("--if-exists", "get", "interface", device, "ofport").strip()
        return int(text) if text.lstrip("-").isdigit() else -1

    def replace_flows(self, bridge: str, flows: Sequence[str]) -> None:
        """Make these the bridge's only flows, in one bundle (all or nothing)."""
        where = ["ovs-ofctl", f"--timeout={TOOL_TIMEOUT_S}", f"-O{OPENFLOW}", "--bundle", "replace-flows"]
        self._run([*where, self.management(bridge), "-"], stdin="\n".join(flows) + "\n")

    def flow_count(self, bridge: str, cookie: int, mask: int) -> int:
        """How many flows of a bridge carry a cookie under a mask."""
        where = ["ovs-ofctl", f"--timeout={TOOL_TIMEOUT_S}", f"-O{OPENFLOW}", "dump-aggregate", self.management(bridge)]
        text = self._run([*where, f"cookie={cookie:#x}/{mask:#x}"])
        return int(text.rpartition("flow_count=")[2])

    def management(self, bridge: str) -> str:
        """The address of a bridge's OpenFlow management socket."""
        return f"unix:{self.run_dir}/{bridge}.mgmt"

    def _run(self, command: Sequence[str], *, stdin: str = "") -> str:
        return process.run(command, stdin=stdin, timeout_s=TOOL_TIMEOUT_S + 5, env=self.env)

    def _record(self, name: str, argv: tuple[str, ...], pid_file: str) -> process.ProcessRecord:
        return process.from_pid_file(name, argv, self.run_dir / pid_file)


def _add_bridge(bridge: BridgeSpec) -> list[str]:
    name = bridge.name
    words = ["add-br", name, "--", "set", "bridge", name, f"datapath_type={bridge.datapath}"]
    words += [f"fail-mode={bridge.fail_mode}", f"protocols={BRIDGE_PROTOCOLS}"]
    if bridge.mac:
        words += [f'other_config:hwaddr="{bridge.mac}"']
    if bridge.mtu:
        words += ["--", "set", "interface", name, f"mtu_request={bridge.mtu}"]
    for port in bridge.ports:
        words += ["--", *_add_port(name, port)]
    return words


def _add_port(bridge: str, port: PortSpec) -> list[str]:
    interface = ["set", "interface", port.device]
    interface += [f"ofport_request={port.ofport}"] if port.ofport else []
    interface += [f"type={port.kind}"] if port.kind else []
    interface += [f'options:{key}="{value}"' for key, value in port.options.items()]
    if port.iface_id:
        interface += [f"external_ids:iface-id={port.iface_id}", f'external_ids:attached-mac="{port.mac}"']
        interface += ["external_ids:iface-status=active"]
    return ["add-port", bridge, port.device, "--", *interface]
