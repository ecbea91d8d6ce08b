"""What a collector orders a host's agent to do in a run, as msgpack. Bytes <-> model, no I/O.

An order names sessions, points and ports; it carries no program and no frame: filter and frames are made on the host,
which checks the order against its own allowlist first. The messages around it are wire.report's; docs/protocol.md.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from netprobe.errors import NetprobeError, WireError
from netprobe.model.load import LoadLimits
from netprobe.model.points import Point, PointKind, Stamp
from netprobe.model.probes import Flow, IPAddress, ProbeSession, Protocol, Translation, TypeP
from netprobe.wire import mark

_WHAT = "order"
SOCKET_PATH_MAX = 107  # sun_path holds 108 octets with the final zero
MAX_PLACES = 10_000
MAX_SESSIONS = 10_000
MAX_COUNT = 10_000_000


class PlaceSpec(msgspec.Struct, frozen=True):
    """A point to look at: its index in the run, and the device, or the path of a vhost-user port's socket."""

    index: int
    id: str
    kind: str
    device: str
    socket: str = ""


class ProbeSpec(msgspec.Struct, frozen=True):
    """A session's probes (model.probes.ProbeSession). Addresses are texts, MACs and the key octets."""

    session: int
    key: bytes
    protocol: str
    family: int
    size_bytes: int
    dscp: int | None
    src_port: int
    dst_port: int
    flow: str
    ttl: int
    src_mac: bytes
    dst_mac: bytes
    src_ip: str
    dst_ip: str
    count: int
    src_ports: list[int]
    translations: list[tuple[str, str]]


class SendSpec(msgspec.Struct, frozen=True):
    """A session that is sent from here.

    Attributes:
        sender: the guest or bypass NIC whose port it is.
        iface_id: of that port, as the host's own OVSDB must have it.
        own: index of the sender's own point, -1 where the vswitch plays it.
    """

    session: int
    name: str
    sender: str
    iface_id: str
    vantage: str
    rate_pps: int
    stretch: int
    start_ns: int
    schedule: str
    seed: int
    own: int


class PeerSpec(msgspec.Struct, frozen=True):
    """Another host whose clock shall be compared with ours."""

    host: str
    address: str
    port: int
    key: bytes


class GovernorSpec(msgspec.Struct, frozen=True):
    """Limits of a host's load (model.load.LoadLimits)."""

    is_on: bool
    cpu: float
    pressure: float
    share: float
    drops: float


class PartSpec(msgspec.Struct, frozen=True):
    """Everything that one agent does in one run.

    Attributes:
        run: its id.
        until_s: seconds after which the part ends by itself, whatever the collector says.
        machines: guests of this host at the ends of these sessions; the clocks of those that are virtual machines are
            compared with the host's.
        governor: the limits of the host's load, None for the default ones.
    """

    run: str
    places: list[PlaceSpec]
    probes: list[ProbeSpec]
    sends: list[SendSpec]
    peers: list[PeerSpec]
    until_s: float
    machines: list[str] = []
    governor: GovernorSpec | None = None


class RunNamed(msgspec.Struct, frozen=True):
    """Which run an order is about, and why (to end it early)."""

    run: str
    why: str = ""


class LookAsked(msgspec.Struct, frozen=True):
    """More points to look at in a run."""

    run: str
    places: list[PlaceSpec]


class PortsAsked(msgspec.Struct, frozen=True):
    """How many source ports are wanted for a flow, and when the last one will be used (CLOCK_REALTIME, ns).

    Attributes:
        flow: plan.port_ledger.flow_key of it.
        protocol: number of the IP protocol.
    """

    flow: str
    protocol: int
    src: str
    dst: str
    dst_port: int
    wanted: int
    last_use_ns: int


def governor_spec(limits: LoadLimits) -> GovernorSpec:
    """Limits for the wire."""
    return GovernorSpec(limits.is_on, limits.cpu, limits.pressure, limits.share, limits.drops)


