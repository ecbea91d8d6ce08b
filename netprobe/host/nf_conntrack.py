"""The kernel's conntrack table of one network namespace: how full it is, what is in it, our own entries out of it.

For hosts where iptables enforces; a switch's own table is host.conntrack's. Deletes what a dump has shown, entry by
entry, and cannot empty the table. What the bytes mean is wire.nf_conntrack's, below.
"""

import errno
import itertools
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from netprobe.errors import HostNotReadyError, WireError
from netprobe.host.conntrack import KERNEL_TABLE, Deletion
from netprobe.host.netns import in_netns
from netprobe.judge.conntrack import ConntrackEntry, FiveTuple
from netprobe.plan.budget import Room
from netprobe.wire.nf_conntrack import (
    Answer,
    TrackedEntry,
    TrackedTuple,
    delete_request,
    dump_request,
    parse_answers_untrusted,
)

NETLINK_NETFILTER = 12  # linux/netlink.h
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10  # an error comes without the request that it is about
MAX_TRIES = 5
"""Of a dump that the kernel broke off, or that did not fit into the socket's buffer."""

TIMEOUT_S = 5.0
BATCH = 64
"""Deletions in one datagram: their answers, some 800 bytes of buffer each, fit into any socket's (208 KiB)."""

_READ_BYTES = 1 << 18  # a dump comes in parts of at most 32 KiB
_AGAIN = (errno.ENOBUFS, errno.EINTR)


class _BrokenOffError(Exception):
    """A dump that is to be tried again; says why."""


