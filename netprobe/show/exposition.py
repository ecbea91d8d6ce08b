"""The newest readings as a page for Prometheus, through its client library and with a registry of our own.

Units are base units: fields in ns become seconds. What is counted in each run or window (probes, delays, events) is
added up into counters and histograms, since Prometheus looks when it likes and would miss windows; everything else is a
gauge that shows the newest. Text fields have no place there. Nobody's clock is asked: `now_ns` comes in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netprobe.model.metric_catalogue import CATALOGUE, COUNTER, DELAY_BUCKET, PATH, RUN, SEGMENT
from netprobe.model.metrics import Field, FieldKind, Measurement, Reading, Value
from netprobe.wire.line_protocol import tag_text

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KEEP_NS = 900_000_000_000
"""What was not told of for so long is forgotten: a path that is gone must not look healthy for ever."""

MAX_SERIES = 200_000
"""Of one page: tags and times of so many measurements are kept; new ones are shed beyond that, and counted."""

HISTOGRAM = "netprobe_owdelay_seconds"
SHED = "netprobe_page_shed_series"
LE = "le_ns"

Key = tuple[str, tuple[str, ...]]
"""Measurement, and the values of its tags in the catalogue's order."""

_MEASUREMENTS = {one.name: one for one in CATALOGUE}


@dataclass(slots=True)
class _Series:
    """What is known of one measurement with certain tags.

    Attributes:
        newest: fields as they were last told.
        sums: of those that are added up.
        told_ns: when something was last told of it.
    """

    newest: dict[str, Value] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    told_ns: int = 0


def is_added_up(measurement: Measurement, name: str) -> bool:
    """Whether a field is of the run or window alone, so that its sum over time means something."""
    if measurement in (PATH, SEGMENT, RUN):
        return name.endswith("_probes")
    return measurement in (COUNTER, DELAY_BUCKET)


def exposed_name(measurement: Measurement, one: Field) -> str:
    """The name of a field at Prometheus: base units, and what is added up ends with _total."""
    name = f"{measurement.name}_{one.name}"
    if one.name.endswith("_ns"):
        name = f"{name.removesuffix('_ns')}_seconds"
    return f"{name}_total" if is_added_up(measurement, one.name) else name


class Exposition:
    """The page. `put` readings, ask for `page`; both at once from one thread only."""

    def __init__(self, keep_ns: int = KEEP_NS) -> None:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415  only those pay who serve a page

        self._keep_ns = keep_ns
        self._series: dict[Key, _Series] = {}
        self._shed = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def put(self, readings: Iterable[Reading], now_ns: int) -> None:
        """Take readings.

        Args:
            readings: newer ones replace older ones of the same tags.
            now_ns: CLOCK_REALTIME.
        """
        for reading in readings:
            measurement = _MEASUREMENTS[reading.measurement]
            key = (measurement.name, tuple(tag_text(reading.tags.get(tag, "")) for tag in measurement.tags))
            series = self._series.get(key)
            if series is None:
                if len(self._series) >= MAX_SERIES:
                    self._shed += 1
                    continue
                series = self._series[key] = _Series()
            series.told_ns = now_ns
            series.newest = dict(reading.fields)
            for name, value in reading.fields.items():
                if isinstance(value, int) and is_added_up(measurement, name):
                    series.sums[name] = series.sums.get(name, 0) + value

    def page(self, now_ns: int) -> bytes:
        """The page in Prometheus's text format (CONTENT_TYPE).

        Args:
            now_ns: CLOCK_REALTIME.
        """
        from prometheus_client import generate_latest  # noqa: PLC0415  as above

        self._forget(now_ns)
        return generate_latest(self._registry)

    def _forget(self, now_ns: int) -> None:
        """What nobody told of for long goes; of a histogram all buckets or none.

        A bucket that is seldom hit would take its counts with it, and Prometheus take that for a restart: everything
        that was ever counted would look as if it had come anew.
        """
        told_ns: dict[Key, int] = {}
        for key, series in self._series.items():
            whole = _whole(key)
            told_ns[whole] = max(told_ns.get(whole, 0), series.told_ns)
        for key in [k for k in self._series if now_ns - told_ns[_whole(k)] > self._keep_ns]:
            del self._series[key]

    def collect(self) -> Iterator["Metric"]:
        """Every metric; the registry asks."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  as above

        by_measurement: dict[str, list[tuple[tuple[str, ...], _Series]]] = {}
        for (name, values), series in self._series.items():
            by_measurement.setdefault(name, []).append((values, series))
        for name, rows in sorted(by_measurement.items()):
            measurement = _MEASUREMENTS[name]
            if measurement is DELAY_BUCKET:
                yield _histogram(rows)
                continue
            for one in measurement.fields:
                if one.kind is not FieldKind.TEXT:
                    yield _family(measurement, one, rows)
        yield GaugeMetricFamily(SHED, "Series that the page has no room for", value=self._shed)

    def describe(self) -> list["Metric"]:
        """Nothing is known before it is told; asked when the registry takes this collector."""
        return []


def _whole(key: Key) -> Key:
    """The same for all buckets of one histogram."""
    name, values = key
    if name != DELAY_BUCKET.name:
        return key
    return name, tuple(value for tag, value in zip(DELAY_BUCKET.tags, values, strict=True) if tag != LE)


def _family(measurement: Measurement, one: Field, rows: list[tuple[tuple[str, ...], _Series]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  as above

    is_counter = is_added_up(measurement, one.name)
    kind = CounterMetricFamily if is_counter else GaugeMetricFamily
    family = kind(exposed_name(measurement, one), f"{measurement.about}: {one.about}", labels=list(measurement.tags))
    scale = 1e-9 if one.name.endswith("_ns") else 1
    for values, series in rows:
        value = series.sums.get(one.name) if is_counter else series.newest.get(one.name)
        if isinstance(value, int | float):
            family.add_metric(values, value * scale)
    return family


def _histogram(rows: list[tuple[tuple[str, ...], _Series]]) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415  as above

    tags = list(DELAY_BUCKET.tags)
    at = tags.index(LE)
    by_labels: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for values, series in rows:
        labels = values[:at] + values[at + 1 :]
        by_labels.setdefault(labels, []).append((int(values[at]), series.sums.get("delays", 0)))
    family = HistogramMetricFamily(HISTOGRAM, DELAY_BUCKET.about, labels=[t for t in tags if t != LE])
    for labels, buckets in by_labels.items():
        total, shown = 0, []
        for edge_ns, count in sorted(buckets):
            total += count
            shown.append((repr(edge_ns / 1e9), total))
        family.add_metric(labels, [*shown, ("+Inf", total)], sum_value=None)
    return family
