"""Tables of docs/metrics.md as the catalogue has them. `python -m support.metric_docs` in tests/ prints them all."""

from netprobe.model.metric_catalogue import CATALOGUE


def section(measurement):
    """One measurement as the page shows it."""
    lines = [f"### `{measurement.name}`", "", f"{measurement.about[0].upper()}{measurement.about[1:]}.", ""]
    lines += ["| tag | what |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in measurement.tags.items()]
    lines += ["", "| field | type | what |", "|---|---|---|"]
    lines += [f"| `{f.name}` | {f.kind.value} | {f.about} |" for f in measurement.fields]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(section(one) for one in CATALOGUE))
