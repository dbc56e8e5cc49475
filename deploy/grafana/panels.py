"""Panels, variables and queries as our boards use them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from api.metrics.names import Metric

SELECTOR = 'model_name=~"$model",instance=~"$instance"'
"""What the variables choose; every query is limited to it."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
SHORT, TALL = 4, 8
"""Heights of panels; the width of a board is 24."""
REFRESH = "10s"

Panel = timeseries.Panel | stat.Panel | heatmap.Panel


class Query(NamedTuple):
    """One query of a panel, and what its series are called."""

    expr: str
    legend: str = ""


def read(metric: Metric, *, part: str = "", where: str = "") -> str:
    """Returns the series of a metric.

    part: of a histogram: bucket, sum or count. where: further label matchers.
    """
    name = f"{metric.name}_{part}" if part else metric.name
    return f"{name}{{{','.join(filter(None, (SELECTOR, where)))}}}"


def rate(metric: Metric, *by: str, part: str = "", where: str = "") -> str:
    """Returns the sum of a counter's increase per second, by some labels."""
    series = f"rate({read(metric, part=part, where=where)}[$__rate_interval])"
    return f"sum by ({', '.join(by)}) ({series})" if by else f"sum({series})"


def total(metric: Metric, *by: str) -> str:
    """Returns the sum of a gauge, by some labels."""
    return f"sum by ({', '.join(by)}) ({read(metric)})" if by else f"sum({read(metric)})"


def quantile(share: float, metric: Metric, *by: str) -> str:
    """Returns a quantile of a histogram, linear inside its bucket."""
    buckets = rate(metric, "le", *by, part="bucket")
    return f"histogram_quantile({share:g}, {buckets})"


def mean(metric: Metric, *by: str) -> str:
    """Returns the mean of a histogram's observations."""
    return ratio(rate(metric, *by, part="sum"), rate(metric, *by, part="count"))


def ratio(part: str, whole: str) -> str:
    """Returns one over the other, nothing while the other is 0."""
    return f"{part} / ({whole} > 0)"


def quantiles(metric: Metric) -> list[Query]:
    """Returns the median, the tail and the mean."""
    shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    return [*(Query(quantile(q, metric), name) for name, q in shares), Query(mean(metric), "mean")]


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    width: int = 8,
    stacked: bool = False,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Returns lines over time; stacked: areas that add up."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(width)
        .height(TALL)
        .line_width(1)
        .fill_opacity(60 if stacked else 5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place))
    return panel


def figure(title: str, description: str, query: str, unit: str, *, width: int = 4) -> stat.Panel:
    """Returns one number, with its recent course behind it."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(SHORT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(_target(Query(query), 0))
    )


def distribution(
    title: str, description: str, metric: Metric, unit: str, *, width: int = 12
) -> heatmap.Panel:
    """Returns a histogram's buckets over time."""
    query = Query(rate(metric, "le", part="bucket"), "{{le}}")
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(TALL)
        .calculate(False)
        .with_target(_target(query, 0).format(PromQueryFormat.HEATMAP))
    )


def board(
    name: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[Panel]]]
) -> dashboard.Dashboard:
    """Returns a dashboard of titled rows of panels, with the variables all of ours have."""
    built = (
        dashboard.Dashboard(f"Winnow / {title}")
        .uid(f"winnow-{name}")
        .description(description)
        .tags(["winnow"])
        .readonly()
        .timezone("browser")
        .refresh(REFRESH)
        .time("now-1h", "now")
        .with_variable(
            dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus")
        )
        .with_variable(_values("model", "Model", "model_name", ""))
        .with_variable(_values("instance", "Server", "instance", 'model_name=~"$model"'))
    )
    numbers = count(1)
    for heading, panels in rows:
        built = built.with_row(dashboard.Row(heading).id(next(numbers)))
        for panel in panels:
            built = built.with_panel(panel.id(next(numbers)))
    return built


def _values(name: str, label: str, of: str, among: str) -> dashboard.QueryVariable:
    series = f"winnow_engine_info{{{among}}}" if among else "winnow_engine_info"
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({series}, {of})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".+")
    )


def _target(query: Query, place: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + place))
    )
