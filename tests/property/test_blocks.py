"""Report blocks: what goes in comes out, and any octets give reports or a WireError."""

import contextlib
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import WireError
from netprobe.model.contexts import HopContext, Tunnel
from netprobe.model.load import Backoff
from netprobe.model.observations import (
    Blind,
    Contexts,
    Exchanges,
    Hops,
    PartDone,
    SentReport,
    Sightings,
    Tallies,
    Tally,
    Unwatched,
    Watermark,
)
from netprobe.model.records import HopBatch, HopRecord
from netprobe.model.results import Pacing
from netprobe.wire.blocks import decode_reports_untrusted, encode_reports, size_of


def times(*values):
    return np.array(values, np.int64)


def one_of_each():
    """A report of every kind, with something in every field."""
    geneve = HopContext(
        ip_address("10.0.0.1"),
        ip_address("fd00::2"),
        (7, 8),
        Tunnel.GENEVE,
        5,
        ip_address("1.2.3.4"),
        ip_address("::9"),
    )
    plain = HopContext(ip_address("10.0.0.1"), ip_address("10.0.0.2"))
    u16, u32 = np.array([3], np.uint16), np.array([9], np.uint32)
    return [
        Hops(HopBatch.of([HopRecord(10, 1, 2, 3, 1, 0, 4), HopRecord(11, 1, 3, 3, 0, 1)])),
        Sightings(u16, u32, u32, times(1), times(2), times(-1), times(4)),
        Contexts(3, 0, (geneve, plain)),
        Tallies({3: Tally(forged=1, dropped=2, remarked={9: 4})}),
        Blind(3, 5, 2**62, "its ring was full"),
        Unwatched(4, "no device", 8),
        SentReport(9, 1, times(5, 0), times(0, 6), Pacing(1, 2, 3), 4, "why", is_last=False),
        SentReport(9, 0, times(), times()),
        SentReport(9, 0, times(0, 0), times(0, 0), held=2),
        Backoff(77, 0.25, "a processor"),
        Exchanges("hv2", times(1), times(2), times(3), times(4)),
        Watermark(99, 1),
        PartDone({"agent_shed": 3}, "stopped"),
    ]


def plain(report):
    """A report as something that can be compared."""

    def of(value):
        if isinstance(value, HopBatch):
            return value.rows.tolist()
        return value.tolist() if isinstance(value, np.ndarray) else value

    return type(report), {name: of(getattr(report, name)) for name in type(report).__slots__}


def test_what_goes_in_comes_out():
    """Every kind of report survives the way, in order."""
    reports = one_of_each()
    back = decode_reports_untrusted(encode_reports(reports))
    assert [plain(r) for r in back] == [plain(r) for r in reports]


def test_a_report_is_no_larger_than_it_is_said_to_be():
    """What the caller adds up never makes a block too large, but for contexts, which are few."""
    for report in one_of_each():
        if not isinstance(report, Contexts | Tallies):
            assert len(encode_reports([report])) <= size_of(report)


@given(st.binary(max_size=300))
def test_any_octets_give_reports_or_an_error(data):
    """No other exception, whatever comes."""
    with contextlib.suppress(WireError):
        decode_reports_untrusted(data)


@settings(max_examples=400)
@given(st.data())
def test_damaged_blocks_give_reports_or_an_error(data):
    """A block with changed, missing or added octets: a value, or a WireError."""
    block = bytearray(encode_reports(one_of_each()))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(block) - 1))
        block[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(block)))
    with contextlib.suppress(WireError):
        decode_reports_untrusted(bytes(block[:end]))


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_torn_block_is_refused(cut):
    """What is left over behind the last report is an error, not silence."""
    with pytest.raises(WireError):
        decode_reports_untrusted(encode_reports(one_of_each())[:-cut])
