"""The table, line by line as figures come."""

from collections.abc import Mapping

COLUMNS = (
    f"{'what':18s} {'value':>10s} {'unit':14s} {'peer value':>10s}  {'ratio':>7s}  {'95 % interval':17s} "
    f"{'target':>12s}  "
)


def print_header(machine: str, *, short: bool) -> None:
    print(machine)
    if short:
        print("SHORT: few and short slices; times mean nothing")
    print(f"\n{COLUMNS}peer", flush=True)


def print_figure(key: str, figure: Mapping[str, object], *, took_s: float) -> None:
    print(f"{_line(key, figure)}  ({took_s:.0f} s)", flush=True)
    _print_text(figure)
    others = figure.get("also", ())
    assert isinstance(others, list | tuple)
    for other in others:
        print(_line(f"  {other.get('label', '')}", other), flush=True)
        _print_text(other)


def _line(name: str, figure: Mapping[str, object]) -> str:
    low, high = figure["interval"]  # type: ignore[misc]
    of = "x" if figure["judged"] == "ratio" else ""
    limit = "" if figure["target"] is None else f"{figure['sense']} {_short(figure['target'])}{of}"
    verdict = "" if figure["target"] is None else ("met " if figure["met"] else "MISSED ")
    interval = f"[{_short(low)}, {_short(high)}]"
    return (
        f"{name:18s} {_short(figure['value']):>10s} {figure['unit']!s:14s} {_short(figure['peer_value']):>10s}  "
        f"{_short(figure['ratio']):>7s}  {interval:17s} {limit:>12s}  {verdict}{figure['peer']}"
    )


def _print_text(figure: Mapping[str, object]) -> None:
    for key in ("broken", "note"):
        if figure.get(key):
            print(f"{'':18s} {figure[key]}", flush=True)


def _short(number: object) -> str:
    if number is None:
        return "-"
    value = float(str(number))
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.3g}"
