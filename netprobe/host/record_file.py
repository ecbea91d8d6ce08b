"""Append-only files of checked records: what a spool and a block log are made of. Survives `kill -9`.

    u32 CRC-32 of all that follows it | a frame (wire.framing)

Integers are big-endian. A record that was not written whole, or that the disk damaged, ends what can be read of its
file. Writes go to the page cache, which outlives the process; `sync` makes them outlive a loss of power.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from netprobe.errors import WireError
from netprobe.wire.framing import Frame, FrameReader, check_length_untrusted, encode_frame

_CRC = struct.Struct("!I")
_HEAD = struct.Struct("!II")  # CRC, and the length that a frame begins with
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record: the frame, and where it stands in its file."""

    frame: Frame
    offset: int
    size_bytes: int


def record_size(header_bytes: int, body_bytes: int) -> int:
    """Octets of a record on disk."""
    return _CRC.size + Frame(0, b"").size_bytes + header_bytes + body_bytes


def encode_record(frame: Frame) -> bytes:
    """The octets of a record.

    Raises:
        UsageError: they are too many for a frame.
    """
    octets = encode_frame(frame)
    return _CRC.pack(zlib.crc32(octets)) + octets


def decode_record_untrusted(octets: bytes) -> Frame:
    """The frame of one whole record.

    Raises:
        WireError: the octets are not one record.
    """
    if len(octets) < _HEAD.size or _CRC.unpack_from(octets)[0] != zlib.crc32(memoryview(octets)[_CRC.size :]):
        raise WireError("record", "its checksum is wrong")
    reader = FrameReader()
    reader.feed_untrusted(octets[_CRC.size :])
    frame = reader.next_untrusted()
    if frame is None or reader.buffered_bytes:
        raise WireError("record", f"{len(octets)} octets are not one frame")
    return frame


def read_records(file: BinaryIO) -> Iterator[Record]:
    """The whole records from the file's position on; what comes behind the first damaged one is not read."""
    offset = file.tell()
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length = _HEAD.unpack(head)[1]
        try:
            # A length that is no frame's is refused before so much is read.
            check_length_untrusted(length)
            octets = head + file.read(length)
            frame = decode_record_untrusted(octets)
        except WireError:
            return
        yield Record(frame, offset, len(octets))
        offset += len(octets)


class RecordFile:
    """One file that is being written: opened at its end, torn records cut off.

    Attributes:
        size_bytes: of the whole records in it.
        cut_bytes: that were cut off when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file, readable by its owner alone.

        Raises:
            OSError: it cannot be.
        """
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self.size_bytes = 0
        self.cut_bytes = 0

    def recover(self) -> Iterator[Record]:
        """The whole records; when all have been taken, what stands behind them is gone, and appending goes on there.

        Raises:
            OSError: the file cannot be read or cut.
        """
        end = 0
        with open(os.dup(self._fd), "rb", buffering=READ_BYTES) as file:  # noqa: PTH123  there is no path for an open file
            file.seek(0)
            for record in read_records(file):
                yield record
                end = record.offset + record.size_bytes
        self.cut_bytes = os.fstat(self._fd).st_size - end
        os.ftruncate(self._fd, end)
        self.size_bytes = end

    def append(self, record: bytes) -> int:
        """Append an encoded record; the offset where it stands.

        Raises:
            OSError: it could not be written whole; the file is as before.
        """
        offset = self.size_bytes
        view = memoryview(record)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError:
            os.ftruncate(self._fd, offset)
            raise
        self.size_bytes += len(record)
        return offset

    def read_untrusted(self, offset: int, size_bytes: int) -> Frame:
        """The record that stands there.

        Raises:
            WireError: the disk holds something else there, or fails.
        """
        try:
            octets = os.pread(self._fd, size_bytes, offset)
        except OSError as error:
            raise WireError(str(self.path), f"cannot be read: {error.strerror}") from error
        return decode_record_untrusted(octets)

    def sync(self) -> None:
        """Wait until all that was appended is on the disk.

        Raises:
            OSError: the disk failed.
        """
        os.fdatasync(self._fd)

    def begin_sync(self) -> Callable[[], None]:
        """`sync` in two steps: what comes back is to be called once, in any thread; the file may be closed before."""
        fd = os.dup(self._fd)

        def wait() -> None:
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

        return wait

    def close(self) -> None:
        """Close the file; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a new file is lost with its name.

    Raises:
        OSError: the disk failed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