def limits_of(spec: GovernorSpec | None) -> LoadLimits:
    """The limits of a spec. Whatever a number is, a limit beyond it is no harm: it is one that is never passed."""
    if spec is None:
        return LoadLimits()
    return LoadLimits(spec.is_on, spec.cpu, spec.pressure, spec.share, spec.drops)


def probe_spec(probe: ProbeSession) -> ProbeSpec:
    """A session for the wire."""
    t = probe.type_p
    return ProbeSpec(
        session=probe.session,
        key=probe.key,
        protocol=t.protocol.value,
        family=t.family,
        size_bytes=t.size_bytes,
        dscp=t.dscp,
        src_port=t.src_port,
        dst_port=t.dst_port,
        flow=t.flow.value,
        ttl=t.ttl,
        src_mac=probe.src_mac,
        dst_mac=probe.dst_mac,
        src_ip=str(probe.src_ip),
        dst_ip=str(probe.dst_ip),
        count=probe.count,
        src_ports=list(probe.src_ports),
        translations=[(str(t.src_ip), str(t.dst_ip)) for t in probe.translations],
    )


def _address(text: str, family: int) -> IPAddress:
    address = ip_address(text)
    if not isinstance(address, IPv4Address if family == 4 else IPv6Address):
        raise ValueError(f"{text} is not of family {family}")  # noqa: TRY004  a wrong value, however it is told
    return address


def probe_of_untrusted(spec: ProbeSpec) -> ProbeSession:
    """The session of a spec.

    Raises:
        WireError: it is none that fits the wire.
    """
    try:
        type_p = TypeP(
            protocol=Protocol(spec.protocol),
            family=spec.family,
            size_bytes=spec.size_bytes,
            dscp=spec.dscp,
            src_port=spec.src_port,
            dst_port=spec.dst_port,
            flow=Flow(spec.flow),
            ttl=spec.ttl,
        )
        probe = ProbeSession(
            session=spec.session,
            key=spec.key,
            type_p=type_p,
            src_mac=spec.src_mac,
            dst_mac=spec.dst_mac,
            src_ip=_address(spec.src_ip, spec.family),
            dst_ip=_address(spec.dst_ip, spec.family),
            count=spec.count,
            src_ports=tuple(spec.src_ports),
            translations=tuple(
                Translation(_address(a, spec.family), _address(b, spec.family)) for a, b in spec.translations[:16]
            ),
        )
        _check(probe)
    except (ValueError, NetprobeError) as error:
        raise WireError(_WHAT, f"session {spec.session}: {error}") from error
    return probe


def _check(probe: ProbeSession) -> None:
    """What nothing further down would look at."""
    if not 0 <= probe.session < 1 << 32 or not 1 <= probe.count <= MAX_COUNT:
        raise ValueError(f"number {probe.session}, {probe.count} probes")
    if (len(probe.key), len(probe.src_mac), len(probe.dst_mac)) != (16, 6, 6):
        raise ValueError("its key is not of 16 octets, or a MAC not of 6")
    mark.check_session(probe)


def place_spec(index: int, point: Point) -> PlaceSpec:
    """A point for the wire."""
    return PlaceSpec(index, point.id, point.kind.value, point.device, point.socket)


def place_of_untrusted(spec: PlaceSpec, host: str) -> tuple[int, Point]:
    """Index and point of a spec, on this host, in this network namespace.

    Raises:
        WireError: it is none.
    """
    try:
        kind = PointKind(spec.kind)
    except ValueError as error:
        raise WireError(_WHAT, f"place {spec.index}: {error}") from error
    if not 0 <= spec.index <= 0xFFFF or "/" in spec.device or len(spec.device) > 15:
        raise WireError(_WHAT, f"place {spec.index} on device {spec.device[:20]!r}")
    if len(spec.socket) > SOCKET_PATH_MAX or "\0" in spec.socket:
        raise WireError(_WHAT, f"place {spec.index} on socket {spec.socket[:20]!r}")
    stamp = Stamp.UPROBE if spec.socket else Stamp.KERNEL_RX
    return spec.index, Point(spec.id[:100], kind, host, "", spec.device, spec.socket, stamp)
