"""STAMP packets and TLVs: golden octets at the offsets of RFC 8762 and RFC 8972."""

import pytest

from netprobe.errors import WireError
from netprobe.wire import stamp
from netprobe.wire.stamp import ErrorEstimate, TimestampFormat, Tlv, TlvFlag, TlvType

KEY = b"0123456789abcdef"
SENDER = stamp.SenderPacket(seq=7, timestamp=0x1122334455667788, error_estimate=0x8A05, ssid=0xBEEF)
REFLECTOR = stamp.ReflectorPacket(
    seq=1,
    timestamp=0x0102030405060708,
    error_estimate=0x4203,
    ssid=9,
    receive_timestamp=0x1112131415161718,
    sender_seq=2,
    sender_timestamp=0x2122232425262728,
    sender_error_estimate=0x0105,
    sender_ttl=64,
)


def test_sender_packet_has_the_fields_at_the_offsets_of_rfc_8972_figure_1():
    assert stamp.encode_sender(SENDER).hex() == "0000000711223344556677888a05beef" + "00" * 28


def test_authenticated_sender_packet_has_the_hmac_over_the_first_96_octets_last():
    octets = stamp.encode_sender(SENDER, key=KEY)
    assert len(octets) == 112
    assert octets[:28].hex() == "00000007" + "00" * 12 + "11223344556677888a05beef"
    assert octets[28:96] == bytes(68)
    assert octets[96:] == stamp.hmac_128(KEY, octets[:96])


def test_hmac_128_is_the_first_half_of_rfc_4231_test_case_2():
    digest = stamp.hmac_128(b"Jefe", b"what do ya want for nothing?")
    assert digest.hex() == "5bdcc146bf60754e6a042426089575c7"


def test_reflector_packet_has_the_fields_at_the_offsets_of_rfc_8972_figure_3():
    assert stamp.encode_reflector(REFLECTOR).hex() == (
        "0000000101020304050607084203000911121314151617180000000221222324252627280105000040000000"
    )


