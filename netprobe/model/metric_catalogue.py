"""The catalogue: every measurement that netprobe writes, with its tags, fields and units.

Names follow RFC 8911 and 8912 where they fit (OWDelay, OWLoss, OWPDV; docs/metrics.md says how), and end with the unit.
A field keeps its type for good. docs/metrics.md has the same tables, which a test compares; show.run_metrics and
show.policy_metrics make the readings.
"""

from netprobe.model.metrics import Field, FieldKind, Measurement

PATH_TAGS = {
    "plan": "name of the plan; `trace` for a trace",
    "path": "name of the session in the plan",
    "src": "guest that probes come from",
    "dst": "guest that they go to",
    "vantage": "`guest`, `bypass` or `vswitch`",
    "proto": "protocol of the probes",
}
LEG = {"leg": "`forward`: probes; `return`: their answers"}
EPOCH = {"epoch": "which of several paths, from 0; only where a guest moved during the run"}
POLICY_TAGS = {"policy": "what was proved: name of its file, or where it was read"}


def _integers(**about: str) -> tuple[Field, ...]:
    return tuple(Field(name, FieldKind.INTEGER, text) for name, text in about.items())


def _floats(**about: str) -> tuple[Field, ...]:
    return tuple(Field(name, FieldKind.FLOAT, text) for name, text in about.items())


def _texts(**about: str) -> tuple[Field, ...]:
    return tuple(Field(name, FieldKind.TEXT, text) for name, text in about.items())


DELAY = _integers(
    owdelay_min_ns="smallest delay of those that arrived",
    owdelay_p50_ns="median; missing where infinite, that is, where at least half were lost",
    owdelay_p90_ns="90th percentile; missing where infinite",
    owdelay_p99_ns="99th percentile; missing where infinite",
    owdelay_max_ns="largest delay of those that arrived",
    owdelay_p50_low_ns="the median's 95 % interval; between two clocks what it lies between for certain",
    owdelay_p50_high_ns="likewise; missing where infinite",
    owdelay_p99_low_ns="the 99th percentile's 95 % interval; between two clocks what it lies between for certain",
    owdelay_p99_high_ns="likewise; missing where infinite, or where too few probes say (fewer than 368)",
    owdelay_error_ns="by how much any of these may be off either way, since two clocks made them; 0: one clock",
    owdelay_samples="delays behind them",
)
LOSS = _floats(
    owloss_ratio="lost / (received + lost); missing where more than 5 % are undecided",
    owloss_low_ratio="lower end of its exact 95 % interval",
    owloss_high_ratio="upper end",
)

SEGMENT = Measurement(
    "netprobe_segment",
    "one segment of one path in one run or window",
    {
        **PATH_TAGS,
        **LEG,
        "segment": "its id, as `lab status` and results print it: `vm1.backend..hv1.nic`",
        "kind": "kinds of its points: `backend-nic`",
        "hop": "its place in travel order, from 00",
        **EPOCH,
    },
    (
        *_integers(
            sent_probes="known to have reached its first point",
            received_probes="known to have reached its second",
            lost_probes="last seen at the first, first missing at the second",
            undecided_probes="neither",
        ),
        *LOSS,
        *DELAY,
        *_integers(
            owpdv_p50_ns="delay variation: median minus smallest (RFC 5481 §4.2)",
            owpdv_p99_ns="99th percentile minus smallest; missing where infinite",
            owpdv_max_ns="largest minus smallest",
            reordered_probes="Type-P-Reordered (RFC 4737), relative to the order at the first point",
            duplicated_probes="copies that this segment added",
            negative_probes="delays below zero: a clock problem",
        ),
        *_texts(stamp="who stamps both points", clock_problem="why delays are not stated"),
    ),
)

DELAY_BUCKET = Measurement(
    "netprobe_delay_bucket",
    "how many delays of a segment lie in a bucket: two buckets an octave, empty ones are not written",
    {
        **PATH_TAGS,
        **LEG,
        "segment": "as above, and `end-to-end`",
        "le_ns": "upper edge, 13 digits, so that text sorts like numbers",
        **EPOCH,
    },
    _integers(delays="how many"),
)

