"""docs/metrics.md and the catalogue say the same; a field's name says its unit, and tags are no ids."""

from pathlib import Path

import pytest
from support.metric_docs import section

from netprobe.model.metric_catalogue import CATALOGUE
from netprobe.model.metrics import FieldKind

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
UNITS = (
    *("_ns", "_bytes", "_ratio", "_probes", "_packets", "_frames", "_records", "_readings", "_batches", "_findings"),
    *("_points", "_code"),
)
COUNTS = {  # counts of what stands in the name itself, and flags
    *("sessions", "events", "steps", "rounds", "flaps", "guests", "packets", "failures", "delays"),
    *("changed", "failed", "violated", "reachable", "connected", "remarked", "owdelay_samples"),
}


@pytest.mark.parametrize("measurement", CATALOGUE, ids=lambda m: m.name)
def test_the_page_has_the_measurement_as_it_is(measurement):
    """To renew the page: `python -m support.metric_docs` in tests/."""
    assert section(measurement) in PAGE


def test_the_page_has_no_others():
    assert PAGE.count("\n### `") == len(CATALOGUE)


@pytest.mark.parametrize("measurement", CATALOGUE, ids=lambda m: m.name)
def test_names_say_units_and_tags_are_no_ids(measurement):
    for one in measurement.fields:
        assert one.kind is FieldKind.TEXT or one.name.endswith(UNITS) or one.name in COUNTS, one.name
    assert not {"run", "run_id", "uuid", "seq", "number", "cookie"} & measurement.tags.keys()
    names = [f.name for f in measurement.fields]
    assert len(set(names)) == len(names)
    assert not set(names) & measurement.tags.keys()  # InfluxQL could not tell them apart
