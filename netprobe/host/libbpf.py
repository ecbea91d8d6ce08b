"""libbpf by ctypes: an object file is opened and loaded, its programs are attached to functions, its maps are used.

The one file that knows libbpf. It knows nothing of what the programs do; netprobe.observe.vring does. No compiler is
needed: objects come with netprobe. Constants are of linux/bpf.h.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netprobe.errors import HostNotReadyError

LIBRARY = "libbpf.so.1"
PAGE = mmap.PAGESIZE
BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT: still being written
DISCARDED = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
HEADER = 8  # BPF_RINGBUF_HDR_SZ
MAX_RECORDS = 1 << 16
"""Records that one call reads at most, so that a flood does not hold the caller."""

_ADVICE = "needs CAP_SYS_ADMIN and CAP_SYS_PTRACE: run as root"
_VOID = ctypes.c_void_p
_CHARS = ctypes.c_char_p


class _UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts of libbpf 1.0 and later, as far as it is used; `sz` says how far that is."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ref_ctr_offset", ctypes.c_size_t),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
        ("func_name", _CHARS),
    )


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise HostNotReadyError(LIBRARY, f"cannot be loaded: {error}", advice="apt-get install libbpf1") from error
    for name, result, arguments in (
        ("bpf_object__open_file", _VOID, (_CHARS, _VOID)),
        ("bpf_object__load", ctypes.c_int, (_VOID,)),
        ("bpf_object__close", None, (_VOID,)),
        ("bpf_object__find_program_by_name", _VOID, (_VOID, _CHARS)),
        ("bpf_object__find_map_by_name", _VOID, (_VOID, _CHARS)),
        ("bpf_map__set_max_entries", ctypes.c_int, (_VOID, ctypes.c_uint32)),
        ("bpf_map__max_entries", ctypes.c_uint32, (_VOID,)),
        ("bpf_map__fd", ctypes.c_int, (_VOID,)),
        ("bpf_program__fd", ctypes.c_int, (_VOID,)),
        ("bpf_enable_stats", ctypes.c_int, (ctypes.c_int,)),
        ("bpf_program__attach_uprobe_opts", _VOID, (_VOID, ctypes.c_int, _CHARS, ctypes.c_size_t, _VOID)),
        ("bpf_link__destroy", ctypes.c_int, (_VOID,)),
        ("bpf_map_update_elem", ctypes.c_int, (ctypes.c_int, _VOID, _VOID, ctypes.c_uint64)),
        ("bpf_map_delete_elem", ctypes.c_int, (ctypes.c_int, _VOID)),
        ("bpf_map_lookup_elem", ctypes.c_int, (ctypes.c_int, _VOID, _VOID)),
        ("libbpf_set_print", _VOID, (_VOID,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(None)  # errors are raised here; libbpf would write them to stderr
    return library


@contextlib.contextmanager
def counted_run_times() -> Iterator[None]:
    """Let the kernel count how long BPF programs run, all there are; some ns more for each run.

    Raises:
        HostNotReadyError: no libbpf, or no permission.
    """
    fd = _library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    if fd < 0:
        raise HostNotReadyError("BPF", f"run times are not counted: {os.strerror(ctypes.get_errno())}", advice=_ADVICE)
    try:
        yield
    finally:
        os.close(fd)


def possible_cpus(path: str = "/sys/devices/system/cpu/possible") -> int:
    """How many values a map that has one for each processor gives: the highest number that can be, and one."""
    return int(Path(path).read_text().strip().replace(",", "-").rpartition("-")[2]) + 1


class BpfObject:
    """A loaded object file; its programs run where they were attached, until `close`.

    Args:
        path: of the object.
        sizes: entries, or octets of a ring buffer, of maps that shall have others than were compiled in.

    Raises:
        HostNotReadyError: no libbpf, no permission, or the kernel refuses the object.
    """

    def __init__(self, path: Path, sizes: dict[str, int] | None = None) -> None:
        self._where = f"BPF object {path.name}"
        if not path.is_file():
            raise HostNotReadyError(self._where, f"{path} is not there", advice="run scripts/setup, or `make bpf`")
        self._library = _library()
        self._links: list[int] = []
        self._object = self._library.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise self._failed("cannot be read")
        for name, size in (sizes or {}).items():
            self._library.bpf_map__set_max_entries(self._map(name), size)
        if self._library.bpf_object__load(self._object):
            error = self._failed("the kernel does not take it")
            self.close()
            raise error

    def _failed(self, what: str) -> HostNotReadyError:
        code = ctypes.get_errno()
        return HostNotReadyError(self._where, f"{what}: {os.strerror(code)}", advice=_ADVICE if code in (1, 13) else "")

    def _map(self, name: str) -> int:
        found: int | None = self._library.bpf_object__find_map_by_name(self._object, name.encode())
        assert found, f"no map {name}"
        return found

    def _program(self, name: str) -> int:
        found: int | None = self._library.bpf_object__find_program_by_name(self._object, name.encode())
        assert found, f"no program {name}"
        return found

    def run_time_ns(self, program: str) -> int:
        """How long a program ran, as far as the kernel counted it: see `counted_run_times`."""
        info = Path(f"/proc/self/fdinfo/{self._library.bpf_program__fd(self._program(program))}").read_text()
        table = dict(line.split(":\t", 1) for line in info.splitlines() if ":\t" in line)
        return int(table.get("run_time_ns", 0))

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map; it is closed with the object."""
        return int(self._library.bpf_map__fd(self._map(name)))

    def attach_uprobe(self, program: str, *, pid: int, binary: Path, function: str, at_return: bool = False) -> None:
        """Run a program whenever a process comes to a function, or returns from it.

        Args:
            program: its name.
            pid: of the process.
            binary: the file that the function is in, as this process sees it.
            function: its name, a dynamic symbol of that file.
            at_return: at its return.

        Raises:
            HostNotReadyError: no such function, no permission, or the kernel has no uprobes.
        """
        options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, 0, at_return, function.encode())
        found, name = self._program(program), os.fsencode(binary)
        link = self._library.bpf_program__attach_uprobe_opts(found, pid, name, 0, ctypes.byref(options))
        if not link:
            raise self._failed(f"{program} cannot be attached to process {pid}")
        self._links.append(link)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Set an entry of a map.

        Raises:
            HostNotReadyError: the map is full.
        """
        if self._library.bpf_map_update_elem(self.map_fd(name), key, value, 0):
            raise self._failed(f"an entry cannot be put into {name}")

    def per_cpu_sums(self, name: str) -> list[int]:
        """The values of an array of 64-bit counters that each processor has one of: summed up, by index."""
        fd, cpus = self.map_fd(name), possible_cpus()
        sums = []
        for index in range(self._library.bpf_map__max_entries(self._map(name))):
            values = (ctypes.c_uint64 * cpus)()
            key = ctypes.c_uint32(index)
            self._library.bpf_map_lookup_elem(fd, ctypes.byref(key), ctypes.byref(values))
            sums.append(sum(values))
        return sums

    def close(self) -> None:
        """Take programs off and free the object. Twice is fine."""
        for link in self._links:
            self._library.bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            self._library.bpf_object__close(self._object)
            self._object = None


class RingBuffer:
    """The records of a BPF ring buffer, many at a time (kernel/bpf/ringbuf.c: layout and order of access).

    Args:
        fd: of the map.
        size: octets of its data, a power of two.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data is mapped twice in a row, so that a record that goes over the end can be read in one piece.
        self._memory = mmap.mmap(fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        self._position = memoryview(self._consumer).cast("Q")
        self._words = memoryview(self._memory).cast("I")
        self._ends = memoryview(self._memory).cast("Q")
        self._data: npt.NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)

    def fileno(self) -> int:
        """For select and trio: records are there."""
        return self._fd

    @contextlib.contextmanager
    def records(self) -> "Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]":
        """What has been written since the last time.

        Returns:
            The memory, and where in it each record begins: shape (n,). Both are valid while the context lasts; then
            the records are gone.
        """
        position, end = self._position[0], self._ends[0]
        starts: list[int] = []
        while position < end and len(starts) < MAX_RECORDS:
            at = PAGE + (position & self._mask)
            word = self._words[at >> 2]
            if word & BUSY:
                break
            length = word & ~(BUSY | DISCARDED)
            if not word & DISCARDED:
                starts.append(at + HEADER)
            position += (length + HEADER + 7) & ~7
        try:
            yield self._data, np.array(starts, np.int64)
        finally:
            self._position[0] = position

    def close(self) -> None:
        """Let go of the memory. Twice is fine."""
        self._data = np.empty(0, np.uint8)
        for view in (self._position, self._words, self._ends):
            view.release()
        for memory in (self._consumer, self._memory):
            with contextlib.suppress(BufferError):
                memory.close()
