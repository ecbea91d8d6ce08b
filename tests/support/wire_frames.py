"""Sessions to test with, blocks of frames as a ring has them, and answers built by scapy, the independent oracle."""

import struct
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import numpy as np
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from netprobe.inject.templates import build_template
from netprobe.model.probes import Flow, ProbeSession, Protocol, Translation, TypeP
from netprobe.wire.decode import Decoder
from netprobe.wire.frames import FrameEncoder
from netprobe.wire.mark import min_frame_size

KEY = bytes(range(16))
SRC_MAC, DST_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
ALL = [(protocol, family) for protocol in Protocol for family in (4, 6)]


def make_session(protocol=Protocol.UDP, family=4, **changes):
    """A session; `changes` are fields of TypeP or ProbeSession, `extra` is size beyond the minimum."""
    src, dst = ADDRESSES[family]
    is_tcp = protocol is Protocol.TCP
    type_p = {
        "protocol": protocol,
        "family": family,
        "size_bytes": min_frame_size(protocol, family) + changes.pop("extra", 0),
        "dscp": 3,
        "src_port": 61000,
        "dst_port": {Protocol.UDP: 862, Protocol.RAW_UDP: 9000, Protocol.TCP: 443, Protocol.ICMP: 0}[protocol],
        "flow": Flow.NEW_PER_PROBE if is_tcp else Flow.SAME,
    }
    type_p |= {name: changes.pop(name) for name in list(changes) if name in TypeP.__slots__}
    session = {
        "session": 0x1234_5678,
        "key": KEY,
        "src_mac": SRC_MAC,
        "dst_mac": DST_MAC,
        "src_ip": ip_address(src),
        "dst_ip": ip_address(dst),
        "count": 1000,
    }
    session |= changes
    if type_p["flow"] is Flow.NEW_PER_PROBE:
        ports = tuple(61000 + (7 * seq) % 4000 for seq in range(session["count"]))
        session.setdefault("src_ports", ports)
    return ProbeSession(type_p=TypeP(**type_p), **session)


def all_sessions(**changes):
    """One session for each protocol and family, each with a number of its own."""
    return [make_session(*kind, session=0xABCD_0000 + i, **changes) for i, kind in enumerate(ALL)]


def encoder(session):
    return FrameEncoder(session, build_template(session))


def probe(session, seq):
    """One encoded frame."""
    return encoder(session).encode(seq, 1).frames[0].tobytes()


def block(frames, gap=7):
    """Frames in one buffer as a ring block has them, with other bytes in between."""
    parts, offsets, position = [], [], 0
    for frame in frames:
        filler = b"\xa5" * (gap + position % 5)
        parts += [filler, frame]
        position += len(filler)
        offsets.append(position)
        position += len(frame)
    buf = np.frombuffer(b"".join([*parts, b"\x5a" * gap]), np.uint8)
    return buf, np.array(offsets, np.int64), np.array([len(frame) for frame in frames], np.int64)


def decode(sessions, frames):
    return Decoder(sessions).decode(*block(frames))


def rows(decoded):
    """(index, session, seq, leg, kind) of each row, as plain values."""
    columns = (decoded.index, decoded.session, decoded.seq, decoded.leg, decoded.kind)
    return [tuple(int(value) for value in row) for row in zip(*columns, strict=True)]


def with_tags(frame, *tags):
    """The frame with VLAN tags (TPID, VID) put in, outermost first."""
    return frame[:12] + b"".join(struct.pack("!HH", tpid, vid) for tpid, vid in tags) + frame[12:]


def turned(packet, **ip_fields):
    """Ethernet and IP headers of an answer to a parsed probe."""
    ether = Ether(src=packet[Ether].dst, dst=packet[Ether].src)
    if IPv6 in packet:
        return ether / IPv6(src=packet[IPv6].dst, dst=packet[IPv6].src, **ip_fields)
    return ether / IP(src=packet[IP].dst, dst=packet[IP].src, **ip_fields)


def stamp_reply(frame, *, t2, t3, reflector_seq, t1=0, keep_tlvs=True, z=0, ssid=None, sender_seq=None):
    """What a standard Session-Reflector answers (RFC 8762 §4.3.1); timestamps are raw 64-bit fields."""
    packet = Ether(frame)
    payload = bytes(packet[UDP].payload)
    seq, estimate, own_ssid = struct.unpack_from("!I8xHH", payload)
    base = struct.pack(
        "!IQHHQIQH2xB3x",
        reflector_seq,
        t3,
        0x8001 | z << 14,
        own_ssid if ssid is None else ssid,
        t2,
        seq if sender_seq is None else sender_seq,
        t1,
        estimate,
        64,
    )
    udp = UDP(sport=packet[UDP].dport, dport=packet[UDP].sport)
    return bytes(turned(packet) / udp / Raw(base + (payload[44:] if keep_tlvs else b"")))


def echo_reply(frame):
    packet = Ether(frame)
    if IPv6 in packet:
        request = packet[IPv6].payload
        return bytes(turned(packet) / ICMPv6EchoReply(id=request.id, seq=request.seq, data=request.data))
    request = packet[ICMP]
    return bytes(turned(packet) / ICMP(type=0, id=request.id, seq=request.seq) / Raw(bytes(request.payload)))


