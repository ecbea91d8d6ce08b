"""The relay's laws: any octets are parsed, every marked frame has exactly one fate, order is kept unless asked for."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.lab.relay_core import BACKLOG_MAX, HOLD_NS, RelayCore, RelaySpec
from netprobe.lab.relay_frames import Mark, destination, parse
from netprobe.lab.relay_rows import FATE_DROPPED, FATE_DUPLICATE, FATE_FORWARDED, FROM_GUEST, ROW, Row, pack

FEW = settings(deadline=None, derandomize=True, max_examples=300)


def raw_udp(seq: int, session: int = 7) -> bytes:
    ip = struct.pack("!BBHHHBBH8x", 0x45, 12, 60, 0, 0, 64, 17, 0)
    return bytes(12) + b"\x08\x00" + ip + bytes(8) + b"nprb" + struct.pack("!II", session, seq) + bytes(8)


def shaped(ethertype, first, protocol_at, protocol, tail):
    header = bytearray(60)
    header[0] = first
    header[protocol_at] = protocol
    return bytes(12) + ethertype + bytes(header) + tail


@FEW
@given(st.binary(max_size=200))
def test_any_octets_give_a_mark_or_none(octets):
    assert isinstance(parse(octets), Mark | None)


@FEW
@given(
    st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8"]),
    st.sampled_from([0x45, 0x46, 0x4F, 0x40, 0x60]),
    st.sampled_from([6, 9]),
    st.sampled_from([1, 6, 17, 58]),
    st.binary(max_size=80) | st.binary(max_size=20).map(lambda tail: b"nprb" + tail),
    st.integers(0, 160),
)
def test_any_nearly_right_frame_gives_a_mark_or_none(ethertype, first, protocol_at, protocol, tail, cut):
    assert isinstance(parse(shaped(ethertype, first, protocol_at, protocol, tail)[:cut]), Mark | None)


@FEW
@given(st.integers(0, 159), st.binary(min_size=1, max_size=4))
def test_a_mutated_frame_gives_a_mark_or_none(at, noise):
    frame = bytearray(raw_udp(3) + bytes(100))
    frame[at : at + len(noise)] = noise
    assert isinstance(parse(bytes(frame)), Mark | None)


def tunnelled(inner: bytes, first: int = 1) -> bytes:
    geneve = struct.pack("!BBHI", first, 0, 0x6558, 1 << 8) + bytes(4)
    ip = struct.pack("!BBHHHBBH8x", 0x45, 0, 36 + len(inner), 0, 0, 64, 17, 0)
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", 1, 6081, 0, 0) + geneve + inner


@FEW
@given(st.integers(0, 63), st.binary(max_size=120), st.integers(0, 220))
def test_any_octets_in_a_tunnel_give_a_mark_or_none_and_a_destination(first, inner, cut):
    octets = tunnelled(inner, first)[:cut]
    assert isinstance(parse(octets), Mark | None)
    assert len(destination(octets)) in (0, 4)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_tunnel_changes_no_mark(session, seq):
    assert parse(tunnelled(raw_udp(seq, session))) == parse(raw_udp(seq, session)) != None  # noqa: E711


SPECS = st.builds(
    RelaySpec,
    direction=st.just(FROM_GUEST),
    delay_ns=st.integers(0, 10**7),
    jitter_ns=st.integers(0, 10**6),
    loss=st.floats(0, 1),
    duplicate=st.floats(0, 1),
    reorder=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)


def relay_all(core: RelayCore, gaps: list[int]) -> list[Row]:
    """Feed probes, one after each gap, and send each copy exactly when it is due: a virtual clock."""
    now_ns = 10**18
    for seq, gap in enumerate(gaps):
        now_ns += gap
        while core.next_due_ns is not None and core.next_due_ns <= now_ns:
            copy = core.pop()
            core.sent(copy, copy.due_ns)
        core.receive(raw_udp(seq), FROM_GUEST, now_ns)
    while core.next_due_ns is not None:
        copy = core.pop()
        core.sent(copy, copy.due_ns)
    return core.rows


@FEW
@given(SPECS, st.lists(st.integers(0, 10**6), min_size=1, max_size=60))
def test_every_probe_is_dropped_or_forwarded_once_and_perhaps_doubled(spec, gaps):
    rows = relay_all(RelayCore(spec), gaps)
    for seq in range(len(gaps)):
        fates = sorted(row.fate for row in rows if row.seq == seq)
        assert fates in ([FATE_DROPPED], [FATE_FORWARDED], [FATE_FORWARDED, FATE_DUPLICATE])


@FEW
@given(SPECS, st.lists(st.integers(0, 10**6), min_size=1, max_size=60))
def test_the_log_says_when_and_why(spec, gaps):
    for row in relay_all(RelayCore(spec), gaps):
        assert row.delay_ns >= 0
        if row.fate == FATE_DROPPED:
            assert row.t_out_ns == 0
        else:
            assert row.t_out_ns == row.t_in_ns + row.delay_ns
        assert row.held <= (spec.reorder > 0)


@FEW
@given(SPECS, st.lists(st.integers(1, 10**6), min_size=1, max_size=60), st.lists(st.integers(1, 10**6), min_size=60))
def test_a_probes_fate_depends_on_its_place_among_the_probes_alone(spec, gaps, other_gaps):
    """Neither the times, nor answers or other frames in between, change who is lost, doubled or held."""

    def fates(core: RelayCore, steps: list[int], noise: bool) -> set[tuple[int, int, int]]:
        for seq, gap in enumerate(steps):
            if noise:
                core.receive(b"\xff" * 60, FROM_GUEST, seq * gap)
            core.receive(raw_udp(seq), FROM_GUEST, seq * gap)
        while core.next_due_ns is not None:
            core.sent(core.pop(), 1)
        return {(row.seq, row.fate, row.held) for row in core.rows}

    assert fates(RelayCore(spec), gaps, False) == fates(RelayCore(spec), other_gaps[: len(gaps)], True)


@FEW
@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 99),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
)
def test_jitter_never_changes_the_order(delay_ns, jitter_ns, seed, gaps):
    rows = relay_all(
        RelayCore(RelaySpec(FROM_GUEST, delay_ns=delay_ns + 1, jitter_ns=min(jitter_ns, delay_ns), seed=seed)), gaps
    )
    assert [row.seq for row in rows] == list(range(len(gaps)))


@FEW
@given(
    st.builds(
        Row,
        *[st.integers(0, 2**63 - 1)] * 3,
        *[st.integers(0, 2**32 - 1)] * 3,
        st.integers(0, 65535),
        *[st.integers(0, 255)] * 6,
    )
)
def test_a_row_survives_packing(row):
    assert Row(*ROW.unpack(pack(row))) == row


def test_the_backlog_is_bounded_and_what_it_sheds_is_counted_and_logged_as_dropped():
    core = RelayCore(RelaySpec(FROM_GUEST, delay_ns=10**9))
    for seq in range(BACKLOG_MAX + 5):
        core.receive(raw_udp(seq), FROM_GUEST, seq)
    assert core.counters.backlog_dropped == 5
    assert [row.seq for row in core.rows] == list(range(BACKLOG_MAX, BACKLOG_MAX + 5))
    assert {row.fate for row in core.rows} == {FATE_DROPPED}


def test_a_held_frame_is_overtaken_by_those_of_the_next_three_milliseconds():
    core = RelayCore(RelaySpec(FROM_GUEST, delay_ns=1000, reorder=0.2, seed=3))
    rows = relay_all(core, [10**6] * 50)
    held = [row for row in rows if row.held]
    assert held
    assert all(row.delay_ns == 1000 + HOLD_NS for row in held)
    assert [row.seq for row in rows] != sorted(row.seq for row in rows)
    assert [row.seq for row in rows if not row.held] == sorted(row.seq for row in rows if not row.held)
