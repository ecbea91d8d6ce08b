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
from netprobe.lab.topology import (
    BRIDGE,
    BYPASS,
    HOST,
    ZONE,
    Endpoint,
    FaultSpec,
    Layout,
    Placement,
    Splice,
    layout,
    tap_of,
)

SCHEMA = 1
DEFAULT_BASE = "/run/netprobe"
SOCKET_PATH_MAX = 107
"""sun_path holds 108 octets with the final zero."""
LONGEST_SOCKET_NAME = "lab/hv1/ovs-vswitchd.1234567890.ctl"


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

    @property
    def ovs(self) -> Path:
        """The run directory of the hypervisor's Open vSwitch."""
        return self.lab / HOST

    @property
    def allowlist(self) -> Path:
        """What a collector may order on this host (design §6a)."""
        return self.lab / "allow.toml"

    def agent(self, endpoint: str) -> Path:
        """The control socket of an endpoint's guest agent."""
        return self.lab / f"{endpoint}.sock"

    def log(self, name: str) -> Path:
        """The log of an agent or relay."""
        return self.lab / f"{name}.log"

    def truth(self, endpoint: str, number: int) -> Path:
        """The truth log of the number-th relay of this lab."""
        return self.lab / f"truth-{endpoint}-{number}.bin"


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
    """Everything that is known about a lab. `endpoints` is empty until it is complete."""

    name: str
    run_dir: Path
    endpoints: tuple[Endpoint, ...] = ()
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: tuple[FaultRecord, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    namespaces: tuple[NamespaceRecord, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether `up` came to its end."""
        return bool(self.endpoints)

    def layout(self) -> Layout:
        """Points and segments, with the relays that stand now."""
        return layout(self.endpoints, [fault.splice for fault in self.faults if fault.active])

    def fault_at(self, endpoint: str) -> FaultRecord | None:
        """The relay in an endpoint's port, if there is one."""
        return next((fault for fault in self.faults if fault.splice.endpoint == endpoint), None)

    def fault_json(self, endpoint: str) -> dict[str, object]:
        """The entry of the relay in an endpoint's port; it is known to be there."""
        fault = self.fault_at(endpoint)
        assert fault is not None, endpoint
        splice = fault.splice
        carried = [segment.id for segment in self.layout().segments if segment.fault_at == endpoint]
        return {
            "segment": splice.segment,
            "carried_by": carried[0] if carried else "",
            "endpoint": splice.endpoint,
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
        here = self.layout()
        faults = {fault.splice.endpoint: self.fault_json(fault.splice.endpoint) for fault in self.faults}
        ends = [_endpoint_json(end, here, self.fault_at(end.name), places) for end in self.endpoints]
        return {
            "schema": SCHEMA,
            "name": self.name,
            "run_dir": str(self.run_dir),
            "hosts": [_host_json(places)] if self.is_complete else [],
            "guests": [end for end in ends if end["name"] != BYPASS],
            "bypasses": [end for end in ends if end["name"] == BYPASS],
            "points": [
                {"id": p.id, "kind": p.kind.value, "host": p.host, "netns": p.netns, "device": p.device}
                for p in here.points
                if self.is_complete
            ],
            "segments": [
                {"id": s.id, "from": s.first.id, "to": s.second.id, "kind": s.kind, "fault": faults.get(s.fault_at)}
                for s in here.segments
            ],
            "rules": self.rules,
            "faults": list(faults.values()),
            "processes": [{**asdict(record), "argv": list(record.argv)} for record in self.processes],
            "namespaces": [asdict(record) for record in self.namespaces],
        }


def _host_json(places: Places) -> dict[str, object]:
    return {
        "name": HOST,
        "netns": HOST,
        "bridge": BRIDGE,
        "ovs_rundir": str(places.ovs),
        "allowlist": str(places.allowlist),
        "zone": ZONE,
    }


def _endpoint_json(end: Endpoint, here: Layout, fault: FaultRecord | None, places: Places) -> dict[str, object]:
    port = end.outer if fault and fault.active else end.tap
    entry: dict[str, object] = {"name": end.name, "host": HOST, "netns": end.netns, "device": end.device}
    entry |= {"mac": end.mac, "ipv4": end.ipv4, "ipv6": end.ipv6, "groups": list(end.groups)}
    entry |= {"agent": str(places.agent(end.name))}
    entry |= {"port": {"iface_id": end.iface_id, "ofport": end.ofport, "device": port}}
    entry |= {"chain": [point.id for point in here.chains[end.name]]}
    return entry | ({"copy_of": end.copy_of} if end.copy_of else {})


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
            name=document["name"],
            run_dir=Path(document["run_dir"]),
            endpoints=tuple(_read_endpoint(entry) for entry in ends),
            rules=document["rules"],
            faults=tuple(_read_fault(entry) for entry in document["faults"]),
            processes=tuple(ProcessRecord(**{**p, "argv": tuple(p["argv"])}) for p in document["processes"]),
            namespaces=tuple(NamespaceRecord(**entry) for entry in document["namespaces"]),
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
    }
    values["tap"] = tap_of(str(entry["name"]))
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
        str(entry["segment"]), str(entry["endpoint"]), Placement(entry["placement"]), str(entry["peer"]), spec.expose
    )
    return FaultRecord(splice, spec, str(entry["log"]), str(entry["counters"]), bool(entry["active"]))
