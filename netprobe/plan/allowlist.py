"""What a host lets itself be ordered to do: the root-owned allowlist, parsed and asked.

Pure: the text comes in; host.allowlist, above, reads the file and refuses one that others could have written. Format
and reasons: docs/harm.md.
"""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from netprobe.errors import RefusedError, UsageError, unknown_name
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol

SCHEMA = 1
DEFAULT_PACKET_OUT_PPS = 100  # design §6a: packet-out is worked off by the switch's slow path, next to tenants
MAX_PPS = 1_000_000
MAX_UPROBES_S = 86_400
FAMILIES = (4, 6)
_KEYS = (
    "schema",
    "ports",
    "protocols",
    "max_pps",
    "packet_out_pps",
    "families",
    "vantages",
    "verify",
    "vring_uprobes_s",
)
_REQUIRED = ("schema", "ports", "protocols", "max_pps")


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants injected.

    Attributes:
        names: everything that the port is called: its guest's name, device, UUID, MAC, project.
        pps: mean rate, packets a second.
    """

    names: tuple[str, ...]
    protocol: Protocol
    family: int
    vantage: Vantage
    pps: float


@dataclass(frozen=True, slots=True)
class Allowlist:
    """One host's own limits.

    Attributes:
        where: the file, for errors.
        ports: shell patterns; a port is allowed when one of them fits one of its names.
        max_pps: for each order, any vantage.
        packet_out_pps: for each bridge, vantage vswitch; never more than max_pps.
        verify: policies may be proved here: packets of every protocol and shape, both ends of a connection played, and
            senders' addresses that are not the port's own, which the cloud should drop. Rates hold all the same.
        vring_uprobes_s: BPF programs may be attached to the vhost library of this host's DPDK vswitch, for so long at a
            time: each of its empty looks into a ring costs a trap then. 0: not at all.
        lines: line number of each key in the file, for errors.
    """

    where: str
    ports: tuple[str, ...]
    protocols: frozenset[Protocol]
    max_pps: float
    packet_out_pps: float = DEFAULT_PACKET_OUT_PPS
    families: frozenset[int] = frozenset(FAMILIES)
    vantages: frozenset[Vantage] = frozenset(Vantage)
    verify: bool = False
    vring_uprobes_s: float = 0
    lines: dict[str, int] = field(default_factory=dict)

    def cap_pps(self, vantage: Vantage) -> float:
        """The rate that is allowed from a vantage, packets a second."""
        return min(self.max_pps, self.packet_out_pps) if vantage is Vantage.VSWITCH else self.max_pps

    def check(self, order: Order) -> None:
        """Let an order pass.

        Raises:
            RefusedError: it doesn't; it says which line of the file forbids it.
        """
        if not any(fnmatchcase(name, glob) for name in order.names for glob in self.ports):
            self._refuse("ports", f"port {' / '.join(order.names) or '(no name)'}", ", ".join(self.ports) or "none")
        if order.protocol not in self.protocols:
            allowed = ", ".join(sorted(p.value for p in self.protocols)) or "none"
            self._refuse("protocols", f"protocol {order.protocol.value}", allowed)
        if order.family not in self.families:
            self._refuse("families", f"IPv{order.family}", ", ".join(f"IPv{n}" for n in sorted(self.families)))
        if order.vantage not in self.vantages:
            allowed = ", ".join(sorted(v.value for v in self.vantages)) or "none"
            self._refuse("vantages", f"vantage {order.vantage.value}", allowed)
        cap = self.cap_pps(order.vantage)
        if not 0 < order.pps <= cap:
            key = "max_pps" if cap == self.max_pps else "packet_out_pps"
            self._refuse(key, f"{order.pps:g} packets/s from vantage {order.vantage.value}", f"up to {cap:g} packets/s")

    def check_verify(self, names: tuple[str, ...]) -> None:
        """Let a port take part in the proof of a policy.

        Raises:
            RefusedError: policies may not be proved on this host, or not on this port.
        """
        if not self.verify:
            self._refuse("verify", "proving a policy", "`verify = true`")
        if not any(fnmatchcase(name, glob) for name in names for glob in self.ports):
            self._refuse("ports", f"port {' / '.join(names)}", ", ".join(self.ports) or "none")

    def _refuse(self, key: str, problem: str, allowed: str) -> None:
        line = self.lines.get(key)
        place = f"line {line}, {key}" if line else f"{key}, by default"
        raise RefusedError(
            f"{self.where}: {place}",
            f"{problem} is not allowed on this host",
            allowed=allowed,
            advice="ask whoever runs the host: only its own root may widen the list",
        )


def parse_allowlist(text: str, where: str) -> Allowlist:
    """Read an allowlist.

    Args:
        text: TOML.
        where: the file's name, for errors.

    Raises:
        UsageError: it is no TOML, a key is unknown or missing, or a value is impossible.
    """
    try:
        table: dict[str, object] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"is no TOML: {error}") from error
    for key in table:
        if key not in _KEYS:
            raise unknown_name(where, key, _KEYS, kind="key")
    for key in _REQUIRED:
        if key not in table:
            raise UsageError(where, f"key {key!r} is missing", allowed=", ".join(_REQUIRED))
    if table["schema"] != SCHEMA or isinstance(table["schema"], bool):
        raise UsageError(f"{where}: schema", f"got {table['schema']!r}", allowed=str(SCHEMA))
    protocols = {p.value: p for p in Protocol}
    vantages = {v.value: v for v in Vantage}
    return Allowlist(
        where,
        ports=tuple(_strings(table, "ports", where)),
        protocols=frozenset(protocols[name] for name in _names(table, "protocols", where, protocols)),
        max_pps=_rate(table, "max_pps", where, 0),
        packet_out_pps=_rate(table, "packet_out_pps", where, DEFAULT_PACKET_OUT_PPS),
        families=_families(table, where),
        vantages=frozenset(vantages[name] for name in _names(table, "vantages", where, vantages)),
        verify=_flag(table, "verify", where),
        vring_uprobes_s=_seconds(table, "vring_uprobes_s", where),
        lines=_lines(text),
    )


def _lines(text: str) -> dict[str, int]:
    """Line number of each top-level key; tomllib doesn't tell."""
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key = re.match(r"\s*[\"']?(\w+)[\"']?\s*=", line)
        if key:
            found.setdefault(key[1], number)
    return found


