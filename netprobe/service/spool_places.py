"""The folders where readings wait, one a database (service.sink): whose each is, and what waits where nobody sends.

A folder's name is a hash of the database's address, so a note in it says which that is. A database that has another
address now, or is gone, leaves readings behind that no program sends: nothing is thrown away by itself, `netprobe
doctor` tells of them.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.host.spool import MIN_LIMIT_BYTES, Spool, SpoolTakenError

NOTE = "database.json"


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Readings that wait while no program is there that would send them.

    Attributes:
        place: the folder.
        database: its address and bucket; "" where an older netprobe made the folder.
        batches: that wait.
        size_bytes: on disk.
        since_ns: CLOCK_REALTIME of the oldest one.
    """

    place: Path
    database: str
    batches: int
    size_bytes: int
    since_ns: int


def note_database(place: Path, url: str, bucket: str) -> None:
    """Write down whose a folder is; where the disk refuses that, readings are sent all the same."""
    with suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (place / NOTE).exists():
            (place / NOTE).write_text(json.dumps({"url": url, "bucket": bucket}), encoding="utf-8")


def left_behind(folder: Path) -> Iterator[LeftBehind]:
    """What waits in spools that no program has open, by database.

    Args:
        folder: of all spools; may be missing.

    Raises:
        HostNotReadyError: a folder cannot be looked into, so nobody knows what waits.
    """
    for place in _folders(folder):
        batches = size_bytes = 0
        since: list[int] = []
        for slot in _folders(place):
            try:
                spool = Spool.open(slot, MIN_LIMIT_BYTES, secrets.token_hex(16))  # nothing is put in, so nothing shed
            except SpoolTakenError:
                continue
            with spool:
                counters = spool.counters()
                if counters.waiting:
                    batches += counters.waiting
                    size_bytes += counters.size_bytes
                    items = (spool.item(key, spool.acked(key)) for key in spool.parts())
                    since += [item.span_ns[0] for item in items if item is not None]
        if batches:
            yield LeftBehind(place, _database_of(place), batches, size_bytes, min(since, default=0))


def _folders(folder: Path) -> list[Path]:
    """The folders in one, which may be missing.

    Raises:
        HostNotReadyError: it cannot be looked into.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostNotReadyError(f"spools in {folder}", f"cannot be looked at: {error.strerror}") from error


def _database_of(place: Path) -> str:
    try:
        note = json.loads((place / NOTE).read_text(encoding="utf-8"))
        return f"{note['url']} (bucket {note['bucket']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
