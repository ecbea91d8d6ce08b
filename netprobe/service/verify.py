"""`netprobe verify`: prove that a security policy is enforced, and by which rule; one process, the hosts it can reach.

Bind the policy to what is attached, compute the covering scenarios, ask the hosts' leave, open taps, make rounds of
probes, tidy up, ask the enforcement's own model, judge. The rounds are service.verify_rounds', the frames
service.verify_attempts'; what is proved is judge.proof's and judge.findings'.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import trio

from netprobe.errors import UsageError
from netprobe.host.clock import realtime_ns
from netprobe.host.signals import StopRequest
from netprobe.judge.conntrack import FiveTuple
from netprobe.judge.evaluator import Evaluator
from netprobe.judge.findings import Evidence, Finding, FindingKind, Findings, Judged, judge_steps
from netprobe.judge.gaps import gap_findings
from netprobe.judge.proof import Outcome, Proofs
from netprobe.model.model_answers import ModelAnswer, ModelQuestion
from netprobe.model.packets import Cover, Fragment, Step
from netprobe.model.policy import Policy, PolicyPort
from netprobe.model.topology import Attachment, Topology
from netprobe.plan.budget import PORT_BLOCK
from netprobe.plan.covering import cover
from netprobe.plan.policy_bind import bind
from netprobe.service.backends import backend_of, is_kernel_datapath, is_tracked_by_kernel, real_backend
from netprobe.service.policy_models import ModelAsker
from netprobe.service.stale_connections import read_entries
from netprobe.service.verify_attempts import PORTS, Attempts
from netprobe.service.verify_checks import consistency_findings, stale_findings
from netprobe.service.verify_evidence import prove_findings
from netprobe.service.verify_permits import permit_verify
from netprobe.service.verify_rounds import RoundLimits, Rounds
from netprobe.service.verify_silence import silence_findings
from netprobe.service.verify_vantage import cover_from, notes_of, routed
from netprobe.service.verify_wire import VerifyWire, WireOrder, new_mark, open_wire

QUESTIONS_AT_ONCE = 500
"""Between two batches of questions a signal is heard."""

AT_ONCE = PORTS * 9 // 10
"""Scenarios that may be under way at once: each has a source port of its own, and some ports are taken."""

OVN_REJECTS_PPS = 10
"""ovn-controller answers each rejected packet itself, in the thread that answers tenants' DHCP and ARP too."""

BURSTS = 2_000
"""More packets than the proof of one rule sends."""

REASSEMBLED = "the kernel puts fragments together before it asks the rules, and a trace of the tables does not"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """What is to be proved, and how.

    Attributes:
        policy: as it was read; bound to the topology here.
        where: what it was read from, for messages.
        vantage: "tap", "vswitch" or "guest".
        rate_pps: packets a second, all hosts together.
        discrepancies: what other sources say otherwise, found before anything was sent.
        rules_proved: findings, from the first on, whose rule is proved by its counter; some seconds each.
        is_own: the user wrote it for the ports that are here; else it is a whole cloud's, and some may be elsewhere.
        until_finding: stop after the first round that proves a leak or an overblock; what it proves is all that is
            known then. The model is asked only if none does.
    """

    policy: Policy
    where: str
    vantage: str = "tap"
    rate_pps: int = 2000
    tmax_ns: int = 200_000_000
    alpha: float = 1e-3
    rounds: int = 12
    seed: int = 1
    discrepancies: tuple[Finding, ...] = ()
    is_own: bool = True
    rules_proved: int = 0
    until_finding: bool = False


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """A policy bound to what is attached, with its scenarios.

    Attributes:
        ports: those of the policy that are attached somewhere within reach, by number.
        attachments: what they are attached to, in the same order.
    """

    policy: Policy
    cover: Cover
    backend: str
    ports: tuple[PolicyPort, ...]
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """Everything that a verification found out.

    Attributes:
        steps: every step with what is known of it, in the order of scenarios.
        sent, controls, unsent: frames.
        dropped: frames that a ring of ours had no room for, so that nobody saw them.
        strayed: what was seen at a port that it was not for, for people.
        notes: what else one should know.
        loss_upper: bound of the loss of what passes.
        misses_needed: misses in a row that were called a drop on a path of that loss.
        stopped: why it ended early, "" when it did not.
    """

    plan: VerifyPlan
    order: VerifyOrder
    started_ns: int
    ended_ns: int
    findings: Findings
    steps: tuple[Judged, ...] = ()
    sent: int = 0
    controls: int = 0
    unsent: int = 0
    rounds: int = 0
    late: int = 0
    dropped: int = 0
    forged: int = 0
    asked: int = 0
    strayed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    loss_upper: float = 1.0
    misses_needed: int = 0
    conntrack_deleted: int = 0
    conntrack_kept: int = 0
    stopped: str = ""


