"""Panels and queries, a little shorter than Grafana's SDK says them. dashboards.boards, above, puts them together.

Queries are InfluxQL, the one language that InfluxDB 1.8, 2 and 3 have in common. Names that clouds give (guests, paths)
stand in queries as '$variable' only, never within a regular expression: they may hold what they like.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog import builder, variants
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models import heatmap as heatmap_model

from netprobe.model.metrics import Measurement

DATASOURCE = common.DataSourceRef(type_val="influxdb", uid="${datasource}")
RED, ORANGE, YELLOW, GREEN, GREY = "red", "orange", "yellow", "green", "#8e8e8e"
STATES = {"0": ("reachable", GREEN), "1": ("degraded", ORANGE), "2": ("unreachable", RED), "3": ("unobserved", GREY)}
YES_NO = {"0": ("no", RED), "1": ("yes", GREEN)}
LOSS_STEPS = ((None, "transparent"), (0, GREEN), (0.0001, YELLOW), (0.01, ORANGE), (0.1, RED))
"""The first one is for what is not known: an empty cell must not be green."""

NONE_STEPS = ((None, GREEN), (1, RED))
"""Of what should be none: red from one on."""

GAP_MS = 30_000
"""Points that are further apart are not connected: nothing was measured between them, or it was infinite."""

PATH_URL = (
    "/d/netprobe-path?${__url_time_range}&${datasource:queryparam}"
    "&var-src=${__data.fields.src:percentencode}&var-dst=${__data.fields.dst:percentencode}"
)
MATRIX_URL = (
    "/d/netprobe-path?${__url_time_range}&${datasource:queryparam}"
    "&var-src=${__data.fields[0]:percentencode}&var-dst=${__field.name:percentencode}"
)


@dataclass(frozen=True, slots=True)
class InfluxQuery(variants.Dataquery, builder.Builder["InfluxQuery"]):
    """A query of Grafana's InfluxDB data source, which the SDK does not know.

    Attributes:
        text: InfluxQL, with Grafana's macros and variables.
        alias: of each series, with `$tag_<name>` and `$col`.
        is_table: rows and columns instead of series.
    """

    text: str
    alias: str = ""
    is_table: bool = False
    ref: str = "A"

    def build(self) -> "InfluxQuery":
        """It is its own builder."""
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana's data source reads it."""
        found: dict[str, object] = {
            "refId": self.ref,
            "datasource": DATASOURCE,
            "query": self.text,
            "rawQuery": True,
            "resultFormat": "table" if self.is_table else "time_series",
        }
        return found | ({"alias": self.alias} if self.alias else {})


def rows(text: str) -> InfluxQuery:
    """A query whose result is a table."""
    return InfluxQuery(text, is_table=True)


def select(what: str, source: Measurement | str, where: str, *by: str, each: bool = False, then: str = "") -> str:
    """A query.

    Args:
        what: fields and functions of them.
        source: a measurement, or another query.
        where: conditions.
        by: tags that tell series apart.
        each: a point each interval; where there is none, nothing is filled.
        then: what follows.
    """
    inner = f"({source})" if isinstance(source, str) else f'"{source.name}"'
    groups = [*(["time($__interval)"] if each else []), *(f'"{tag}"' for tag in by)]
    text = f"SELECT {what} FROM {inner} WHERE {where}" + (f" GROUP BY {', '.join(groups)}" if groups else "")
    return text + (" fill(none)" if each else "") + (f" {then}" if then else "")


def _steps(steps: Sequence[tuple[float | None, str]]) -> dashboard_builder.ThresholdsConfig:
    found = [dashboard.Threshold(value=value, color=color) for value, color in steps]
    return dashboard_builder.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(found)


def words_of(texts: Mapping[str, tuple[str, str]]) -> list[dashboard.ValueMapping]:
    """Values that are shown as words, with a colour."""
    options = {
        value: dashboard.ValueMappingResult(text=text, color=color, index=i)
        for i, (value, (text, color)) in enumerate(texts.items())
    }
    return [dashboard.ValueMap(options=options)]


def _value(name: str, value: object) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val=name, value=value)


