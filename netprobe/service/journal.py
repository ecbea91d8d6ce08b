"""What a run leaves behind, written down before it is made: conntrack entries, by tuple; taps' links, filters; mirrors.

The run itself undoes its journal at its end; `netprobe clean` undoes those that a `kill -9` left behind.
"""

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.host.netns import exists
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.ovs_mirror import PortMirror, orphaned_mirrors, remove_mirror
from netprobe.host.process import identity, is_pid_file_live, may_run, start_ticks
from netprobe.judge.conntrack import FiveTuple
from netprobe.model.probes import ProbeSession
from netprobe.model.topology import Host, Topology
from netprobe.service.discovery import base_dir
from netprobe.service.own_entries import Table, delete_tuples, table_of
from netprobe.service.permits import own_tuples
from netprobe.service.prepare import Prepared
from netprobe.service.tap_links import TapLinks, undo_links

SYSTEM_RUNDIR = "/run/openvswitch"
"""Where a distribution's Open vSwitch has its sockets: after a boot no topology says it."""

JOURNAL_SCHEMA = 1
DAMAGED = (OSError, ValueError, LookupError, TypeError, RecursionError)
"""What reading a damaged journal raises."""


@dataclass(frozen=True, slots=True)
class Share:
    """Entries of one run in one table."""

    table: Table
    tuples: tuple[FiveTuple, ...]


def _folder() -> Path:
    return base_dir() / "journal"


def _to_json(share: Share) -> dict[str, object]:
    rows = [
        [t.protocol, str(t.src), str(t.dst), t.src_port, t.dst_port, t.icmp_type, t.icmp_code] for t in share.tuples
    ]
    return {**asdict(share.table), "tuples": rows}


def _tuple(row: Sequence[object]) -> FiveTuple:
    protocol, src, dst, *rest = row
    numbers = [int(str(n)) for n in (protocol, *rest)]
    return FiveTuple(numbers[0], ip_address(str(src)), ip_address(str(dst)), *numbers[1:])


