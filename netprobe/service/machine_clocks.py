"""Compares the clocks of virtual machines with their host's, through their agents, while a part is under way.

A machine's agent is asked for its time over its control channel; collect.clocks makes intervals of it. The channel is
slow, so it is asked seldom: the machine's clock runs evenly, and the interval of a window is as wide as the quickest
exchange in it. A machine whose agent does not answer has an unknown clock, and no run fails for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import trio

from netprobe.errors import HostNotReadyError
from netprobe.host.guest_agent import GuestAgent, open_guest_agent
from netprobe.host.guest_messages import ClockExchange
from netprobe.model.observations import Exchanges
from netprobe.service.looking import Emit

INTERVAL_S = 0.1
"""Between two exchanges with one machine; an exchange takes some milliseconds of an emulated machine."""

FIRST_INTERVAL_S = 0.02
FIRST_EXCHANGES = 10
FIRST_WAIT_S = 3.0
"""So many exchanges come before the first probe, or so long is waited for them."""

EMIT_EXCHANGES = 5
BACK_S = 2.0


@dataclass(frozen=True, slots=True)
class MachineClock:
    """A virtual machine whose clock is compared.

    Attributes:
        domain: the name of its clock: its guest's point id.
        name: of the guest.
        agent: its agent's control socket, "" where it has none.
    """

    domain: str
    name: str
    agent: str


class MachineClocks:
    """The comparing tasks of one part.

    Args:
        machines: whose clocks.
        connected: agents that are connected already (they send), by the guest's name: they serve one controller alone.
        emit: takes reports.
    """

    def __init__(self, machines: tuple[MachineClock, ...], connected: Mapping[str, GuestAgent], emit: Emit) -> None:
        self._machines = machines
        self._connected = connected
        self._emit = emit
        self._known = {machine.domain: trio.Event() for machine in machines}

    def start(self, nursery: trio.Nursery) -> None:
        """Compare until the nursery is cancelled."""
        for machine in self._machines:
            nursery.start_soon(self._compare, machine)

    async def wait_known(self) -> None:
        """Until each clock is roughly known; of machines that do not answer it will not be."""
        with trio.move_on_after(FIRST_WAIT_S):
            for known in self._known.values():
                await known.wait()

    async def _compare(self, machine: MachineClock) -> None:
        if machine.name in self._connected:
            await self._exchange(machine, self._connected[machine.name])
        elif machine.agent:
            await self._compare_alone(machine)
        self._known[machine.domain].set()

    async def _compare_alone(self, machine: MachineClock) -> None:
        """Connect for this alone, and again when the agent was lost: it may have been busy, or started anew."""
        while True:
            try:
                async with open_guest_agent(machine.agent) as agent:
                    await self._exchange(machine, agent)
            except HostNotReadyError:
                pass  # the result says that this clock is not known
            self._known[machine.domain].set()
            await trio.sleep(BACK_S)

    async def _exchange(self, machine: MachineClock, agent: GuestAgent) -> None:
        """Exchange until the agent is gone."""
        pile: list[ClockExchange] = []
        count = 0
        try:
            while True:
                try:
                    pile.append(await agent.compare_clocks())
                except HostNotReadyError:
                    return
                count += 1
                if count >= FIRST_EXCHANGES:
                    self._known[machine.domain].set()
                if len(pile) >= EMIT_EXCHANGES:
                    self._hand_on(machine, pile)
                await trio.sleep(FIRST_INTERVAL_S if count < FIRST_EXCHANGES else INTERVAL_S)
        finally:
            self._hand_on(machine, pile)

    def _hand_on(self, machine: MachineClock, pile: list[ClockExchange]) -> None:
        if pile:
            stamps = np.array([(e.t1_ns, e.t2_ns, e.t3_ns, e.t4_ns) for e in pile], np.int64)
            self._emit(Exchanges(machine.domain, *(np.ascontiguousarray(column) for column in stamps.T)))
            pile.clear()
