"""The topology as it is now, and again whenever it changed: OVN's databases, each host's OVSDB, the lab's state file.

`open_follower` reads them all, merges them (plan.topology_merge) and keeps at it. What cannot be read is tried again
with back-off; what it said last stands, and `Topology.stale` says so. On a spread cloud the collector follows OVN, and
hosts' agents send their inventories (service.inventory).
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host import ovn_databases, ovsdb
from netprobe.model.inventory import HostInventory, Northbound, Southbound
from netprobe.model.topology import Topology
from netprobe.plan.topology_merge import Sources, merge
from netprobe.service.discovery import read_topology
from netprobe.service.inventory import FIRST_WORD_S, Answer, follow_database, follow_host

STATE_LOOK_S = 0.1
"""How often the state file's date is looked at: one stat(2)."""

STATE_FILE = "state file"


class Follower:
    """The topology as it is now. Made by `open_follower`.

    Attributes:
        topology: the newest.
        version: grows with each change of it.
    """

    def __init__(self, base: Topology, nursery: trio.Nursery, local_hosts: Collection[str] | None) -> None:
        self.topology = base
        self.version = 0
        self._base = base
        self._nursery = nursery
        self._local_hosts = local_hosts
        self._south: Southbound | None = None
        self._north: Northbound | None = None
        self._inventories: dict[str, HostInventory] = {}
        self._stale: dict[str, str] = {}
        self._scopes: dict[tuple[str, str], trio.CancelScope] = {}
        self._silent: set[str] = set()
        self._dirty = trio.Event()
        self._changed = trio.Event()
        self._heard = trio.Event()
        self._start_sources()

    async def wait_changed(self, version: int) -> tuple[int, Topology]:
        """Wait until there is something newer than `version`; (its version, the topology)."""
        while self.version <= version:
            await self._changed.wait()
        return self.version, self.topology

    def take_inventory(self, found: HostInventory) -> None:
        """What the agent of a host reports. Its name has been checked against its certificate by the caller."""
        self._inventories[found.host] = found
        self._stale.pop(_agent(found.host), None)
        self._dirty.set()

    def lose_host(self, host: str, why: str) -> None:
        """A host's agent is gone; what it reported last stands, and is marked stale."""
        self._stale[_agent(host)] = why
        self._dirty.set()

    def take_base(self, base: Topology) -> None:
        """What was written down has changed: other hosts, other guests."""
        self._base = base
        self._stale.pop(STATE_FILE, None)
        self._start_sources()
        self._dirty.set()

    def lose_base(self, why: str) -> None:
        """What was written down cannot be read at present."""
        self._stale[STATE_FILE] = why
        self._dirty.set()

    async def merge_forever(self) -> None:
        """Merge whenever something was heard; many changes at once make one new topology."""
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            self.merge_now()

    def merge_now(self) -> None:
        """Merge what is known, and wake whoever waits if that is something new."""
        now = merge(self._base, Sources(self._south, self._north, self._inventories, self._stale))
        if now != self.topology:
            self.topology = now
            self.version += 1
            self._changed.set()
            self._changed = trio.Event()

    async def wait_first_words(self) -> None:
        """Wait until each source has said something, or why it cannot; not longer than FIRST_WORD_S."""
        with trio.move_on_after(FIRST_WORD_S):
            while self._silent:
                await self._heard.wait()
        for label in self._silent:
            self._stale[label] = f"{label}: gave no answer within {FIRST_WORD_S:g} s"
        self.merge_now()

    # -- sources

    def _start_sources(self) -> None:
        """Follow what the topology names, and let go of what it names no more."""
        wanted = self._wanted()
        for key in self._scopes.keys() - wanted.keys():
            self._scopes.pop(key).cancel()
            self._forget(key[0])
        for key in wanted.keys() - self._scopes.keys():
            scope = self._scopes[key] = trio.CancelScope()
            self._silent.add(key[0])
            self._nursery.start_soon(self._run, scope, wanted[key])

    def _wanted(self) -> dict[tuple[str, str], Callable[[], Awaitable[None]]]:
        """What to follow, by label and place."""
        sources: dict[tuple[str, str], Callable[[], Awaitable[None]]] = {}
        base = self._base
        if base.ovn is not None:
            for database, read in (
                (ovn_databases.southbound(base.ovn.southbound), ovn_databases.southbound_of),
                (ovn_databases.northbound(base.ovn.northbound), ovn_databases.northbound_of),
            ):
                # A Unix socket is a file and has no namespace; other remotes are on the management network.
                is_file = database.remote.startswith("unix:")
                netns = "" if is_file or base.management is None else base.management.netns
                tell = partial(self._tell, database.label)
                if database.remote:
                    place = replace(database, netns=netns)
                    sources[database.label, database.remote] = partial(follow_database, place, read, tell)
        for host in base.hosts:
            if host.ovs_rundir and (self._local_hosts is None or host.name in self._local_hosts):
                label = ovsdb.database(host.ovs_rundir, host.name).label
                sources[label, host.ovs_rundir] = partial(follow_host, host, partial(self._tell, label))
        return sources

    async def _run(self, scope: trio.CancelScope, source: Callable[[], Awaitable[None]]) -> None:
        with scope:
            await source()

    def _tell(self, label: str, answer: Answer | str) -> None:
        if label not in {key[0] for key in self._scopes}:
            return  # said just before it was let go of
        if isinstance(answer, str):
            self._stale[label] = answer
        else:
            self._stale.pop(label, None)
            if isinstance(answer, Southbound):
                self._south = answer
            elif isinstance(answer, Northbound):
                self._north = answer
            else:
                self._inventories[answer.host] = answer
        self._silent.discard(label)
        self._heard.set()
        self._heard = trio.Event()
        self._dirty.set()

    def _forget(self, label: str) -> None:
        """A source is followed no more: what it said is no longer true of anything."""
        self._stale.pop(label, None)
        self._silent.discard(label)
        if label == ovn_databases.southbound("").label:
            self._south = None
        elif label == ovn_databases.northbound("").label:
            self._north = None
        else:
            self._inventories.pop(label.removeprefix(ovsdb.database("", "").label), None)


