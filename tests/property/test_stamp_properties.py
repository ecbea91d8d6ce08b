"""Laws of the STAMP codec, with scapy's independent one as oracle."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.stamp import (
    ErrorEstimate as ScapyErrorEstimate,
)
from scapy.contrib.stamp import (
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
    STAMPTestTLV,
)

from netprobe.errors import WireError
from netprobe.wire import stamp
from netprobe.wire.stamp import ErrorEstimate, TimestampFormat, Tlv

laws = settings(deadline=None, derandomize=True, max_examples=100)

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
keys = st.none() | st.binary(min_size=16, max_size=40)
tlv_lists = st.lists(st.builds(Tlv, u8, u8, st.binary(max_size=40)), max_size=4)
senders = st.builds(stamp.SenderPacket, u32, u64, u16, u16, st.binary(max_size=60))
reflectors = st.builds(stamp.ReflectorPacket, u32, u64, u16, u16, u64, u32, u64, u16, u8, st.binary(max_size=60))


@laws
@given(senders, keys)
def test_a_sender_packet_survives_encoding(packet, key):
    assert stamp.decode_sender_untrusted(stamp.encode_sender(packet, key=key), key=key) == packet


@laws
@given(reflectors, keys)
def test_a_reflector_packet_survives_encoding(packet, key):
    assert stamp.decode_reflector_untrusted(stamp.encode_reflector(packet, key=key), key=key) == packet


def scapy_estimate(field):
    return ScapyErrorEstimate(S=field >> 15, Z=field >> 14 & 1, scale=field >> 8 & 63, multiplier=field & 255)


@laws
@given(u32, u64, u16, u16, tlv_lists)
def test_scapy_builds_the_same_sender_packet(seq, timestamp, field, ssid, tlvs):
    area = b"".join(map(stamp.encode_tlv, tlvs))
    oracle = STAMPSessionSenderTestUnauthenticated(
        seq=seq,
        err_estimate=scapy_estimate(field),
        ssid=ssid,
        tlv_objects=[STAMPTestTLV(flags=t.flags, type=t.type, len=len(t.value), value=t.value) for t in tlvs],
    )
    # scapy's NTP field takes floats, so the eight octets of the timestamp are put in by hand.
    octets = bytes(oracle)
    octets = octets[:4] + timestamp.to_bytes(8, "big") + octets[12:]
    assert stamp.encode_sender(stamp.SenderPacket(seq, timestamp, field, ssid, area)) == octets
    assert stamp.decode_tlvs_untrusted(area) == tuple(tlvs)


@laws
@given(reflectors, tlv_lists)
def test_scapy_reads_the_same_reflector_packet(packet, tlvs):
    area = b"".join(map(stamp.encode_tlv, tlvs))
    oracle = STAMPSessionReflectorTestUnauthenticated(stamp.encode_reflector(packet)[:44] + area)
    assert (oracle.seq, oracle.ssid, oracle.seq_sender, oracle.ttl_sender) == (
        packet.seq,
        packet.ssid,
        packet.sender_seq,
        packet.sender_ttl,
    )
    assert bytes(oracle.err_estimate) == packet.error_estimate.to_bytes(2, "big")
    assert bytes(oracle.err_estimate_sender) == packet.sender_error_estimate.to_bytes(2, "big")
    assert (oracle.mbz1, oracle.mbz2) == (0, 0)
    assert [(int(t.flags), t.type, t.value) for t in oracle.tlv_objects] == [tuple(t) for t in tlvs]


@laws
@given(st.integers(0, 4_233_600_000 * 10**9))
def test_ntp_gives_every_nanosecond_back_from_1970_to_2104(t_ns):
    assert stamp.ntp_to_ns(stamp.ns_to_ntp(t_ns)) == t_ns


@laws
@given(st.integers(0, 2**32 * 10**9 - 1))
def test_ptp_gives_every_nanosecond_back_until_2106(t_ns):
    assert stamp.ptp_to_ns_untrusted(stamp.ns_to_ptp(t_ns)) == t_ns


@laws
@given(st.integers(0, 2**32 * 10**9 - 2), st.sampled_from(TimestampFormat))
def test_later_times_have_later_timestamps_within_an_era(t_ns, form):
    earlier, later = (stamp.ns_to_timestamp(t, form) for t in (t_ns, t_ns + 1))
    assert (later - earlier) % 2**64 < 2**63
    assert later != earlier


@laws
@given(st.integers(0, 2**62), st.booleans(), st.sampled_from(TimestampFormat))
def test_an_error_estimate_is_never_zero_never_too_small_and_less_than_a_percent_too_big(error_ns, synchronized, form):
    estimate = ErrorEstimate.of(error_ns, synchronized=synchronized, timestamp_format=form)
    assert estimate.multiplier > 0
    assert error_ns <= estimate.error_ns <= max(2, error_ns * 1.01 + 1)
    assert ErrorEstimate.from_field(estimate.to_field()) == estimate


@laws
@given(st.binary(max_size=300), keys, u32, st.booleans())
def test_any_octets_give_a_value_or_a_wire_error(octets, key, seq, authenticated):
    for decode in (
        lambda: stamp.decode_sender_untrusted(octets, key=key),
        lambda: stamp.decode_reflector_untrusted(octets, key=key),
        lambda: stamp.decode_tlvs_untrusted(octets),
        lambda: stamp.verify_tlvs_untrusted(octets, seq, b"k" * 16),
        lambda: stamp.timestamp_to_ns_untrusted(int.from_bytes(octets[:8], "big"), TimestampFormat.PTP),
    ):
        with contextlib.suppress(WireError):
            decode()
    out = stamp.reflect_tlvs_untrusted(octets, seq, key=key, authenticated=authenticated, understood={240})
    assert len(stamp.sign_reflected_tlvs(out, seq, key)) == len(octets)


@laws
@given(st.lists(st.builds(Tlv, u8, st.integers(9, 255), st.binary(max_size=40)), min_size=1, max_size=4), u32)
def test_reflecting_changes_nothing_but_flags(tlvs, seq):
    area = b"".join(map(stamp.encode_tlv, tlvs))
    out = stamp.reflect_tlvs_untrusted(area, seq, key=None, authenticated=False, understood={240})
    reflected = stamp.decode_tlvs_untrusted(bytes(out.area))
    assert [t[1:] for t in reflected] == [t[1:] for t in tlvs]


@laws
@given(senders, st.binary(min_size=16, max_size=16), st.integers(0, 96 * 8 - 1))
def test_a_flipped_bit_under_the_hmac_is_noticed(packet, key, bit):
    octets = bytearray(stamp.encode_sender(packet, key=key))
    octets[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        stamp.decode_sender_untrusted(bytes(octets), key=key)
