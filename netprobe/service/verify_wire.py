"""Where a verification's frames go in and come out: taps that netprobe plays both ends of, and rings for rejections.

Frames enter by the taps themselves, by packet-out, or from the guests' agents (service.policy_entries); they are
absorbed before the guests in each case (service.tap_ports). What arrives is decoded by wire.policy_decode.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from netprobe.host.signals import StopRequest
from netprobe.model.packets import Kind, Neighbour, Packet
from netprobe.model.policy import UDP
from netprobe.model.topology import Attachment, Host, Topology
from netprobe.observe.absorber import Absorbed
from netprobe.observe.ring import FrameBlock, RxRing
from netprobe.plan.budget import is_too_full
from netprobe.service.journal import Journal, new_journal
from netprobe.service.policy_entries import PolicyEntry, open_entry
from netprobe.service.tap_ports import AbsorbFilter, TapPort, TapPorts, open_tap_ports
from netprobe.service.verify_attempts import Sent, own_tuples
from netprobe.service.verify_permits import conntrack_use
from netprobe.service.verify_rounds import Arrival
from netprobe.wire.mark import KEY_BYTES
from netprobe.wire.policy_bpf import absorb_program, reject_program, tc_bytecode
from netprobe.wire.policy_decode import PolicyDecoder, PolicyKind, SentTable
from netprobe.wire.policy_frames import PolicyMark, encode_packet

NOBODY = "02:00:00:6e:70:00"
"""Locally administered: no guest's."""

CANARY_SEQ = 0xFFFFFFF0
CLASS_MARK = 3


@dataclass(frozen=True, slots=True)
class WireOrder:
    """What is opened.

    Attributes:
        mark: of the run.
        attachments: the ports that take part, in the order of their numbers.
        vantage: how frames go in: "tap", "vswitch" or "guest".
        pps: packets a second, all hosts together.
        is_kernel: connections are tracked by the kernel (iptables), not by the vswitch.
    """

    mark: PolicyMark
    attachments: tuple[Attachment, ...]
    topology: Topology
    vantage: str
    pps: int
    is_kernel: bool

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts that take part."""
        names = {one.host for one in self.attachments}
        return tuple(host for host in self.topology.hosts if host.name in names)


class VerifyWire:
    """An open wire; from `open_wire`.

    Attributes:
        forged: frames that claimed to be ours and were not.
        notes: what one should know of the run, for people.
        journal: what is left behind until it is undone at the end.
        pps: packets a second.
    """

    def __init__(
        self,
        order: WireOrder,
        taps: TapPorts,
        entry: PolicyEntry,
        rings: Sequence[RxRing],
        *,
        journal: Journal,
        stop: StopRequest,
    ) -> None:
        self.forged = 0
        self.notes: tuple[str, ...] = ()
        self._order = order
        self.pps = order.pps
        self._taps = taps
        self._entry = entry
        self._rings = rings
        self.journal = journal
        self._stop = stop
        self._sent = SentTable()
        self._decoder = PolicyDecoder(order.mark, self._sent)
        names = {one.name: number for number, one in enumerate(order.attachments)}
        self._number = [names[port.name] for port in taps.ports]
        self._found: list[Arrival] = []
        self._overflow = 0

    def write_down(self, sent: Sequence[Sent]) -> None:
        """Put into the journal which connections these frames may make, and into the table what they are."""
        is_kernel = self._order.is_kernel
        self.journal.add_tuples(list(own_tuples(sent, is_kernel=is_kernel)), self._order.hosts, is_kernel=is_kernel)
        assert not sent or sent[0].seq == len(self._sent), "frames are numbered in the order in which they are sent"
        self._sent.append([one.frame for one in sent])

    async def forget(self) -> str:
        """Take the connections away that frames made so far; a text if a table is too full even so, else ""."""
        await trio.to_thread.run_sync(self.journal.undo_tuples)
        return await trio.to_thread.run_sync(self._too_full)

    def _too_full(self) -> str:
        for host in self._order.hosts:
            use = conntrack_use(host, is_kernel=self._order.is_kernel)
            if is_too_full(use.used, use.limit):
                return f"the conntrack table of {host.name} is too full: {use.used} of {use.limit}"
        return ""

    async def send(self, sent: Sequence[Sent]) -> list[int]:
        """Send frames, each as if its sender's guest had sent it; the times just before each, 0 where unsent."""
        frames = [(self._order.attachments[one.sender].name, one.frame) for one in sent]
        gap_ns = 1_000_000_000 // self._order.pps
        return await self._entry.send(frames, gap_ns, stopped=self._stop.asked)

    async def arrivals(self) -> list[Arrival]:
        """What has come since the last call."""
        self._taps.drain(self._take)
        for ring in self._rings:
            blocks = ring.blocks()
            for block in blocks:
                self._take_rejections(block)
            ring.release(len(blocks))
            self._overflow += ring.drops()
        found, self._found = self._found, []
        return found

    async def confirm(self) -> frozenset[int]:
        """Ports before which frames of ours are surely absorbed."""
        confirmed = await self._taps.confirm()
        missing = [port for port in range(len(self._taps.ports)) if port not in confirmed]
        notes = [f"{self._taps.ports[port].name}: {self._taps.why_unconfirmed(port)}" for port in missing]
        notes += [f"{name}: {why}" for name, why in self._taps.failures.items()]
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))
        return frozenset(self._number[port] for port in confirmed)

    def finish(self) -> None:
        """Say what got lost on netprobe's own way."""
        losses = self._taps.losses()
        for count, what in (
            (losses.refused, "frames were not taken by the kernel for sending"),
            (losses.sent, "frames were lost on netprobe's own links before the taps"),
            (losses.absorbed, "frames were lost on netprobe's own links behind the taps"),
            (losses.ring, "absorbed frames found no room in the ring"),
        ):
            if count:
                self.notes = (*self.notes, f"{count} {what}")
        self.notes = (*self.notes, *self._entry.problems)
        if self._taps.failure:
            self.notes = (*self.notes, f"the ring of absorbed frames failed: {self._taps.failure}")

    @property
    def dropped(self) -> int:
        """Frames that a ring had no room for."""
        return self._taps.dropped + self._overflow

    def _take(self, absorbed: Absorbed) -> None:
        block = absorbed.frames
        decoded = self._decoder.decode(block.buffer, block.offsets, block.lengths, block.vlan)
        self.forged += decoded.forged
        for index, seq, kind in zip(decoded.index.tolist(), decoded.seq.tolist(), decoded.kind.tolist(), strict=True):
            port = self._number[int(absorbed.ports[index])]
            self._found.append(Arrival(seq, port, int(block.t_ns[index]), kind == PolicyKind.REJECTED))

    def _take_rejections(self, block: FrameBlock) -> None:
        decoded = self._decoder.decode(block.buffer, block.offsets, block.lengths, block.vlan)
        for index, seq, kind in zip(decoded.index.tolist(), decoded.seq.tolist(), decoded.kind.tolist(), strict=True):
            if kind == PolicyKind.REJECTED:
                self._found.append(Arrival(seq, -1, int(block.t_ns[index]), is_rejection=True))


