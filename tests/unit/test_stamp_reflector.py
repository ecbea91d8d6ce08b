"""The sans-IO reflector: right answers, refusals, bounds, and that nothing it is sent makes a weapon of it."""

import random
import struct

import pytest
from netprobe_agents.reflector import Reflector, ReflectorConfig, Refusal, Reply

from netprobe.errors import WireError
from netprobe.wire import stamp
from netprobe.wire.stamp import ErrorEstimate, TimestampFormat, TlvType

KEY = b"0123456789abcdef"
PEER = ("192.0.2.1", 40_000)
LOCAL = ("192.0.2.2", 862)
T1_NS, T2_NS, T3_NS = 1_700_000_000_000_000_001, 1_700_000_000_000_150_000, 1_700_000_000_000_171_717
ESTIMATE = ErrorEstimate.of(1_000, synchronized=True).to_field()
PTP_ESTIMATE = ErrorEstimate.of(1_000, synchronized=True, timestamp_format=TimestampFormat.PTP).to_field()


def question(seq=0, *, ssid=5, tlv_area=b"", estimate=ESTIMATE, key=None):
    packet = stamp.SenderPacket(seq, stamp.ns_to_ntp(T1_NS), estimate, ssid, tlv_area)
    return stamp.encode_sender(packet, key=key)


def receive(reflector, data, peer=PEER, local=LOCAL, *, now_ns=0, ttl=61, dscp=3, to_unicast=True):
    return reflector.receive_untrusted(
        data, peer, local, ttl=ttl, dscp=dscp, t2_ns=T2_NS, now_ns=now_ns, to_unicast=to_unicast
    )


def answer(reflector, data, peer=PEER, local=LOCAL, *, key=None, now_ns=0):
    reply = receive(reflector, data, peer, local, now_ns=now_ns)
    assert isinstance(reply, Reply), reply
    return stamp.decode_reflector_untrusted(reflector.finish(reply, T3_NS), key=key)


def test_an_answer_carries_the_question_the_two_times_the_ttl_and_the_ssid():
    reflector = Reflector(clock_error_ns=2_000)
    reply = receive(reflector, question(seq=9))
    assert reply.dscp == 3
    packet = stamp.decode_reflector_untrusted(reflector.finish(reply, T3_NS))
    assert packet == stamp.ReflectorPacket(
        seq=0,
        timestamp=stamp.ns_to_ntp(T3_NS),
        error_estimate=ErrorEstimate.of(2_000, synchronized=False).to_field(),
        ssid=5,
        receive_timestamp=stamp.ns_to_ntp(T2_NS),
        sender_seq=9,
        sender_timestamp=stamp.ns_to_ntp(T1_NS),
        sender_error_estimate=ESTIMATE,
        sender_ttl=61,
    )


def test_the_answers_format_follows_the_questions_z_bit():
    packet = answer(Reflector(), question(estimate=PTP_ESTIMATE))
    assert ErrorEstimate.from_field(packet.error_estimate).timestamp_format is TimestampFormat.PTP
    assert stamp.ptp_to_ns_untrusted(packet.timestamp) == T3_NS


def test_a_configured_format_wins_over_the_questions():
    packet = answer(Reflector(ReflectorConfig(timestamp_format=TimestampFormat.PTP)), question())
    assert stamp.ptp_to_ns_untrusted(packet.receive_timestamp) == T2_NS


def test_a_stateless_reflector_copies_the_sequence_number():
    reflector = Reflector(ReflectorConfig(stateful=False))
    assert [answer(reflector, question(seq)).seq for seq in (4, 9, 9)] == [4, 9, 9]
    assert reflector.statistics().sessions == 0


def test_a_stateful_reflector_counts_per_session_addresses_ports_and_ssid():
    reflector = Reflector()
    assert [answer(reflector, question(seq)).seq for seq in (4, 9, 2)] == [0, 1, 2]
    for peer, local, ssid in (
        (("192.0.2.9", PEER[1]), LOCAL, 5),
        ((PEER[0], 40_001), LOCAL, 5),
        (PEER, ("192.0.2.3", 862), 5),
        (PEER, LOCAL, 6),
    ):
        assert answer(reflector, question(ssid=ssid), peer, local).seq == 0
    assert answer(reflector, question(3)).seq == 3
    assert reflector.statistics().sessions == 5


def test_a_refused_question_takes_no_sequence_number():
    reflector = Reflector()
    answer(reflector, question())
    receive(reflector, question()[:43])
    assert answer(reflector, question()).seq == 1


