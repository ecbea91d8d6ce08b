"""One JSON document on stdout, or tables for people; shared by the commands."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from netprobe.errors import HostNotReadyError

JSON_SCHEMA = 1


def print_json(document: Mapping[str, object]) -> None:
    """The document with its schema's number, on stdout."""
    json.dump({"schema": JSON_SCHEMA, **document}, sys.stdout, indent=2)
    sys.stdout.write("\n")


@contextmanager
def to_stdout() -> Iterator[None]:
    """Around whatever prints a result: a reader that went away is no failure, a full disk is one.

    Raises:
        HostNotReadyError: stdout cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HostNotReadyError("stdout", f"cannot be written: {error.strerror}", advice="is the disk full?") from error


def say(text: str) -> None:
    """Progress and warnings for people, on stderr."""
    print(text, file=sys.stderr)
