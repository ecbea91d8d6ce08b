"""The five dashboards: overview, mesh, path, policy, netprobe itself. What they ask is in docs/metrics.md.

Each query filters by tags and fills nothing: with fill, ten thousand series over three hours are hundreds of megabytes.
"Newest" is the newest run or window, also where it does not know a figure: `last("planned_probes")`, a field that is
always there, picks the row, so that no older and better figure stands in for one that is infinite or unknown.
"""

from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.models import dashboard

from dashboards.panels import (
    DATASOURCE,
    LOSS_STEPS,
    MATRIX_URL,
    PATH_URL,
    RED,
    STATES,
    YES_NO,
    InfluxQuery,
    bands,
    column,
    curves,
    grid,
    heat,
    matrix,
    number,
    rows,
    select,
)
from netprobe.model.metric_catalogue import (
    AGENT,
    CLOCK,
    COLLECTOR,
    COUNTER,
    DELAY_BUCKET,
    ENFORCEMENT,
    FINDING,
    PATH,
    RUN,
    SEGMENT,
    SINK,
    STATE,
    VERDICT,
    VERIFICATION,
)
from netprobe.model.metrics import Measurement

TAG = "netprobe"
TIME = "$timeFilter"
PLANS = f'{TIME} AND "plan" =~ /^$plan$/'
"""Of the plans that are chosen; an operator names them, unlike guests."""

FORWARD = f"{PLANS} AND \"leg\" = 'forward'"
ONE_PATH = f"{TIME} AND \"path\" = '$path' AND \"src\" = '$src' AND \"dst\" = '$dst'"
ONE_LEG = f"{ONE_PATH} AND \"leg\" = '$leg'"
POLICIES = f'{TIME} AND "policy" =~ /^$policy$/'
PAIR = ("src", "dst")
PATHS = ("plan", "path", *PAIR)
ONE_PATH_ALIAS = "$tag_src -> $tag_dst ($tag_path)"
NEWEST = 'last("planned_probes") AS "planned"'
BY_NEWEST = "ORDER BY time DESC LIMIT 200"
FOUND = ("leak", "overblock", "wrong_place", "divergence", "unproven")
ABOUT = {field.name: field.about for field in VERIFICATION.fields}

Board = dashboard_builder.Dashboard


def _board(uid: str, title: str, about: str, since: str = "now-15m") -> Board:
    board = Board(f"netprobe: {title}").uid(f"netprobe-{uid}").description(about).tags([TAG]).readonly()
    board = board.time(since, "now").refresh("5s").timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    links = dashboard_builder.DashboardLink("netprobe").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    board = board.link(links.include_vars(True).keep_time(True).as_dropdown(False).icon("external link").tooltip(""))
    source = dashboard_builder.DatasourceVariable("datasource").label("Database").type("influxdb")
    return board.with_variable(source.multi(False).include_all(False).regex(""))


def _values(name: str, label: str, query: str, *, many: bool = False) -> dashboard_builder.QueryVariable:
    """A variable with the values of a tag; with `many` several may be chosen, or all."""
    variable = dashboard_builder.QueryVariable(name).label(label).datasource(DATASOURCE).query(query)
    variable = variable.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(many).include_all(many)
    variable = variable.sort(dashboard.VariableSort.ALPHABETICAL_ASC).regex("")
    return variable.all_value(".*") if many else variable


def _tag_values(measurement: Measurement, tag: str, where: str = "") -> str:
    return f'SHOW TAG VALUES FROM "{measurement.name}" WITH KEY = "{tag}"{where}'


def _plan() -> dashboard_builder.QueryVariable:
    return _values("plan", "Plan", _tag_values(RUN, "plan"), many=True)


def _words(texts: dict[str, tuple[str, str]]) -> list[dict[str, object]]:
    """Words for values, as a column's property."""
    options = {v: {"text": text, "color": color, "index": i} for i, (v, (text, color)) in enumerate(texts.items())}
    return [{"type": "value", "options": options}]


