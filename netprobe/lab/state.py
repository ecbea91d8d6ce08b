"""The lab's state file: what was made, what it is made of, and what is about to be made.

It is a contract with the service, which reads the topology from it (docs/lab.md), and what `down` cleans up from: a
namespace or process is written here before it is made (netprobe.lab.journal). While `hosts` is empty the lab is not
complete.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.process import ProcessRecord
from netprobe.lab.layout import FaultSpec, Layout, Placement, Splice, layout, plug_name, ports, vhost_socket
from netprobe.lab.shapes import BRIDGE, CENTRAL, MANAGEMENT_IP, SHAPES, Hypervisor, Shape
from netprobe.lab.topology import Endpoint
from netprobe.wire.serial_sync import SERIAL

SCHEMA = 1
NORTHBOUND_SOCKET = "ovnnb_db.sock"
SOUTHBOUND_SOCKET = "ovnsb_db.sock"
DEFAULT_BASE = "/run/netprobe"
SOCKET_PATH_MAX = 107
"""sun_path holds 108 octets with the final zero."""
LONGEST_SOCKET_NAME = "lab/central/ovsdb-server.1234567890.ctl"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a lab keeps its files, below one base directory."""

    base: Path

    @classmethod
    def from_environment(cls) -> "Places":
        """Below NETPROBE_RUN_DIR, or /run/netprobe.

        Raises:
            HostNotReadyError: the path is too long for the sockets in it.
        """
        base = Path(os.environ.get("NETPROBE_RUN_DIR") or DEFAULT_BASE).absolute()
        room = SOCKET_PATH_MAX - len(LONGEST_SOCKET_NAME) - 1
        if len(os.fsencode(base)) > room:
            raise HostNotReadyError(
                f"run directory {base}", "is too long for sockets", allowed=f"at most {room} octets"
            )
        return cls(base)

    @property
    def lab(self) -> Path:
        """The lab's own directory."""
        return self.base / "lab"

    @property
    def state(self) -> Path:
        """The state file."""
        return self.lab / "state.json"

    @property
    def lock(self) -> Path:
        """The file that one `up`, `down` or `fault` at a time has locked."""
        return self.base / "lab.lock"

    def switch(self, host: str) -> Path:
        """The run directory of a hypervisor's Open vSwitch."""
        return self.lab / host

    @property
    def central(self) -> Path:
        """The run directory of OVN's databases and northd."""
        return self.lab / CENTRAL

    def allowlist(self, shape: Shape, host: str) -> Path:
        """What a collector may order on a hypervisor (design §6a)."""
        return self.lab / ("allow.toml" if len(shape.hypervisors) == 1 else f"{host}.allow.toml")

    def agent(self, endpoint: str) -> Path:
        """The control socket of an endpoint's guest agent."""
        return self.lab / f"{endpoint}.sock"

    def agent_port(self, machine: str) -> Path:
        """The socket of the virtio-serial port that a virtual machine's agent serves."""
        return self.lab / f"{machine}.serial"

    def lab_port(self, machine: str) -> Path:
        """The socket of the virtio-serial port over which a virtual machine gets the lab's orders."""
        return self.lab / f"{machine}.lab"

    def vhost(self, machine: str) -> Path:
        """The socket behind a virtual machine's NIC, in the lab `dpdk`."""
        return self.lab / vhost_socket(machine)

    def log(self, name: str) -> Path:
        """The log of an agent or relay."""
        return self.lab / f"{name}.log"

    @property
    def guard(self) -> Path:
        """The rules that iptables had when the lab was made (lab bridge)."""
        return self.lab / "iptables.rules"

    def truth(self, port: str, number: int) -> Path:
        """The truth log of the number-th relay in a port."""
        return self.lab / f"truth-{port}-{number}.bin"


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A network namespace of ours. `cookie` is the kernel's number for it, 0 while it is only intended."""

    name: str
    cookie: int = 0


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """A relay in a port and what it does.

    Attributes:
        splice: where it stands.
        spec: what it does.
        log: its truth log (docs/lab.md).
        counters: JSON file with what it counted.
        active: False while it is being put in or taken out.
    """

    splice: Splice
    spec: FaultSpec
    log: str
    counters: str
    active: bool = False