PATH = Measurement(
    "netprobe_path",
    "the ledger of one path, and its delay and loss end to end, in one run or window",
    {**PATH_TAGS, **LEG, **EPOCH},
    (
        *_integers(
            planned_probes="planned = unsent + received + lost + unobserved + pending, exactly",
            unsent_probes="not sent",
            held_back_probes="of these, those that the governor held back for tenants' sake (docs/harm.md)",
            received_probes="arrived in time",
            lost_probes="lost for certain",
            unobserved_probes="nobody was looking where it matters",
            pending_probes="Tmax is not over",
            late_probes="of the lost, those that arrived after Tmax",
        ),
        *LOSS,
        *DELAY,
        *_integers(
            tmax_ns="waiting time after which a probe counts as lost",
            forged_records="records that claimed to be ours and did not prove it",
            overflowed_points="points on the way that shed frames",
            remarked="1: the class mark was changed on the way",
        ),
        *_texts(
            last_seen="of the largest group of lost probes",
            first_missing="likewise; missing without loss",
            lost_in="the segment between the two: `vm1.backend..hv1.nic`",
            reason="code of why they were lost (docs/reasons.md)",
            reason_detail="the same in words",
        ),
    ),
)

STATE = Measurement(
    "netprobe_state",
    "the state of a path that is watched, after a window (docs/watch.md)",
    PATH_TAGS,
    (
        *_integers(
            state_code="0 reachable, 1 degraded, 2 unreachable, 3 unobserved",
            since_ns="CLOCK_REALTIME: since when",
            changed="1: it changed with this window",
            lost_probes="of this window",
            undecided_probes="of this window",
        ),
        *_texts(
            state="in a word",
            last_seen="of the largest group of lost probes",
            first_missing="likewise; missing without loss",
            reason="code of why it changed, or why probes were lost (docs/reasons.md)",
        ),
    ),
)

RUN = Measurement(
    "netprobe_run",
    "one run, or one window of a watch, as a whole",
    {"plan": PATH_TAGS["plan"], "command": "`run`, `trace`, `watch`"},
    (
        *_integers(
            sessions="paths that were probed",
            planned_probes="of all of them",
            unsent_probes="of all of them",
            held_back_probes="of these, those that the governor held back for tenants' sake (docs/harm.md)",
            lost_probes="of all of them",
            unobserved_probes="of all of them",
            duration_ns="from its beginning until the result",
            gap_ns="watch: time before it in which nobody looked",
            pacing_p99_ns="worst 99th percentile of |actual - planned| send time",
            overflowed_points="points that shed frames",
            failed="1: it could not be run, or ended early",
        ),
        *_floats(governor_lowest_ratio="the least share of what was due that the governor let pass; 1: it did nothing"),
        *_texts(stopped="why it ended early, or could not be run"),
    ),
)

COUNTER = Measurement(
    "netprobe_counter",
    "what was shed, refused or odd during a run: the `counters` of docs/json.md, the largest of any path",
    {"plan": PATH_TAGS["plan"], "counter": "name of the counter"},
    _integers(events="how many"),
)

CLOCK = Measurement(
    "netprobe_clock",
    "what the clock of another host was compared with the sender's, at the end of a run over several hosts",
    {"plan": PATH_TAGS["plan"], "host": "whose clock is the reference", "peer": "whose is compared"},
    _integers(
        offset_low_ns="peer - host is at least this",
        offset_high_ns="and at most this",
        steps="how often it was stepped",
    ),
)

