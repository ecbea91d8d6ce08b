"""Reads what OVN's southbound database wants on a chassis, and what its switch has; judge.ovn_consistency compares.

The server filters: only the stages where policies are enforced are read, not a cloud's million logical flows.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netprobe.host.ovn_flows import NORTHBOUND, Query
from netprobe.host.ovn_rule_index import OvnRuleIndex
from netprobe.host.process import run
from netprobe.judge.ovn_consistency import (
    STAGES,
    Inconsistency,
    Lack,
    LocalPort,
    Southbound,
    WantedFlow,
    compare_flows,
    parse_flows,
)
from netprobe.judge.ovn_flows import NorthRow, acl_of, logical_flow, row_map, row_uuid
from netprobe.model.topology import Host

FLOW_COLUMNS = (
    *("_uuid", "pipeline", "table_id", "priority", "match", "actions", "external_ids"),
    *("logical_datapath", "logical_dp_group"),
)
Row = Mapping[object, object]

SETTLE_S = 0.5
"""A change reaches the switches within milliseconds; what is still not there after this is not on its way."""


@dataclass(frozen=True, slots=True)
class ChassisLack:
    """What a chassis lacks, or has too much.

    Attributes:
        host: the chassis.
        row: the ACL behind it, None where there is none.
    """

    host: str
    found: Inconsistency
    row: NorthRow | None = None

    @property
    def text(self) -> str:
        """For people."""
        rule = f" It is {self.row.title}." if self.row is not None else ""
        return f"{self.host}: {self.found.detail}.{rule}"


def dump_flows(host: Host) -> str:
    """All flows of a host's bridge, as ovs-ofctl prints them without counters.

    Raises:
        HostNotReadyError: the switch does not answer.
    """
    place = f"{host.ovs_rundir}/{host.bridge}.mgmt"
    options = ("-OOpenFlow15", "--no-stats", "--no-names", "--timeout=10")
    return run(["ovs-ofctl", *options, "dump-flows", place])


class OvnConsistency(OvnRuleIndex):
    """Compares chassis with the southbound database. Its arguments are OvnRuleIndex's."""

    def check(self, hosts: Sequence[Host]) -> list[ChassisLack]:
        """What each host's switch lacks, or has too much; what is only on its way there is left out.

        Args:
            hosts: those with a chassis are compared; their switches are on this machine.

        Raises:
            HostNotReadyError: OVN's databases or a switch do not answer.
        """
        first = self._check(hosts)
        if not first:
            return []
        time.sleep(SETTLE_S)
        again = self._check(hosts)
        return [one for one in first if one in again]

    def _check(self, hosts: Sequence[Host]) -> list[ChassisLack]:
        self.begin()
        wanted = self._wanted()
        found: list[ChassisLack] = []
        for host in hosts:
            if host.chassis:
                flows = parse_flows(dump_flows(host))
                for one in compare_flows(wanted, self._ports(host.chassis), flows):
                    row = self._north(one.flow) if one.flow is not None else None
                    found.append(ChassisLack(host.name, one, row))
        return found + self._not_compiled(wanted)

    def _not_compiled(self, wanted: Southbound) -> list[ChassisLack]:
        """ACLs of the northbound database without a logical flow: ovn-northd did not make one."""
        hints = {one.flow.hint for one in wanted.flows}
        holders = [("Logical_Switch", []), ("Port_Group", [("ports", "!=", ["set", []])])]
        queries: list[Query] = [{"op": "select", "table": table, "where": where} for table, where in holders]
        held = {
            uuid
            for rows in self._ask(NORTHBOUND, queries)
            for row in rows
            if isinstance(row, dict)
            for uuid in _uuids(row, "acls")
        }
        found = []
        for row in self._ask(NORTHBOUND, [{"op": "select", "table": "ACL", "where": []}])[0]:
            acl = acl_of(row)
            if acl is not None and acl.uuid in held and acl.uuid[:8] not in hints:
                detail = "no logical flow stands for an ACL: is ovn-northd alive?"
                found.append(ChassisLack("ovn-northd", Inconsistency(Lack.MISSING, detail, ""), acl))
        return found

    def _wanted(self) -> Southbound:
        keys = self._keys()
        groups = {row_uuid(row): _uuids(row, "datapaths") for row in self._rows_of("Logical_DP_Group")}
        flows = []
        for rows in self._south([_of_stage(stage) for stages in STAGES.values() for stage in stages]):
            for row in rows:
                flow = logical_flow(row)
                if flow is not None and isinstance(row, dict):
                    of_group = [one for group in _uuids(row, "logical_dp_group") for one in groups.get(group, ())]
                    datapaths = dict.fromkeys((*_uuids(row, "logical_datapath"), *of_group))
                    flows.append(WantedFlow(flow, tuple(keys[one][0] for one in datapaths if one in keys)))
        return Southbound(
            tuple(flows),
            {_text(row, "name"): _texts(row, "ports") for row in self._rows_of("Port_Group")},
            {_text(row, "name"): _texts(row, "addresses") for row in self._rows_of("Address_Set")},
            dict(keys.values()),
        )

    def _keys(self) -> dict[str, tuple[int, str]]:
        """Tunnel key and name of each logical switch and router, by UUID."""
        found = {}
        for row in self._rows_of("Datapath_Binding"):
            key, names = row.get("tunnel_key"), row_map(row, "external_ids")
            if isinstance(key, int):
                found[row_uuid(row)] = (key, names.get("name2") or names.get("name", ""))
        return found

    def _ports(self, chassis: str) -> list[LocalPort]:
        """Guests' ports on a chassis."""
        keys = self._keys()
        names = {row_uuid(row): _text(row, "name") for row in self._rows_of("Chassis")}
        found = []
        for row in self._rows_of("Port_Binding"):
            here = [names.get(uuid) for uuid in _uuids(row, "chassis")]
            datapath = next(iter(_uuids(row, "datapath")), "")
            key = row.get("tunnel_key")
            if chassis in here and not _text(row, "type") and datapath in keys and isinstance(key, int):
                security = " ".join(_texts(row, "port_security"))
                found.append(LocalPort(_text(row, "logical_port"), row_uuid(row), keys[datapath][0], key, security))
        return found

    def _rows_of(self, table: str) -> list[Row]:
        rows = self._south([{"op": "select", "table": table, "where": []}])[0]
        return [row for row in rows if isinstance(row, dict)]


def _of_stage(stage: str) -> Query:
    condition = ["external_ids", "includes", ["map", [["stage-name", stage]]]]
    return {"op": "select", "table": "Logical_Flow", "where": [condition], "columns": list(FLOW_COLUMNS)}


def _atoms(row: Row, column: str) -> list[object]:
    """A column's values: OVSDB writes one of them without its set (RFC 7047 §5.1)."""
    value = row.get(column)
    if isinstance(value, list) and len(value) == 2 and value[0] == "set" and isinstance(value[1], list):
        return list(value[1])
    return [value]


def _uuids(row: Row, column: str) -> tuple[str, ...]:
    atoms = _atoms(row, column)
    return tuple(str(one[1]) for one in atoms if isinstance(one, list) and len(one) == 2 and one[0] == "uuid")


def _texts(row: Row, column: str) -> tuple[str, ...]:
    return tuple(one for one in _atoms(row, column) if isinstance(one, str))


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    return value if isinstance(value, str) else ""