@dataclass(slots=True)
class State:
    """Everything that is known about a lab.

    Attributes:
        endpoints: empty until it is complete.
        moving: the guest that is between two hypervisors just now, empty otherwise.
        machine: the virtual machine that all of it is in, empty where it is in this one: nothing but that machine is
            here then (netprobe.lab.hypervisor).
    """

    name: str
    run_dir: Path
    endpoints: tuple[Endpoint, ...] = ()
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: tuple[FaultRecord, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    namespaces: tuple[NamespaceRecord, ...] = ()
    moving: str = ""
    machine: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether `up` came to its end."""
        return bool(self.endpoints)

    @property
    def shape(self) -> Shape:
        """What is fixed about this lab."""
        return SHAPES[self.name]

    def endpoint(self, name: str) -> Endpoint:
        """A guest or bypass NIC by name; it is known to exist."""
        return next(end for end in self.endpoints if end.name == name)

    def layout(self) -> Layout:
        """Points and segments, with the relays that stand now."""
        return layout(self.shape, self.endpoints, [fault.splice for fault in self.faults if fault.active])

    def fault_at(self, port: str) -> FaultRecord | None:
        """The relay in a port, if there is one."""
        return next((fault for fault in self.faults if fault.splice.port == port), None)

    def fault_json(self, port: str) -> dict[str, object]:
        """The entry of the relay in a port; it is known to be there."""
        fault = self.fault_at(port)
        assert fault is not None, port
        splice = fault.splice
        carried = [segment.id for segment in self.layout().segments if segment.fault_at == port]
        return {
            "segment": splice.segment,
            "carried_by": carried[0] if carried else "",
            "port": splice.port,
            "placement": splice.placement.value,
            "peer": splice.peer,
            **asdict(fault.spec),
            "log": fault.log,
            "counters": fault.counters,
            "active": fault.active,
        }

    def to_json(self) -> dict[str, object]:
        """The document of the state file."""
        places = Places(self.run_dir.parent)
        shape = self.shape
        here = self.layout() if self.is_complete else Layout((), {}, {})
        faults = {fault.splice.port: self.fault_json(fault.splice.port) for fault in self.faults}
        ends = [_endpoint_json(self, end, here, places) for end in self.endpoints]
        return {
            "schema": SCHEMA,
            "name": self.name,
            "run_dir": str(self.run_dir),
            "hosts": [_host_json(shape, host, here, places) for host in shape.hypervisors if self.is_complete],
            "guests": [end for end in ends if "copy_of" not in end],
            "bypasses": [end for end in ends if "copy_of" in end],
            "points": [
                {"id": p.id, "kind": p.kind.value, "host": p.host, "netns": p.netns, "device": p.device}
                | ({"socket": str(places.lab / p.socket)} if p.socket else {})
                for p in here.points
            ],
            "segments": [
                {"id": s.id, "from": s.first.id, "to": s.second.id, "kind": s.kind, "fault": faults.get(s.fault_at)}
                for s in here.segments
            ],
            "ovn": _ovn_json(places) if shape.has_ovn else None,
            "management": {"netns": CENTRAL, "ip": MANAGEMENT_IP} if shape.has_ovn else None,
            "rules": self.rules,
            "faults": list(faults.values()),
            "processes": [{**asdict(record), "argv": list(record.argv)} for record in self.processes],
            "namespaces": [asdict(record) for record in self.namespaces],
            "moving": self.moving,
            "machine": self.machine,
        }


def _host_json(shape: Shape, host: Hypervisor, here: Layout, places: Places) -> dict[str, object]:
    return {
        "name": host.name,
        "netns": host.netns,
        "bridge": BRIDGE,
        "ovs_rundir": str(places.switch(host.name)),
        "allowlist": str(places.allowlist(shape, host.name)),
        "zone": host.zone,
        "uplink": [point.id for point in here.uplinks[host.name]],
        "encap_ips": [host.encap_ip] if host.encap_ip else [],
        "chassis": host.name if shape.has_ovn else "",
        "management_ip": host.management_ip,
    }


def _ovn_json(places: Places) -> dict[str, str]:
    return {
        "northbound": f"unix:{places.central}/{NORTHBOUND_SOCKET}",
        "southbound": f"unix:{places.central}/{SOUTHBOUND_SOCKET}",
    }


def _endpoint_json(state: State, end: Endpoint, here: Layout, places: Places) -> dict[str, object]:
    name = plug_name(state.shape, end)
    fault, device = state.fault_at(name), end.plug(state.shape)
    if not end.is_vhost(state.shape):
        port = ports(state.shape, state.endpoints)[name]
        device = port.outer if fault and fault.active else port.device
    network = state.shape.network(end.network)
    entry: dict[str, object] = {"name": end.name, "host": end.host, "netns": end.netns, "device": end.device}
    entry |= {"mac": end.mac, "ipv4": end.ipv4, "ipv6": end.ipv6, "groups": list(end.groups)}
    entry |= {"network": end.network, "prefixes": [str(network.ipv4), str(network.ipv6)]}
    entry |= {"gateway_mac": network.router_mac, "floating": end.floating or None}
    entry |= {"behind_nat": state.shape.nat_address(end.network, end.floating)}
    entry |= {"agent": _agent(end, places), "clock": "own" if end.is_machine else "host"}
    entry |= {"port": {"iface_id": end.iface_id, "ofport": end.ofport, "device": device}}
    entry |= {"chain": [point.id for point in here.chains[end.name]]}
    return entry | ({"copy_of": end.copy_of} if end.copy_of else {})


def _agent(end: Endpoint, places: Places) -> str:
    if not end.is_machine:
        return str(places.agent(end.name))
    return f"{SERIAL}{places.agent_port(end.name)}" if end.has_agent else ""


def load(path: Path) -> State | None:
    """Read a state file; None when there is none.

    Raises:
        HostNotReadyError: it is not of this netprobe.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise HostNotReadyError(
                str(path),
                f"has schema {document['schema']!r}",
                allowed=str(SCHEMA),
                advice="run `netprobe lab down` of the netprobe that made it",
            )
        ends = (*document["guests"], *document["bypasses"])
        return State(
            name=SHAPES[document["name"]].name,
            run_dir=Path(document["run_dir"]),
            endpoints=tuple(_read_endpoint(entry) for entry in ends),
            rules=document["rules"],
            faults=tuple(_read_fault(entry) for entry in document["faults"]),
            processes=tuple(ProcessRecord(**{**p, "argv": tuple(p["argv"])}) for p in document["processes"]),
            namespaces=tuple(NamespaceRecord(**entry) for entry in document["namespaces"]),
            moving=document["moving"],
            machine=document.get("machine", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise HostNotReadyError(
            str(path),
            f"is damaged: {error!r}",
            advice="look at `ip netns list` and at what runs there, remove it by hand, then this file",
        ) from error


def _read_endpoint(entry: dict[str, object]) -> Endpoint:
    port = _mapping(entry["port"])
    values = {
        **entry,
        "iface_id": port["iface_id"],
        "ofport": port["ofport"],
        "groups": tuple(_sequence(entry["groups"])),
        "floating": entry["floating"] or "",
        "has_agent": bool(entry["agent"]),
    }
    return Endpoint(**{name: values[name] for name in Endpoint.__slots__ if name in values})  # type: ignore[arg-type]


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no table")
    return value


def _sequence(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _read_fault(entry: dict[str, object]) -> FaultRecord:
    spec = FaultSpec(**{name: entry[name] for name in FaultSpec.__slots__})  # type: ignore[arg-type]
    splice = Splice(
        str(entry["segment"]), str(entry["port"]), Placement(entry["placement"]), str(entry["peer"]), spec.expose
    )
    return FaultRecord(splice, spec, str(entry["log"]), str(entry["counters"]), bool(entry["active"]))
