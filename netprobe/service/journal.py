"""What a run leaves in a switch, written down before it is made: conntrack entries, by exact tuple.

The run itself undoes its journal at its end; `netprobe clean` undoes those that a `kill -9` left behind.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from netprobe.errors import HostNotReadyError, NetprobeError
from netprobe.host.conntrack import Conntrack
from netprobe.host.openflow import OpenFlowClient
from netprobe.host.process import start_ticks
from netprobe.host.unixctl import UnixctlClient
from netprobe.judge.conntrack import FiveTuple
from netprobe.model.topology import Topology
from netprobe.service.discovery import base_dir
from netprobe.service.permits import own_tuples
from netprobe.service.prepare import Prepared

JOURNAL_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Share:
    """Entries of one session in one zone of one switch."""

    rundir: str
    zone: int
    tuples: tuple[FiveTuple, ...]


def _folder() -> Path:
    return base_dir() / "journal"


def _to_json(share: Share) -> dict[str, object]:
    rows = [
        [t.protocol, str(t.src), str(t.dst), t.src_port, t.dst_port, t.icmp_type, t.icmp_code] for t in share.tuples
    ]
    return {"rundir": share.rundir, "zone": share.zone, "tuples": rows}


def _tuple(row: Sequence[object]) -> FiveTuple:
    protocol, src, dst, *rest = row
    numbers = [int(str(n)) for n in (protocol, *rest)]
    return FiveTuple(numbers[0], ip_address(str(src)), ip_address(str(dst)), *numbers[1:])


def _remove(shares: Sequence[Share]) -> tuple[int, int]:
    deleted = kept = 0
    for share in shares:
        try:
            with UnixctlClient(share.rundir) as unixctl:
                outcome = Conntrack(unixctl).delete_own(share.tuples, share.zone)
        except HostNotReadyError:
            continue  # the table went with its switch
        deleted += len(outcome.deleted)
        kept += len(outcome.kept)
    return deleted, kept


class Journal:
    """One run's journal; on disk from `open_journal` to `undo`."""

    def __init__(self, path: Path, shares: Sequence[Share]) -> None:
        self._path = path
        self._shares = shares

    def undo(self) -> tuple[int, int]:
        """Delete what the run made and forget it.

        Returns:
            (deleted, kept) entries; kept ones go by their own timeout.
        """
        counts = _remove(self._shares)
        self._path.unlink(missing_ok=True)
        return counts


def open_journal(prepared: Sequence[Prepared], topology: Topology) -> Journal:
    """Write down what the sessions of a run will make.

    Raises:
        HostNotReadyError: it cannot be written, so nothing may be made.
    """
    shares = []
    for one in prepared:
        host = topology.host(one.sender.host)
        shares.append(Share(host.ovs_rundir, host.zone, tuple(own_tuples(one.probe))))
    path = _folder() / f"run-{os.getpid()}.json"
    document = {
        "schema": JOURNAL_SCHEMA,
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "conntrack": [_to_json(s) for s in shares],
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    except OSError as error:
        raise HostNotReadyError(
            f"journal {path}", f"cannot be written: {error.strerror}", advice="are you root, and is the disk full?"
        ) from error
    return Journal(path, shares)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `netprobe clean` found and removed.

    Attributes:
        damaged: journals that could not be read; they were left where they are.
        unreachable: switches that did not answer.
    """

    journals: int
    conntrack_deleted: int
    flows_deleted: int
    damaged: tuple[str, ...]
    unreachable: tuple[str, ...]


def _read(path: Path) -> list[Share] | None:
    """The shares of a journal whose run is gone; None while it still runs."""
    document = json.loads(path.read_text())
    pid, ticks = int(document["pid"]), int(document["start_ticks"])
    if ticks and start_ticks(pid) == ticks:
        return None
    return [
        Share(str(s["rundir"]), int(s["zone"]), tuple(_tuple(row) for row in s["tuples"]))
        for s in document["conntrack"]
    ]


def clean(topology: Topology | None) -> Cleaned:
    """Undo the journals of runs that were killed, and delete flows that carry netprobe's cookie.

    Args:
        topology: for the bridges; None where no cloud is known.
    """
    journals = deleted = flows = 0
    damaged, unreachable = [], []
    for path in sorted(_folder().glob("run-*.json")):
        try:
            shares = _read(path)
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(str(path))
            continue
        if shares is not None:
            deleted += _remove(shares)[0]
            path.unlink(missing_ok=True)
            journals += 1
    for host in topology.hosts if topology else ():
        try:
            with OpenFlowClient(host.ovs_rundir, host.bridge) as client:
                flows += len(client.flows())
                client.delete_own_flows()
        except NetprobeError as error:
            unreachable.append(str(error))
    return Cleaned(journals, deleted, flows, tuple(damaged), tuple(unreachable))
