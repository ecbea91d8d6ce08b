"""A private OVN: its databases, northd, ovn-nbctl transactions, and the controller beside a private switch.

For netprobe.lab alone; reading a cloud's own OVN is another file's job. As with netprobe.host.ovs every command has a
timeout, and `--unixctl` is never passed.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from netprobe.host import process
from netprobe.host.ovs import PLACES, PrivateSwitch

SCHEMAS = Path("/usr/share/ovn")
TOOL_TIMEOUT_S = 10
SOUTHBOUND_PORT = 6642
"""Where controllers reach the southbound database (IANA has no number; OVN's own default)."""


@dataclass(frozen=True, slots=True)
class PrivateCentral:
    """OVN's databases and northd, with a run directory of their own, in a network namespace.

    Attributes:
        netns: where the southbound database listens on TCP, on every address.
        run_dir: absolute; sockets, databases, pid files and logs.
    """

    netns: str
    run_dir: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment that makes OVN's programs look into the run directory."""
        return {**os.environ, **dict.fromkeys(PLACES, str(self.run_dir))}

    def server_argv(self, database: str) -> tuple[str, ...]:
        """The command line of a database's ovsdb-server.

        Args:
            database: `nb` or `sb`.
        """
        place = self.run_dir
        remotes = [f"--remote=punix:{self._socket(database)}"]
        if database == "sb":
            remotes.append(f"--remote=ptcp:{SOUTHBOUND_PORT}:0.0.0.0")
        return (
            *("ovsdb-server", "-vconsole:off", f"{place}/ovn{database}.db", *remotes),
            *(
                f"--pidfile={place}/ovn{database}.pid",
                "--detach",
                "--no-chdir",
                f"--log-file={place}/ovn{database}.log",
            ),
        )

    @property
    def northd_argv(self) -> tuple[str, ...]:
        """The command line of ovn-northd."""
        place = self.run_dir
        return (
            *("ovn-northd", "-vconsole:off"),
            *(f"--ovnnb-db=unix:{self._socket('nb')}", f"--ovnsb-db=unix:{self._socket('sb')}"),
            *(f"--pidfile={place}/ovn-northd.pid", "--detach", "--no-chdir", f"--log-file={place}/ovn-northd.log"),
        )

    def _socket(self, database: str) -> Path:
        return self.run_dir / f"ovn{database}_db.sock"

    def create_databases(self) -> None:
        """Make the run directory and two empty databases in it."""
        self.run_dir.mkdir(mode=0o755, exist_ok=True)
        for database in ("nb", "sb"):
            schema = SCHEMAS / f"ovn-{database}.ovsschema"
            self._run(["ovsdb-tool", "create", f"{self.run_dir}/ovn{database}.db", str(schema)])

    def start_server(self, database: str) -> process.ProcessRecord:
        """Start the ovsdb-server of `nb` or `sb`. Raises HostNotReadyError."""
        argv = self.server_argv(database)
        self._run(process.netns_argv(self.netns, argv))
        return process.from_pid_file(f"ovsdb-server-{database}", argv, self.run_dir / f"ovn{database}.pid")

    def start_northd(self) -> process.ProcessRecord:
        """Start ovn-northd; both servers run. Raises HostNotReadyError."""
        self._run(process.netns_argv(self.netns, self.northd_argv))
        return process.from_pid_file("ovn-northd", self.northd_argv, self.run_dir / "ovn-northd.pid")

    def nbctl(self, *words: str) -> str:
        """Run one ovn-nbctl transaction."""
        return self._run(["ovn-nbctl", f"--timeout={TOOL_TIMEOUT_S}", f"--db=unix:{self._socket('nb')}", *words])

    def sbctl(self, *words: str) -> str:
        """Run one ovn-sbctl transaction."""
        return self._run(["ovn-sbctl", f"--timeout={TOOL_TIMEOUT_S}", f"--db=unix:{self._socket('sb')}", *words])

    def wait_for_ports(self, names: Iterable[str]) -> None:
        """Wait until controllers have bound these logical ports."""
        words: list[str] = []
        for name in names:
            words += [*(["--"] if words else []), "wait-until", "logical_switch_port", name, "up=true"]
        self.nbctl(*words)

    def wait_for_binding(self, name: str, chassis: str) -> None:
        """Wait until a logical port is bound on a chassis, and up there."""
        uuid = self.sbctl("--bare", "--columns=_uuid", "find", "chassis", f"name={chassis}").strip()
        self.sbctl("wait-until", "port_binding", name, f"chassis={uuid}", "up=true")

    def wait_for_hosts(self) -> None:
        """Wait until every hypervisor that is known has what is in the northbound database now."""
        self.nbctl("--wait=hv", "sync")

    def _run(self, command: Sequence[str]) -> str:
        return process.run(command, timeout_s=TOOL_TIMEOUT_S + 5, env=self.env)


def controller_argv(switch: PrivateSwitch) -> tuple[str, ...]:
    """The command line of a switch's ovn-controller."""
    place = switch.run_dir
    return (
        *("ovn-controller", "-vconsole:off", f"unix:{switch.db_socket}", f"--pidfile={place}/ovn-controller.pid"),
        *("--detach", "--no-chdir", f"--log-file={place}/ovn-controller.log"),
    )


def controller_ids(name: str, *, remote: str, encap_ip: str, mappings: str) -> dict[str, str]:
    """The keys by which a switch tells its controller who it is.

    Args:
        name: of the chassis.
        remote: the southbound database.
        encap_ip: where tunnels to it end.
        mappings: provider networks, `NAME:BRIDGE,...`.
    """
    return {
        "system-id": name,
        "hostname": name,
        "ovn-remote": remote,
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": encap_ip,
        "ovn-bridge-datapath-type": "netdev",
        "ovn-bridge-mappings": mappings,
        "ovn-monitor-all": "true",  # a chassis without guests knows the flows too, so a guest can move there at once
    }


def wait_until_installed(switch: PrivateSwitch, device: str) -> None:
    """Wait until a switch's controller has bound the port of a device, and its flows are there."""
    switch.vsctl("wait-until", "interface", device, "external_ids:ovn-installed=true")


def start_controller(switch: PrivateSwitch) -> process.ProcessRecord:
    """Start a switch's ovn-controller. Raises HostNotReadyError."""
    argv = controller_argv(switch)
    process.run(process.netns_argv(switch.netns, argv), timeout_s=TOOL_TIMEOUT_S, env=switch.env)
    return process.from_pid_file("ovn-controller", argv, switch.run_dir / "ovn-controller.pid")