def _strings(table: dict[str, object], key: str, where: str) -> list[str]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise UsageError(f"{where}: {key}", f"got {value!r}", allowed='an array of strings, such as ["vm*"]')
    return value


def _names(table: dict[str, object], key: str, where: str, known: Collection[str]) -> list[str]:
    if key not in table:
        return list(known)
    names = _strings(table, key, where)
    for name in names:
        if name not in known:
            raise unknown_name(f"{where}: {key}", name, known, kind="value")
    return names


def _rate(table: dict[str, object], key: str, where: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_PPS:
        raise UsageError(f"{where}: {key}", f"got {value!r}", allowed=f"a number of packets/s from 0 to {MAX_PPS}")
    return value


def _seconds(table: dict[str, object], key: str, where: str) -> float:
    value = table.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_UPROBES_S:
        raise UsageError(f"{where}: {key}", f"got {value!r}", allowed=f"a number of seconds from 0 to {MAX_UPROBES_S}")
    return value


def _flag(table: dict[str, object], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{where}: {key}", f"got {value!r}", allowed="true or false")
    return value


def _families(table: dict[str, object], where: str) -> frozenset[int]:
    value = table.get("families", list(FAMILIES))
    if not isinstance(value, list) or not all(type(v) is int and v in FAMILIES for v in value):
        raise UsageError(f"{where}: families", f"got {value!r}", allowed="[4], [6] or [4, 6]")
    return frozenset(value)
