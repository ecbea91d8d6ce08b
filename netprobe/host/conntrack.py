"""A switch's conntrack table: how full it is, what is in it, and our own entries out of it.

Deletes exact 5-tuples only; whole zones are flushed nowhere but in lab. What the lines and tuples mean is
judge.conntrack's, below; the socket is host.unixctl's.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.judge.conntrack import (
    ICMPV6,
    WITH_PORTS,
    ConntrackDump,
    ConntrackEntry,
    FiveTuple,
    entries_matching,
    flush_argument,
    parse_dump,
)
from netprobe.model.probes import IPAddress
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
            return self.delete_present(tuples)
        flushed = self._flush((tuple_, zone, False) for tuple_ in tuples)
        return self._sort_out(flushed, zone)

    def delete_present(self, tuples: Iterable[FiveTuple], zone: int | None = None) -> Deletion:
        """Delete entries that our probes made, of which many may have gone by themselves: look first, once.

        Args:
            tuples: originating direction of each, exact; they must be ours. Those without ports (protocols that the
                table has none of) mean whatever their two addresses exchange by that protocol: they are ours only if
                they were not there before.
            zone: the zone that they are in; None is all.

        Returns:
            What was deleted, one for each zone that had it; what was not there; and what could not be deleted, see
            `delete_own`. SCTP, DCCP and UDPLite with ports are kept where the table has their entry without.

        Raises:
            HostNotReadyError: the switch is gone.
        """
        wanted = dict.fromkeys(tuples)
        entries = self.dump(zone).entries
        crowd = Counter(map(_crowd_of, entries))
        there = {(e.original, e.zone): crowd[_crowd_of(e)] == 1 for e in entries if e.original in wanted}
        flushed = self._flush((tuple_, in_zone, is_alone) for (tuple_, in_zone), is_alone in there.items())
        present = {tuple_ for tuple_, _zone in there}
        originals = {entry.original for entry in entries}
        absent, kept = list(flushed.absent), list(flushed.kept)
        for tuple_ in (t for t in wanted if t not in present):
            if tuple_.protocol in WITH_PORTS and replace(tuple_, src_port=0, dst_port=0) in originals:
                kept.append((tuple_, "the switch tracks this protocol without ports: its entry may be others' too"))
            else:
                absent.append(tuple_)
        return Deletion(flushed.deleted, tuple(absent), tuple(kept))

    def _flush(self, named: Iterable[tuple[FiveTuple, int, bool]]) -> Deletion:
        """Name each to the switch: its tuple, its zone, and whether it is alone with its addresses and protocol."""
        deleted: list[FiveTuple] = []
        absent: list[FiveTuple] = []
        kept: list[tuple[FiveTuple, str]] = []
        for tuple_, zone, is_alone in named:
            try:
                words = (*self._datapath, f"zone={zone}", flush_argument(tuple_, is_alone=is_alone))
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
        return Deletion(tuple(deleted), tuple(absent), tuple(kept))

    def _sort_out(self, flushed: Deletion, zone: int) -> Deletion:
        """Look whether the ICMPv6 entries that can't be deleted are there at all."""
        doubtful = {tuple_ for tuple_, _why in flushed.kept if tuple_.protocol == ICMPV6}
        if not doubtful:
            return flushed
        there = {entry.original for entry in self.entries_matching(doubtful, zone)}
        absent = flushed.absent + tuple(tuple_ for tuple_ in doubtful if tuple_ not in there)
        kept = tuple((tuple_, why) for tuple_, why in flushed.kept if tuple_ not in doubtful or tuple_ in there)
        return Deletion(flushed.deleted, absent, kept)


def _crowd_of(entry: ConntrackEntry) -> tuple[IPAddress, IPAddress, int, int]:
    """What OVS deletes all of when a tuple is named without ports."""
    return entry.original.src, entry.original.dst, entry.original.protocol, entry.zone


def _kernel_number(name: str) -> int:
    try:
        return int((KERNEL_TABLE / name).read_text())
    except (OSError, ValueError) as error:
        raise HostNotReadyError(
            "conntrack table", f"{KERNEL_TABLE / name}: {error}", advice="modprobe nf_conntrack"
        ) from error