# ---------------------------------------------------------------------------------------------------------------------
# What is broken now
# ---------------------------------------------------------------------------------------------------------------------


def _numbers(board: Board) -> Board:
    """How much is broken, in six numbers."""
    states = select('last("state_code") AS "code"', STATE, PLANS, *PATHS)
    for name, code, color in (("Unreachable", 2, RED), ("Degraded", 1, "orange"), ("Unobserved", 3, "#8e8e8e")):
        count = InfluxQuery(select('count("code") AS "paths"', states, f'"code" = {code}'))
        about = f"Watched paths whose newest state is {name.lower()}."
        board = board.with_panel(number(name, about, count, steps=((None, "green"), (1, color))))
    lossy = select(f'{NEWEST}, "owloss_low_ratio" AS "low"', PATH, FORWARD, *PATHS)
    about = "Paths whose newest run or window lost more than 1 %, even by the lower end of the 95 % interval."
    count = InfluxQuery(select('count("low") AS "paths"', lossy, '"low" > 0.01'))
    board = board.with_panel(number("Losing for certain", about, count))
    proofs = select('last("violated") AS "violated"', VERIFICATION, TIME, "policy")
    count = InfluxQuery(select('sum("violated") AS "policies"', proofs, TIME))
    about = "Whose newest proof within a day has findings: nobody proves a policy every few minutes."
    board = board.with_panel(number("Policies violated", about, count, since="24h"))
    agents = select('last("connected") AS "connected"', AGENT, TIME, "agent")
    count = InfluxQuery(select('count("connected") - sum("connected") AS "agents"', agents, TIME))
    return board.with_panel(number("Agents away", "That were connected to the collector, and are not.", count))


def overview() -> Board:
    """What is broken now, and where to look further."""
    board = _board("overview", "Overview", "What is broken now. A click on a path opens it.").with_variable(_plan())
    board = _numbers(board)
    fields = '"since_ns" / 1000000 AS "since", "lost_probes", "last_seen", "first_missing", "reason"'
    board = board.with_panel(
        grid(
            "States of watched paths",
            "Newest state of each watched path; the worst first.",
            [rows(select(f'last("state_code") AS "state_code", {fields}', STATE, PLANS, *PATHS))],
            sort="state_code",
            order=("state_code", *PAIR, "path", "since", "last_seen", "first_missing", "reason", "lost_probes"),
            columns={
                "state_code": column(displayName="state", mappings=_words(STATES), cell=True, width=120),
                "path": column(link=PATH_URL),
                "since": column(unit="dateTimeAsIso", width=180),
            },
        )
    )
    fields = '"owloss_ratio" AS "loss", "owloss_low_ratio", "owloss_high_ratio", "lost_probes", "lost_in", "reason"'
    board = board.with_panel(
        grid(
            "Loss of paths",
            "Newest run or window of each path, from source to destination; the largest loss first.",
            [rows(select(f'{NEWEST}, {fields}, "reason_detail"', PATH, FORWARD, *PATHS))],
            sort="loss",
            hide=("Time", "planned"),
            order=("loss", "owloss_low_ratio", "owloss_high_ratio", *PAIR, "path", "lost_probes", "lost_in", "reason"),
            columns={
                "loss": column(unit="percentunit", steps=LOSS_STEPS, cell=True, width=110),
                "owloss_low_ratio": column(displayName="at least", unit="percentunit", width=100),
                "owloss_high_ratio": column(displayName="at most", unit="percentunit", width=100),
                "path": column(link=PATH_URL),
            },
        )
    )
    some = f'{FORWARD} AND "lost_probes" > 0'
    lost = InfluxQuery(select('sum("lost_probes")', PATH, some, *PAIR, "path", each=True), ONE_PATH_ALIAS)
    board = board.with_panel(curves("Lost probes", "By path, where any were lost.", [lost], bars=True, min=0))
    slow = InfluxQuery(select('max("owdelay_p99_ns")', PATH, FORWARD, "plan", each=True), "$tag_plan")
    about = "End to end, the worst path of each plan; infinite ones are not among them."
    return board.with_panel(curves("Delay, 99th percentile", about, [slow], unit="ns"))


