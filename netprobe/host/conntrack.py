"""A switch's conntrack table: how full it is, what is in it, and our own entries out of it.

Deletes exact 5-tuples only; whole zones are flushed nowhere but in lab. What the lines and tuples mean is
judge.conntrack's, below; the socket is host.unixctl's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.judge.conntrack import (
    ICMPV6,
    ConntrackDump,
    ConntrackEntry,
    FiveTuple,
    entries_matching,
    flush_argument,
    parse_dump,
)
from netprobe.plan.budget import Room

_NOT_THERE = "No such file or directory"  # ENOENT, as OVS words it
_UNSUPPORTED = "Operation not supported"  # EOPNOTSUPP, likewise
KERNEL_TABLE = Path("/proc/sys/net/netfilter")
"""Where Linux says how full its own table is, which the kernel's datapath uses (nf_conntrack-sysctl)."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of the tuples that were to be deleted.

    Attributes:
        deleted: entries that are gone.
        absent: nobody had them (they had expired, or were never made).
        kept: could not be deleted, each with the reason; they go by their own timeout.
    """

    deleted: tuple[FiveTuple, ...]
    absent: tuple[FiveTuple, ...]
    kept: tuple[tuple[FiveTuple, str], ...]


class Conntrack:
    """The table of one switch.

    Args:
        unixctl: the switch's control socket; the caller owns it.
        datapath: `netdev@ovs-netdev`; needed only where there is more than one.
    """

    def __init__(self, unixctl: UnixctlClient, datapath: str = "") -> None:
        self._unixctl = unixctl
        self._datapath = (datapath,) if datapath else ()

    def use(self) -> Room:
        """How full the table is. The kernel's datapath has no counters of its own (ovs-vswitchd(8)): Linux's then.

        Raises:
            HostNotReadyError: neither the switch nor the kernel says.
        """
        try:
            return Room(self._number("dpctl/ct-get-nconns"), self._number("dpctl/ct-get-maxconns"))
        except CommandError as error:
            if _UNSUPPORTED not in error.said:
                raise
        return Room(_kernel_number("nf_conntrack_count"), _kernel_number("nf_conntrack_max"))

    def _number(self, command: str) -> int:
        text = self._unixctl.call(command, *self._datapath).strip()
        if not text.isascii() or not text.isdigit():
            raise HostNotReadyError("conntrack table", f"{command} printed {text[:80]!r}", allowed="a number")
        return int(text)

    def dump(self, zone: int | None = None) -> ConntrackDump:
        """All entries, or those of one zone. Raises HostNotReadyError."""
        words = (*self._datapath, f"zone={zone}") if zone is not None else self._datapath
        return parse_dump(self._unixctl.call("dpctl/dump-conntrack", *words))

    def entries_matching(self, tuples: Iterable[FiveTuple], zone: int | None = None) -> list[ConntrackEntry]:
        """The entries that have one of these tuples in one direction or the other. Raises HostNotReadyError."""
        return entries_matching(self.dump(zone).entries, tuples, zone=zone)

    def delete_own(self, tuples: Iterable[FiveTuple], zone: int | None) -> Deletion:
        """Delete entries that our probes made.

        Args:
            tuples: originating direction of each, exact; they must be ours.
            zone: the zone that they are in; None to look in which zones they are.

        Returns:
            What was deleted, what was not there, and what could not be deleted: ICMPv6 always, since naming an ICMPv6
            tuple makes OVS abort.

        Raises:
            HostNotReadyError: the switch is gone.
        """
        if zone is None:
            return self._delete_everywhere(frozenset(tuples))
        deleted: list[FiveTuple] = []
        absent: list[FiveTuple] = []
        kept: list[tuple[FiveTuple, str]] = []
        for tuple_ in tuples:
            try:
                words = (*self._datapath, f"zone={zone}", flush_argument(tuple_))
                self._unixctl.call("dpctl/flush-conntrack", *words)
            except UsageError as error:
                kept.append((tuple_, error.problem))
            except CommandError as error:
                if _NOT_THERE in error.said:
                    absent.append(tuple_)
                else:
                    kept.append((tuple_, error.said))
            else:
                deleted.append(tuple_)
        return self._sort_out(deleted, absent, kept, zone)

    def _delete_everywhere(self, tuples: frozenset[FiveTuple]) -> Deletion:
        """Delete them zone by zone, each where it is."""
        found: dict[int, list[FiveTuple]] = {}
        for entry in self.dump().entries:
            if entry.original in tuples:
                found.setdefault(entry.zone, []).append(entry.original)
        parts = [self.delete_own(there, zone) for zone, there in found.items()]
        present = {tuple_ for there in found.values() for tuple_ in there}
        return Deletion(
            deleted=tuple(t for part in parts for t in part.deleted),
            absent=tuple(t for part in parts for t in part.absent) + tuple(tuples - present),
            kept=tuple(k for part in parts for k in part.kept),
        )

    def _sort_out(
        self, deleted: list[FiveTuple], absent: list[FiveTuple], kept: list[tuple[FiveTuple, str]], zone: int
    ) -> Deletion:
        """Look whether the ICMPv6 entries that can't be deleted are there at all."""
        doubtful = {tuple_ for tuple_, _why in kept if tuple_.protocol == ICMPV6}
        if doubtful:
            there = {entry.original for entry in self.entries_matching(doubtful, zone)}
            absent += [tuple_ for tuple_ in doubtful if tuple_ not in there]
            kept = [(tuple_, why) for tuple_, why in kept if tuple_ not in doubtful or tuple_ in there]
        return Deletion(tuple(deleted), tuple(absent), tuple(kept))


def _kernel_number(name: str) -> int:
    try:
        return int((KERNEL_TABLE / name).read_text())
    except (OSError, ValueError) as error:
        raise HostNotReadyError(
            "conntrack table", f"{KERNEL_TABLE / name}: {error}", advice="modprobe nf_conntrack"
        ) from error
