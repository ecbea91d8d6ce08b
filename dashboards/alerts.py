"""Alert rules for Grafana's provisioning: paths, policies, agents, and readings that do not get here.

Each rule is a query, its newest value per series, and a threshold. No data is no alarm, but for a watch that ended.
"""

from dataclasses import dataclass

from netprobe.model.metric_catalogue import AGENT, COUNTER, PATH, SINK, STATE, VERIFICATION

DATASOURCE_UID = "netprobe-influx"
"""As in provisioning/datasources/netprobe.yaml."""

FOLDER = "netprobe"
EVERY = "10s"
SINCE_S = 300
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule.

    Attributes:
        uid: unique and for good.
        query: InfluxQL; one value a series.
        above: it fires beyond that.
        lasting: for how long it must last.
        text: what to tell; `{{ $labels.x }}` are tags.
        no_data: what is to be said without data.
        since_s: how old the newest value may be.
    """

    uid: str
    title: str
    query: str
    above: float
    lasting: str
    text: str
    severity: str = "critical"
    no_data: str = "OK"
    since_s: int = SINCE_S

    def to_json(self) -> dict[str, object]:
        """As Grafana's file provisioning reads it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "condition": "C",
            "for": self.lasting,
            "noDataState": self.no_data,
            "execErrState": "Error",
            "labels": {"severity": self.severity, "source": "netprobe"},
            "annotations": {"summary": self.text},
            "data": [
                {
                    "refId": "A",
                    "datasourceUid": DATASOURCE_UID,
                    "relativeTimeRange": {"from": self.since_s, "to": 0},
                    "model": {
                        "refId": "A",
                        "query": self.query,
                        "rawQuery": True,
                        "resultFormat": "time_series",
                        "datasource": {"type": "influxdb", "uid": DATASOURCE_UID},
                    },
                },
                _expression("B", {"type": "reduce", "expression": "A", "reducer": "last"}),
                _expression(
                    "C",
                    {
                        "type": "threshold",
                        "expression": "B",
                        "conditions": [{"evaluator": {"type": "gt", "params": [self.above]}}],
                    },
                ),
            ],
        }


def _expression(ref: str, model: dict[str, object]) -> dict[str, object]:
    source = {"type": "__expr__", "uid": "__expr__"}
    return {
        "refId": ref,
        "datasourceUid": "__expr__",
        "relativeTimeRange": {"from": SINCE_S, "to": 0},
        "model": {"refId": ref, "datasource": source, **model},
    }


PATH_TAGS = '"plan", "path", "src", "dst"'
ALERTS = (
    Alert(
        "netprobe-unreachable",
        "A path is unreachable",
        f'SELECT last("state_code") FROM "{STATE.name}" WHERE $timeFilter AND "state_code" < 3 GROUP BY {PATH_TAGS}',
        1.5,
        "0s",
        "{{ $labels.src }} does not reach {{ $labels.dst }} ({{ $labels.path }})",
    ),
    Alert(
        "netprobe-degraded",
        "A path is degraded",
        f'SELECT last("state_code") FROM "{STATE.name}" WHERE $timeFilter AND "state_code" < 2 GROUP BY {PATH_TAGS}',
        0.5,
        "1m",
        "{{ $labels.src }} to {{ $labels.dst }} ({{ $labels.path }}) is beyond its limits",
        "warning",
    ),
    Alert(
        "netprobe-unobserved",
        "Nobody sees a path",
        f'SELECT last("unobserved") FROM (SELECT ("state_code" - 2) AS "unobserved" FROM "{STATE.name}" '
        f"WHERE $timeFilter GROUP BY {PATH_TAGS}) GROUP BY {PATH_TAGS}",
        0.5,
        "2m",
        "Nobody can say anything of {{ $labels.src }} to {{ $labels.dst }} ({{ $labels.path }}), or the watch ended",
        "warning",
        "NoData",
    ),
    Alert(
        "netprobe-loss",
        "A path loses more than 1 % for certain",
        f'SELECT last("owloss_low_ratio") FROM "{PATH.name}" WHERE $timeFilter AND "leg" = \'forward\' '
        f"GROUP BY {PATH_TAGS}",
        0.01,
        "1m",
        "{{ $labels.src }} to {{ $labels.dst }} ({{ $labels.path }}) loses more than 1 %",
        "warning",
    ),
    Alert(
        "netprobe-violated",
        "A policy is violated",
        f'SELECT last("violated") FROM "{VERIFICATION.name}" WHERE $timeFilter GROUP BY "policy"',
        0.5,
        "0s",
        "{{ $labels.policy }} is not enforced as it is meant: see the findings",
        since_s=DAY_S,  # nobody proves a policy every five minutes, and it stays violated until a proof says otherwise
    ),
    Alert(
        "netprobe-agent",
        "An agent is away",
        f'SELECT last("away") FROM (SELECT 1 - "connected" AS "away" FROM "{AGENT.name}" WHERE $timeFilter '
        f'GROUP BY "agent") GROUP BY "agent"',
        0.5,
        "1m",
        "The agent {{ $labels.agent }} is not connected: its host is unobserved",
        "warning",
    ),
    Alert(
        "netprobe-overflow",
        "Results are incomplete",
        f'SELECT sum("events") FROM "{COUNTER.name}" WHERE $timeFilter AND "counter" =~ /ring_dropped|shed/ '
        f'GROUP BY "plan"',
        0.5,
        "5m",
        "Frames or reports of {{ $labels.plan }} were shed",
        "warning",
    ),
    Alert(
        "netprobe-readings",
        "Readings were shed",
        f'SELECT last("shed_readings") FROM "{SINK.name}" WHERE $timeFilter GROUP BY "program"',
        0.5,
        "0s",
        "{{ $labels.program }} had no room for readings while this database was away",
        "warning",
    ),
)


def alert_file() -> dict[str, object]:
    """The file for provisioning/alerting."""
    group = {
        "orgId": 1,
        "name": "netprobe",
        "folder": FOLDER,
        "interval": EVERY,
        "rules": [alert.to_json() for alert in ALERTS],
    }
    return {"apiVersion": 1, "groups": [group]}
