"""What stands behind a rule of OVN's: one question to its databases at a time, asked when a drop is to be explained.

Reads only (`ovsdb-client query`), and lets the server filter: a cloud has a million logical flows, and a handful is
wanted. Only the collector asks; hosts' agents never do. What the rows mean is judge.ovn_flows', below.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from netprobe.errors import HostNotReadyError
from netprobe.host.process import run
from netprobe.judge.ofproto_trace import Trace, TraceStep
from netprobe.judge.ovn_flows import (
    LogicalFlow,
    NorthRow,
    OvnDecision,
    OvnKind,
    acl_of,
    datapath_key,
    earlier_steps,
    find_flow,
    find_north,
    logical_tables,
    north_conditions,
    north_table,
    ovn_step,
    owner_of,
    port_key,
    row_map,
    row_uuid,
)
from netprobe.model.topology import OvnPlaces

TIMEOUT_S = 5
SOUTHBOUND, NORTHBOUND = "OVN_Southbound", "OVN_Northbound"
EVALUATED_WITHIN = 3
"""Since OVN 23.06 ACLs are evaluated in one stage and carried out at most this many stages later."""

Query = dict[str, object]
Client = Callable[[Sequence[str]], str]
"""Runs a command of ovsdb-client's and returns what it prints."""


class OvnRules(Protocol):
    """Who can say what stands behind a rule of OVN's."""

    def decide(self, trace: Trace, bridge: str) -> OvnDecision | None:
        """The rule in which a packet's way ended, and what stands behind it; None where no rule of OVN's decided.

        Args:
            trace: what a switch does with the packet.
            bridge: OVN's integration bridge on that host.

        Raises:
            HostNotReadyError: OVN's databases do not answer.
        """

    def admitted_by(self, label: int) -> NorthRow | None:
        """The ACL that marks with a label the connections that it admits; None where there is none, or several.

        Raises:
            HostNotReadyError: OVN's databases do not answer.
        """


def _run_client(command: Sequence[str]) -> str:
    return run(command, timeout_s=TIMEOUT_S + 1)


def _select(table: str, where: Sequence[tuple[str, str, object]]) -> Query:
    return {"op": "select", "table": table, "where": [list(condition) for condition in where]}