def test_authenticated_mode_answers_with_a_valid_hmac_and_renews_the_hmac_tlv():
    reflector = Reflector(ReflectorConfig(key=KEY))
    area = stamp.append_hmac_tlv(stamp.encode_tlv(stamp.sender_tlv(TlvType.NETPROBE_IDENTITY, b"id")), 3, KEY)
    packet = answer(reflector, question(3, tlv_area=area, key=KEY), key=KEY)
    stamp.verify_tlvs_untrusted(packet.tlv_area, packet.seq, KEY)  # raises where the HMAC is wrong
    with pytest.raises(WireError):
        stamp.verify_tlvs_untrusted(packet.tlv_area, packet.seq + 1, KEY)


@pytest.mark.parametrize("octet", [0, 16, 27, 50, 95, 96, 111])
def test_authenticated_mode_refuses_what_was_tampered_with(octet):
    reflector = Reflector(ReflectorConfig(key=KEY))
    data = bytearray(question(key=KEY))
    data[octet] ^= 0x80
    assert receive(reflector, bytes(data)) is Refusal.BAD_HMAC
    assert reflector.statistics().refused[Refusal.BAD_HMAC] == 1


@pytest.mark.parametrize("extra", [0, 1, 3, 4, 40, 1400])
def test_an_answer_is_as_long_as_its_question(extra):
    reflector = Reflector()
    data = question(tlv_area=bytes(range(1, 251)) * 6)[: 44 + extra]
    assert len(reflector.finish(receive(reflector, data), T3_NS)) == len(data)


@pytest.mark.parametrize(
    ("data", "peer", "local", "refusal"),
    [
        (question()[:43], PEER, LOCAL, Refusal.TOO_SHORT),
        (b"", PEER, LOCAL, Refusal.TOO_SHORT),
        (question(), ("192.0.2.1", 862), LOCAL, Refusal.REFLECTOR_PORT),
        (question(), ("192.0.2.1", 0), LOCAL, Refusal.REFLECTOR_PORT),
        (question(), ("192.0.2.1", 5000), ("192.0.2.2", 5000), Refusal.REFLECTOR_PORT),
        (question(), ("192.0.2.1", 8620), LOCAL, Refusal.REFLECTOR_PORT),
        (question(), ("255.255.255.255", 40_000), LOCAL, Refusal.PEER_ADDRESS),
        (question(), ("224.0.0.1", 40_000), LOCAL, Refusal.PEER_ADDRESS),
        (question(), ("0.0.0.0", 40_000), LOCAL, Refusal.PEER_ADDRESS),
        (question(), ("0.1.2.3", 40_000), LOCAL, Refusal.PEER_ADDRESS),
        (question(), ("127.0.0.1", 40_000), LOCAL, Refusal.PEER_ADDRESS),
        (question(), ("ff02::1", 40_000), ("2001:db8::2", 862), Refusal.PEER_ADDRESS),
        (question(), ("::", 40_000), ("2001:db8::2", 862), Refusal.PEER_ADDRESS),
        (question(), ("::1", 40_000), ("2001:db8::2", 862), Refusal.PEER_ADDRESS),
        (question(), ("::ffff:127.0.0.1", 40_000), ("2001:db8::2", 862), Refusal.PEER_ADDRESS),
        (question(), ("garbage", 40_000), LOCAL, Refusal.PEER_ADDRESS),
    ],
)
def test_who_and_what_gets_no_answer(data, peer, local, refusal):
    reflector = Reflector(ReflectorConfig(reflector_ports=frozenset({8620})))
    assert receive(reflector, data, peer, local) is refusal
    assert reflector.statistics().refused[refusal] == 1
    assert reflector.statistics().reflected == 0


def test_a_question_by_broadcast_gets_no_answer():
    assert receive(Reflector(), question(), to_unicast=False) is Refusal.LOCAL_ADDRESS


def test_loopback_may_ask_loopback():
    for address in ("127.0.0.1", "::1"):
        assert answer(Reflector(), question(), (address, 40_000), (address, 862)).seq == 0


def exchange(first, first_end, second, second_end, *, key=None, forged=None):
    """Let a forged packet loose between two reflectors; the number of answers until silence (at most 100)."""
    here, here_end, there_end, other = first, first_end, second_end, second
    data, answers = forged or question(key=key), 0
    while answers < 100:
        reply = here.receive_untrusted(
            data, there_end, here_end, ttl=64, dscp=0, t2_ns=T2_NS + answers * 10**6, now_ns=answers * 10**6
        )
        if isinstance(reply, Refusal):
            return answers
        data = here.finish(reply, T2_NS + answers * 10**6 + 20_000)
        answers += 1
        here, here_end, there_end, other = other, there_end, here_end, here
    return answers


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("form", [None, *TimestampFormat])
@pytest.mark.parametrize(("ports", "at_most"), [((862, 862), 0), ((862, 5000), 1), ((5000, 862), 1), ((5000, 6000), 1)])
def test_a_forged_packet_between_two_reflectors_gets_at_most_one_answer(stateful, key, form, ports, at_most):
    reflectors = [
        Reflector(ReflectorConfig(stateful=stateful, key=key, timestamp_format=form, reflector_ports=frozenset({port})))
        for port in ports
    ]
    ends = [(f"192.0.2.{i}", port) for i, port in enumerate(ports, 1)]
    assert exchange(reflectors[0], ends[0], reflectors[1], ends[1], key=key) <= at_most


