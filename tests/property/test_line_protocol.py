"""The line protocol against a reader written from InfluxDB's documentation: whatever names hold comes back."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from netprobe.model.metrics import Reading
from netprobe.wire.line_protocol import MAX_TAG_CHARS, MAX_TEXT_CHARS, line_of, lines_of, plain, tag_text

ANY = st.text(st.characters(), max_size=40)
EVIL = st.sampled_from(
    ["<script>alert(1)</script>", 'say "hi"', "a,b=c d", "\\", "\\,", "\\ ", "a\nb", "#x", "\t", '"', "'", "é", "\x00"]
)
TEXTS = ANY | EVIL | st.tuples(EVIL, ANY, EVIL).map("".join)
VALUES = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,20}", fullmatch=True)


def split(text, separators, *, escapes=True):
    """Cut at separators that are neither escaped nor in a quoted text."""
    parts, quoted, i = [""], False, 0
    while i < len(text):
        c = text[i]
        if c == "\\" and i + 1 < len(text) and (escapes or quoted):
            parts[-1] += text[i : i + 2]
            i += 2
            continue
        if c == '"' and not escapes:
            quoted = not quoted
        if c in separators and not quoted:
            parts.append("")
        else:
            parts[-1] += c
        i += 1
    return parts


def bare(text):
    for c in ", =":
        text = text.replace(f"\\{c}", c)
    return text


def read(line):
    """Measurement, tags, fields and time of a line."""
    (key, *rest) = split(line, " ")
    fields_text = line[len(key) + 1 : line.rindex(" ")]
    name, *tags = split(key, ",")
    fields = {}
    for part in split(fields_text, ",", escapes=False):
        field, _, value = part.partition("=")
        if value.startswith('"'):
            fields[field] = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        else:
            fields[field] = int(value[:-1]) if value.endswith("i") else float(value)
    assert rest
    pairs = [split(tag, "=") for tag in tags]
    return bare(name), {bare(k): bare(v) for k, v in pairs}, fields, int(line[line.rindex(" ") + 1 :])


@given(
    st.dictionaries(NAMES, TEXTS, max_size=4),
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=4),
    st.integers(1, 2**62),
)
@example({"src": "<script>alert(1)</script>", "rule": 'allow "web", tcp=80\\'}, {"text": '"\\'}, 1)
def test_a_line_is_one_line_and_comes_back(tags, fields, t_ns):
    """Whatever is in it: no line end, and a reader gets the measurement, tags, fields and time that went in."""
    line = line_of(Reading("netprobe_test", tags, fields, t_ns))
    assert line.isprintable()
    line.encode()
    name, found_tags, found, when = read(line)
    assert (name, when) == ("netprobe_test", t_ns)
    assert found_tags == {k: tag_text(v) for k, v in tags.items() if tag_text(v)}
    expected = {k: plain(v, MAX_TEXT_CHARS) if isinstance(v, str) else v for k, v in fields.items()}
    assert found == expected
    assert all(isinstance(found[k], type(v)) for k, v in expected.items())


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_what_is_no_number_is_left_out(value, is_alone):
    fields = {"x": value} if is_alone else {"x": value, "y": 1}
    assert line_of(Reading("m", {}, fields, 5)) == ("" if is_alone else "m y=1i 5")


def test_long_names_are_cut_and_huge_integers_bounded():
    line = line_of(Reading("m", {"a": "x" * 1000}, {"n": 1 << 70, "m": -(1 << 70), "t": "y" * 9000}, 1))
    _, tags, fields, _ = read(line)
    assert tags == {"a": "x" * MAX_TAG_CHARS}
    assert fields == {"n": 2**63 - 1, "m": -(2**63), "t": "y" * MAX_TEXT_CHARS}


def test_readings_of_which_nothing_can_be_said_are_no_lines():
    assert lines_of([Reading("m", {}, {}, 1), Reading("m", {"a": ""}, {"x": 1}, 2)]) == [b"m x=1i 2"]
