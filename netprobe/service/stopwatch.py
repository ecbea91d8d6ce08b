"""`netprobe verify POLICY --watch-change COMMAND`: what passes and what is dropped while COMMAND changes the rules.

Choose classes, ask the hosts' leave, reserve ports, open taps and journal, let service.stopwatch_run do it, and tell
what came out.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import trio

from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.proof import LossBound
from netprobe.judge.stopwatch import Command
from netprobe.model.topology import Host, Topology
from netprobe.plan.budget import PORT_BLOCK
from netprobe.service.backends import is_tracked_by_kernel, real_backend
from netprobe.service.journal import Journal, new_journal
from netprobe.service.stopwatch_command import COMMAND_S
from netprobe.service.stopwatch_permits import StopwatchTerms, permit_stopwatch, reserve, tracked
from netprobe.service.stopwatch_run import MORE_S, TRIES, ClassResult, StopwatchOrder, StopwatchRun, Tell
from netprobe.service.stopwatch_streams import Frames, Watched, choose_classes, tuple_of
from netprobe.service.tap_ports import AbsorbFilter, TapPort, open_tap_ports
from netprobe.service.verify import VerifyPlan
from netprobe.service.verify_wire import canaries, new_mark
from netprobe.wire.policy_bpf import absorb_program, tc_bytecode

COMMAND_ROOM_S = 0.5
"""New connections are reserved for a command that takes so long; then they end."""

SWITCH_INTERVAL_S = 0.0005
"""Python's own 5 ms would make the sender wait that long for whoever decodes."""


@dataclass(frozen=True, slots=True)
class StopwatchOutcome:
    """Everything that was found out.

    Attributes:
        command: when it began and ended; None where it never began.
        exit_code: of the command; None where it had none.
        left_out: rules that there was no room for.
        needed: misses in a row that were called a drop.
        sent, unsent, controls: packets.
        overflow: absorbed frames that nobody had room for.
    """

    plan: VerifyPlan
    order: StopwatchOrder
    started_ns: int
    ended_ns: int
    command: Command | None
    exit_code: int | None
    classes: tuple[ClassResult, ...]
    left_out: tuple[str, ...]
    loss: LossBound
    needed: int
    sent: int
    unsent: int
    controls: int
    overflow: int
    forged: int
    notes: tuple[str, ...]
    conntrack_deleted: int
    conntrack_kept: int
    stopped: str


async def watch_change(
    order: StopwatchOrder, plan: VerifyPlan, topology: Topology, stop: StopRequest, tell: Tell
) -> StopwatchOutcome:
    """Run a command and watch what it changes.

    Args:
        order: what, and how.
        plan: of the policy, service.verify.plan_verify's.
        topology: where the ports are.
        stop: once it is asked, nothing more is sent, and the command is asked to end.
        tell: takes lines of progress.

    Raises:
        UsageError: the rule or the command is not there.
        RefusedError: a host does not allow it.
        HostNotReadyError: a tool, privilege or namespace is missing, or absorption cannot be confirmed.
    """
    started_ns = realtime_ns()
    classes, left_out = choose_classes(plan.cover, plan.policy, order.rule)
    names = {name for watched in classes for name in (watched.scenario.src, watched.scenario.dst)}
    attachments = tuple(one for one in plan.attachments if one.name in names)
    backend = await trio.to_thread.run_sync(real_backend, plan.backend, attachments, topology)
    plan, is_kernel = replace(plan, backend=backend), is_tracked_by_kernel(backend)
    seconds = order.least_s + COMMAND_ROOM_S
    connections = min(math.ceil(order.connections * seconds), PORT_BLOCK[1] - PORT_BLOCK[0] - TRIES - 1)
    each = math.ceil(connections / max(sum(watched.has_new for watched in classes), 1)) + TRIES + 1
    packets = math.ceil(order.pps * (seconds + COMMAND_S))
    terms = StopwatchTerms(math.ceil(order.pps), each * len(classes), packets)
    permit_stopwatch(attachments, topology, classes, terms, is_kernel=is_kernel)
    last_ns = realtime_ns() + round((seconds + MORE_S) * 1e9)
    hosts = [host for host in topology.hosts if host.name in {one.host for one in attachments}]
    known = await trio.to_thread.run_sync(partial(tracked, hosts, is_kernel=is_kernel))
    ports = [reserve(watched, each if watched.has_new else TRIES + 1, last_ns, known) for watched in classes]
    mark = new_mark()
    netns = {host.name: host.netns for host in topology.hosts}
    taps = [TapPort(one.name, netns[one.host], one.chain[1].device) for one in attachments]
    absorb = AbsorbFilter(tc_bytecode(absorb_program(mark)), canaries(mark))
    with new_journal() as journal:
        async with open_tap_ports(taps, absorb, journal) as opened:
            run = StopwatchRun(order, plan.policy, opened, Frames(mark), stop)
            _write_down(journal, classes, ports, hosts, is_kernel=is_kernel)
            with _quick_switching():
                results = await run.go(classes, ports, tell)
            run.note_losses()
    return StopwatchOutcome(
        plan=plan, order=order, started_ns=started_ns, ended_ns=realtime_ns(),
        command=Command(run.ran.begin_ns, run.ran.end_ns) if run.ran.end_ns else None,
        exit_code=run.ran.exit_code, classes=results, left_out=left_out, loss=run.loss, needed=run.needed,
        sent=run.sent, unsent=run.unsent, controls=run.controls, overflow=run.overflow, forged=run.forged,
        notes=tuple(dict.fromkeys(run.notes)), conntrack_deleted=journal.deleted, conntrack_kept=journal.kept,
        stopped=stop.why if stop.asked() else "",
    )  # fmt: skip


def _write_down(
    journal: Journal, classes: Sequence[Watched], ports: Sequence[Sequence[int]], hosts: Sequence[Host], *,
    is_kernel: bool,
) -> None:  # fmt: skip
    """Every connection that may be begun, before anything is sent.

    Where the protocol has no ports an entry may be a tenant's too: it is left to its own timeout.
    """
    pairs = [(watched, own) for watched, own in zip(classes, ports, strict=True) if watched.has_new]
    journal.add_tuples([tuple_of(watched, port) for watched, own in pairs for port in own], hosts, is_kernel=is_kernel)


@contextmanager
def _quick_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
