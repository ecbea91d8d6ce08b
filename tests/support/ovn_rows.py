"""Rows of OVN 23.03.1's databases, recorded on two chassis, and somebody who answers for the databases."""

import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "unit" / "data"
ROWS = json.loads((DATA / "ovn_rows.json").read_text())


def matches(row, condition):
    """A condition of OVSDB's (RFC 7047 §5.1) on a recorded row."""
    column, function, value = condition
    if function == "==":
        return row.get(column) == value
    assert function == "includes"
    there = row.get(column)
    return there == value or (isinstance(there, list) and there[0] == "set" and value in there[1])


class FakeDatabases:
    """Answers as ovsdb-client prints what the databases say, out of recorded rows; remembers what it was asked."""

    def __init__(self, rows=ROWS):
        self.rows = rows
        self.commands = []

    def __call__(self, command):
        self.commands.append(list(command))
        database, *queries = json.loads(command[-1])
        assert database in {"OVN_Southbound", "OVN_Northbound"}
        results = []
        for query in queries:
            if query["table"] == "Logical_Flow":  # the schema's own range, or the whole question is refused
                assert all(0 <= value <= 32 for column, _, value in query["where"] if column == "table_id")
            rows = self.rows.get(query["table"], [])
            results.append({"rows": [row for row in rows if all(matches(row, c) for c in query["where"])]})
        return json.dumps(results)
