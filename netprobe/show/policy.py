"""Verifications for people: findings worst first, who may reach whom, and the evidence of one finding.

Knows the JSON documents of docs/json.md only, like show.tables.
"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netprobe.show.tables import Document

STYLES = {
    "leak": "bold red",
    "overblock": "bold red",
    "wrong place": "red",
    "divergence": "red",
    "unproven": "yellow",
}
MOST_FINDINGS = 50
MOST_ALIKE = 10
MOST_PORTS = 24
"""Ports that a matrix has room for; larger ones are in --json."""


def print_plan(out: Console, document: Document) -> None:
    """What would be sent."""
    plan, policy = document["plan"], document["policy"]
    out.print(
        f"{policy['rules']} rules in {policy['groups']} groups, {policy['acls']} ACLs, {policy['ports']} ports "
        f"({document['backend']})"
    )
    out.print(
        f"{plan['probes']} packets in {plan['scenarios']} scenarios prove it (at least {plan['lower_bound']} are "
        f"needed; all pairs x all ports: {plan['naive']:,})"
    )
    for row in plan["shadowed"]:
        out.print(Text(f"shadowed: {row['rule']}: {row['why']}", style="yellow"))
    for kind in ("unproven", "unreachable"):
        for row in plan[kind]:
            out.print(Text(f"{kind}: {row['what']}: {row['why']}", style="yellow" if kind == "unproven" else "dim"))


def print_verification(out: Console, document: Document) -> None:
    """The answer first, then findings, differences, and the matrix."""
    out.print(answer_text(document))
    if document["findings"]:
        out.print(_findings(document["findings"][:MOST_FINDINGS]))
        more = len(document["findings"]) - MOST_FINDINGS
        if more > 0:
            out.print(f"  ... and {more} more, in --json")
    _print_matrix(out, document["matrix"])
    for row in document["differences"]:
        out.print(Text(f"by nature of {document['backend']} ({row['steps']} packets): {row['text']}", style="dim"))
    for row in document["plan"]["shadowed"]:
        out.print(Text(f"shadowed: {row['rule']}: {row['why']}", style="yellow"))
    for row in document["plan"]["unreachable"]:
        out.print(Text(f"unreachable: {row['what']}: {row['why']}", style="dim"))
    for note in (*document["strayed"], *document["notes"]):
        out.print(Text(f"note: {note}", style="yellow"))
    _print_numbers(out, document)


def answer_text(document: Document) -> Text:
    """The answer of a verification in one line."""
    counts = {kind: n for kind, n in document["counts"].items() if n}
    if not counts:
        return Text("the policy is enforced: 0 findings", style="bold green")
    words = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    if set(counts) == {"unproven"}:
        return Text(f"nothing speaks against the policy, but not all is proved: {words}", style="bold yellow")
    return Text(f"the policy is NOT enforced as it is meant: {words}", style="bold red")


def _findings(findings: list[Document]) -> Table:
    """A row a finding: the packet, what should and what did become of it, where, and by which rule."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("#", "finding", "packet, and what became of it"):
        table.add_column(column, overflow="fold")
    for row in findings:
        more = f"\n(+{row['repeats']} alike)" if row["repeats"] else ""
        kind = Text(row["kind"] + more, style=STYLES.get(row["kind"], ""))
        table.add_row(str(row["number"]), kind, "\n".join(filter(None, _told(row))))
    return table


def _told(row: Document) -> list[str]:
    evidence = row["evidence"] or {}
    if not row["packet"]:
        return [f"{row['expected']}: {row['detail']}" if row["expected"] else row["detail"], _decided(row)]
    counted = f" ({evidence['arrived']} of {evidence['sent']} arrived)" if evidence.get("sent") else ""
    rule = f" ({row['rule']})" if row["rule"] else ""
    stopped = f", {_where(evidence)}" if evidence.get("missing") else ""
    decided = _decided(row)
    return [
        _ends(row) + row["packet"],
        f"should {row['expected']}{rule}",
        f"{row['observed']}{stopped}{counted}",
        f"decided by {decided}" if decided else row["detail"],
    ]


def _where(evidence: Document) -> str:
    """Between which points it was lost, as far as anybody saw."""
    missing = evidence["missing"]
    return f"between {evidence['last_seen']} and {missing}" if evidence["last_seen"] else f"before {missing}"


def _ends(row: Document) -> str:
    return f"{row['src']} > {row['dst']}: " if row["src"] else ""


