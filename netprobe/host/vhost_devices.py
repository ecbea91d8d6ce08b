"""DPDK's vhost library in a running switch: is it there, and which of its devices serves which socket.

No control socket tells: the numbers are found in the process's memory, which is only read. The library keeps an array
of pointers, by number, in its own data; behind each is a structure that holds the number and the path of the socket
(lib/vhost/vhost.c, vhost.h). What does not hold both where they belong is not taken for a device.
"""

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError

PROC = Path("/proc")
LIBRARY = "librte_vhost.so."
KNOWN_ABIS = ("21", "22", "23", "24", "25")
"""DPDK 20.11 to 24.11: in all of them an mbuf begins alike, and a vhost device has its number at the same place."""

NUMBER_OFFSET = 24  # struct virtio_net: mem, features, protocol_features (8 octets each), vid
NUMBERS = 1024  # MAX_VHOST_DEVICE
NAME_FROM, NAME_TO = NUMBER_OFFSET + 256 * 8, 3_072
"""Where its ifname may stand: behind 256 pointers to queues and a few numbers; at 2112 in DPDK 22.11."""

ADDRESS_MAX = 1 << 47
PATH_MAX = 4096


@dataclass(frozen=True, slots=True)
class VhostLibrary:
    """The library as one process has it.

    Attributes:
        pid: of the process.
        binary: the file, as this process sees it.
        data: where its writable data is: first octet and end.
    """

    pid: int
    binary: Path
    data: tuple[tuple[int, int], ...]


def find_library(pid: int) -> VhostLibrary:
    """The vhost library of a process.

    Raises:
        HostNotReadyError: the process is gone, has no such library, or one that is not known.
    """
    where = f"vhost library of process {pid}"
    try:
        lines = (PROC / str(pid) / "maps").read_text().splitlines()
    except PermissionError as error:
        raise HostNotReadyError(where, "its memory map may not be read", advice="run as root") from error
    except OSError as error:
        raise HostNotReadyError(where, "the process is gone") from error
    regions = [[*line.split(None, 5), ""][:6] for line in lines]
    own = [at for at, region in enumerate(regions) if Path(region[5]).name.startswith(LIBRARY)]
    if not own:
        raise _missing(where, pid)
    path = Path(regions[own[0]][5])
    abi = path.name.removeprefix(LIBRARY).partition(".")[0]
    if abi not in KNOWN_ABIS:
        raise HostNotReadyError(where, f"{path.name} is of an unknown version", allowed=f"ABI {', '.join(KNOWN_ABIS)}")
    # What follows its last mapping without a name is the rest of its data (.bss).
    data = [regions[at] for at in own if regions[at][1].startswith("rw")]
    data += [r for r in regions[own[-1] + 1 : own[-1] + 2] if not r[5] and r[1].startswith("rw")]
    bounds = tuple((int(a, 16), int(b, 16)) for a, _, b in (region[0].partition("-") for region in data))
    return VhostLibrary(pid, PROC / str(pid) / "root" / path.relative_to("/"), bounds)


def _missing(where: str, pid: int) -> HostNotReadyError:
    """The error of a process without the library."""
    try:
        raw = (PROC / str(pid) / "exe").read_bytes()
    except OSError:
        raw = b""
    if b"rte_vhost_dequeue_burst" in raw or b"VHOST_CONFIG" in raw:
        problem = "DPDK is linked into the program itself, where its functions and data cannot be told"
        return HostNotReadyError(where, problem, allowed="DPDK as shared libraries", advice="use a mirror")
    return HostNotReadyError(where, "it is not loaded: no Open vSwitch with DPDK, or DPDK is off")


def device_sockets(library: VhostLibrary, sockets: Collection[str]) -> dict[int, str]:
    """Which device serves which socket now; devices of other sockets are left out.

    Args:
        library: of the process.
        sockets: paths as they were given to the switch.

    Raises:
        HostNotReadyError: its memory cannot be read.
    """
    wanted = {os.fsencode(path) + b"\0": path for path in sockets}
    found: dict[tuple[int, int], list[tuple[int, str]]] = {}
    try:
        with (PROC / str(library.pid) / "mem").open("rb", buffering=0) as memory:
            for start, end in library.data:
                raw = os.pread(memory.fileno(), end - start, start)
                for at, pointer in enumerate(struct.unpack_from(f"<{len(raw) // 8}Q", raw)):
                    if not 4096 <= pointer < ADDRESS_MAX or pointer % 8:
                        continue
                    for number, offset, path in _claims(memory.fileno(), pointer, wanted):
                        found.setdefault((start + 8 * (at - number), offset), []).append((number, path))
    except PermissionError as error:
        raise HostNotReadyError("memory of the switch", "may not be read", advice="run as root") from error
    except OSError as error:
        raise HostNotReadyError("memory of the switch", f"cannot be read: {error.strerror}") from error
    # Devices of one array agree on where it begins, and on where their paths stand in them; of as many the first place,
    # for what lies behind a device in memory may name others.
    best: list[tuple[int, str]] = []
    for _, devices in sorted(found.items(), key=lambda item: item[0][1]):
        best = devices if len(devices) > len(best) else best
    return dict(best)


def _claims(fd: int, address: int, wanted: dict[bytes, str]) -> list[tuple[int, int, str]]:
    """What may be a device: its number, where in it a path stands, and that path's text; once for each path."""
    try:
        raw = os.pread(fd, NAME_TO + PATH_MAX, address)
    except OSError:
        return []  # no address after all
    if len(raw) < NUMBER_OFFSET + 4:
        return []
    number: int = struct.unpack_from("<i", raw, NUMBER_OFFSET)[0]
    if not 0 <= number < NUMBERS:
        return []
    found = ((raw.find(path, NAME_FROM, NAME_TO + len(path)), text) for path, text in wanted.items())
    return [(number, offset, text) for offset, text in found if offset >= 0]