# ---------------------------------------------------------------------------------------------------------------------
# Source x destination
# ---------------------------------------------------------------------------------------------------------------------

UNKNOWN = ((None, "transparent"),)
SLOW_STEPS = (*UNKNOWN, (0, "green"), (1e6, "yellow"), (1e7, RED))


def mesh() -> Board:
    """Matrices: who loses, who is slow, who is unreachable."""
    board = _board("mesh", "Mesh", "Source x destination, newest values; a click on a cell opens the path.")
    board = board.with_variable(_plan())
    state = select('last("state_code") AS "value"', STATE, PLANS, *PATHS)
    loss, slow = (
        select(f'{NEWEST}, "{field}" AS "value"', PATH, FORWARD, *PATHS) for field in ("owloss_ratio", "owdelay_p99_ns")
    )
    for title, name, inner, look in (
        ("Loss", "loss", loss, column(unit="percentunit", steps=LOSS_STEPS, cell=True, link=MATRIX_URL)),
        ("Delay, 99th percentile", "p99", slow, column(unit="ns", steps=SLOW_STEPS, cell=True, link=MATRIX_URL)),
        ("State", "state", state, column(mappings=_words(STATES), steps=UNKNOWN, cell=True, link=MATRIX_URL)),
    ):
        panel = grid(
            title,
            "From the row's guest to the column's, the worst of several paths. Empty: infinite, undecided, or no path.",
            [rows(select(f'max("value") AS "{name}"', inner, TIME, *PAIR))],
            transform=[matrix(name)],
            regexp=(r"^(?!src\\dst$).*$", look),
            size=(12, 12),
        )
        board = board.with_panel(panel)
    states = select('last("state_code")', STATE, PLANS, *PAIR, "path", each=True)
    query = InfluxQuery(states, ONE_PATH_ALIAS)
    return board.with_panel(
        bands("States over time", "A row each watched path.", query, mappings=STATES, size=(12, 12))
    )


# ---------------------------------------------------------------------------------------------------------------------
# One path
# ---------------------------------------------------------------------------------------------------------------------


def _path_variables(board: Board) -> Board:
    src = " WHERE \"src\" = '$src'"
    both = f"{src} AND \"dst\" = '$dst'"
    segments = f"{both} AND \"path\" = '$path' AND \"leg\" = '$leg'"
    board = board.with_variable(_values("src", "From", _tag_values(PATH, "src")))
    board = board.with_variable(_values("dst", "To", _tag_values(PATH, "dst", src)))
    board = board.with_variable(_values("path", "Path", _tag_values(PATH, "path", both)))
    leg = dashboard_builder.CustomVariable("leg").label("Leg").values("forward,return").multi(False).include_all(False)
    board = board.with_variable(leg)
    return board.with_variable(_values("segment", "Segment", _tag_values(DELAY_BUCKET, "segment", segments)))


def _per_segment(field: str, how: str = "last") -> InfluxQuery:
    text = select(f'{how}("{field}")', SEGMENT, ONE_LEG, "hop", "segment", each=True)
    return InfluxQuery(text, "$tag_hop $tag_segment")


