"""Reading a TOML table with errors that help: every value is checked, an unknown key is refused with the nearest one.

Pure. Used for plans and policies; the units (durations, ratios) are those of the command line too.
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import TypeVar

from netprobe.errors import UsageError, unknown_name

E = TypeVar("E", bound=Enum)
D = TypeVar("D")

UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(ns|us|ms|s)", re.ASCII)
_RATIO = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(%?)", re.ASCII)


def parse_duration_ns(text: str, where: str) -> int:
    """Nanoseconds from "300us", "1.5ms", "2s"."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UsageError(where, f"{text!r} is no duration", allowed="a number with ns, us, ms or s, such as 300us")
    return round(float(match[1]) * UNITS_NS[match[2]])


def parse_ratio(text: str, where: str) -> float:
    """A share in [0, 1] from "2%" or "0.02"."""
    match = _RATIO.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise UsageError(where, f"{text!r} is no share", allowed="0% to 100%, or 0 to 1")
    return value


class Fields:
    """One table being read; `finish` refuses what nobody asked for.

    Args:
        table: as tomllib gives it.
        where: what to call it in errors: `site.toml: session[2]`.
    """

    def __init__(self, table: dict[str, object], where: str) -> None:
        self._table = table
        self._where = where
        self._known: set[str] = set()

    def _get(self, key: str) -> object:
        self._known.add(key)
        return self._table.get(key)

    def _wrong(self, key: str, value: object, allowed: str) -> UsageError:
        return UsageError(f"{self._where}.{key}", f"got {value!r}", allowed=allowed)

    def text(self, key: str, default: str | None = None) -> str:
        """A non-empty string; required where there is no default."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "a non-empty string")
        return value

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """An integer within bounds; required where there is no default."""
        value = self._get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """An integer within bounds, or None where the key is missing."""
        return None if self._get(key) is None else self.integer(key, None, low, high)

    def choice(self, key: str, values: type[E], default: D) -> E | D:
        """A member of an enum by its value."""
        value = self._get(key)
        if value is None:
            return default
        try:
            return values(value)
        except ValueError:
            names: Iterable[str] = (str(v.value) for v in values)
            raise unknown_name(f"{self._where}.{key}", str(value), names, kind="value") from None

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number strictly between two bounds, whole or not."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise self._wrong(key, value, f"a number between {low:g} and {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """`true` or `false`."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
        """An array of non-empty strings; empty where the key is missing."""
        value = self._get(key)
        if value is None or (may_be_empty and value == []):
            return ()
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
            raise self._wrong(key, value, "an array of non-empty strings")
        return tuple(value)

    def duration_ns(self, key: str, default: str) -> int:
        """A duration such as "300us", in ns."""
        return parse_duration_ns(self.text(key, default), f"{self._where}.{key}")

    def optional_duration_ns(self, key: str) -> int | None:
        """A duration in ns, or None where the key is missing."""
        return None if self._get(key) is None else self.duration_ns(key, "")

    def optional_ratio(self, key: str) -> float | None:
        """A share such as "1%", or None where the key is missing."""
        return None if self._get(key) is None else parse_ratio(self.text(key), f"{self._where}.{key}")

    def any(self, key: str) -> object:
        """Whatever stands there, unchecked; None where the key is missing."""
        return self._get(key)

    def table(self, key: str) -> "Fields | None":
        """A table within this one, to be read the same way; None where the key is missing."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a table")
        return Fields(value, f"{self._where}.{key}")

    def tables(self, key: str) -> list[tuple[str, dict[str, object]]]:
        """An array of tables with the name of each for errors."""
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self._wrong(key, value, f"an array of tables: [[{key}]]")
        return [(f"{self._where}: {key}[{i}]", v) for i, v in enumerate(value)]

    def accept(self, keys: Iterable[str]) -> None:
        """Let keys stand that somebody else reads."""
        self._known.update(keys)

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return self._get(key) is not None

    def finish(self) -> None:
        """Refuse keys that nobody asked for, with the nearest known one."""
        for key in self._table:
            if key not in self._known:
                raise unknown_name(self._where, key, self._known, kind="key")
