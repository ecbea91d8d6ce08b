"""The relay's parser on hand-made frames, and its decisions about whose frames are hit."""

import struct

import numpy as np
import pytest

from netprobe.errors import NoAnswerError
from netprobe.lab import truth
from netprobe.lab.relay_core import RelayCore, RelaySpec
from netprobe.lab.relay_frames import Mark, carried, parse
from netprobe.lab.relay_rows import FATE_FORWARDED, FROM_GUEST, ROW, TO_GUEST, Row, pack

IDENTITY = b"nprb" + struct.pack("!II", 0xA1B2C3D4, 5) + b"tag-tag-"
MAC_1, MAC_2 = bytes.fromhex("fa163e000001"), bytes.fromhex("fa163e000002")


def ipv4(proto: int, payload: bytes, *, dscp: int = 3, fragment: int = 0, options: bytes = b"") -> bytes:
    first = 0x45 + len(options) // 4
    header = struct.pack("!BBHHHBBH8x", first, dscp << 2, 20 + len(options) + len(payload), 0, fragment, 64, proto, 0)
    return b"\x08\x00" + header + options + payload


def ipv6(proto: int, payload: bytes, *, dscp: int = 3) -> bytes:
    return b"\x86\xdd" + struct.pack("!IHBB32x", 6 << 28 | dscp << 22, len(payload), proto, 64) + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 5000, 862, 8 + len(payload), 0) + payload


def stamp(*, is_reflected: bool) -> bytes:
    packet = bytes(16) + (struct.pack("!QI", 1 << 60, 7) + bytes(16) if is_reflected else bytes(28))
    return packet + b"\x80\xf0\x00\x14" + IDENTITY


def syn(flags: int = 0x02) -> bytes:
    return struct.pack("!HHIIBBHHH", 61000, 80, 0xDEADBEEF, 0, 0x50, flags, 65535, 0, 0)


def frame(network: bytes, *, vlan: bytes = b"", dst: bytes = MAC_2) -> bytes:
    return dst + MAC_1 + vlan + network


KNOWN = Mark(0xA1B2C3D4, 5, 0, 0, 17, 0)


@pytest.mark.parametrize("network", [ipv4, ipv6])
@pytest.mark.parametrize("vlan", [b"", b"\x81\x00\x00\x07", b"\x88\xa8\x00\x01\x81\x00\x00\x07"])
def test_marks_are_found_in_both_families_and_behind_vlan_tags(network, vlan):
    assert parse(frame(network(17, udp(IDENTITY)), vlan=vlan)) == KNOWN
    assert parse(frame(network(17, udp(stamp(is_reflected=False))), vlan=vlan)) == KNOWN
    assert parse(frame(network(17, udp(stamp(is_reflected=True))), vlan=vlan)) == KNOWN._replace(leg=1)
    assert parse(frame(network(6, syn()), vlan=vlan)) == Mark(0, 0, 0xDEADBEEF, 61000, 6, 0)


@pytest.mark.parametrize(
    ("network", "proto", "kind", "leg"), [(ipv4, 1, 8, 0), (ipv4, 1, 0, 1), (ipv6, 58, 128, 0), (ipv6, 58, 129, 1)]
)
def test_echo_requests_are_probes_and_replies_are_answers(network, proto, kind, leg):
    echo = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + IDENTITY
    assert parse(frame(network(proto, echo))) == KNOWN._replace(proto=proto, leg=leg)


def test_options_shift_the_transport_header():
    assert parse(frame(ipv4(17, udp(IDENTITY), options=b"\x01" * 8))) == KNOWN