VERIFICATION = Measurement(
    "netprobe_verification",
    "one proof of a policy (docs/verify.md)",
    {**POLICY_TAGS, "backend": "how it is enforced", "vantage": "where packets went in"},
    (
        *_integers(
            leak_findings="passes, and should not",
            overblock_findings="is dropped, and should pass",
            wrong_place_findings="dropped, but at another enforcement point",
            divergence_findings="the enforcement is not what its database says",
            unproven_findings="nobody can say",
            violated="1: the policy is not enforced as it is meant",
            sent_packets="all tries",
            unsent_packets="could not be sent",
            rounds="tries of a packet, at most",
            duration_ns="of the whole proof",
            overflowed_frames="frames that a ring had no room for",
            forged_frames="claimed to be ours and were not",
        ),
        *_texts(stopped="why it ended early; then what it did not find is missing above, not 0"),
    ),
)

VERDICT = Measurement(
    "netprobe_verdict",
    "who may reach whom, as it was proved by first packets of new connections",
    {**POLICY_TAGS, "src": "from", "dst": "to"},
    (
        *_integers(
            reachable="1: something passes; 0: nothing does; missing: undecided",
            passed_packets="packets that passed",
            dropped_packets="that were dropped",
            undecided_packets="neither is proved",
        ),
        *_texts(passes="classes that passed"),
    ),
)

FINDING = Measurement(
    "netprobe_finding",
    "one finding of a proof; its number is in its time: the proof's plus that many ns",
    {**POLICY_TAGS, "kind": "`leak`, `overblock`, `wrong place`, `divergence`, `unproven`", "src": "from", "dst": "to"},
    (
        *_integers(packets="that show it"),
        *_texts(
            packet="one of them",
            expected="what the policy says",
            observed="what happened",
            rule="text of the rule that should decide",
            decided_by="rule, table or chain that did",
            segment="where it was dropped",
            detail="why, in words",
        ),
    ),
)

ENFORCEMENT = Measurement(
    "netprobe_enforcement",
    "how long a changed rule took to hold (`verify --watch-change`); one row a class, in the ns of its time",
    {
        **POLICY_TAGS,
        "rule": "id of the rule in the policy",
        "src": "from",
        "dst": "to",
        "stream": "`existing` or `new` connections",
    },
    (
        *_integers(
            after_commit_ns="last packet with the old verdict, after the command's end; below zero: before",
            after_begin_ns="likewise, after its beginning",
            uncertainty_ns="by so much later the old verdict may have been spoken",
            leaked_packets="passed after the command, and should not have",
            blocked_packets="were dropped after the command, and should have passed",
            flaps="changes of the verdict beyond the first",
            sent_packets="of this stream",
            undecided_packets="of this stream",
        ),
        *_texts(old="verdict before", new="verdict after", connection="what became of connections"),
    ),
)

AGENT = Measurement(
    "netprobe_agent",
    "an agent of a collector (`netprobe serve`), every 5 s",
    {"agent": "its name", "host": "the host that it is on; missing where it never said so"},
    (
        *_integers(
            connected="1: it is; 0: it was, since the collector began",
            connected_ns="for how long",
            guests="guests whose agents it reaches",
        ),
        *_texts(trouble="why it does not say what its host has"),
    ),
)

COLLECTOR = Measurement(
    "netprobe_collector",
    "what a collector counts, since it began, every 5 s",
    {"counter": "name of the counter; `runs` and `runs_under_way` among them"},
    _integers(events="how many"),
)

SINK = Measurement(
    "netprobe_sink",
    "the way of these readings to their database, every 5 s and with every window",
    {"program": "`run`, `trace`, `watch`, `verify` or `serve`"},
    (
        *_integers(
            written_readings="taken by the database",
            waiting_batches="in the spool",
            spool_bytes="size of the spool on disk",
            spool_limit_bytes="how large it may get",
            shed_readings="of this program that were lost for want of room",
            shed_batches="the same in batches, those that earlier programs left among them",
            refused_readings="that the database does not want",
            failures="writes that failed and were tried again",
        ),
    ),
)

CATALOGUE = (
    SEGMENT, DELAY_BUCKET, PATH, STATE, RUN, COUNTER, CLOCK, VERIFICATION, VERDICT, FINDING, ENFORCEMENT, AGENT,
    COLLECTOR, SINK,
)  # fmt: skip
