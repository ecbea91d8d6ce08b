"""Grafana dashboards, generated: `python -m dashboards.generate` writes what is committed beside this file."""

import warnings

with warnings.catch_warnings():
    # "Prefer dashboardv2": Grafana 11 and 12 do not read that from files, all read this.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import dashboard, heatmap, stat, statetimeline, table, timeseries  # noqa: F401
