"""What tc prints, as recorded from iproute2 6.1 on Linux 6.18, and the commands that it is given."""

import pytest

from netprobe.host import tc
from netprobe.host.tc import Filter

FILTERS = (
    '[{"protocol":"all","pref":28272,"kind":"bpf","chain":0},{"protocol":"all","pref":28272,"kind":"bpf","chain":0,'
    '"options":{"handle":"0x1235","not_in_hw":true,"bytecode":{"length":1,"insns":[{"code":6,"jt":0,"jf":0,'
    '"k":4294967295}]},"actions":[{"order":1,"kind":"mirred","mirred_action":"redirect","direction":"egress",'
    '"to_dev":"np0","control_action":{"type":"stolen"},"index":2,"ref":1,"bind":1}]}}]'
)
OTHERS = (
    '[{"protocol":"all","pref":10,"kind":"u32","chain":0},{"protocol":"all","pref":10,"kind":"u32","chain":0,'
    '"options":{"fh":"800:","ht_divisor":1}},{"protocol":"all","pref":10,"kind":"u32","chain":0,"options":{"fh":'
    '"800::800","order":2048,"actions":[{"order":1,"kind":"mirred","mirred_action":"mirror","to_dev":"tap1"}]}}]'
)
QDISCS = (
    '[{"kind":"noqueue","handle":"0:","dev":"tap1","root":true,"refcnt":2,"options":{}},{"kind":"clsact","handle":'
    '"ffff:","dev":"tap1","parent":"ffff:fff1","options":{}},{"kind":"noop","handle":"0:","dev":"np0","root":true}]'
)
FORCED = """Cannot find device "nope"
Command failed -:2
Error: Failed to load TC action module.
We have an error talking to the kernel
Command failed -:5
Error: Exclusivity flag on, cannot modify.
"""


def test_filters_are_read_with_handle_and_the_device_that_they_redirect_to():
    """An entry for the preference as a whole comes first; it has no handle."""
    assert tc.parse_filters(FILTERS) == (Filter(28272, "bpf", 0), Filter(28272, "bpf", 0x1235, "np0"))


def test_filters_of_others_are_told_from_ours_and_a_mirror_redirects_nothing():
    """Several arrays, as a batch prints them."""
    found = tc.parse_filters(f"{OTHERS}\n{FILTERS}\n[]")
    assert [one.is_ours for one in found] == [False, False, False, True, True]
    assert {one.redirects_to for one in found if not one.is_ours} == {""}


def test_qdiscs_are_read_by_device():
    """A device that does not send yet has the qdisc `noop`."""
    assert tc.parse_qdiscs(QDISCS) == {"tap1": {"noqueue", "clsact"}, "np0": {"noop"}}


@pytest.mark.parametrize("text", ["", "[", "nonsense", "[1, [2]]", '[{"options": 3, "pref": "x"}]', '{"a": [1'])
def test_what_says_nothing_known_is_skipped(text):
    """Another version of tc may print what it likes."""
    assert {(f.preference, f.handle, f.redirects_to) for f in tc.parse_filters(text)} <= {(0, 0, "")}
    assert set(tc.parse_qdiscs(text)) <= {""}


def test_failed_commands_of_a_batch_are_told_with_their_reasons():
    """Numbered from 0; a warning that belongs to no failed command is none."""
    assert tc.parse_failures(FORCED) == {
        1: 'Cannot find device "nope"',
        4: "Failed to load TC action module.; We have an error talking to the kernel",
    }


def test_a_filter_is_removed_by_the_handle_that_it_was_added_with():
    """Preference, protocol and handle of both commands are the same, so exactly that one goes."""
    added = tc.absorb_command("tap1", 0xABCD, "1,6 0 0 1", "np0")
    where = "dev tap1 egress protocol all pref 28272 handle 0xabcd"
    assert added == f'filter add {where} bpf bytecode "1,6 0 0 1" action mirred egress redirect dev np0'
    assert tc.remove_command("tap1", tc.Way.EGRESS, 0xABCD) == f"filter del {where} bpf"


@pytest.mark.parametrize("name", ["", "a b", "tap\n", "x" * 16, 'a"b', "a#b", "../x"])
def test_names_that_a_batch_cannot_hold_are_no_devices(name):
    """They would be other commands, or comments."""
    assert not tc.DEVICE.fullmatch(name)
