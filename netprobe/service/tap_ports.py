"""Ports that netprobe plays both ends of: packets go in as if guests had sent them, and are absorbed before guests.

`open_tap_ports` makes everything (service.tap_links), journaled before and undone at the end, and gives `TapPorts`:
send, drain, and `confirm`, which proves port by port, with canaries, that absorption works. Whoever sends asks
`confirm` before each batch, and sends nothing to a port that is not confirmed: its guest's answers would race ours.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import trio

from netprobe.errors import HostNotReadyError
from netprobe.host import tc
from netprobe.host.netns import exists
from netprobe.inject.taps import CanarySender, TapSender, TapSent
from netprobe.observe.absorber import Absorbed, Absorber
from netprobe.service.journal import Journal
from netprobe.service.tap_links import (
    PlannedLinks,
    TapLinks,
    TapPort,
    devices,
    divert,
    lost_in_links,
    make_links,
    plan_links,
)

__all__ = ["AbsorbFilter", "Losses", "TapPort", "TapPorts", "open_tap_ports"]

CANARY_WAIT_S = 0.5
"""A canary is back within a millisecond; on a busy machine it may take longer."""

MAX_HELD_BYTES = 64 << 20
"""Absorbed frames that wait to be drained; what comes beyond is counted as dropped."""


@dataclass(frozen=True, slots=True)
class AbsorbFilter:
    """What is absorbed.

    Attributes:
        bytecode: as tc reads it: "N,code jt jf k,...".
        canaries: whole frames that it matches, one for each kind that matters. They go out of taps, so their
            destination is a MAC of nobody's: a guest that gets one, since absorption failed, drops it.
    """

    bytecode: str
    canaries: tuple[bytes, ...]

    def __post_init__(self) -> None:
        assert self.canaries, "without canaries everything would be confirmed"


@dataclass(frozen=True, slots=True)
class Losses:
    """What got lost on our own way, before a port's tap and after it.

    Attributes:
        refused: frames that the kernel did not take for sending; unsent.
        sent: frames that the link to a tap had no room for.
        absorbed: frames that the link from a tap had no room for.
        ring: absorbed frames that the ring had no room for.
    """

    refused: int = 0
    sent: int = 0
    absorbed: int = 0
    ring: int = 0


class TapPorts:
    """Open ports, by index; from `open_tap_ports`. One task at a time may call each method.

    Attributes:
        ports: those that can be used; their place is their index.
        failures: why others cannot, by name.
        left: what could not be taken away at the end, and why.
    """

    def __init__(
        self, ports: tuple[TapPort, ...], failures: dict[str, str], links: TapLinks, absorb: AbsorbFilter
    ) -> None:
        self.ports = ports
        self.failures = failures
        self.left: tuple[str, ...] = ()
        self._links = links
        self._canaries = absorb.canaries
        self._refused = 0
        self._round = 0
        self._held: list[Absorbed] = []
        self._held_bytes = 0
        self._shed = 0
        self._came = trio.Event()
        self._canary_errors: dict[int, str] = {}
        with ExitStack() as stack:
            peers = [one.peer for one in links.links]
            self._absorber = Absorber(links.namespace, peers)
            stack.callback(self._absorber.close)
            self._sender = TapSender(links.namespace, peers)
            stack.callback(self._sender.close)
            self._canary_sender = CanarySender([(one.netns, one.tap) for one in links.links])
            stack.callback(self._canary_sender.close)
            self._opened = stack.pop_all()

    def close(self) -> None:
        """Close sockets and ring, so that their namespace can go; run by `open_tap_ports`."""
        self._opened.close()

    def index(self, name: str) -> int:
        """The index of a port, by its guest's name.

        Raises:
            HostNotReadyError: it cannot be used.
        """
        for number, port in enumerate(self.ports):
            if port.name == name:
                return number
        raise HostNotReadyError(f"port of {name}", self.failures.get(name, "is not open"))

    async def send(
        self, frames: Sequence[tuple[int, bytes]], gap_ns: int, *, stopped: Callable[[], bool] = lambda: False
    ) -> TapSent:
        """Send frames as if ports' guests had sent them. A cancelled task stops it within milliseconds.

        Args:
            frames: index of the port, and the Ethernet frame without FCS.
            gap_ns: from one to the next, on the average; at most 64 go in a millisecond all the same.
            stopped: asked every millisecond; once it says True nothing more is sent.
        """

        def is_over() -> bool:
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:  # what was sent until now is still told; trio raises it again in the task
                return True
            return stopped()

        sent = await trio.to_thread.run_sync(lambda: self._sender.send(frames, gap_ns, stopped=is_over))
        self._refused += sent.refused
        return sent

    async def keep(self) -> None:
        """Read the ring all the while, for it holds 640 ms, and an order takes longer; run by `open_tap_ports`."""
        while True:
            await trio.lowlevel.wait_readable(self._absorber.fileno())
            self._absorber.drain(self._hold)

    def _hold(self, absorbed: Absorbed) -> None:
        if self._held_bytes >= MAX_HELD_BYTES:
            self._shed += len(absorbed.ports)
            return
        self._held_bytes += int(absorbed.frames.lengths.sum())
        self._held.append(absorbed.copy())
        self._came.set()

    async def wait_absorbed(self) -> None:
        """Wait until absorbed frames are there; a frame waits up to 20 ms for its block."""
        await self._came.wait()

    def drain(self, take: Callable[[Absorbed], None]) -> int:
        """Give all absorbed frames that are there to `take`, block by block. Canaries are not among them.

        Returns:
            How many.
        """
        self._absorber.drain(self._hold)
        held, self._held, self._held_bytes, self._came = self._held, [], 0, trio.Event()
        for absorbed in held:
            take(absorbed)
        return sum(len(absorbed.ports) for absorbed in held)

    async def confirm(self) -> frozenset[int]:
        """Prove that absorption works: canaries go out of every tap, and must come back by its own link.

        Returns:
            Ports where all of them did within CANARY_WAIT_S.
        """
        self._round += 1
        self._canary_errors.clear()
        wanted, back = set(), set()
        for port in range(len(self.ports)):
            for which, frame in enumerate(self._canaries):
                wanted.add((port, which))
                error = self._canary_sender.send(port, self._absorber.canary(frame, self._round, port, which))
                if error:
                    self._canary_errors[port] = error
            await trio.lowlevel.checkpoint()
            back |= self._absorber.canaries_back(self._round)
        with trio.move_on_after(CANARY_WAIT_S):
            while not wanted <= back:
                await trio.lowlevel.wait_readable(self._absorber.canary_socket)
                back |= self._absorber.canaries_back(self._round)
        missing = {port for port, _ in wanted - back}
        return frozenset(range(len(self.ports))) - missing

    def why_unconfirmed(self, port: int) -> str:
        """What tc says of a port whose canary did not come back."""
        one, device = self._links.links[port], self.ports[port].device
        if (one.netns and not exists(one.netns)) or one.tap not in devices(one.netns):
            return f"device {device} is gone"
        kinds = tc.qdiscs(one.netns).get(one.tap, frozenset())
        if "clsact" not in kinds:
            return f"clsact of {device} is gone; Open vSwitch may delete it when it sets policing"
        if not tc.is_absorbing(one.netns, one.tap, one.link):
            return f"netprobe's filter on {device} is gone"
        if port in self._canary_errors:
            return f"nothing can be sent by {device}: {self._canary_errors[port]}"
        return f"another filter of {device} took its canary first, or it got lost"

    def losses(self) -> Losses:
        """What got lost on our own way since the ports were opened."""
        sent, absorbed = lost_in_links(self._links)
        return Losses(self._refused, sent, absorbed, self.dropped)

    @property
    def dropped(self) -> int:
        """Absorbed frames that the ring, or who drains it, had no room for, as of the last drain."""
        return self._absorber.dropped + self._shed

    @property
    def failure(self) -> str:
        """Why nothing is seen any more, "" while it is."""
        return self._absorber.failure()


def _open(planned: PlannedLinks, absorb: AbsorbFilter) -> TapPorts:
    """Make everything that was planned; ports that tc refuses are left out."""
    made = planned.links
    make_links(made)
    refused = divert(made, absorb.bytecode)
    good = [number for number in range(len(made.links)) if number not in refused]
    failures = planned.failures | {planned.ports[number].name: why for number, why in refused.items()}
    used = replace(made, links=tuple(made.links[number] for number in good))
    return TapPorts(tuple(planned.ports[number] for number in good), failures, used, absorb)


@asynccontextmanager
async def open_tap_ports(ports: Sequence[TapPort], absorb: AbsorbFilter, journal: Journal) -> AsyncIterator[TapPorts]:
    """Make links and filters for ports, and take them away at the end, whatever happens in between.

    Resources: a namespace of netprobe's own, a veth pair and two filters a port, a ring and a few sockets. A port whose
    filter cannot be put in is among `failures`; the others are open.

    Args:
        ports: each tap once.
        absorb: what is absorbed.
        journal: of the run; everything is written down there before it is made.

    Raises:
        HostNotReadyError: a tool or a namespace is not there, links cannot be made, or the journal cannot be written.
    """
    planned = await trio.to_thread.run_sync(plan_links, ports)
    journal.add_taps(planned.links)
    opened: TapPorts | None = None
    failure: Exception | None = None
    try:
        opened = await trio.to_thread.run_sync(_open, planned, absorb)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.keep)
            try:
                yield opened
            except Exception as error:  # noqa: BLE001  raised again below, where the nursery can't wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        # Not in a thread: neither a cancelled task nor a second signal comes in between.
        if opened is not None:
            opened.close()
        left = journal.undo_taps(planned.links)
        if opened is not None:
            opened.left = left
