"""Readings as InfluxDB's line protocol. Pure; written here since the client takes 17 times as long for a line.

    measurement,tag=value,... field=1i,field=0.5,field="text" 1700000000000000000

Names come from clouds, so they hold what they like. What the protocol cannot carry is replaced, never left out: line
ends and other control characters by a space, and in tags a backslash by a slash, because a backslash before a comma
has no escape. Fields that are no number (NaN, infinite) are left out: the protocol has none.
Source: docs.influxdata.com, "Line protocol", the same for InfluxDB 1.8, 2 and 3.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

from netprobe.model.metrics import Reading, Value

MAX_TAG_CHARS = 256
MAX_TEXT_CHARS = 4_096
"""Longer ones are cut: InfluxDB takes keys of 64 KiB, tags and measurement together."""

INT64 = 1 << 63
_TAG = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ ", "\\": "/"})
_MEASUREMENT = str.maketrans({",": "\\,", " ": "\\ ", "\\": "/"})
_TEXT = str.maketrans({'"': '\\"', "\\": "\\\\"})


def plain(text: str, most: int) -> str:
    """Text without line ends, control characters and half characters, and no longer than it may be."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return text[:most]


def tag_text(text: str) -> str:
    """A tag's value as a database will show it; "" is none. What is cut or replaced is so before it is compared."""
    return plain(text, MAX_TAG_CHARS).replace("\\", "/")


@lru_cache(maxsize=1 << 16)
def _tag(value: str) -> str:
    """A tag's value as it is written; the same few come again and again."""
    return plain(value, MAX_TAG_CHARS).translate(_TAG)


def field_text(value: Value) -> str | None:
    """A field's value as it is written, None for one that cannot be."""
    if isinstance(value, int):
        return f"{min(max(int(value), -INT64), INT64 - 1)}i"
    if isinstance(value, str):
        return f'"{plain(value, MAX_TEXT_CHARS).translate(_TEXT)}"'
    return repr(float(value)) if math.isfinite(value) else None


def line_of(reading: Reading) -> str:
    """One line without its end; "" for a reading of which nothing can be said."""
    fields = [
        f"{_tag(name)}={text}" for name, value in reading.fields.items() if (text := field_text(value)) is not None
    ]
    if not fields:
        return ""
    tags = [f",{_tag(name)}={_tag(value)}" for name, value in sorted(reading.tags.items()) if value]
    return f"{reading.measurement.translate(_MEASUREMENT)}{''.join(tags)} {','.join(fields)} {reading.t_ns}"


def lines_of(readings: Iterable[Reading]) -> list[bytes]:
    """The lines, without their ends."""
    return [line.encode() for reading in readings if (line := line_of(reading))]
