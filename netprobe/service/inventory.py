"""One host's Open vSwitch, read once or followed: its ports, and which of them no packet ring can see.

For the host's own agent, which reports it to the collector; for service.following, which merges it into the topology;
for `netprobe doctor`. A database is followed in a thread of its own, whose findings come back into the event loop.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from netprobe.host import ovsdb
from netprobe.host.offload import look_for_offload
from netprobe.host.ovsdb_idl import Database, Stopper, Tables, follow, read_once
from netprobe.model.inventory import HostInventory, Northbound, Southbound
from netprobe.model.topology import Host

FIRST_WORD_S = 3.0
"""How long one waits at the beginning for a database that neither answers nor fails."""

OFFLOAD_LOOK_S = 5.0
"""How often NICs are asked for offloaded flows, on hosts that have `hw-offload` on: no database tells."""

Answer = Southbound | Northbound | HostInventory
Tell = Callable[[Answer | str], None]
"""Takes what a source says, or why it says nothing."""


def inventory(host: Host) -> HostInventory:
    """What a host's Open vSwitch has now. Blocks; for its agent, and for `netprobe doctor`.

    Raises:
        HostNotReadyError: its OVSDB does not answer.
    """
    return _inventory_of(host, read_once(ovsdb.database(host.ovs_rundir, host.name)))


def _inventory_of(host: Host, tables: Tables) -> HostInventory:
    return _with_offload(host, ovsdb.inventory_of(host.name, tables))


def _with_offload(host: Host, found: HostInventory) -> HostInventory:
    uplinks = [p.device for p in host.uplink if p.host == host.name and p.device]
    offloaded = look_for_offload(found, host.netns, host.ovs_rundir, uplinks)
    return replace(found, offloaded=offloaded)


class _Listener:
    """Hears of a database in its thread, makes sense of it there, and hands that over to the event loop.

    Args:
        read: rows to their meaning.
        tell: called in the event loop.
    """

    def __init__(self, read: Callable[[Tables], Answer], tell: Tell) -> None:
        self._read = read
        self._tell = tell
        self._token = trio.lowlevel.current_trio_token()

    def rows(self, tables: Tables) -> None:
        self._token.run_sync_soon(self._tell, self._read(tables))

    def trouble(self, why: str) -> None:
        self._token.run_sync_soon(self._tell, why)


async def follow_database(database: Database, read: Callable[[Tables], Answer], tell: Tell) -> None:
    """Follow a database until cancelled."""
    stopper = Stopper()
    listener = _Listener(read, tell)

    async def stop_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopper.stop()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_when_cancelled)
            # A thread cannot be cancelled; it is told to stop, and waited for.
            limiter = trio.CapacityLimiter(1)
            await trio.to_thread.run_sync(follow, database, listener, stopper, limiter=limiter)
    finally:
        stopper.close()


class InventoryFollower:
    """One host's inventory as it is now. Made by `open_inventory`.

    Attributes:
        inventory: the newest; None before the first.
        trouble: why the host's OVSDB cannot be read at present, "" while it can.
    """

    def __init__(self) -> None:
        self.inventory: HostInventory | None = None
        self.trouble = ""
        self.version = 0
        self._changed = trio.Event()

    def tell(self, answer: Answer | str) -> None:
        """What the host says, or why it says nothing."""
        before = (self.inventory, self.trouble)
        if isinstance(answer, HostInventory):
            self.inventory, self.trouble = answer, ""
        else:
            self.trouble = str(answer)
        if (self.inventory, self.trouble) != before:
            self.version += 1
            self._changed.set()
            self._changed = trio.Event()

    async def wait_changed(self, version: int) -> tuple[int, HostInventory | None]:
        """Wait until there is something newer than `version`; (its version, the inventory)."""
        while self.version <= version:
            await self._changed.wait()
        return self.version, self.inventory


async def follow_host(host: Host, tell: Tell) -> None:
    """Follow a host's OVSDB, and its NIC's offloaded flows where there may be some."""
    newest: HostInventory | None = None

    def heard(answer: Answer | str) -> None:
        nonlocal newest
        if isinstance(answer, HostInventory):
            newest = answer
        tell(answer)

    async def look_again() -> None:
        while True:
            await trio.sleep(OFFLOAD_LOOK_S)
            asked = newest
            if asked is None or not asked.is_offload_on:
                continue
            found = await trio.to_thread.run_sync(_with_offload, host, asked)
            if newest is asked and found != asked:
                heard(found)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_again)
        await follow_database(ovsdb.database(host.ovs_rundir, host.name), partial(_inventory_of, host), heard)


@asynccontextmanager
async def open_inventory(host: Host) -> AsyncIterator[InventoryFollower]:
    """Follow one host's own OVSDB, for the agent there, which reports it to the collector.

    Resource handling: one thread and one connection, gone when the block ends.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        following = InventoryFollower()
        nursery.start_soon(follow_host, host, following.tell)
        with trio.move_on_after(FIRST_WORD_S):
            await following.wait_changed(0)
        try:
            yield following
        except Exception as error:  # noqa: BLE001  the caller's own, kept out of this nursery's exception group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