def plan_verify(order: VerifyOrder, topology: Topology) -> VerifyPlan:
    """Bind the policy and compute its covering scenarios; sends nothing.

    Raises:
        UsageError: a port of the policy is attached nowhere, or is another one than the policy says.
    """
    policy = bind(order.policy, topology.attachments, order.where, must_exist=order.is_own)
    by_id = {one.iface_id: one for one in topology.attachments}
    ports = tuple(port for port in policy.ports if port.mac)
    attachments = tuple(by_id[port.id] for port in ports)
    if not ports:
        raise UsageError(order.where, "none of its ports is attached here", advice="is this the right cloud?")
    backend = backend_of(topology, attachments)
    by_name = {port.name: one for port, one in zip(ports, attachments, strict=True)}
    everyone = [ip for one in topology.attachments for ip in (one.ipv4, one.ipv6)]
    whole = routed(cover(policy, Evaluator(policy), everyone), by_name)
    return VerifyPlan(policy, cover_from(whole, order.vantage, backend), backend, ports, attachments)


async def verify(
    order: VerifyOrder, plan: VerifyPlan, topology: Topology, stop: StopRequest, tell: Tell
) -> VerifyOutcome:
    """Carry a verification out.

    Args:
        order: how.
        plan: plan_verify's.
        topology: where the ports are.
        stop: once it is asked, nothing more is sent; what is known by then is judged.
        tell: takes lines of progress.

    Raises:
        RefusedError: a host does not allow it.
        HostNotReadyError: a tool, privilege or namespace is missing.
    """
    started_ns = realtime_ns()
    backend = await trio.to_thread.run_sync(real_backend, plan.backend, plan.attachments, topology)
    plan = replace(plan, backend=backend)
    is_kernel = is_tracked_by_kernel(plan.backend)
    terms = (order.vantage, order.rate_pps)
    tries = plan.cover.probes * order.rounds + BURSTS * order.rules_proved
    most = permit_verify(plan.attachments, topology, tries, terms, started_ns, is_kernel=is_kernel)
    # Before anything is sent, so that no connection is ours.
    others = [*order.discrepancies, *await stale_findings(plan.policy, topology), *await consistency_findings(topology)]
    scenarios, names = plan.cover.scenarios, [port.name for port in plan.ports]
    mark = new_mark()
    attempts = Attempts(mark, secrets.randbelow(4096))
    attempts.taken, attempts.is_kernel = await trio.to_thread.run_sync(_taken, plan, topology), is_kernel
    wire_order = WireOrder(mark, plan.attachments, topology, order.vantage, order.rate_pps, is_kernel)
    async with open_wire(wire_order, stop) as wire:
        limits = RoundLimits(order.tmax_ns, order.rounds, order.seed, min(most, AT_ONCE), _rejects_pps(plan))
        # Between networks packets take other ways, by a router: a way that controls vouch for is within one.
        places = [(one.host, one.network) for one in plan.attachments]
        numbers = {place: i for i, place in enumerate(dict.fromkeys(places))}
        proofs = Proofs(scenarios, names, alpha=order.alpha, hosts=[numbers[place] for place in places])
        rounds = Rounds(scenarios, plan.ports, proofs, attempts, wire, limits, stop)
        answers = await _probe(order, plan, topology, rounds, tell)
        steps = _judged(plan, proofs, answers, order.vantage)
        findings = judge_steps(steps, plan.backend, rounds.not_sent)
        findings.found += await silence_findings(rounds, plan.attachments, topology)
        if order.rules_proved and findings.found:
            tell("proving which rules decided")
        proved = await prove_findings(findings.found, scenarios, rounds, topology, order.rules_proved)
        findings.found = [*proved, *others, *gap_findings(plan.policy, plan.cover, plan.ports)]
    findings.sort()
    outcome = VerifyOutcome(plan, order, started_ns, realtime_ns(), findings, tuple(steps))
    return _with_counts(outcome, rounds, wire)


async def _probe(
    order: VerifyOrder, plan: VerifyPlan, topology: Topology, rounds: Rounds, tell: Tell
) -> dict[int, ModelAnswer]:
    """All rounds; and what the model says of each step, by its place in the columns."""
    answers: dict[int, ModelAnswer] = {}
    async with trio.open_nursery() as nursery:
        if order.until_finding:
            await rounds.run(tell, lambda: _is_contradicted(plan, rounds))
        # At the same time as the probes: both wait for the switch most of the time.
        if not order.until_finding or not _is_contradicted(plan, rounds):
            nursery.start_soon(_ask_models, plan, rounds.proofs, topology, answers, rounds.stop)
        if not order.until_finding:
            await rounds.run(tell)
        tell("waiting for the enforcement's own model")
    return answers


