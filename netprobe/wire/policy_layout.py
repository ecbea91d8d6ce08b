"""What frames of a verify run have in common: the mark, numbers derived from it, and where the identity stands.

Shared by `policy_frames` and `policy_transport` (encoding), `policy_decode` and `policy_bpf` (recognising). All
octets and offsets: docs/wire-format.md.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from netprobe.model.policy import DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE
from netprobe.wire import isn, mark
from netprobe.wire.siphash import identity_words, tags

PORT_BLOCK = (61000, 65535)
"""netprobe's own ports, outside Linux's ephemeral range (ip_local_port_range ends at 60999)."""

AH = 51
FRAGMENT_HEADER = 44  # RFC 8200 §4.5
IPV6_EXTENSIONS = frozenset({0, 43, FRAGMENT_HEADER, 60, 135, 139, 140})
"""Next headers that are no protocol of their own (RFC 7045 §4); a policy never sees them as one. AH can be seen."""

FIRST_BYTES = 1232
"""Octets after IP in a first fragment: with an IPv6 fragment header just the IPv6 minimum MTU, 1280. Conntrack of OVS'
userspace datapath drops first fragments below 1200 and 1280, and whoever puts a datagram together and cuts it again
makes the same two fragments of it."""
LATER_BYTES = mark.IDENTITY_BYTES + 4  # the identity, and what balances checksums

IDENTITY_AT = {TCP: 20, UDP: 8, UDPLITE: 8, SCTP: 36, DCCP: 28, AH: 12}
"""Where the identity stands, from the transport header; 0 for what is not here, ICMP apart."""
ICMP_IDENTITY_AT = 8
ND_IDENTITY_AT = {133: 10, 134: 18, 135: 26, 136: 26}
"""In the Nonce option (RFC 3971 §5.3.2), the first one; by ICMPv6 type."""
ARP_IDENTITY_AT = 28  # the trailer
ERRORS_V4 = (3, 4, 5, 11, 12)  # RFC 792; their identity is at the end
MIN_INFORMATIONAL_V6 = 128  # lower types are errors (RFC 4443 §2.1)
QUERIES_V4 = (0, 8, 13, 14, 15, 16, 17, 18)  # with identifier and sequence number, as in 128 and 129
QUERIES_V6 = (128, 129)

_BLOCK_BITS = 10
_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class PolicyMark:
    """What tells the frames of one verify run from all others.

    Attributes:
        session: 32 bits.
        key: 16 secret octets.
        dscp: class mark, 0..63.
        ip_id: secret, 1..65535: the IPv4 identification of whole datagrams.
        flow_label: secret, 20 bits, not 0: the IPv6 flow label.
    """

    session: int
    key: bytes
    dscp: int
    ip_id: int
    flow_label: int

    def __post_init__(self) -> None:
        assert 0 <= self.session <= _UINT32, f"session {self.session}"
        assert len(self.key) == mark.KEY_BYTES, f"a key of {len(self.key)} octets"
        assert 0 <= self.dscp < 64, f"DSCP {self.dscp}"
        assert 0 < self.ip_id < 1 << 16, f"identification {self.ip_id}"
        assert 0 < self.flow_label < 1 << 20, f"flow label {self.flow_label}"

    @property
    def tag_of_instance(self) -> int:
        """SCTP initiate tag of both sides, and so the verification tag of what answers (RFC 9260 §3.1); never 0."""
        return self.session or 1

    def fragment_id(self, datagram: int) -> int:
        """IPv4 identification of a datagram in fragments: never `ip_id`, and distinct for 65534 datagrams on end."""
        return (self.ip_id + datagram % 65534) % 65535 + 1


def is_own_port(port: int) -> bool:
    """Whether a port is in netprobe's block."""
    return PORT_BLOCK[0] <= port <= PORT_BLOCK[1]


def syn_number(policy_mark: PolicyMark, seq: int) -> int:
    """The TCP sequence number that says which SYN this is: wire.isn's keyed permutation of `seq`."""
    return _numbers(policy_mark.key, policy_mark.session, seq >> _BLOCK_BITS)[1][seq & (1 << _BLOCK_BITS) - 1]


def identity(policy_mark: PolicyMark, seq: int) -> bytes:
    """The identity block (wire.mark) of a frame, 20 octets."""
    keyed = _numbers(policy_mark.key, policy_mark.session, seq >> _BLOCK_BITS)[0][seq & (1 << _BLOCK_BITS) - 1]
    return b"".join(
        (mark.MAGIC, policy_mark.session.to_bytes(4, "big"), seq.to_bytes(4, "big"), keyed.to_bytes(8, "big"))
    )


@lru_cache(64)
def _numbers(key: bytes, session: int, block: int) -> tuple[list[int], list[int]]:
    """Tags and SYN numbers of 1024 frames on end: numpy's price is per call, and a run sends frames in order."""
    seqs = (np.arange(1 << _BLOCK_BITS, dtype=np.int64) + (block << _BLOCK_BITS)).astype(np.uint32)
    return (
        tags(key, identity_words(session, seqs)).tolist(),
        isn.encode(isn.round_keys(key, session), seqs).tolist(),
    )


def identity_at(family: int, protocol: int, icmp_type: int) -> int | None:
    """Where the identity stands in a packet that is no later fragment, from the transport header.

    Returns:
        None: in its last 20 octets.
    """
    if (family, protocol) not in ((4, ICMP), (6, ICMPV6)):
        return IDENTITY_AT.get(protocol, 0)
    is_error = icmp_type in ERRORS_V4 if family == 4 else icmp_type < MIN_INFORMATIONAL_V6
    if is_error:
        return None
    return ND_IDENTITY_AT.get(icmp_type, ICMP_IDENTITY_AT) if family == 6 else ICMP_IDENTITY_AT
