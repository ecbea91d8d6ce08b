"""Marked frames for tests of taps, and a filter that absorbs them: by DSCP 3 alone, IPv4 only."""

import socket
import struct

from support.lab_traffic import _checksum

from netprobe.service.tap_ports import AbsorbFilter

DSCP = 3
NOBODY = bytes.fromhex("026e70000001")
# ldh [12]; jeq 0x800; ldb [15]; and 0xfc; jeq 12; ret -1; ret 0
BYTECODE = "7,40 0 0 12,21 0 4 2048,48 0 0 15,84 0 0 252,21 0 1 12,6 0 0 4294967295,6 0 0 0"


def udp_frame(source, target, payload, *, dscp=DSCP, port=5000, src_port=61_000):
    """A frame from one entry's MAC and address to another's; both are dictionaries with `mac` and `ipv4`."""
    macs = bytes.fromhex((target["mac"] + source["mac"]).replace(":", ""))
    addresses = socket.inet_aton(source["ipv4"]) + socket.inet_aton(target["ipv4"])
    header = struct.pack("!BBHHHBBH", 0x45, dscp << 2, 28 + len(payload), 7, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return macs + b"\x08\x00" + header + struct.pack("!HHHH", src_port, port, 8 + len(payload), 0) + payload


CANARY = udp_frame(
    {"mac": "02:6e:70:00:00:02", "ipv4": "192.0.2.1"}, {"mac": NOBODY.hex(), "ipv4": "192.0.2.2"}, bytes(18)
)
ABSORB = AbsorbFilter(BYTECODE, (CANARY,))


def numbers(absorbed):
    """(port, number) of absorbed frames that `numbered` made, in order."""
    frames = absorbed.frames
    at = frames.offsets + 42
    return [
        (int(port), int.from_bytes(bytes(frames.buffer[start : start + 4]), "big"))
        for port, start in zip(absorbed.ports, at, strict=True)
    ]


def numbered(source, target, number, size=64, **changes):
    """A frame whose payload, of so many octets, begins with a number."""
    return udp_frame(source, target, number.to_bytes(4, "big") + bytes(size - 4), **changes)
