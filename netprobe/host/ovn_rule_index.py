"""OVN's rule book for very many questions: what was read once is kept, by the rule's cookie and its stage.

A logical flow and what stands behind it never change under their UUID's beginning; a rule that is not known yet is
asked for. Thousands of traces meet a few hundred rules.
"""

import json
from collections.abc import Sequence

from netprobe.host.ovn_flows import Client, OvnRuleBook, Query
from netprobe.judge.ofproto_trace import Trace, TraceStep
from netprobe.judge.ovn_flows import LogicalFlow, NorthRow, OvnDecision, datapath_key, find_flow
from netprobe.model.topology import OvnPlaces


class OvnRuleIndex(OvnRuleBook):
    """See the module. Not for two threads at once.

    Args:
        places: where OVN's databases are.
        tls_options: as OvnRuleBook's.
        client: as OvnRuleBook's.
    """

    def __init__(self, places: OvnPlaces, *, tls_options: Sequence[str] = (), client: Client | None = None) -> None:
        super().__init__(places, tls_options=tls_options, client=client)
        self._flows: dict[tuple[int, int], LogicalFlow] = {}
        self._rows: dict[str, NorthRow | None] = {}
        self._acl_tables: dict[tuple[int, int | None], bool] = {}
        self._heard: dict[str, list[object]] = {}

    def begin(self) -> None:
        """A new batch: what OVN's databases said may have changed; what a cookie stands for has not."""
        self._heard.clear()

    def admitted(self, trace: Trace, bridge: str) -> OvnDecision | None:
        """The last ACL stage that let a packet pass, with the ACL, if one allowed it; None where it met no ACL stage.

        Args:
            trace: what a switch does with the packet.
            bridge: OVN's integration bridge on that host.

        Raises:
            HostNotReadyError: OVN's databases do not answer.
        """
        steps = [step for step in trace.steps if step.bridge == bridge and datapath_key(step) is not None]
        self._learn(steps)
        for step in reversed(steps):
            if self._acl_tables.get((step.table, datapath_key(step))):
                flow = self._flow(step)
                if flow is not None and flow.is_acl:
                    return OvnDecision(step, flow, self._north(flow), self._datapath(step)[1])
        return None

    def _learn(self, steps: Sequence[TraceStep]) -> None:
        """Which OpenFlow tables are ACL stages in which datapath; asked once for each."""
        unknown = {(s.table, datapath_key(s)): s for s in steps if (s.table, datapath_key(s)) not in self._acl_tables}
        asked = [(key, query) for key, step in unknown.items() for query in self._queries(step)]
        answers = self._south([query for _, query in asked]) if asked else []
        for (key, _query), rows in zip(asked, answers, strict=True):
            found = find_flow(rows, unknown[key].cookie)
            if found is not None:
                self._flows[key[0], unknown[key].cookie] = found
                self._acl_tables[key] = found.is_acl
        for key in unknown:
            self._acl_tables.setdefault(key, False)

    def _flow(self, step: TraceStep) -> LogicalFlow | None:
        key = (step.table, step.cookie)
        if key not in self._flows:
            found = super()._flow(step)
            if found is None and step.cookie and self._heard:
                self._heard.clear()  # it may be newer than what was read
                found = super()._flow(step)
            if found is None:
                return None
            self._flows[key] = found
        return self._flows[key]

    def _north(self, flow: LogicalFlow) -> NorthRow | None:
        if flow.uuid not in self._rows:
            self._rows[flow.uuid] = super()._north(flow)
        return self._rows[flow.uuid]

    def _ask(self, database: str, queries: Sequence[Query]) -> list[list[object]]:
        """As OvnRuleBook's, with what was asked before in this batch."""
        keys = [json.dumps([database, query]) for query in queries]
        new = [(key, query) for key, query in zip(keys, queries, strict=True) if key not in self._heard]
        if new:
            answers = super()._ask(database, [query for _, query in new])
            self._heard.update({key: rows for (key, _), rows in zip(new, answers, strict=True)})
        return [self._heard[key] for key in keys]
