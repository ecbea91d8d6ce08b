"""Laws of the policy wire format: what was encoded comes back, nothing else does, and the filters agree."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from support.bpf_machine import run
from support.policy_wire import MARK, NAMES, OTHER, PACKETS, all_sent, decode, frame, rows, table
from support.wire_frames import all_sessions as probe_sessions
from support.wire_frames import probe, tenant, with_tags

from netprobe.model.packets import ACK, ConnState, Fragment
from netprobe.wire.policy_bpf import absorb_program, reject_program, tc_bytecode
from netprobe.wire.policy_decode import PolicyDecoder, PolicyKind
from netprobe.wire.policy_frames import TcpNumbers

ABSORB, REJECT = absorb_program(MARK), reject_program(MARK)
FRAMES, SENT = all_sent()
TAGS = [(), ((0x8100, 5),), ((0x88A8, 6), (0x8100, 7))]
ALL = 0xFFFFFFFF
# Addresses are given, or scapy would resolve them, on the wire.
ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
IP4 = ETHER / IP(src="10.0.0.2", dst="10.0.0.1")
UINT32 = st.integers(0, 2**32 - 1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.data()), min_size=1, max_size=20))
def test_what_was_encoded_comes_back_whatever_the_numbers(picks):
    frames = []
    for seq, (name, data) in enumerate(picks):
        options = {
            "tcp": TcpNumbers(data.draw(UINT32), data.draw(UINT32)),
            "ident": data.draw(st.integers(0, 65535)),
            "state": data.draw(st.sampled_from(ConnState)),
            "datagram": data.draw(UINT32),
            "quoted_seq": data.draw(UINT32),
        }
        frames.append(frame(name, seq, **options))
    tagged = [with_tags(one, *TAGS[i % 3]) for i, one in enumerate(frames)]
    decoded = decode(table(*frames), *tagged)
    assert rows(decoded) == [(i, i, PolicyKind.ARRIVED) for i in range(len(frames))]
    assert (decoded.forged, decoded.foreign) == (0, 0)
    assert all(run(ABSORB, one) == ALL for one in tagged)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.sampled_from(NAMES), st.data())
def test_a_changed_identity_address_or_port_is_never_ours(name, data):
    """One octet of what makes the frame ours; TTL, checksums and the class mark may change on the way."""
    one, original = PACKETS[name], FRAMES[NAMES.index(name)]
    at = original.rfind(b"nprb")
    places = list(range(at, at + 20)) if at >= 0 else []
    if original[12:14] == b"\x08\x06":
        places += [*range(22, 32), *range(38, 42)]
    elif one.family == 4:
        places += list(range(26, 34))
    else:
        places += list(range(22, 54))
    if one.src_port and one.fragment is not Fragment.LATER:
        l4 = 34 if one.family == 4 else 62 if one.fragment is Fragment.FIRST else 54
        places += list(range(l4, l4 + (8 if one.protocol == 6 else 4)))
    position = data.draw(st.sampled_from(places))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    decoded = decode(SENT, bytes(changed))
    assert (len(decoded), decoded.forged + decoded.foreign) == (0, 1)
    if at >= 0 and not at <= position < at + 4:
        assert decoded.forged == 1


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_any_octets_give_an_answer_that_adds_up(data):
    """Random ones, and frames of ours that were cut, or changed anywhere."""
    frames = []
    for _ in range(data.draw(st.integers(0, 8))):
        if data.draw(st.booleans()):
            frames.append(data.draw(st.binary(max_size=120)))
            continue
        changed = bytearray(data.draw(st.sampled_from(FRAMES)))
        for _ in range(data.draw(st.integers(0, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        frames.append(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
    decoded = decode(SENT, *frames)
    assert len(decoded) + decoded.forged + decoded.foreign == len(frames)
    assert (decoded.seq < len(SENT)).all()
    assert len(np.unique(decoded.index)) == len(decoded)
    for one in frames:
        run(ABSORB, one)
        run(REJECT, one)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(-300, 300), st.integers(-300, 300)), max_size=5))
@example(b"", [(0, 0)])
def test_any_offsets_and_lengths_give_an_answer(buffer, bounds):
    numbers = np.array(bounds, np.int64).reshape(-1, 2)
    decoded = PolicyDecoder(MARK, SENT).decode(np.frombuffer(buffer, np.uint8), numbers[:, 0], numbers[:, 1])
    assert len(decoded) + decoded.forged + decoded.foreign == len(bounds)


@pytest.mark.parametrize("name", NAMES)
def test_the_filter_matches_our_frames_and_those_of_no_other_run(name):
    ours, others = FRAMES[NAMES.index(name)], frame(name, 3, mark=OTHER)
    for tags in TAGS:
        assert run(ABSORB, with_tags(ours, *tags)) == ALL
        assert run(ABSORB, with_tags(others, *tags)) == 0
    assert run(absorb_program(OTHER), others) == ALL
    assert run(ABSORB, ours[:-1]) in (0, ALL)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("arp")])
def test_without_class_mark_or_secret_number_a_frame_does_not_match(name):
    """IPv4 fragments have numbers of their own, so there the secret does not count; the magic does, wherever it is."""
    one, original = PACKETS[name], FRAMES[NAMES.index(name)]
    dscp, secret = (15, 19) if one.family == 4 else (15, 17)
    spoiled = [(dscp, 0x40)]
    if one.family == 6 or one.fragment is Fragment.NONE:
        spoiled.append((secret, 1))
    if original.rfind(b"nprb") >= 0:
        spoiled += [(original.rfind(b"nprb") + i, 1) for i in (0, 7)]
    for at, bits in spoiled:
        changed = bytearray(original)
        changed[at] ^= bits
        assert run(ABSORB, bytes(changed)) == 0


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.data())
def test_tenants_frames_never_match(data):
    """Not even with the class mark, and netprobe's other probes neither."""
    one = tenant(data, data.draw(st.sampled_from([4, 6])))
    marked = one.copy()
    if IP in marked:
        marked[IP].tos = 12
    elif IPv6 in marked:
        marked[IPv6].tc = 12
    for frame_ in (one, marked):
        assert run(ABSORB, bytes(frame_)) == 0


