"""What was around a probe where it was seen: VLAN tags, the tunnel that carried it, and its addresses behind a NAT.

Part of a hop record: few distinct ones stand behind many records, so a record holds an index into a list of these.
"""

from dataclasses import dataclass
from enum import Enum

from netprobe.model.probes import IPAddress

Json = dict[str, object]


class Tunnel(Enum):
    """Encapsulations that are looked into."""

    NONE = ""
    VXLAN = "vxlan"  # RFC 7348
    GENEVE = "geneve"  # RFC 8926


@dataclass(frozen=True, slots=True)
class HopContext:
    """What was around a probe.

    Attributes:
        src, dst: addresses of the probe's own IP header (the answer's, on the return leg), as seen there.
        vlans: VLAN ids of the outermost Ethernet header, the outermost tag first.
        tunnel: what carried it.
        vni: the tunnel's network identifier, 24 bits; 0 without a tunnel.
        outer_src, outer_dst: addresses of the tunnel's outer IP header, None without a tunnel.
    """

    src: IPAddress
    dst: IPAddress
    vlans: tuple[int, ...] = ()
    tunnel: Tunnel = Tunnel.NONE
    vni: int = 0
    outer_src: IPAddress | None = None
    outer_dst: IPAddress | None = None

    def to_json(self) -> Json:
        """As in docs/json.md."""
        return {
            "src": str(self.src),
            "dst": str(self.dst),
            "vlans": list(self.vlans),
            "tunnel": self.tunnel.value or None,
            "vni": self.vni if self.tunnel is not Tunnel.NONE else None,
            "outer_src": None if self.outer_src is None else str(self.outer_src),
            "outer_dst": None if self.outer_dst is None else str(self.outer_dst),
        }