def new_mark() -> PolicyMark:
    """Marks that nobody knows."""
    return PolicyMark(
        session=secrets.randbits(32),
        key=secrets.token_bytes(KEY_BYTES),
        dscp=CLASS_MARK,
        ip_id=secrets.randbelow(0xFFFF) + 1,
        flow_label=secrets.randbelow(0xFFFFF) + 1,
    )


def canaries(mark: PolicyMark) -> tuple[bytes, ...]:
    """One frame of each kind that is absorbed: IPv4, IPv6, ARP."""
    four = ip_address("192.0.2.1"), ip_address("192.0.2.2")  # RFC 5737
    six = ip_address("2001:db8::1"), ip_address("2001:db8::2")  # RFC 3849
    packets = [Packet(NOBODY, NOBODY, *ips, UDP, 61000, 9) for ips in (four, six)]
    packets.append(Packet(NOBODY, NOBODY, *four, 0, kind=Kind.ARP, neighbour=Neighbour(NOBODY, four[0], four[1])))
    return tuple(encode_packet(packet, mark, CANARY_SEQ + i) for i, packet in enumerate(packets))


@asynccontextmanager
async def open_wire(order: WireOrder, stop: StopRequest) -> AsyncIterator[VerifyWire]:
    """Open taps, entry and rings; take everything away at the end, and the connections that were made.

    Raises:
        HostNotReadyError: a tool, privilege, namespace or agent is missing.
    """
    netns = {host.name: host.netns for host in order.topology.hosts}
    ports = [TapPort(one.name, netns[one.host], one.chain[1].device) for one in order.attachments]
    absorb = AbsorbFilter(tc_bytecode(absorb_program(order.mark)), canaries(order.mark))
    with new_journal() as journal, ExitStack() as stack:
        async with (
            open_tap_ports(ports, absorb, journal) as taps,
            open_entry(order.vantage, order.attachments, order.topology, taps) as entry,
        ):
            rings = []
            for host in order.hosts:
                rings.append(RxRing(host.netns, "", reject_program(order.mark)))
                stack.callback(rings[-1].close)
            wire = VerifyWire(order, taps, entry, rings, journal=journal, stop=stop)
            yield wire
            wire.finish()
