"""The audit log: one JSON line for each injection order, written before anything is sent. No line, no injection.

Append-only by O_APPEND (and by `chattr +a` where the host's owner wants it). The line's fields are in docs/harm.md.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from netprobe.errors import RefusedError

DEFAULT_PATH = Path("/var/log/netprobe/audit.jsonl")
MAX_LINE_BYTES = 4096  # one write of up to a page is not torn by another writer's


@dataclass(frozen=True, slots=True)
class InjectionOrder:
    """What is about to be injected, for the log.

    Attributes:
        host: where.
        port: the port that is played or sent from.
        vantage: guest, bypass or vswitch.
        type_p: protocol, addresses, ports, size and DSCP as JSON.
        count: probes.
        pps: mean rate, packets a second.
        session: number of the session.
    """

    host: str
    port: str
    vantage: str
    type_p: dict[str, object]
    count: int
    pps: float
    session: int


def record_order(order: InjectionOrder, now_ns: int, *, path: Path = DEFAULT_PATH) -> None:
    """Append one line; when this returns, it is on the disk.

    Args:
        order: what is about to be injected.
        now_ns: CLOCK_REALTIME.
        path: the log; its folder is made when missing.

    Raises:
        RefusedError: the line could not be written whole, so nothing may be injected.
    """
    entry = {"schema": 1, "time_ns": now_ns, "uid": os.getuid(), **asdict(order)}
    line = json.dumps(entry, separators=(",", ":"), default=str).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise _refused(path, f"the line would have {len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            written = os.write(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    if written != len(line):
        raise _refused(path, f"only {written} of {len(line)} bytes could be written")


def _refused(path: Path, problem: str) -> RefusedError:
    return RefusedError(
        f"audit log {path}",
        f"cannot be written, so nothing is injected: {problem}",
        advice="make room or mend the file's permissions",
    )