class KernelConntrack:
    """The table of one network namespace. Use it as a context manager; not for two threads at once.

    Args:
        netns: as `ip netns` shows it; the empty name is the caller's own namespace.
    """

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._where = f"kernel's conntrack table of namespace {netns or 'here'}"
        self._socket: socket.socket | None = None
        self._sequence = itertools.count(1)

    def __enter__(self) -> Self:
        self._socket = self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket. Twice is fine."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def use(self) -> Room:
        """How full the table is.

        Raises:
            HostNotReadyError: the kernel has no such table, or the namespace is not there.
        """
        names = ("nf_conntrack_count", "nf_conntrack_max")
        return Room(*in_netns(self._netns, lambda: [self._sysctl(KERNEL_TABLE / name) for name in names]))

    def dump(self) -> tuple[ConntrackEntry, ...]:
        """All entries; none where the kernel tracks no connections.

        Raises:
            HostNotReadyError: not permitted, or the table changed too fast to be read MAX_TRIES times.
        """
        return tuple(_entry_of(entry) for entry in self._tracked())

    def delete_own(self, tuples: Iterable[FiveTuple], zone: int | None) -> Deletion:
        """Delete entries that our probes made.

        Args:
            tuples: originating direction of each, exact; they must be ours. One without ports means whatever its two
                addresses exchange by that protocol: it is ours only if it was not there before.
            zone: the zone that they are in; None is wherever they are.

        Returns:
            What was deleted, one for each zone that had it, what was not there, and what the kernel keeps.

        Raises:
            HostNotReadyError: see `dump`; or the kernel did not say what became of some: ask again.
        """
        wanted = dict.fromkeys(tuples)
        if not wanted:
            return Deletion((), (), ())
        there = [
            (tuple_, entry)
            for entry in self._tracked()
            if (tuple_ := _tuple_of(entry.original)) in wanted and zone in (None, entry.zone)
        ]
        present = {tuple_ for tuple_, _entry in there}
        deleted: list[FiveTuple] = []
        absent = [tuple_ for tuple_ in wanted if tuple_ not in present]
        kept: list[tuple[FiveTuple, str]] = []
        for first in range(0, len(there), BATCH):
            batch = there[first : first + BATCH]
            for (tuple_, _entry), code in zip(batch, self._delete([entry for _t, entry in batch]), strict=True):
                if not code:
                    deleted.append(tuple_)
                elif code == errno.ENOENT:
                    absent.append(tuple_)
                else:
                    kept.append((tuple_, os.strerror(code)))
        return Deletion(tuple(deleted), tuple(absent), tuple(kept))

    def _delete(self, entries: Sequence[TrackedEntry]) -> list[int]:
        """Delete a batch; errno of each, 0 for success."""
        requests = {next(self._sequence): entry for entry in entries}
        outcomes: dict[int, int] = {}
        try:
            self._send(b"".join(delete_request(number, entry) for number, entry in requests.items()))
            while len(outcomes) < len(requests):
                for answer in self._receive():
                    if answer.error is not None and answer.sequence in requests:
                        outcomes[answer.sequence] = answer.error
        except _BrokenOffError as error:
            raise self._not_ready(f"{error} while entries were deleted", "ask again: some may be gone") from error
        return [outcomes[number] for number in requests]

    def _tracked(self) -> list[TrackedEntry]:
        """A whole dump, tried again where it was broken off."""
        reasons: list[str] = []
        for _ in range(MAX_TRIES):
            try:
                return self._dump_once()
            except _BrokenOffError as error:
                reasons.append(str(error))
                self.close()  # what the broken dump still has to say must not meet the next one
                self._socket = self._open()
        raise self._not_ready(
            f"could not be read in {MAX_TRIES} tries: {reasons[-1]}", "it changes too fast: try when there is less load"
        )

    def _dump_once(self) -> list[TrackedEntry]:
        number = next(self._sequence)
        found: dict[bytes, TrackedEntry] = {}  # an entry may be dumped twice when its neighbour goes meanwhile
        self._send(dump_request(number))
        while True:
            for answer in self._receive():
                if answer.sequence != number:
                    continue
                if answer.is_interrupted:
                    raise _BrokenOffError("the dump was interrupted")
                if answer.entry is not None:
                    found[answer.entry.name] = answer.entry
                elif answer.error is not None:
                    return self._finished(answer.error, found)

    def _finished(self, code: int, found: dict[bytes, TrackedEntry]) -> list[TrackedEntry]:
        if not code:
            return list(found.values())
        if code in _AGAIN:
            raise _BrokenOffError(os.strerror(code))
        if code == errno.EINVAL and not in_netns(self._netns, (KERNEL_TABLE / "nf_conntrack_count").exists):
            return []  # nfnetlink is there, conntrack is not: nobody tracks
        advice = "modprobe nf_conntrack_netlink" if code == errno.EINVAL else "are you root?"
        raise self._not_ready(f"cannot be dumped: {os.strerror(code)}", advice)

    def _open(self) -> socket.socket:
        def make() -> socket.socket:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)

        try:
            sock = in_netns(self._netns, make)
        except OSError as error:
            raise self._not_ready(f"no socket: {error.strerror}", "modprobe nf_conntrack_netlink") from error
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        return sock

    def _send(self, data: bytes) -> None:
        assert self._socket is not None, "use it as a context manager"
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            if error.errno in _AGAIN:
                raise _BrokenOffError(error.strerror or "") from error
            raise self._not_ready(f"cannot be asked: {error.strerror or error}", "are you root?") from error

    def _receive(self) -> list[Answer]:
        """The answers of one datagram, none if it is not the kernel's."""
        assert self._socket is not None
        try:
            data, _ancillary, flags, sender = self._socket.recvmsg(_READ_BYTES)
        except TimeoutError as error:
            raise self._not_ready(f"no answer within {TIMEOUT_S:g} s", "try again") from error
        except OSError as error:
            if error.errno in _AGAIN:
                raise _BrokenOffError(error.strerror or "") from error
            raise self._not_ready(f"cannot be read: {error.strerror or error}", "try again") from error
        if sender[0] != 0:
            return []
        if flags & socket.MSG_TRUNC:
            raise _BrokenOffError(f"an answer is longer than {_READ_BYTES} bytes")
        try:
            return parse_answers_untrusted(data)
        except WireError as error:
            raise self._not_ready(str(error), "is this kernel newer than netprobe?") from error

    def _sysctl(self, path: Path) -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError) as error:
            raise self._not_ready(f"{path}: {error}", "modprobe nf_conntrack") from error

    def _not_ready(self, problem: str, advice: str) -> HostNotReadyError:
        return HostNotReadyError(self._where, problem, advice=advice)


def _tuple_of(tracked: TrackedTuple) -> FiveTuple:
    return FiveTuple(
        tracked.protocol,
        tracked.src,
        tracked.dst,
        tracked.src_port,
        tracked.dst_port,
        tracked.icmp_type,
        tracked.icmp_code,
    )


def _entry_of(tracked: TrackedEntry) -> ConntrackEntry:
    return ConntrackEntry(
        _tuple_of(tracked.original),
        _tuple_of(tracked.reply),
        zone=tracked.zone,
        state=tracked.state,
        timeout_s=tracked.timeout_s,
        mark=tracked.mark,
        labels=tracked.labels,
        status=tracked.status,
    )