class OvnRuleBook:
    """OVN's two databases, asked for what stands behind a rule.

    Args:
        places: where they are.
        tls_options: what `ovsdb-client` needs for `ssl:` remotes: `--private-key=…`, `--certificate=…`, `--ca-cert=…`.
        client: runs ovsdb-client.
    """

    def __init__(self, places: OvnPlaces, *, tls_options: Sequence[str] = (), client: Client | None = None) -> None:
        self._places = places
        self._tls_options = tuple(tls_options)
        self._client = client or _run_client

    def decide(self, trace: Trace, bridge: str) -> OvnDecision | None:
        """See OvnRules."""
        step = ovn_step(trace, bridge)
        if step is None:
            return None
        flow = self._flow(step)
        if flow is None:
            return OvnDecision(step)
        if flow.stage.endswith("_acl_action"):
            step, flow = self._evaluated(trace, step, flow)
        datapath, name = self._datapath(step)
        found = OvnDecision(step, flow, self._north(flow), name)
        return replace(found, port=self._port(trace, found, datapath)) if found.kind is OvnKind.PORT_SECURITY else found

    def admitted_by(self, label: int) -> NorthRow | None:
        """See OvnRules."""
        rows = self._ask(NORTHBOUND, [_select("ACL", [("label", "==", label)])])[0]
        return acl_of(rows[0]) if len(rows) == 1 else None

    def _flow(self, step: TraceStep) -> LogicalFlow | None:
        """The logical flow behind a rule; asked by stage first, which a large cloud answers at once."""
        if not step.cookie:
            return None
        stages = self._queries(step)
        anywhere = [_select("Logical_Flow", [("priority", "==", step.priority)])]
        for queries in (stages, anywhere):
            for rows in self._south(queries) if queries else ():
                if (found := find_flow(rows, step.cookie)) is not None:
                    return found
        return None

    def _queries(self, step: TraceStep) -> list[Query]:
        """What asks for the logical flows that may stand behind a rule, one question a stage."""
        return [
            _select(
                "Logical_Flow",
                [("pipeline", "==", pipeline), ("table_id", "==", table), ("priority", "==", step.priority)],
            )
            for pipeline, table in logical_tables(step)
        ]

    def _evaluated(self, trace: Trace, step: TraceStep, flow: LogicalFlow) -> tuple[TraceStep, LogicalFlow]:
        """Where the ACL was evaluated that this stage carries out; itself where that cannot be found."""
        for one in earlier_steps(trace, step)[:EVALUATED_WITHIN]:
            earlier = self._flow(one)
            if earlier is not None and earlier.is_acl and earlier.hint:
                return one, earlier
        return step, flow

    def _datapath(self, step: TraceStep) -> tuple[str, str]:
        """UUID and name of a rule's logical switch or router."""
        key = datapath_key(step)
        rows = self._south([_select("Datapath_Binding", [("tunnel_key", "==", key)])])[0] if key is not None else []
        names = row_map(rows[0], "external_ids") if rows else {}
        return (row_uuid(rows[0]) if rows else ""), names.get("name2") or names.get("name", "")

    def _port(self, trace: Trace, decision: OvnDecision, datapath: str) -> str:
        """Name of the logical port that a packet is at."""
        key = port_key(trace, decision.step, decision.flow.pipeline) if decision.flow is not None else None
        if key is None or not datapath:
            return ""
        where = [("datapath", "==", ["uuid", datapath]), ("tunnel_key", "==", key)]
        rows = self._south([_select("Port_Binding", where)])[0]
        ids = row_map(rows[0], "external_ids") if rows else {}
        name = rows[0].get("logical_port") if rows and isinstance(rows[0], dict) else ""
        return ids.get("neutron:port_name") or ids.get("name") or (name if isinstance(name, str) else "")

    def _north(self, flow: LogicalFlow) -> NorthRow | None:
        """The ACL, policy, route or QoS rule behind a logical flow."""
        table = north_table(flow)
        if not table:
            return None
        rows = self._ask(NORTHBOUND, [_select(table, north_conditions(flow))])[0]
        found = find_north(rows, flow)
        if found is None or table not in {"ACL", "QoS"}:
            return found
        uuid = ["uuid", found.uuid]
        queries = [_select("Logical_Switch", [("acls" if table == "ACL" else "qos_rules", "includes", uuid)])]
        if table == "ACL":
            queries.append(_select("Port_Group", [("acls", "includes", uuid)]))
        switches, *groups = self._ask(NORTHBOUND, queries)
        return replace(found, owner=owner_of(groups[0] if groups else (), switches))

    def _south(self, queries: Sequence[Query]) -> list[list[object]]:
        return self._ask(SOUTHBOUND, queries)

    def _ask(self, database: str, queries: Sequence[Query]) -> list[list[object]]:
        """The rows that each query finds. Raises HostNotReadyError."""
        remote = self._places.southbound if database == SOUTHBOUND else self._places.northbound
        options = (f"--timeout={TIMEOUT_S}", "--no-leader-only", *self._tls_options)
        text = self._client(["ovsdb-client", *options, "query", remote, json.dumps([database, *queries])])
        try:
            results = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._odd(remote, database, text) from error
        if not isinstance(results, list) or len(results) < len(queries):
            raise self._odd(remote, database, text)
        found = []
        for result in results[: len(queries)]:
            rows = result.get("rows") if isinstance(result, dict) else None
            if not isinstance(rows, list):
                raise self._odd(remote, database, json.dumps(result))
            found.append(rows)
        return found

    def _odd(self, remote: str, database: str, said: str) -> HostNotReadyError:
        return HostNotReadyError(
            f"{database} at {remote}", f"answered {said[:120]!r}", advice="is it a database of OVN 22.03 or newer?"
        )
