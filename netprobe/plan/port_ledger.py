"""Which source ports may not come again yet: a small JSON document that outlives a run.

Pure: text in, text out. No port may be reused for the same addresses within conntrack's timeout + 20 s, also not by the
next run of netprobe (design §4). host.port_ledger, above, keeps the file; the choice itself is plan.budget's.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from netprobe.errors import UsageError
from netprobe.plan.budget import PORT_REST_NS, PortUse, ranges_of

SCHEMA = 1
MAX_USES = 100_000  # 4,536 ports of a block, each alone, for 22 flows: a larger file is not one of ours

DEFAULT_TIMEOUT_S = 60
"""Longest timeout of an entry that a lone UDP packet, an echo or a SYN makes in the userspace datapath (30 to 60 s)."""


def flow_key(protocol: str, src: object, dst: object, dst_port: int) -> str:
    """What a source port belongs to: reuse matters within one flow only."""
    return f"{protocol} {src} {dst} {dst_port}"


@dataclass(slots=True)
class PortLedger:
    """Ports that rest, by flow key."""

    uses: dict[str, list[PortUse]] = field(default_factory=dict)

    def resting(self, key: str, now_ns: int) -> list[PortUse]:
        """Ports of a flow that may not be used yet."""
        return [use for use in self.uses.get(key, []) if use.free_at_ns > now_ns]

    def add(self, key: str, ports: Iterable[int], now_ns: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Write down that ports are used from now on.

        Args:
            key: flow_key.
            ports: the ports.
            now_ns: CLOCK_REALTIME of the last use that is planned.
            timeout_s: conntrack's timeout of the entries they make, seconds.
        """
        free_at_ns = now_ns + round(timeout_s * 1e9) + PORT_REST_NS
        self.uses.setdefault(key, []).extend(PortUse(a, b, free_at_ns) for a, b in ranges_of(ports))

    def forget_old(self, now_ns: int) -> None:
        """Drop what no longer rests."""
        kept = {key: self.resting(key, now_ns) for key in self.uses}
        self.uses = {key: uses for key, uses in kept.items() if uses}

    def to_json(self) -> str:
        """The document."""
        uses = {
            key: [[use.first, use.last, use.free_at_ns] for use in found] for key, found in sorted(self.uses.items())
        }
        return json.dumps({"schema": SCHEMA, "resting": uses}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "PortLedger":
        """Read a document; an empty text is an empty ledger.

        Raises:
            UsageError: it is no ledger, or one of a newer netprobe.
        """
        if not text.strip():
            return cls()
        advice = "delete it when no probes were sent in the last minutes"
        try:
            document = json.loads(text)
            if document["schema"] != SCHEMA:
                allowed = f"schema {SCHEMA}"
                raise UsageError(where, f"has schema {document['schema']!r}", allowed=allowed, advice=advice)
            uses = {str(key): [_use(*map(int, row)) for row in rows] for key, rows in document["resting"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(where, "is no port ledger", advice=advice) from error
        if sum(map(len, uses.values())) > MAX_USES:
            raise UsageError(where, "is too long", allowed=f"{MAX_USES} entries", advice=advice)
        return cls(uses)


def _use(first: int, last: int, free_at_ns: int) -> PortUse:
    if not 0 <= first <= last <= 0xFFFF:
        raise ValueError(first)
    return PortUse(first, last, free_at_ns)