def _segments_table(board: Board) -> Board:
    """Segments in the direction of travel."""
    shown = (
        'sum("sent_probes") AS "sent", sum("lost_probes") AS "lost", sum("undecided_probes") AS "undecided", '
        'sum("lost_probes") / (sum("lost_probes") + sum("received_probes")) AS "loss", min("owdelay_min_ns") AS "min", '
        'median("owdelay_p50_ns") AS "p50", max("owdelay_p99_ns") AS "p99", max("owdelay_p50_high_ns") AS "p50_high", '
        'max("owdelay_p99_low_ns") AS "p99_low", '
        'max("owdelay_error_ns") AS "clock_error"'
    )
    nanoseconds = column(unit="ns", width=110)
    return board.with_panel(
        grid(
            "Where",
            "Segments in the direction of travel, over the dashboard's time: median window's p50, worst p99.",
            [rows(select(shown, SEGMENT, ONE_LEG, "hop", "segment"))],
            columns={
                "loss": column(unit="percentunit", steps=LOSS_STEPS, cell=True, width=110),
                **{name: column(width=100) for name in ("sent", "lost", "undecided")},
                "hop": column(width=60),
                "clock_error": column(displayName="± clocks", unit="ns", width=110),
                "p50_high": column(displayName="p50 at most", unit="ns", width=110),
                "p99_low": column(displayName="p99 at least", unit="ns", width=110),
                **dict.fromkeys(("min", "p50", "p99"), nanoseconds),
            },
            size=(24, 10),
        )
    )


def _losses(board: Board) -> Board:
    """Loss over time, with its interval; where; and the newest losses."""
    ends = 'max("owloss_low_ratio") AS "at least", max("owloss_high_ratio") AS "at most"'
    loss = InfluxQuery(select(f'max("owloss_ratio") AS "loss", {ends}', PATH, ONE_LEG, each=True), "$col")
    about = "End to end; exact binomial interval, whatever became of undecided probes."
    band = ("at most", "at least")
    board = board.with_panel(curves("Loss with its 95 % interval", about, [loss], unit="percentunit", band=band, min=0))
    where = _per_segment("lost_probes", "sum")
    board = board.with_panel(curves("Where lost", "Lost probes by segment.", [where], bars=True, min=0))
    fields = '"lost_probes", "planned_probes", "last_seen", "first_missing", "reason", "reason_detail"'
    losses = rows(select(fields, PATH, f'{ONE_LEG} AND "lost_probes" > 0', then=BY_NEWEST))
    about = "The newest windows or runs that lost probes, and why."
    return board.with_panel(grid("Last losses", about, [losses], hide=(), size=(24, 7)))


def path() -> Board:
    """One path: its segments over time, and where it loses."""
    board = _path_variables(_board("path", "Path", "One path, segment by segment."))
    state = InfluxQuery(select('last("state_code")', STATE, ONE_PATH, each=True), "$path")
    board = board.with_panel(bands("State", "Of a watched path.", state, mappings=STATES, size=(24, 3)))
    board = _segments_table(board)
    for name in ("p50", "p99"):
        about = f"{name} of each segment, by window or run. No point: infinite, since too many were lost, or not known."
        query = _per_segment(f"owdelay_{name}_ns")
        board = board.with_panel(curves(f"Delay of segments, {name}", about, [query], unit="ns"))
    where = f"{ONE_LEG} AND \"segment\" = '$segment'"
    buckets = InfluxQuery(select('sum("delays")', DELAY_BUCKET, where, "le_ns", each=True), "$tag_le_ns")
    about = "How many probes took how long, in the segment that is chosen above. Lost probes are in no bucket."
    board = board.with_panel(heat("Delay of $segment", about, buckets))
    board = _losses(board)
    odd = ", ".join(f'sum("{name}_probes") AS "{name}"' for name in ("reordered", "duplicated", "negative"))
    query = InfluxQuery(select(odd, SEGMENT, ONE_LEG, each=True), "$col")
    about = "Of all segments of the leg; delays below zero are a clock problem."
    board = board.with_panel(curves("Reordered, duplicated, below zero", about, [query], min=0))
    about = "99th percentile minus the smallest delay (RFC 5481), by segment."
    return board.with_panel(curves("Delay variation, p99", about, [_per_segment("owpdv_p99_ns")], unit="ns"))


# ---------------------------------------------------------------------------------------------------------------------
# Policies
# ---------------------------------------------------------------------------------------------------------------------