def column(**properties: object) -> list[dashboard.DynamicConfigValue]:
    """Properties of one column; `cell` is its background colour, `width` in pixels, `link` a URL.

    Args:
        properties: those three, and all others of a field (unit, decimals, mappings, thresholds, displayName).
    """
    found = []
    for name, value in properties.items():
        if name == "cell":
            found.append(_value("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
        elif name == "width":
            found.append(_value("custom.width", value))
        elif name == "link":
            found.append(_value("links", [{"title": "Open the path", "url": value}]))
        elif name == "steps":
            assert isinstance(value, Sequence)
            steps = [{"value": low, "color": color} for low, color in value]
            found.append(_value("thresholds", {"mode": "absolute", "steps": steps}))
        else:
            found.append(_value(name, value))
    return found


def _place(panel: Any, title: str, about: str, queries: Sequence[InfluxQuery], size: tuple[int, int]) -> Any:
    """What all panels have: title, description, data and size (of 24 columns; rows)."""
    width, height = size
    panel = panel.title(title).description(about).datasource(DATASOURCE).span(width).height(height)
    return panel.targets(list(queries))


def number(title: str, about: str, query: InfluxQuery, **extra: Any) -> stat.Panel:
    """One number, "0" where there are no rows.

    Args:
        title: of the panel.
        about: what it says.
        query: whose last value is shown.
        extra: `steps`, `unit`, `mappings`, `size`, `calc`, `none` (what to show without rows), `since` (how far back it
            looks, whatever the dashboard's time).
    """
    panel = _place(stat.Panel(), title, about, [query], extra.get("size", (4, 4)))
    reduce = common_builder.ReduceDataOptions().calcs([extra.get("calc", "lastNotNull")]).fields("").values(False)
    panel = panel.reduce_options(reduce).graph_mode(common.BigValueGraphMode.NONE)
    panel = panel.color_mode(common.BigValueColorMode.BACKGROUND).thresholds(_steps(extra.get("steps", NONE_STEPS)))
    panel = panel.no_value(extra.get("none", "0")).unit(extra.get("unit", "short"))
    panel = panel.time_from(extra["since"]) if "since" in extra else panel
    return panel.mappings(words_of(extra["mappings"])) if "mappings" in extra else panel


def grid(title: str, about: str, queries: Sequence[InfluxQuery], **extra: Any) -> table.Panel:
    """A table.

    Args:
        title: of the panel.
        about: what it says.
        queries: whose rows are shown.
        extra: `columns` (properties by name), `regexp` (a pattern of names, and their properties), `hide`, `order` (the
            first columns), `sort` (column, largest first), `transform` (in place of hiding and ordering), `size`.
    """
    panel = _place(table.Panel(), title, about, queries, extra.get("size", (24, 8)))
    for one in extra.get("transform", ()):
        panel = panel.with_transformation(one)
    hidden = dict.fromkeys(extra.get("hide", ("Time",)), True)
    if not extra.get("transform"):
        panel = panel.with_transformation(organised(hidden, extra.get("order", ())))
    if "sort" in extra:
        panel = panel.with_transformation(
            dashboard.DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": extra["sort"], "desc": True}]})
        )
    columns = {"Time": column(width=180), **extra.get("columns", {})}
    for name, properties in columns.items():
        panel = panel.override_by_name(name, properties)
    if "regexp" in extra:
        pattern, properties = extra["regexp"]
        panel = panel.override_by_regexp(pattern, properties)
    return panel.no_value(extra.get("none", ""))


def organised(hidden: Mapping[str, bool], order: Sequence[str]) -> dashboard.DataTransformerConfig:
    """A table without some columns, some others first."""
    options = {
        "excludeByName": dict(hidden),
        "indexByName": {name: i for i, name in enumerate(order)},
        "renameByName": {},
    }
    return dashboard.DataTransformerConfig(id_val="organize", options=options)


def matrix(value: str) -> dashboard.DataTransformerConfig:
    """Rows with src, dst and a value become a matrix: source x destination."""
    return dashboard.DataTransformerConfig(
        id_val="groupingToMatrix",
        options={"rowField": "src", "columnField": "dst", "valueField": value, "emptyValue": "null"},
    )


def curves(title: str, about: str, queries: Sequence[InfluxQuery], **extra: Any) -> timeseries.Panel:
    """Curves over time.

    Args:
        title: of the panel.
        about: what it says.
        queries: each series is one curve.
        extra: `unit`, `size`, `band` (upper, lower: the area between two curves is filled), `points` (no lines),
            `bars`, `min`, `max`.
    """
    panel = _place(timeseries.Panel(), title, about, queries, extra.get("size", (12, 8)))
    legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs([]))
    tooltip = common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING)).unit(extra.get("unit", "short"))
    style = common.GraphDrawStyle.POINTS if "points" in extra else common.GraphDrawStyle.LINE
    panel = panel.draw_style(common.GraphDrawStyle.BARS if "bars" in extra else style)
    panel = panel.line_width(1).fill_opacity(60 if "bars" in extra else 0).point_size(5).insert_nulls(GAP_MS)
    panel = panel.show_points(common.VisibilityMode.AUTO)
    panel = panel.color_scheme(dashboard_builder.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
    if "min" in extra:
        panel = panel.min(extra["min"])
    if "max" in extra:
        panel = panel.max(extra["max"])
    if "band" in extra:
        upper, lower = extra["band"]
        thin = [_value("custom.lineWidth", 0), _value("custom.showPoints", "never")]
        panel = panel.override_by_name(
            upper, [*thin, _value("custom.fillBelowTo", lower), _value("custom.fillOpacity", 20)]
        ).override_by_name(lower, thin)
    return panel


def bands(title: str, about: str, query: InfluxQuery, **extra: Any) -> statetimeline.Panel:
    """States over time, a row each.

    Args:
        title: of the panel.
        about: what it says.
        query: whose values `mappings` has words for.
        extra: `mappings`, `size`.
    """
    panel = _place(statetimeline.Panel(), title, about, [query], extra.get("size", (24, 6)))
    legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    legend = legend.placement(common.LegendPlacement.BOTTOM).calcs([])
    panel = panel.legend(legend).show_value(common.VisibilityMode.NEVER).merge_values(True).row_height(0.9)
    return panel.mappings(words_of(extra["mappings"])).thresholds(_steps(((None, GREEN),)))


def heat(title: str, about: str, query: InfluxQuery, **extra: Any) -> heatmap.Panel:
    """A heat map of buckets: each series is a row, named by its upper edge.

    Args:
        title: of the panel.
        about: what it says.
        query: a series a bucket.
        extra: `unit`, `size`.
    """
    panel = _place(heatmap.Panel(), title, about, [query], extra.get("size", (24, 9)))
    colors = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Turbo").steps(64)
    colors = colors.exponent(0.5).fill("dark-orange").reverse(False)
    axis = heatmap.YAxisConfig().unit(extra.get("unit", "ns")).axis_placement(common.AxisPlacement.LEFT).reverse(False)
    panel = panel.calculate(False).color(colors).y_axis(axis).cell_gap(0)
    panel = panel.rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.LE).value("delays"))
    panel = panel.show_legend().show_value(common.VisibilityMode.NEVER)
    tooltip = heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True)
    return panel.tooltip(tooltip.show_color_scale(False))
