"""Counters of `dpctl/show -s`, as Open vSwitch 3.1 prints them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.host.datapath_ports import DatapathDrops, parse_drops

TEXT = """netdev@ovs-netdev:
  lookups: hit:10 missed:7 lost:3
  flows: 2
  port 0: ovs-netdev (tap)
    RX packets:0 errors:0 dropped:0 overruns:0 frame:0
    TX packets:0 errors:0 dropped:0 aborted:0 carrier:0
    collisions:0
    RX bytes:0  TX bytes:0
  port 1: tapvm1
    RX packets:5 errors:1 dropped:2 overruns:0 frame:0
    TX packets:9 errors:0 dropped:4 aborted:? carrier:?
    collisions:?
    RX bytes:1 (1.0 KiB)  TX bytes:2
"""


def test_drops_and_errors_of_both_directions_are_summed_by_port():
    assert parse_drops(TEXT) == DatapathDrops({"ovs-netdev": 0, "tapvm1": 7}, 3)


def test_only_what_grew_at_the_ports_on_the_way_counts():
    before = DatapathDrops({"a": 5, "b": 1, "c": 9}, 2)
    after = DatapathDrops({"a": 7, "b": 90, "c": 0}, 3)
    assert after.since(before, frozenset({"a", "c"})) == 2 + 0 + 1


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_any_text_is_read_without_an_error(text):
    assert parse_drops(text).lost >= 0