def geneve(inner: bytes, *, options: bytes = b"", port: int = 6081, first: int | None = None) -> bytes:
    header = struct.pack("!BBHI", len(options) // 4 if first is None else first, 0, 0x6558, 1 << 8) + options
    return struct.pack("!HHHH", 40000, port, 16 + len(options) + len(inner), 0) + header + inner


OVN_OPTION = struct.pack("!HBBI", 0x0102, 0x80, 1, 0x20003)


@pytest.mark.parametrize("outer", [ipv4, ipv6])
@pytest.mark.parametrize("vlan", [b"", b"\x81\x00\x00\x07"])
@pytest.mark.parametrize("options", [b"", OVN_OPTION, OVN_OPTION * 3])
def test_marks_are_found_inside_geneve_with_and_without_options(outer, vlan, options):
    inner = frame(ipv6(17, udp(IDENTITY)), dst=MAC_1)
    octets = frame(outer(17, geneve(inner, options=options)), vlan=vlan)
    assert parse(octets) == KNOWN
    assert carried(octets) == inner


@pytest.mark.parametrize(
    "octets",
    [
        frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY))), port=6082))),
        frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY))), first=0x40))),  # a version that is not known
        frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY))), first=0x3F))),  # options that reach past the end
        frame(ipv4(17, geneve(b""))),
        frame(ipv4(17, geneve(frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY))))))))),  # one tunnel, not two
    ],
)
def test_what_is_no_geneve_or_carries_no_probe_has_no_mark(octets):
    assert parse(octets) is None


def test_a_probe_to_the_tunnels_port_is_a_probe():
    assert parse(frame(ipv4(17, struct.pack("!HHHH", 5000, 6081, 28, 0) + IDENTITY))) == KNOWN


@pytest.mark.parametrize(
    "octets",
    [
        frame(ipv4(17, udp(b"nprx" + IDENTITY[4:]))),
        frame(ipv4(17, udp(IDENTITY[:11]))),  # cut inside seq
        frame(ipv4(17, udp(IDENTITY), fragment=0x20)),  # a later fragment has no UDP header
        frame(ipv4(1, struct.pack("!BBHHH", 3, 3, 0, 0, 0) + IDENTITY)),  # an error, not an echo
        frame(ipv4(6, syn(), dscp=0)),  # no class mark
        frame(ipv4(6, syn(0x12))),  # SYN-ACK
        frame(ipv4(6, syn()[:19])),
        frame(b"\x08\x06" + bytes(28)),  # ARP
    ],
)
def test_what_is_no_probe_has_no_mark(octets):
    assert parse(octets) is None


def relay_one(spec: RelaySpec, octets: bytes, direction: int) -> Row | None:
    core = RelayCore(spec)
    core.receive(octets, direction, 1000)
    if core.next_due_ns is not None:
        core.sent(core.pop(), 5000)
    return core.rows[0] if core.rows else None


PROBE = frame(ipv4(17, udp(IDENTITY)))


def test_the_other_direction_is_relayed_untouched_and_logged_as_not_faulted():
    row = relay_one(RelaySpec(FROM_GUEST, delay_ns=9999, loss=1.0), PROBE, TO_GUEST)
    assert row == Row(1000, 5000, 0, 0xA1B2C3D4, 5, 0, 0, 17, 0, TO_GUEST, FATE_FORWARDED, 0, 0)


def test_only_frames_to_the_matched_address_are_hit():
    spec = RelaySpec(FROM_GUEST, macs=frozenset({MAC_2}), delay_ns=9999)
    hit = relay_one(spec, PROBE, FROM_GUEST)
    passed = relay_one(spec, frame(ipv4(17, udp(IDENTITY)), dst=MAC_1), FROM_GUEST)
    assert (hit.faulted, hit.delay_ns) == (1, 9999)
    assert (passed.faulted, passed.delay_ns) == (0, 0)


ADDRESS = bytes([10, 1, 0, 2])
TO_ADDRESS = frame(ipv4(17, udp(IDENTITY))[:18] + ADDRESS + ipv4(17, udp(IDENTITY))[22:], dst=MAC_1)
TO_ADDRESS_6 = frame(ipv6(17, udp(IDENTITY))[:26] + bytes(15) + b"\x02" + ipv6(17, udp(IDENTITY))[42:], dst=MAC_1)


