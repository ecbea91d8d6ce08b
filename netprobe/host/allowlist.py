"""The host's allowlist file: read it, and refuse one that somebody other than root could have written.

What stands in it is plan.allowlist's, below. A host without the file allows nothing (design §6a).
"""

import os
import stat
from pathlib import Path

from netprobe.errors import RefusedError
from netprobe.plan.allowlist import Allowlist, parse_allowlist

DEFAULT_PATH = Path("/etc/netprobe/allowlist.toml")
MAX_BYTES = 1 << 20

EXAMPLE = """\
schema = 1
ports = ["vm*"]
protocols = ["udp", "icmp", "tcp"]
max_pps = 1000
packet_out_pps = 100
"""


def read_allowlist(path: Path = DEFAULT_PATH) -> Allowlist:
    """Read the allowlist of this host.

    The checks are made on the open file, so that it cannot be exchanged in between.

    Raises:
        RefusedError: it is not there, is no plain file, or others than root can write it.
        UsageError: its content is wrong.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        advice = f"as root, make it, for example:\n{EXAMPLE}"
        raise RefusedError(
            str(path), "this host has no allowlist, so nothing may be injected here", advice=advice
        ) from error
    except OSError as error:
        raise RefusedError(str(path), f"cannot be read: {error.strerror}", allowed="a plain file") from error
    try:
        _check(os.fstat(fd), path)
        data = os.read(fd, MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise RefusedError(str(path), "is too long", allowed=f"{MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(str(path), "is no UTF-8 text") from error
    return parse_allowlist(text, str(path))


def _check(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(str(path), "is no plain file")
    if status.st_uid != 0:
        raise RefusedError(str(path), f"belongs to uid {status.st_uid}", allowed="root", advice=f"chown root {path}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        advice = f"chmod go-w {path}"
        raise RefusedError(
            str(path), f"mode {mode}: others can write it", allowed="writable by root alone", advice=advice
        )