def _zone(value: object) -> int | None:
    return None if value is None else int(str(value))


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of entries that were to be removed; `left` could not be asked about, and stay in the journal."""

    deleted: int
    kept: int
    left: tuple[Share, ...]
    problems: tuple[str, ...]


def _is_running(rundir: str) -> bool:
    """Whether there is a switch that may still hold entries."""
    return is_pid_file_live(Path(rundir) / "ovs-vswitchd.pid")


def _remove(shares: Sequence[Share]) -> Removal:
    deleted = kept = 0
    left, problems = [], []
    for share in _joined(shares):
        try:
            outcome = delete_tuples(share.table, share.tuples)
        except HostNotReadyError as error:
            if _is_there(share.table):  # else the table went with its switch
                left.append(share)
                problems.append(str(error))
            continue
        deleted += len(outcome.deleted)
        kept += len(outcome.kept)
    return Removal(deleted, kept, tuple(left), tuple(problems))


def _joined(shares: Sequence[Share]) -> list[Share]:
    """One share a table, so that each is read once."""
    joined: dict[Table, dict[FiveTuple, None]] = {}
    for share in shares:
        joined.setdefault(share.table, {}).update(dict.fromkeys(share.tuples))
    return [Share(table, tuple(tuples)) for table, tuples in joined.items()]


def _is_there(table: Table) -> bool:
    return _is_running(table.rundir) if table.rundir else exists(table.netns)


def _undo_mirror(mirror: PortMirror) -> str:
    """Take a mirror away. Returns why it is still there, "" where it is gone, or its switch with everything in it.

    A switch that is only stopped has it in its database, and makes it again.
    """
    try:
        remove_mirror(mirror)
    except HostNotReadyError as error:
        return str(error) if Path(mirror.rundir).exists() else ""
    return ""


def _shares(probe: ProbeSession, hosts: Iterable[Host]) -> list[Share]:
    tuples = tuple(own_tuples(probe))
    return [Share(table_of(host, is_kernel=False), tuples) for host in hosts if host.ovs_rundir]


class Journal:
    """One run's journal, on disk until it is undone; use it as a context manager.

    Attributes:
        deleted, kept: entries that `undo` removed, and those that go by their own timeout.
        mirrors_left: why mirrors are still there that `undo` should have taken away, a text for each.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shares: list[Share] = []
        self._taps: list[TapLinks] = []
        self._mirrors: list[PortMirror] = []
        self._texts: dict[int, str] = {}  # by the id of a share, which this journal keeps alive
        self.deleted = 0
        self.kept = 0
        self.mirrors_left: tuple[str, ...] = ()

    def add(self, one: Prepared, topology: Topology) -> None:
        """Write down what a session will make on every host on its way, before it is sent.

        Raises:
            HostNotReadyError: it cannot be written, so nothing may be made.
        """
        self.add_probe(one.probe, (h for h in topology.hosts if h.name in one.hosts))

    def add_probe(self, probe: ProbeSession, hosts: Iterable[Host]) -> None:
        """Write down what a session will make on these hosts.

        Raises:
            HostNotReadyError: it cannot be written, so nothing may be made.
        """
        self._shares += _shares(probe, hosts)
        self._write()

    def add_tuples(self, tuples: Sequence[FiveTuple], hosts: Iterable[Host], *, is_kernel: bool) -> None:
        """Write down connections that packets may begin on these hosts, before they are sent.

        Args:
            tuples: originating directions.
            hosts: where they may pass.
            is_kernel: the kernel tracks them (iptables), not the vswitch.

        Raises:
            HostNotReadyError: it cannot be written, so nothing may be sent.
        """
        for host in hosts:
            if is_kernel or host.ovs_rundir:
                self._shares.append(Share(table_of(host, is_kernel=is_kernel), tuple(tuples)))
        self._write()

    def add_taps(self, links: TapLinks) -> None:
        """Write down what will be made on the hypervisors.

        Raises:
            HostNotReadyError: it cannot be written, so nothing may be made.
        """
        self._taps.append(links)
        self._write()

    def add_mirror(self, mirror: PortMirror) -> None:
        """Write down a mirror that will be made.

        Raises:
            HostNotReadyError: it cannot be written, so nothing may be made.
        """
        self._mirrors.append(mirror)
        self._write()

    def undo_taps(self, links: TapLinks) -> tuple[str, ...]:
        """Take away what was made; what cannot be taken away stays written down.

        Returns:
            What is left and why, one line each.
        """
        problems = undo_links(links)
        if not problems:
            self._taps.remove(links)
            self._save()
        return problems

    def _write(self) -> None:
        """Write it all anew; each share is put into words only once, for there may be thousands of tuples in it."""
        for share in self._shares:
            if id(share) not in self._texts:
                self._texts[id(share)] = json.dumps(_to_json(share))
        names = ("pid_namespace", "pid", "start_ticks")
        head: dict[str, object] = {"schema": JOURNAL_SCHEMA, **dict(zip(names, identity(), strict=True))}
        head["taps"] = [links.to_json() for links in self._taps]
        head["mirrors"] = [mirror.to_json() for mirror in self._mirrors]
        shares = ",".join(self._texts[id(share)] for share in self._shares)
        text = f'{json.dumps(head)[:-1]}, "conntrack": [{shares}]}}'
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
        except OSError as error:
            raise HostNotReadyError(
                f"journal {self._path}",
                f"cannot be written: {error.strerror}",
                advice="are you root, and is the disk full?",
            ) from error

    def _save(self) -> None:
        if self._shares or self._taps or self._mirrors:
            self._write()
        else:
            self._path.unlink(missing_ok=True)

    def undo(self) -> None:
        """Delete what the run made. What a busy switch could not be asked about stays for `netprobe clean`."""
        self._taps = [links for links in self._taps if undo_links(links)]
        problems = {mirror: problem for mirror in self._mirrors if (problem := _undo_mirror(mirror))}
        self._mirrors = list(problems)
        self.mirrors_left = tuple(problems.values())
        self.undo_tuples()

    def undo_tuples(self) -> None:
        """Delete the connections that were made so far; what could not be asked about stays written down."""
        removal = _remove(self._shares)
        self.deleted += removal.deleted
        self.kept += removal.kept
        self._shares, self._texts = list(removal.left), {}
        self._save()

    def forget(self) -> None:
        """Take the file away; nothing was made."""
        for path in (self._path, self._path.with_suffix(".new")):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()


def new_journal() -> Journal:
    """A journal with nothing in it yet, and no file."""
    pid = os.getpid()
    return Journal(_folder() / f"run-{pid}-{start_ticks(pid)}-{uuid.uuid4().hex[:8]}.json")