def test_authenticated_reflector_packet_has_the_fields_at_the_offsets_of_rfc_8762_figure_7():
    octets = stamp.encode_reflector(REFLECTOR, key=KEY)
    at = {0: "00000001", 16: "0102030405060708", 24: "4203", 26: "0009", 32: "1112131415161718"}
    at |= {48: "00000002", 64: "2122232425262728", 72: "0105", 80: "40"}
    expected = bytearray(96)
    for offset, text in at.items():
        expected[offset : offset + len(text) // 2] = bytes.fromhex(text)
    assert octets[:96] == expected
    assert octets[96:] == stamp.hmac_128(KEY, bytes(expected))


@pytest.mark.parametrize(("size", "key"), [(0, None), (43, None), (44, KEY), (111, KEY)])
def test_a_short_packet_is_a_wire_error(size, key):
    for decode in (stamp.decode_sender_untrusted, stamp.decode_reflector_untrusted):
        with pytest.raises(WireError, match=r"at least \d+ needed"):
            decode(bytes(size), key=key)


@pytest.mark.parametrize("octet", range(112))
def test_a_changed_octet_anywhere_in_an_authenticated_packet_is_a_wire_error(octet):
    tampered = bytearray(stamp.encode_sender(SENDER, key=KEY))
    tampered[octet] ^= 1
    with pytest.raises(WireError, match="HMAC is wrong"):
        stamp.decode_sender_untrusted(bytes(tampered), key=KEY)


def test_must_be_zero_fields_are_ignored_on_receipt():
    octets = stamp.encode_sender(SENDER)[:16] + b"\xff" * 28
    assert stamp.decode_sender_untrusted(octets) == SENDER


def test_known_times_in_both_formats():
    one_and_a_half_s = 1_500_000_000
    assert stamp.ns_to_ntp(one_and_a_half_s) == (2_208_988_801 << 32) | 1 << 31
    assert stamp.ns_to_ptp(one_and_a_half_s) == 1 << 32 | 500_000_000
    feb_2036_s = 2_085_978_496  # era 1 of NTP begins: 2036-02-07 06:28:16 UTC
    assert stamp.ns_to_ntp(feb_2036_s * 10**9) == 0
    assert stamp.ntp_to_ns(0) == feb_2036_s * 10**9


def test_a_ptp_timestamp_with_a_full_second_of_nanoseconds_is_a_wire_error():
    with pytest.raises(WireError, match="nanoseconds field"):
        stamp.timestamp_to_ns_untrusted(10**9, TimestampFormat.PTP)


@pytest.mark.parametrize(
    ("error_ns", "scale", "multiplier"),
    [(0, 0, 1), (1, 0, 5), (59, 0, 254), (60, 1, 129), (1_000_000, 15, 132), (16 * 10**9, 29, 128)],
)
def test_the_error_estimate_is_the_smallest_that_does_not_understate(error_ns, scale, multiplier):
    estimate = ErrorEstimate.of(error_ns, synchronized=False)
    assert (estimate.scale, estimate.multiplier) == (scale, multiplier)
    assert estimate.error_ns >= error_ns


def test_the_error_estimate_is_capped_where_the_field_ends():
    assert ErrorEstimate.of(10**30, synchronized=True).to_field() == 0x8000 | 63 << 8 | 255


def tlvs_of(*tlvs):
    return b"".join(stamp.encode_tlv(tlv) for tlv in tlvs)


def reflect(area, *, key=None, authenticated=False, seq=5):
    return stamp.reflect_tlvs_untrusted(area, seq, key=key, authenticated=authenticated, understood={1, 240})


IDENTITY = stamp.sender_tlv(TlvType.NETPROBE_IDENTITY, b"identity")
LOCATION = stamp.sender_tlv(TlvType.LOCATION, bytes(4))
PADDING = stamp.sender_tlv(TlvType.EXTRA_PADDING, b"\xaa" * 6)


def test_understood_tlvs_come_back_with_u_0_and_others_with_u_1():
    out = reflect(tlvs_of(IDENTITY, LOCATION, PADDING))
    assert bytes(out.area) == tlvs_of(IDENTITY._replace(flags=0), LOCATION, PADDING._replace(flags=0))


def test_a_truncated_tlv_gets_m_and_what_follows_is_copied():
    area = tlvs_of(LOCATION) + b"\x80\xf0\xff\xff rest"
    out = reflect(area)
    assert out.malformed
    assert bytes(out.area) == tlvs_of(LOCATION) + b"\x40\xf0\xff\xff rest"


def test_less_than_a_tlv_header_at_the_end_is_malformed():
    assert bytes(reflect(tlvs_of(PADDING) + b"\x80\x01").area)[-2:] == b"\x40\x01"


def test_zeroes_are_twamp_light_padding_and_come_back_as_zeroes():
    assert bytes(reflect(bytes(27)).area) == bytes(27)


def test_reserved_flags_are_zeroed():
    assert bytes(reflect(tlvs_of(IDENTITY._replace(flags=0x9F))).area)[0] == 0


def test_a_right_hmac_tlv_is_renewed_over_the_answers_number_and_flags():
    area = stamp.append_hmac_tlv(tlvs_of(IDENTITY), 5, KEY) + tlvs_of(PADDING)
    out = reflect(area, key=KEY, authenticated=True)
    assert not out.integrity_failed
    answer = stamp.sign_reflected_tlvs(out, 77, KEY)
    assert len(answer) == len(area)
    stamp.verify_tlvs_untrusted(answer, 77, KEY)
    with pytest.raises(WireError):
        stamp.verify_tlvs_untrusted(answer, 78, KEY)


@pytest.mark.parametrize(
    "area",
    [
        stamp.append_hmac_tlv(tlvs_of(IDENTITY), 6, KEY),  # another sequence number
        stamp.append_hmac_tlv(tlvs_of(IDENTITY), 5, KEY[::-1]),  # another key
        stamp.append_hmac_tlv(tlvs_of(IDENTITY), 5, KEY) + tlvs_of(LOCATION),  # not the last
        tlvs_of(IDENTITY),  # missing
        tlvs_of(PADDING, PADDING),  # missing, and not a lone padding
    ],
)
def test_failed_integrity_sets_i_on_every_tlv(area):
    out = reflect(area, key=KEY, authenticated=True)
    assert out.integrity_failed
    assert all(tlv.flags & TlvFlag.INTEGRITY for tlv in stamp.decode_tlvs_untrusted(bytes(out.area)))
    with pytest.raises(WireError):
        stamp.verify_tlvs_untrusted(area, 5, KEY)


def test_a_lone_extra_padding_needs_no_hmac():
    assert not reflect(tlvs_of(PADDING), key=KEY, authenticated=True).integrity_failed


def test_without_a_key_an_hmac_tlv_is_not_understood():
    area = stamp.append_hmac_tlv(tlvs_of(IDENTITY), 5, KEY)
    flags = [tlv.flags for tlv in stamp.decode_tlvs_untrusted(bytes(reflect(area).area))]
    assert flags == [0, TlvFlag.UNRECOGNIZED]


def test_an_hmac_tlv_of_a_wrong_length_is_malformed():
    assert reflect(tlvs_of(Tlv(0x80, TlvType.HMAC, bytes(15))), key=KEY).malformed


@pytest.mark.parametrize("key", [None, KEY])
def test_an_answer_is_recognised_as_one_and_a_question_is_not(key):
    t2_ns = 1_700_000_000_000_000_000
    for ns_to in (stamp.ns_to_ntp, stamp.ns_to_ptp):
        answer = stamp.ReflectorPacket(3, ns_to(t2_ns + 50_000), 1, 0, ns_to(t2_ns), 3, ns_to(t2_ns - 9), 1, 64)
        assert stamp.looks_reflected(stamp.encode_reflector(answer, key=key), authenticated=key is not None)
    assert not stamp.looks_reflected(stamp.encode_sender(SENDER, key=key), authenticated=key is not None)