def test_a_reflector_does_not_answer_itself():
    reflector = Reflector(ReflectorConfig(reflector_ports=frozenset({5000})))
    assert exchange(reflector, ("192.0.2.2", 5000), reflector, ("192.0.2.2", 5000)) == 0


def test_a_peer_gets_its_burst_and_then_its_rate():
    reflector = Reflector(ReflectorConfig(rate_pps=1_000, burst_frames=10))

    def burst(now_ns, peer=PEER):
        return sum(isinstance(receive(reflector, question(), peer, now_ns=now_ns), Reply) for _ in range(50))

    assert burst(0) == 10
    assert burst(0) == 0
    assert burst(5_000_000) == 5
    assert burst(5_000_000, ("192.0.2.7", 40_000)) == 10  # others have buckets of their own
    assert burst(10**12) == 10
    assert reflector.statistics().refused[Refusal.RATE] == 4 * 50 + 50 - 35


def test_another_port_of_a_peer_shares_its_bucket():
    reflector = Reflector(ReflectorConfig(rate_pps=1_000, burst_frames=1))
    assert isinstance(receive(reflector, question()), Reply)
    assert receive(reflector, question(), (PEER[0], 41_000)) is Refusal.RATE


def test_a_steady_20_000_a_second_passes_by_default():
    reflector = Reflector()
    assert all(isinstance(receive(reflector, question(), now_ns=i * 50_000), Reply) for i in range(5_000))


def test_state_is_bounded_and_the_longest_idle_goes_first():
    reflector = Reflector(ReflectorConfig(max_peers=4, max_sessions=4))
    for i in range(1, 5):
        answer(reflector, question(), (f"198.51.100.{i}", 40_000))
    answer(reflector, question(), ("198.51.100.1", 40_000))  # so 2 is the longest idle
    answer(reflector, question(), ("198.51.100.5", 40_000))
    statistics = reflector.statistics()
    assert (statistics.sessions, statistics.peers) == (4, 4)
    assert (statistics.evicted_sessions, statistics.evicted_peers) == (1, 1)
    assert answer(reflector, question(), ("198.51.100.1", 40_000)).seq == 2
    assert answer(reflector, question(), ("198.51.100.2", 40_000)).seq == 0


def test_ten_thousand_spoofed_peers_leave_bounded_state():
    reflector = Reflector(ReflectorConfig(max_peers=100, max_sessions=50))
    for i in range(10_000):
        receive(reflector, question(), (f"10.0.{i >> 8}.{i & 255}", 40_000))
    assert reflector.statistics().peers == 100
    assert reflector.statistics().sessions == 50


def test_statistics_cannot_be_changed():
    statistics = Reflector().statistics()
    with pytest.raises(AttributeError):
        statistics.received = 1
    with pytest.raises(TypeError):
        statistics.refused[Refusal.RATE] = 1


def mutated(rng, seeds):
    """A random datagram, or a valid one with some octets changed, cut or added."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(0, 200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(0, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    if rng.random() < 0.3:
        data += rng.randbytes(rng.randrange(0, 40))
    return bytes(data)


@pytest.mark.parametrize("key", [None, KEY])
def test_50_000_random_and_mutated_datagrams_give_no_exception_and_no_longer_answer(key):
    rng = random.Random(8762)
    tlvs = b"".join(stamp.encode_tlv(stamp.sender_tlv(kind, bytes(kind % 20))) for kind in (240, 4, 1))
    areas = [b"", tlvs, tlvs + struct.pack("!BBH", 128, 8, 16) + bytes(16), bytes(80)]
    seeds = [question(tlv_area=area, key=key) for area in areas]
    seeds += [question(3, tlv_area=stamp.append_hmac_tlv(tlvs, 3, KEY), key=key)]
    reflector = Reflector(ReflectorConfig(key=key, max_sessions=100))
    for i in range(50_000):
        data = mutated(rng, seeds)
        peer = (f"192.0.2.{i % 250}", rng.randrange(65_536))
        reply = receive(reflector, data, peer, now_ns=i * 1_000_000, ttl=rng.randrange(256))
        if isinstance(reply, Reply):
            assert len(reflector.finish(reply, T3_NS)) == len(data)
    statistics = reflector.statistics()
    assert statistics.received == 50_000 == statistics.reflected + sum(statistics.refused.values())
    assert statistics.reflected > 5_000
    assert statistics.malformed_tlvs > 1_000
