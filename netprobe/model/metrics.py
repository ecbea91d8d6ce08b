"""Readings: what a time-series database is told, one measurement at one time. Plain values; docs/metrics.md has them.

A catalogue says which measurements there are, with their tags, fields and units, so that neither the documentation nor
a dashboard can speak of others. show.metrics makes readings of results; wire.line_protocol writes them down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

Value = int | float | str


class FieldKind(Enum):
    """Of what type a field is, for good: a database refuses a field that was an integer and becomes a float."""

    INTEGER = "integer"
    FLOAT = "float"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a measurement.

    Attributes:
        about: what it says, in a clause.
    """

    name: str
    kind: FieldKind
    about: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A measurement at a time.

    Attributes:
        tags, fields: by name, as the catalogue has them. What is not known is missing.
        t_ns: CLOCK_REALTIME. The same tags and time are the same reading, however often it is written.
    """

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, Value]
    t_ns: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: what is told of, how it is told apart, what is said.

    Attributes:
        tags: what tells one series from another, with what it is. Bounded: names and words, never ids or times.
    """

    name: str
    about: str
    tags: Mapping[str, str]
    fields: tuple[Field, ...]

    def reading(self, t_ns: int, tags: Mapping[str, str], **fields: Value | None) -> Reading:
        """A reading of it. What is None or "" is not known, and left out; numbers get the field's own type.

        Args:
            t_ns: CLOCK_REALTIME.
            tags: by name.
            fields: by name.
        """
        kinds = _KINDS.get(self.name)
        if kinds is None:  # once: a window of a large mesh has a hundred thousand readings
            kinds = _KINDS[self.name] = {f.name: _TYPES[f.kind] for f in self.fields}
        assert tags.keys() <= self.tags.keys(), f"{self.name} has no {', '.join(tags.keys() - self.tags.keys())}"
        known = {name: kinds[name](value) for name, value in fields.items() if value is not None and value != ""}
        return Reading(self.name, {name: value for name, value in tags.items() if value}, known, t_ns)


_KINDS: dict[str, dict[str, Callable[[Value], Value]]] = {}
_TYPES: dict[FieldKind, Callable[[Value], Value]] = {
    FieldKind.INTEGER: int,
    FieldKind.FLOAT: float,
    FieldKind.TEXT: str,
}