def _counts(board: Board) -> Board:
    """Findings of the newest proofs, by kind."""
    for name in FOUND:
        last = select(f'last("{name}_findings") AS "n"', VERIFICATION, POLICIES, "policy")
        steps = ((None, "green"), (1, "orange" if name == "unproven" else RED))
        total = InfluxQuery(select('sum("n") AS "findings"', last, TIME))
        about = f"Newest proof of each policy: {ABOUT[f'{name}_findings']}."
        board = board.with_panel(number(name.replace("_", " ").capitalize(), about, total, steps=steps))
    took = InfluxQuery(select('last("duration_ns")', VERIFICATION, POLICIES))
    return board.with_panel(
        number("Took", "Of the newest proof.", took, unit="ns", steps=((None, "blue"),), none="no proof")
    )


def _enforcement(board: Board) -> Board:
    """How long changes took."""
    late = select('max("after_commit_ns")', ENFORCEMENT, POLICIES, "rule", "stream", each=True)
    about = "The last packet with the old verdict, after the end of the command that changed the rule."
    query = InfluxQuery(late, "$tag_rule, $tag_stream")
    board = board.with_panel(curves("Time to enforce", about, [query], unit="ns", points=True))
    fields = '"policy", "rule", "src", "dst", "stream", "old", "new", "connection", "after_commit_ns", "uncertainty_ns"'
    fields += ', "leaked_packets", "blocked_packets", "flaps"'
    units = {name: column(unit="ns") for name in ("after_commit_ns", "uncertainty_ns")}
    changes = rows(select(fields, ENFORCEMENT, POLICIES, then=BY_NEWEST))
    return board.with_panel(
        grid("Watched changes", "The newest first.", [changes], hide=(), columns=units, size=(24, 8))
    )


def policy() -> Board:
    """What was proved of policies, and how long changes took."""
    board = _board("policy", "Policy", "Proofs of policies: verdicts, findings, time to enforce.", "now-24h")
    board = board.with_variable(_values("policy", "Policy", _tag_values(VERIFICATION, "policy"), many=True))
    board = _counts(board)
    newest = 'last("passed_packets") AS "passed"'
    reach = select(f'{newest}, "reachable" AS "value"', VERDICT, POLICIES, "policy", *PAIR)
    board = board.with_panel(
        grid(
            "Who reaches whom",
            "As the newest proof says: from the row's port to the column's. Empty: undecided.",
            [rows(select('max("value") AS "reachable"', reach, TIME, *PAIR))],
            transform=[matrix("reachable")],
            regexp=(r"^(?!src\\dst$).*$", column(mappings=_words(YES_NO), steps=UNKNOWN, cell=True)),
            size=(12, 10),
        )
    )
    fields = f'{newest}, "dropped_packets" AS "dropped", "undecided_packets" AS "undecided", "passes"'
    board = board.with_panel(
        grid(
            "What passes",
            "Classes of packets that passed, newest proof.",
            [rows(select(fields, VERDICT, POLICIES, "policy", *PAIR))],
            size=(12, 10),
        )
    )
    fields = '"policy", "kind", "src", "dst", "packet", "expected", "observed", "rule", "decided_by", "segment"'
    findings = rows(select(f'{fields}, "packets", "detail"', FINDING, POLICIES, then=BY_NEWEST))
    about = "All within the dashboard's time, the newest first."
    board = board.with_panel(grid("Findings", about, [findings], hide=(), size=(24, 9)))
    counts = ", ".join(f'max("{name}_findings") AS "{name.replace("_", " ")}"' for name in FOUND)
    query = InfluxQuery(select(counts, VERIFICATION, POLICIES, "policy", each=True), "$tag_policy: $col")
    board = board.with_panel(curves("Findings over time", "By kind.", [query], points=True, min=0))
    return _enforcement(board)


# ---------------------------------------------------------------------------------------------------------------------
# netprobe itself
# ---------------------------------------------------------------------------------------------------------------------