def _agent(host: str) -> str:
    return f"agent of {host}"


async def _follow_state_file(path: Path, follower: Follower) -> None:
    """Read the state file again whenever it was replaced."""
    seen: tuple[int, int, int] | None = (0, 0, 0)  # of no file: it may have changed since the caller read it
    while True:
        await trio.sleep(STATE_LOOK_S)
        now = _version_of(path)
        if now == seen:
            continue
        seen = now
        try:
            follower.take_base(await trio.to_thread.run_sync(read_topology, path))
        except HostNotReadyError as error:
            follower.lose_base(f"{error.where}: {error.problem}")


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  a trio program: this one system call is as fast as it gets
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@asynccontextmanager
async def open_follower(
    topology: Topology, *, state_file: Path | None = None, local_hosts: Collection[str] | None = None
) -> AsyncIterator[Follower]:
    """Follow a cloud. The first topology is there when the block begins.

    Args:
        topology: what was written down: read from a state file, or from a collector's configuration.
        state_file: where it was read from, to be read again when it changes; None where it does not change.
        local_hosts: hosts whose OVSDB is on this machine; None for all that name a run directory. The others'
            inventories come by `Follower.take_inventory`.

    Resource handling: a thread and a connection for each database, gone when the block ends.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        follower = Follower(topology, nursery, local_hosts)
        await follower.wait_first_words()
        nursery.start_soon(follower.merge_forever)
        if state_file is not None:
            nursery.start_soon(_follow_state_file, state_file, follower)
        try:
            yield follower
        except Exception as error:  # noqa: BLE001  the caller's own, kept out of this nursery's exception group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