def test_netprobes_other_probes_do_not_match():
    for session in probe_sessions():
        assert run(ABSORB, probe(session, 1)) == 0
    assert run(ABSORB, bytes(ETHER / ARP(hwsrc=ETHER.src, psrc="10.0.0.2", pdst="10.0.0.1"))) == 0


def test_a_marked_syn_off_our_ports_does_not_match():
    """On them it does: nothing else can be looked at in a SYN but the two secrets."""
    for dport, matches in ((80, False), (61000, True), (65535, True), (60999, False)):
        syn = ETHER / IP(id=MARK.ip_id, tos=12, src="10.9.9.9", dst="10.8.8.8")
        assert (run(ABSORB, bytes(syn / TCP(sport=1024, dport=dport, flags="S"))) == ALL) == matches


def refusals(name):
    """What somebody could answer to a frame, by scapy."""
    seen = Ether(FRAMES[NAMES.index(name)])
    if IPv6 in seen:
        back = ETHER / IPv6(src=seen[IPv6].dst, dst=seen[IPv6].src)
        found = [back / ICMPv6DestUnreach(code=1) / Raw(bytes(seen[IPv6])[:48])]
    else:
        back = ETHER / IP(src=seen[IP].dst, dst=seen[IP].src)
        found = [back / ICMP(type=3, code=13) / Raw(bytes(seen[IP])[:28])]
    if TCP in seen and PACKETS[name].fragment is Fragment.NONE and "elsewhere" not in name and "error" not in name:
        flags = "R" if PACKETS[name].tcp_flags & ACK else "RA"
        found.append(back / TCP(sport=seen[TCP].dport, dport=seen[TCP].sport, flags=flags))
    return [bytes(one) for one in found]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("arp")])
def test_the_other_filter_passes_refusals_of_our_frames_only(name):
    for refusal in refusals(name):
        for tags in TAGS:
            assert run(REJECT, with_tags(refusal, *tags)) == ALL
    assert run(reject_program(replace(MARK, dscp=4)), refusals(name)[0]) == 0


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_what_tenants_are_refused_does_not_pass(data):
    one = tenant(data, 4)
    quoted = bytes(one[IP])
    about = IP4 / ICMP(type=3, code=13) / Raw(quoted)
    assert run(REJECT, bytes(about)) == 0
    assert run(REJECT, bytes(IP4 / UDP(sport=61000, dport=61000))) == 0
    assert run(REJECT, bytes(IP4 / TCP(sport=1, dport=60999, flags="R"))) == 0
    assert run(REJECT, bytes(IP4 / TCP(sport=1, dport=61000, flags="SA"))) == 0


def test_bytecode_in_the_words_of_tc():
    count, *code = tc_bytecode(ABSORB).split(",")
    assert int(count) == len(code) == len(ABSORB) // 8
    assert code[0] == "1 0 0 0"
    assert all(len(step.split()) == 4 for step in code)