def _with_counts(outcome: VerifyOutcome, rounds: Rounds, wire: VerifyWire) -> VerifyOutcome:
    """What was counted on the way."""
    common, _ = rounds.proofs.loss()
    made = rounds.attempts.sent
    sent = [one for one in made if rounds.first_ns.get(one.seq)]
    controls = sum(one.step < 0 for one in sent)
    return replace(
        outcome,
        sent=len(sent) - controls,
        controls=controls,
        unsent=len(made) - len(sent),
        rounds=rounds.made,
        late=rounds.late,
        dropped=wire.dropped,
        forged=wire.forged,
        asked=sum(step.model is not None for step in outcome.steps),
        strayed=_strayed(outcome.plan, rounds),
        notes=(*notes_of(outcome.order.vantage), *_deaf_note(rounds, len(sent)), *wire.notes),
        loss_upper=common.upper,
        misses_needed=rounds.proofs.misses_needed(),
        conntrack_deleted=wire.journal.deleted,
        conntrack_kept=wire.journal.kept,
        stopped=rounds.stop.why if rounds.stop.asked() else "",
    )


def _deaf_note(rounds: Rounds, sent: int) -> tuple[str, ...]:
    if not rounds.is_deaf:
        return ()
    text = (
        f"of {sent} frames in {rounds.made} rounds none has arrived at any port, neighbours' answers neither, so no "
        "further round was made and nothing is proved: the switch forwards nothing, or netprobe's way to ports fails"
    )
    return (text,)


async def _ask_models(
    plan: VerifyPlan, proofs: Proofs, topology: Topology, answers: dict[int, ModelAnswer], stop: StopRequest
) -> None:
    """What the enforcement's own model says of each step, by its place in the columns; put into `answers`."""
    questions = []
    for scenario in plan.cover.scenarios:
        for number, step in enumerate(scenario.steps):
            place = proofs.index(scenario.number, number)
            ends = plan.attachments[int(proofs.sender[place])], plan.attachments[int(proofs.receiver[place])]
            # Any of netprobe's ports stands for all of them.
            questions.append(ModelQuestion(step.packet.with_ephemeral(PORT_BLOCK[0]), *ends, step.state, place))
    with ModelAsker() as asker:
        for first in range(0, len(questions), QUESTIONS_AT_ONCE):
            if stop.asked():
                return
            part = questions[first : first + QUESTIONS_AT_ONCE]
            for question, answer in zip(part, await asker.ask(part, topology), strict=True):
                answers[question.ident] = answer


def _judged(plan: VerifyPlan, proofs: Proofs, answers: Mapping[int, ModelAnswer], vantage: str) -> list[Judged]:
    """All steps with their outcomes, evidence and what the model says of them."""
    outcomes = proofs.outcomes()
    return [
        Judged(
            scenario,
            number,
            outcomes[place],
            _evidence(plan, proofs, place, outcomes[place], vantage),
            _answer(plan.backend, scenario.steps[number], answers.get(place)),
        )
        for scenario in plan.cover.scenarios
        for number in range(len(scenario.steps))
        for place in (proofs.index(scenario.number, number),)
    ]


def _answer(backend: str, step: Step, said: ModelAnswer | None) -> ModelAnswer | None:
    """What the model says of a step, unless the enforcement does what its model cannot: reassemble first."""
    if said is None or step.packet.fragment is Fragment.NONE or not is_kernel_datapath(backend):
        return said
    return ModelAnswer(None, detail=REASSEMBLED)


def _is_contradicted(plan: VerifyPlan, rounds: Rounds) -> bool:
    """Whether a leak or an overblock is proved by now."""
    found = judge_steps(_judged(plan, rounds.proofs, {}, "tap"), plan.backend, {})
    return rounds.is_cut_off or any(found.count(kind) for kind in (FindingKind.LEAK, FindingKind.OVERBLOCK))


def _evidence(plan: VerifyPlan, proofs: Proofs, place: int, outcome: Outcome, vantage: str) -> Evidence:
    sender, receiver = plan.attachments[int(proofs.sender[place])], plan.attachments[int(proofs.receiver[place])]
    sent, arrived, rejected = (int(column[place]) for column in (proofs.sent, proofs.arrived, proofs.rejected))
    missing = receiver.chain[1].id if outcome is not Outcome.PASSED else ""
    # What a packet-out, or nothing at all, brought in was seen nowhere before.
    last_seen = sender.chain[1].id if sent and vantage != "vswitch" else ""
    return Evidence(sent, arrived, rejected, last_seen, missing)


def _taken(plan: VerifyPlan, topology: Topology) -> frozenset[FiveTuple]:
    """Connections that exist already, both directions."""
    found: set[FiveTuple] = set()
    for host in topology.hosts:
        if any(one.host == host.name for one in plan.attachments):
            for entry in read_entries(host, is_hybrid=is_tracked_by_kernel(plan.backend)):
                found |= {entry.original, entry.reply}
    return frozenset(found)


def _rejects_pps(plan: VerifyPlan) -> int:
    return OVN_REJECTS_PPS if plan.backend.startswith("ovn") else 0


def _strayed(plan: VerifyPlan, rounds: Rounds) -> tuple[str, ...]:
    """Frames that came to a port that they were not for."""
    told = []
    for (step, port), count in rounds.strayed.items():
        name = plan.ports[port].name
        what = "controls" if step < 0 else plan.cover.scenarios[rounds.proofs.ref(step).scenario].key
        told.append(f"{count} of {what} came to {name}, whom they were not for")
    return tuple(told)