def tcp_answer(frame, flags):
    packet = Ether(frame)
    syn = packet[TCP]
    return bytes(turned(packet) / TCP(sport=syn.dport, dport=syn.sport, flags=flags, seq=99, ack=(syn.seq + 1) % 2**32))


def icmp_error(frame, *, quoted_bytes=None, src=None):
    """An error about a frame; by default it quotes all of it."""
    packet = Ether(frame)
    if IPv6 in packet:
        quoted = bytes(packet[IPv6])[:quoted_bytes]
        head = turned(packet)
        head[IPv6].src = src or packet[IPv6].dst
        return bytes(head / ICMPv6DestUnreach(code=1) / Raw(quoted))
    head = turned(packet)
    head[IP].src = src or packet[IP].dst
    return bytes(head / ICMP(type=3, code=13) / Raw(bytes(packet[IP])[:quoted_bytes]))


def answers(session, seq):
    """All answers to a probe that there can be, by name."""
    frame = probe(session, seq)
    found = {"icmp-error": icmp_error(frame)}
    protocol = session.type_p.protocol
    if protocol is Protocol.UDP:
        found["stamp-reply"] = stamp_reply(frame, t2=5 << 32, t3=6 << 32, reflector_seq=seq)
    elif protocol is Protocol.ICMP:
        found["echo-reply"] = echo_reply(frame)
    elif protocol is Protocol.TCP:
        found |= {"syn-ack": tcp_answer(frame, "SA"), "rst": tcp_answer(frame, "RA")}
    return found


OUTER = {4: ("192.168.0.1", "192.168.0.2"), 6: ("fd01::1", "fd01::2")}
OVN_OPTION = GeneveOptions(classid=0x0102, type=0x80, data=b"\x00\x02\x00\x03")  # critical: from port 2 to port 3


def underlay(*layers, family=4, src_port=40_000, dst_port=6081, ip_options=(), tos=0):
    """A datagram of the underlay around some layers, in octets."""
    src, dst = OUTER[family]
    ip = IP(src=src, dst=dst, tos=tos, options=list(ip_options)) if family == 4 else IPv6(src=src, dst=dst, tc=tos)
    packet = Ether(src="02:00:00:00:01:01", dst="02:00:00:00:01:02") / ip / UDP(sport=src_port, dport=dst_port)
    for layer in layers:
        packet /= layer
    return bytes(packet)


def in_geneve(inner, *, vni=7, options=(OVN_OPTION,), proto=0x6558, flags=None, **outer):
    """A frame inside Geneve; `flags` are fields of scapy's GENEVE."""
    critical = int(any(option.type & 0x80 for option in options))
    header = GENEVE(vni=vni, proto=proto, options=list(options), **({"critical": critical} | (flags or {})))
    return underlay(header, Raw(inner), **outer)


def in_vxlan(inner, *, vni=7, flags=8, dst_port=4789, **outer):
    """A frame inside VXLAN."""
    return underlay(VXLAN(vni=vni, flags=flags), Raw(inner), dst_port=dst_port, **outer)


def wraps():
    """Every way to wrap a frame that is looked into, by name: (function, the tunnel's name)."""
    found = {}
    for family in (4, 6):
        for count in (0, 1, 5):
            long = [GeneveOptions(classid=0x0102, type=i, data=bytes(4 * i)) for i in range(count)]
            found[f"geneve {count} options over {family}"] = partial(in_geneve, family=family, options=long)
        found[f"geneve ovn over {family}"] = partial(in_geneve, family=family)
        found[f"vxlan over {family}"] = partial(in_vxlan, family=family)
        found[f"vxlan 8472 over {family}"] = partial(in_vxlan, family=family, dst_port=8472)
    option = IPOption(b"\x94\x04\x00\x00")
    found["geneve over 4 with options"] = partial(in_geneve, ip_options=[option])
    found["vxlan over 4 with options"] = partial(in_vxlan, ip_options=[option])
    return found


def translated(session, src=None, dst=None):
    """The session as it is known behind NAT: what its probes' addresses become, and may they be known by it."""
    pair = Translation(ip_address(src or session.src_ip), ip_address(dst or session.dst_ip))
    known = replace(session, translations=(*session.translations, pair))
    return known, replace(session, src_ip=pair.src_ip, dst_ip=pair.dst_ip)


def tenant(data, family):
    """A frame between the sessions' own hosts, either way, on other ports, without magic; `data` is hypothesis'."""
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    src, dst = data.draw(st.permutations(ADDRESSES[family]))
    ports = st.integers(0, 65535)
    sport, dport = data.draw(ports), data.draw(ports)
    if {sport, dport} & {443, 862, 9000}:
        sport, dport = 5000, 5001
    layer = data.draw(st.sampled_from(["udp", "tcp", "echo", "other"]))
    ip = IP(src=src, dst=dst, tos=data.draw(st.integers(0, 255))) if family == 4 else IPv6(src=src, dst=dst)
    body = Raw(data.draw(st.binary(max_size=90)).replace(b"nprb", b"Nprb"))
    if layer == "udp":
        return ether / ip / UDP(sport=sport, dport=dport) / body
    if layer == "tcp":
        return ether / ip / TCP(sport=sport, dport=dport, flags=data.draw(st.integers(0, 255))) / body
    if layer == "echo":
        return ether / ip / (ICMP(id=1) if family == 4 else ICMPv6EchoRequest(id=1)) / body
    ip.setfieldval("proto" if family == 4 else "nh", 47)
    return ether / ip / body