@pytest.mark.parametrize(
    ("octets", "is_hit"),
    [
        (TO_ADDRESS, True),  # routed: the router's MAC
        (TO_ADDRESS_6, True),
        (frame(ipv4(17, udp(IDENTITY)), dst=MAC_2), True),
        (frame(ipv4(17, udp(IDENTITY)), dst=MAC_1), False),
        (TO_ADDRESS[:12] + b"\x81\x00\x00\x18" + TO_ADDRESS[12:], True),
        (frame(ipv4(17, geneve(TO_ADDRESS)), dst=MAC_1), False),  # as it is, not what it carries
    ],
)
def test_frames_to_a_matched_address_or_mac_are_hit(octets, is_hit):
    addresses = frozenset({ADDRESS, bytes(15) + b"\x02"})
    spec = RelaySpec(FROM_GUEST, macs=frozenset({MAC_2}), addresses=addresses, delay_ns=9999)
    assert relay_one(spec, octets, FROM_GUEST).faulted == is_hit


@pytest.mark.parametrize(
    ("octets", "is_hit"),
    [
        (frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY)), dst=MAC_2))), dst=MAC_1), True),
        (frame(ipv4(17, geneve(frame(ipv4(17, udp(IDENTITY)), dst=MAC_1))), dst=MAC_2), False),
        (frame(ipv4(17, udp(IDENTITY)), vlan=b"\x81\x00\x00\x18", dst=MAC_2), True),  # not in a tunnel
    ],
)
def test_the_frame_inside_a_tunnel_decides_where_that_is_asked_for(octets, is_hit):
    spec = RelaySpec(FROM_GUEST, macs=frozenset({MAC_2}), inside=True, delay_ns=9999)
    assert relay_one(spec, octets, FROM_GUEST).faulted == is_hit


def test_share_delays_about_that_fraction_and_the_rest_not_at_all():
    core = RelayCore(RelaySpec(FROM_GUEST, delay_ns=10**7, share=0.5, seed=1))
    for seq in range(1000):
        core.receive(frame(ipv4(17, udp(b"nprb" + struct.pack("!II", 1, seq) + bytes(8)))), FROM_GUEST, seq * 1000)
    delays = []
    while core.next_due_ns is not None:
        copy = core.pop()
        delays.append(copy.due_ns - copy.t_in_ns)
    assert set(delays) == {0, 10**7}
    assert 450 < delays.count(0) < 550


def test_a_copy_that_the_kernel_refuses_is_logged_as_dropped_and_counted():
    core = RelayCore(RelaySpec(FROM_GUEST))
    core.receive(PROBE, FROM_GUEST, 1000)
    core.failed(core.pop())
    assert core.rows[0].fate == 0
    assert core.counters.send_failed == 1


def test_frames_without_a_mark_are_relayed_and_leave_no_row():
    core = RelayCore(RelaySpec(FROM_GUEST))
    core.receive(b"\xff" * 60, FROM_GUEST, 1000)
    core.sent(core.pop(), 2000)
    assert core.rows == []


def test_the_reader_and_the_writer_of_the_truth_log_agree_on_every_field(tmp_path):
    rows = [Row(*range(start, start + 13)) for start in (1, 50)]
    log = tmp_path / "truth.bin"
    log.write_bytes(b"".join(map(pack, rows)) + b"half a row")
    read = truth.read(log)
    assert truth.TRUTH_DTYPE.itemsize == ROW.size
    assert truth.TRUTH_DTYPE.names == Row._fields
    assert [row.item() for row in read] == [tuple(row) for row in rows]


def test_probes_leaves_out_answers_what_passed_by_and_other_sessions(tmp_path):
    rows = np.zeros(4, truth.TRUTH_DTYPE)
    rows["leg"] = [0, 1, 0, 0]
    rows["faulted"] = [1, 1, 0, 1]
    rows["session"] = [7, 7, 7, 8]
    assert len(truth.probes(rows)) == 2
    assert len(truth.probes(rows, 7)) == 1


def test_waiting_for_rows_that_never_come_says_how_many_there_are(tmp_path):
    log = tmp_path / "truth.bin"
    log.write_bytes(b"")
    with pytest.raises(NoAnswerError, match="0 of 1 rows"):
        truth.wait_rows(log, 1, timeout_s=0.0)
