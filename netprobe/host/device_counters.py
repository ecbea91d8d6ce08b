"""Packets through a network device, both ways: /proc/net/dev of a network namespace, kept open.

A file of /proc/net shows the namespace in which it was opened, for as long as it is open: no thread per look is needed.
"""

import os
from types import TracebackType
from typing import Self

from netprobe.errors import HostNotReadyError
from netprobe.host.netns import in_netns

RECEIVED_FIELD, SENT_FIELD = 1, 9
MAX_BYTES = 4 << 20


class DeviceCounters:
    """The counters of one namespace's devices.

    Args:
        netns: its name, "" for the caller's own.

    Raises:
        HostNotReadyError: the namespace is not there.
    """

    def __init__(self, netns: str) -> None:
        self._fd = in_netns(netns, lambda: os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        """Keep it open within."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._fd)

    def packets(self) -> dict[str, int]:
        """Packets received and sent since each device came up, by its name. Raises HostNotReadyError."""
        try:
            return parse_packets(os.pread(self._fd, MAX_BYTES, 0).decode())
        except OSError as error:
            raise HostNotReadyError("/proc/net/dev", f"cannot be read: {error.strerror}") from error


def parse_packets(text: str) -> dict[str, int]:
    """The counters in the text of /proc/net/dev. Never raises: a line that says nothing known is skipped."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and len(fields) > SENT_FIELD and all(word.isdigit() for word in fields):
            found[name.strip()] = int(fields[RECEIVED_FIELD]) + int(fields[SENT_FIELD])
    return found
