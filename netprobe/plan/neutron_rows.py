"""Rows of what `openstack … -f json` prints, or Neutron's API itself: one name for each column. Pure.

Clients before 4.0 printed lists of dictionaries as text (`ip_address='10.0.0.1', subnet_id='…'`); both are read.
"""

import json
import re
from collections.abc import Iterable

from netprobe.errors import UsageError

_PAIR = re.compile(r"(\w+)='([^']*)'", re.ASCII)
_BOOLEANS = {"true": True, "false": False, "up": True, "down": False}
_CANONICAL = {
    "ether_type": "ethertype",
    "fixed_ip_addresses": "fixed_ips",
    "ip_protocol": "protocol",
    "ip_range": "remote_ip_prefix",
    "is_admin_state_up": "admin_state_up",
    "is_port_security_enabled": "port_security_enabled",
    "is_stateful": "stateful",
    "remote_address_group": "remote_address_group_id",
    "remote_security_group": "remote_group_id",
    "security_group": "security_group_id",
    "security_group_ids": "security_groups",
    "security_group_rules": "rules",
    "subnet_ids": "subnets",
}
"""Columns by their other names: those of `list`, of `show` and of the SDK that clients since 4.0 are made with."""

MAX_SHOWN = 60
"""Characters of a wrong value in a message."""


class NeutronRow:
    """One object of the export.

    Args:
        columns: as printed; a title ("MAC Address") and its snake case are the same column.
        where: what to call it in errors: `export/ports.json[3]`.
        command: what prints such rows.
        is_trimmed: columns that are empty were left out, as old clients do inside of other objects.
    """

    def __init__(self, columns: dict[str, object], where: str, command: str, *, is_trimmed: bool = False) -> None:
        self._columns = {_canonical(key): value for key, value in columns.items()}
        self.where = where
        self._command = command
        self._is_trimmed = is_trimmed

    @property
    def id(self) -> str:
        """The object's UUID."""
        return self.text("id")

    @property
    def name(self) -> str:
        """What its owner calls it, "" where it has no name."""
        return self.optional_text("name")

    @property
    def title(self) -> str:
        """Name, else UUID."""
        return self.name or self.id

    def wrong(self, key: str, value: object, allowed: str) -> UsageError:
        """An error about a value."""
        shown = repr(value)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
        return UsageError(f"{self.where}.{key}", f"got {shown}", allowed=allowed)

    def has(self, key: str) -> bool:
        """Whether the column is there, be it empty."""
        return key in self._columns

    def value(self, key: str) -> object:
        """A column that may be empty, but must be there.

        Raises:
            UsageError: it is not.
        """
        if key in self._columns or self._is_trimmed:
            return self._columns.get(key)
        there = ", ".join(sorted(self._columns))[:200] or "none"
        advice = f"its columns are: {there}. Make the file with: {self._command}"
        raise UsageError(self.where, f"has no column {key}", advice=advice)

    def text(self, key: str) -> str:
        """A non-empty text; required."""
        value = self.value(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, value, "a text")
        return value

    def optional_text(self, key: str) -> str:
        """A text, "" where it is empty or not there."""
        value = self._columns.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text, or null")
        return value

    def optional_integer(self, key: str, high: int) -> int | None:
        """A number from 0 to `high`, None where it is empty or not there."""
        value = self._columns.get(key)
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
            raise self.wrong(key, value, f"a number from 0 to {high}, or null")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """A truth, as JSON or as clients print it; `default` where it is empty or not there."""
        value = self._columns.get(key)
        if isinstance(value, str):
            value = _BOOLEANS.get(value.lower(), value)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def texts(self, key: str, *, must_exist: bool = False) -> tuple[str, ...]:
        """A list of texts, or one text with commas or line breaks between them."""
        value = self.value(key) if must_exist else self._columns.get(key)
        if isinstance(value, str):
            value = [word for word in re.split(r"[,\s]+", value) if word]
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, value, "a list of texts")
        return tuple(value)

    def rows(self, key: str) -> list["NeutronRow"]:
        """A list of objects within this one; empty where it is empty or not there."""
        value = self._columns.get(key)
        is_text = isinstance(value, str)
        if isinstance(value, str):
            value = _objects(value)
        if value is None or value == []:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, self._columns[key], "a list of objects")
        return [
            NeutronRow(item, f"{self.where}.{key}[{i}]", self._command, is_trimmed=is_text)
            for i, item in enumerate(value)
            if item  # the SDK says [{}] for an empty list
        ]

    def updated(self, other: "NeutronRow") -> "NeutronRow":
        """This row with another's columns over its own."""
        return NeutronRow({**self._columns, **other._columns}, other.where, self._command)  # noqa: SLF001  its own kind


def _objects(text: str) -> object:
    """Objects printed as text, one a line or all in one: a key that comes again begins the next one."""
    items: list[dict[str, str]] = []
    for line in text.splitlines():
        items.append({})
        for key, value in _PAIR.findall(line):
            if key in items[-1]:
                items.append({})
            items[-1][key] = value
    return items if all(items) else text


def _canonical(title: object) -> str:
    snake = str(title).strip().lower().replace(" ", "_")
    return _CANONICAL.get(snake, snake)


def rows_of(text: str, where: str, command: str) -> list[NeutronRow]:
    """The objects in a file: lists, single objects, or the API's answer, one document after another.

    Args:
        text: the file's.
        where: its name, for messages.
        command: what makes it.

    Raises:
        UsageError: it is no JSON, or something else than objects.
    """
    items: list[object] = []
    for document in _documents(text, where, command):
        wrapped = _unwrapped(document)
        items += wrapped if isinstance(wrapped, list) else [wrapped]
    rows: list[NeutronRow] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise UsageError(f"{where}[{number}]", "is no object", advice=f"make the file with: {command}")
        rows.append(NeutronRow(item, f"{where}[{number}]", command))
    return rows


def _unwrapped(document: object) -> object:
    """The API answers with one key, whose value is what was asked for; long lists come with links to the next page."""
    if isinstance(document, dict):
        answers = [value for key, value in document.items() if not str(key).endswith("_links")]
        if len(answers) == 1 and isinstance(answers[0], list | dict):
            return answers[0]
    return document


def _documents(text: str, where: str, command: str) -> Iterable[object]:
    decoder = json.JSONDecoder()
    position = 0
    text = text.strip()
    while position < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UsageError(where, f"is no JSON: {error}", advice=f"make it with: {command}") from error
        yield document
        while position < len(text) and text[position].isspace():
            position += 1


def merged(rows: Iterable[NeutronRow]) -> list[NeutronRow]:
    """One row for each UUID: what `list` and `show` say of one object goes together."""
    found: dict[str, NeutronRow] = {}
    for row in rows:
        found[row.id] = found[row.id].updated(row) if row.id in found else row
    return list(found.values())
