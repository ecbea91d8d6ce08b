"""Every kind of packet that a policy can be asked about, and frames of them, to test the policy wire format with."""

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
from support.wire_frames import block

from netprobe.model.packets import ACK, FIN, RST, SYN, Fragment, Kind, Neighbour, Packet
from netprobe.wire.policy_decode import PolicyDecoder, SentTable
from netprobe.wire.policy_frames import PolicyMark, TcpNumbers, encode_packet

MARK = PolicyMark(0x12345678, bytes(range(16)), 3, 0x4321, 0x54321)
OTHER = PolicyMark(0x87654321, bytes(range(1, 17)), 3, 0x1234, 0x12345)
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
PORTS = {"src_port": 61234, "dst_port": 443}
NUMBERS = TcpNumbers(0x01020304, 0x0A0B0C0D)


def packet(family, protocol, **fields):
    src, dst = map(ip_address, ADDRESSES[family])
    return Packet(*MACS, src, dst, protocol, **fields)


def _of_family(family):
    icmp = 1 if family == 4 else 58
    found = {
        f"tcp flags {flags:#x}": packet(family, 6, tcp_flags=flags, **PORTS)
        for flags in (SYN, SYN | ACK, ACK, RST, RST | ACK, FIN | ACK, 0, FIN | 0x20 | 0x08)
    }
    found["tcp syn elsewhere"] = packet(family, 6, tcp_flags=SYN, src_port=5000, dst_port=80)
    for protocol in (17, 33, 132, 136):
        found[f"protocol {protocol}"] = packet(family, protocol, **PORTS)
    for protocol in (2, 4, 41, 47, 50, 51, 89, 112, 58 if family == 4 else 1, 59, 253, 255):
        found[f"protocol {protocol}"] = packet(family, protocol)
    types = (0, 3, 5, 8, 11, 12, 13, 15, 17, 40) if family == 4 else (1, 3, 4, 127, 128, 129, 130, 137, 143, 200)
    for kind in types:
        found[f"icmp {kind}"] = packet(family, icmp, icmp_type=kind, icmp_code=kind % 3)
    for name in ("tcp flags 0x2", "tcp flags 0x10", "protocol 17", "protocol 132", "protocol 47", f"icmp {types[3]}"):
        quoted = found[name].reversed()
        error = packet(family, icmp, icmp_type=3 if family == 4 else 1, icmp_code=1, quoted=quoted)
        found[f"error about {name}"] = error
    for name in ("tcp flags 0x2", "tcp flags 0x10", "protocol 17", "protocol 33", "protocol 132", "protocol 136"):
        for part in (Fragment.FIRST, Fragment.LATER):
            found[f"{name} {part.value}"] = replace(found[name], fragment=part)
    for name in ("protocol 47", f"icmp {8 if family == 4 else 128}"):
        for part in (Fragment.FIRST, Fragment.LATER):
            found[f"{name} {part.value}"] = replace(found[name], fragment=part)
    return {f"ipv{family} {name}": one for name, one in found.items()}


def _neighbours():
    mine = Neighbour(MACS[0], ip_address("10.0.0.1"), ip_address("10.0.0.2"))
    arp = packet(4, 0, kind=Kind.ARP, neighbour=mine)
    found = {"arp reply": arp, "arp request": replace(arp, dst_mac="ff:ff:ff:ff:ff:ff")}
    for kind in (133, 134, 135, 136):
        for mac in (MACS[0], ""):
            neighbour = Neighbour(mac, ip_address("fd00::1"))
            found[f"nd {kind} {mac}"] = packet(6, 58, icmp_type=kind, kind=Kind.ND, neighbour=neighbour)
    return found


PACKETS = _of_family(4) | _of_family(6) | _neighbours()
PACKETS["dhcp"] = packet(4, 17, src_port=68, dst_port=67)
NAMES = list(PACKETS)


def frame(name, seq, *, mark=MARK, **options):
    options = {"tcp": NUMBERS, "ident": 0x77, "quoted_seq": max(seq - 1, 0)} | options
    return encode_packet(PACKETS[name], mark, seq, **options)


def table(*frames):
    """What was sent: these frames, numbered from 0."""
    sent = SentTable()
    sent.append(frames)
    return sent


def all_sent():
    """One frame of every packet, and the table of them."""
    frames = [frame(name, seq) for seq, name in enumerate(NAMES)]
    return frames, table(*frames)


def decode(sent, *frames, vlan=None):
    if vlan is not None:
        vlan = np.array(vlan, np.int64)
    return PolicyDecoder(MARK, sent).decode(*block(frames), vlan)


def rows(decoded):
    """(index, seq, kind) of each row, as plain values."""
    return [tuple(map(int, row)) for row in zip(decoded.index, decoded.seq, decoded.kind, strict=True)]