def open_journal(prepared: Sequence[Prepared], topology: Topology, passing: Sequence[ProbeSession] = ()) -> Journal:
    """Write down what the sessions of a run will make.

    Args:
        prepared: the sessions that are sent from here.
        topology: the hosts within reach.
        passing: sessions of others that only pass here.

    Raises:
        HostNotReadyError: it cannot be written, so nothing may be made.
    """
    journal = new_journal()
    try:
        for one in prepared:
            journal.add(one, topology)
        for probe in passing:
            journal.add_probe(probe, topology.hosts)
    except HostNotReadyError:
        journal.forget()
        raise
    return journal


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `netprobe clean` found and removed.

    Attributes:
        damaged: journals that could not be read; they were left where they are.
        unreachable: switches that did not answer, and what is left on taps.
        taps_undone: ports whose links and filters were taken away.
        mirrors_undone: ports whose mirrors were taken away.
    """

    journals: int
    conntrack_deleted: int
    flows_deleted: int
    damaged: tuple[str, ...]
    unreachable: tuple[str, ...]
    taps_undone: int = 0
    mirrors_undone: int = 0


@dataclass(frozen=True, slots=True)
class _Left:
    """What a journal says of a run that is gone."""

    shares: tuple[Share, ...]
    taps: tuple[TapLinks, ...]
    mirrors: tuple[PortMirror, ...]


def _read(path: Path) -> _Left | None:
    """What is in a journal whose run is gone; None while it still runs."""
    document = json.loads(path.read_text())
    namespace = int(document.get("pid_namespace", identity()[0]))  # an earlier version's has none
    if may_run(namespace, int(document["pid"]), int(document["start_ticks"])):
        return None
    shares = [
        Share(
            Table(str(s["rundir"]), _zone(s["zone"]), str(s.get("netns", ""))),
            tuple(_tuple(row) for row in s["tuples"]),
        )
        for s in document["conntrack"]
    ]
    return _Left(
        tuple(shares),
        tuple(TapLinks.from_json(table) for table in document.get("taps", [])),
        tuple(PortMirror.from_json(table) for table in document.get("mirrors", [])),
    )


def stale_journals() -> list[Path]:
    """Journals of runs that are gone, and those that nobody can read."""
    found = []
    for path in sorted(_folder().glob("run-*.json")):
        try:
            if _read(path) is not None:
                found.append(path)
        except DAMAGED:
            found.append(path)
    return found


def _switches(topology: Topology | None) -> dict[str, str]:
    """Run directories of the switches within reach, this machine's own too, and the network namespace of each."""
    found = {SYSTEM_RUNDIR: ""} if _is_running(SYSTEM_RUNDIR) else {}
    return found | {host.ovs_rundir: host.netns for host in (topology.hosts if topology else ()) if host.ovs_rundir}


def _remove_orphans(rundir: str, netns: str) -> tuple[int, list[str]]:
    """Take mirrors away whose run is gone and whose journal went with the host's last boot.

    Returns:
        How many are gone, and why others are not.
    """
    problems = []
    orphans = orphaned_mirrors(rundir, netns)
    for mirror in orphans:
        try:
            remove_mirror(mirror)
        except HostNotReadyError as error:
            problems.append(str(error))
    return len(orphans) - len(problems), problems


def clean(topology: Topology | None) -> Cleaned:
    """Undo the journals of runs that were killed, and delete flows with netprobe's cookie and mirrors without a run.

    Args:
        topology: for the bridges; None where no cloud is known.
    """
    journals = deleted = flows = taps = mirrors = 0
    damaged: list[str] = []
    unreachable: list[str] = []
    for path in sorted(_folder().glob("run-*.json")):
        try:
            left = _read(path)
        except DAMAGED:
            damaged.append(str(path))
            continue
        if left is None:
            continue
        stuck = [problem for links in left.taps for problem in undo_links(links)]
        taps += sum(len(links.links) for links in left.taps)
        there = list(filter(None, map(_undo_mirror, left.mirrors)))
        stuck += there
        mirrors += len(left.mirrors) - len(there)
        removal = _remove(left.shares)
        deleted += removal.deleted
        unreachable += [*stuck, *removal.problems]
        if not removal.left and not stuck:
            path.unlink(missing_ok=True)
            journals += 1
    for host in (h for h in topology.hosts if h.ovs_rundir) if topology else ():
        try:
            with OpenFlowClient(host.ovs_rundir, host.bridge) as client:
                flows += len(client.flows())
                client.delete_own_flows()
        except NetprobeError as error:
            unreachable.append(str(error))
    for rundir, netns in _switches(topology).items():
        try:
            gone, problems = _remove_orphans(rundir, netns)
            mirrors += gone
            unreachable += problems
        except NetprobeError as error:
            unreachable.append(str(error))
    return Cleaned(journals, deleted, flows, tuple(damaged), tuple(unreachable), taps, mirrors)
