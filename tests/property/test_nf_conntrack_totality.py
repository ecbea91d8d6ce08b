"""Whatever comes from a netlink socket, the reader of conntrack messages gives answers or WireError."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from netprobe.errors import WireError
from netprobe.wire.nf_conntrack import attribute, delete_request, parse_answers_untrusted

DUMP = (Path(__file__).parents[1] / "unit" / "data" / "nf_conntrack_dump.bin").read_bytes()
MODERATE = settings(deadline=None, derandomize=True, max_examples=300)


def parses(data):
    try:
        return parse_answers_untrusted(data)
    except WireError:
        return None


@MODERATE
@given(st.binary(max_size=400))
def test_any_bytes(data):
    parses(data)


@MODERATE
@given(st.lists(st.tuples(st.integers(0, len(DUMP) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(DUMP)))
def test_a_real_dump_with_some_octets_changed_and_its_end_cut_off(changes, length):
    data = bytearray(DUMP)
    for place, octet in changes:
        data[place] = octet
    parses(bytes(data[:length]))


attributes = st.recursive(
    st.builds(attribute, st.integers(0, 30), st.binary(max_size=17)),
    lambda inner: st.builds(
        lambda kind, parts: attribute(kind, b"".join(parts), is_nested=True),
        st.integers(0, 30),
        st.lists(inner, max_size=5),
    ),
    max_leaves=20,
)


@MODERATE
@given(st.lists(attributes, max_size=8), st.sampled_from([2, 10, 0, 255]))
def test_any_tree_of_attributes(parts, family):
    body = bytes([family, 0, 0, 0]) + b"".join(parts)
    parses((16 + len(body)).to_bytes(4, "little") + b"\0\1" + bytes(10) + body)


@MODERATE
@given(st.data())
def test_a_deletion_names_the_entry_that_it_was_made_from_and_no_other(data):
    """Read back as if it were an entry, it gives the same originating tuple: it can never be one that flushes."""
    entry = data.draw(st.sampled_from([a.entry for a in parse_answers_untrusted(DUMP) if a.entry]))
    request = delete_request(9, entry)
    reply = attribute(2, request[24 : 20 + int.from_bytes(request[20:22], "little")], is_nested=True)
    as_entry = (len(request) + len(reply)).to_bytes(4, "little") + b"\0\1" + request[6:] + reply
    again = parse_answers_untrusted(as_entry)[0].entry
    assert (again.original, again.zone, again.family) == (entry.original, entry.zone, entry.family)