SHED = "ring_dropped|shed|unstamped|refused|overflow|unknown_session"
SHARED = "agent_shed|port_dropped|conntrack"
"""Counters of what happened at ports and in tables that probes share with tenants."""


def _counted(names: str) -> str:
    return select('sum("events")', COUNTER, f'{PLANS} AND "counter" =~ /{names}/', "counter", each=True)


def _agents(board: Board) -> Board:
    fields = 'last("connected") AS "connected", "connected_ns" AS "for", "guests", "trouble"'
    look = {"connected": column(mappings=_words(YES_NO), cell=True, width=110), "for": column(unit="ns")}
    table = rows(select(fields, AGENT, TIME, "agent", "host"))
    board = board.with_panel(grid("Agents", "Of the collector.", [table], columns=look, size=(12, 7)))
    query = InfluxQuery(select('last("connected")', AGENT, TIME, "agent", each=True), "$tag_agent")
    return board.with_panel(bands("Agents over time", "Connected or not.", query, mappings=YES_NO, size=(12, 7)))


def _labelled(how: str, **labels: str) -> str:
    """Functions of fields, named for people."""
    return ", ".join(f'{how}("{name}") AS "{label}"' for name, label in labels.items())


def itself() -> Board:
    """Whether what the other dashboards say is complete."""
    about = "Whether netprobe itself is well: what was shed, held back, or could not be looked at."
    board = _agents(_board("itself", "netprobe itself", about, "now-1h").with_variable(_plan()))
    shed = InfluxQuery(_counted(SHED), "$tag_counter")
    about = "What was shed or refused: results are less complete than they look."
    board = board.with_panel(curves("Overflow", about, [shed], bars=True, min=0))
    held = InfluxQuery(select('sum("held_back_probes")', RUN, PLANS, "plan", each=True), "held back ($tag_plan)")
    shared = InfluxQuery(_counted(SHARED), "$tag_counter", ref="B")
    about = "Probes that the governor held back for tenants' sake, and what ports and tables that they share dropped."
    board = board.with_panel(curves("Governor and shared tables", about, [held, shared], bars=True, min=0))
    bounds = _labelled("last", offset_low_ns="at least", offset_high_ns="at most")
    query = InfluxQuery(select(bounds, CLOCK, PLANS, "host", "peer", each=True), "$tag_peer - $tag_host, $col")
    about = "Between what the offset of a peer's clock lies, for certain."
    board = board.with_panel(curves("Clocks", about, [query], unit="ns"))
    pacing = _labelled("max", pacing_p99_ns="pacing, p99", gap_ns="gap between windows")
    query = InfluxQuery(select(pacing, RUN, PLANS, "plan", each=True), "$tag_plan: $col")
    about = "How far from plan probes were sent, and for how long nobody looked between two windows."
    board = board.with_panel(curves("Pacing and gaps", about, [query], unit="ns", min=0))
    short = _labelled(
        "sum",
        unsent_probes="unsent",
        unobserved_probes="unobserved",
        overflowed_points="points with overflow",
        failed="failed or cut short",
    )
    query = InfluxQuery(select(short, RUN, PLANS, "plan", each=True), "$tag_plan: $col")
    board = board.with_panel(curves("Incomplete", "What runs and windows could not do.", [query], min=0))
    way = _labelled(
        "last",
        waiting_batches="batches that wait",
        shed_readings="shed",
        refused_readings="refused",
        failures="failed writes",
    )
    query = InfluxQuery(select(way, SINK, TIME, "program", each=True), "$tag_program: $col")
    about = "The way of readings to this database; after an outage what waited comes late, and once."
    board = board.with_panel(curves("Readings", about, [query], min=0))
    table = rows(select('last("events") AS "events"', COLLECTOR, TIME, "counter"))
    return board.with_panel(grid("Collector", "What it counted since it began.", [table], sort="events", size=(24, 8)))


BOARDS = {"overview": overview, "mesh": mesh, "path": path, "policy": policy, "itself": itself}