def _decided(row: Document) -> str:
    """The rule behind it: the user's own, then where it stands."""
    decided = row["decided"]
    if not decided or decided["is_allowed"] is None:
        return ""
    where = ", ".join(str(part) for part in (decided["place"], decided["cookie"], decided["host"]) if part)
    rule = f"{decided['rule']} " if decided["rule"] else ""
    return f"{rule}({where}; {decided['evidence']})"


def _print_matrix(out: Console, rows: list[Document]) -> None:
    names = sorted({row["src"] for row in rows} | {row["dst"] for row in rows})
    if not names:
        return
    if len(names) > MOST_PORTS:
        out.print(f"who may reach whom: {len(rows)} pairs, in --json")
        return
    out.print("who reached whom, in classes of packets that passed:")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("from / to")
    for name in names:
        table.add_column(name, justify="right")
    cells = {(row["src"], row["dst"]): row for row in rows}
    for src in names:
        table.add_row(src, *(_cell(cells.get((src, dst))) for dst in names))
    out.print(table)


def _cell(row: Document | None) -> Text:
    if row is None:
        return Text("")
    if row["reachable"] is None:
        return Text("?", style="yellow")
    return Text(str(row["classes"]), style="green") if row["reachable"] else Text("-", style="dim")


def _print_numbers(out: Console, document: Document) -> None:
    plan, loss = document["plan"], document["loss"]
    out.print(
        f"  {document['policy']['rules']} rules, {document['policy']['ports']} ports ({document['backend']}, vantage "
        f"{document['vantage']}): {plan['scenarios']} scenarios, {plan['probes']} packets (at least "
        f"{plan['lower_bound']}; all pairs x all ports: {plan['naive']:,})"
    )
    out.print(
        f"  sent {document['sent']} in {document['rounds']} rounds, {document['seconds']:.1f} s; loss of what passes "
        f"< {100 * loss['upper']:.2g} %, so {loss['misses_needed']} misses in a row are a drop (alpha "
        f"{document['alpha']:g} for all together)"
    )


def print_explanation(out: Console, document: Document, number: int) -> None:
    """The evidence of one finding; a sentence where there is none of that number, since the result itself is fine."""
    found = [row for row in document["findings"] if row["number"] == number]
    if not found:
        count = len(document["findings"])
        there_are = f"they are 1 to {count}" if count else "there are no findings"
        out.print(Text(f"nothing to explain: there is no finding {number}; {there_are}", style="yellow"))
        return
    row = found[0]
    out.print(Text(f"finding {number}: {row['kind']}", style=STYLES.get(row["kind"], "")))
    lines = [
        ("packet", _ends(row) + row["packet"]),
        ("scenario", f"{row['scenario']}, packet {row['step'] + 1} of it" if row["scenario"] else ""),
        ("should", f"{row['expected']}: {row['rule']} [{row['rule_id']}]" if row["rule"] else row["expected"]),
        ("did", row["observed"]),
        *_hops(row["evidence"]),
        ("model", _model(row["decided"] or {})),
        ("why", row["detail"]),
        ("alike", _alike(row)),
    ]
    for name, text in lines:
        if text:
            out.print(Text(f"  {name:12}{text}"))


def _hops(evidence: Document | None) -> list[tuple[str, str]]:
    """What was counted; nothing where nothing was sent of it."""
    if evidence is None:
        return []
    seen = f", seen at {evidence['last_seen']}" if evidence["last_seen"] else ", seen nowhere on their way"
    told = f"; {evidence['rejected']} times the sender was told" if evidence["rejected"] else ""
    return [
        ("1. went in", f"{evidence['sent']} packets" + (seen if evidence["sent"] else "")),
        ("2. came out", f"{evidence['arrived']} packets{told}"),
        ("3. stopped", _where(evidence) if evidence["missing"] else "nowhere"),
    ]


def _alike(row: Document) -> str:
    """The steps with the same cause, as many as there is room for."""
    more = len(row["alike"]) - MOST_ALIKE
    return ", ".join(row["alike"][:MOST_ALIKE]) + (f" and {more} more, in --json" if more > 0 else "")


def _model(decided: Document) -> str:
    if not decided:
        return "nobody could be asked"
    if decided["is_allowed"] is None:
        return f"cannot say: {decided['detail']}"
    said = "lets it pass" if decided["is_allowed"] else "drops it"
    parts = [decided["place"], decided["match"], decided["cookie"], decided["rule"], decided["detail"]]
    return f"{decided['host']} {said} ({decided['evidence']}): " + "; ".join(str(part) for part in parts if part)
