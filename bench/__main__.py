"""Runs the benchmarks, each in a world of its own, prints a table and writes results.json."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness.context import REGISTER, Bench
from bench.harness.report import print_figure, print_header
from bench.harness.worlds import FailedError, import_all, run_apart

RESULTS = Path(__file__).parent / "results.json"

ORDER = (
    "inject_raw_udp",
    "observe_plain",
    "observe_mixed",
    "filter_cost",
    "join_faults",
    "join_clean",
    "chain_bridge",
    "chain_ovs",
    "packet_out",
    "rtt_truth",
    "tenant_shift",
    "verify_thousand",
    "help_start",
)
"""In the order of the data flow; whatever is not named here comes after."""

TIMEOUT_S, SHORT_TIMEOUT_S = 600.0, 60.0
SHORT_AT_A_TIME = 2

Document = dict[str, object]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="netprobe's benchmarks; see docs/performance.md")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one only; may be given again")
    parser.add_argument("--short", action="store_true", help="few and short slices, for CI: times mean nothing")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where results go (default: bench/results.json)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    return parser.parse_args(argv)


def machine() -> str:
    cpus, load = os.cpu_count(), os.getloadavg()[0]
    return f"{cpus} processors, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f} before"


def chosen(only: list[str] | None) -> list[str]:
    rank = {key: place for place, key in enumerate(ORDER)}
    keys = sorted(REGISTER, key=lambda key: (rank.get(key, len(rank)), key))
    unknown = [key for key in only or () if key not in REGISTER]
    if unknown:
        print(f"bench: no benchmark {unknown[0]!r}; there are {', '.join(keys)}", file=sys.stderr)
        raise SystemExit(2)
    return [key for key in keys if not only or key in only]


def figures_of(keys: list[str], bench: Bench) -> Iterator[tuple[str, Document, str, float]]:
    """Name, figure, why there is none, and seconds: one after the other, or two at a time where no time is judged."""

    def one(key: str) -> tuple[str, Document, str, float]:
        began, figure, failure = time.monotonic(), {}, ""
        try:
            figure = run_apart(key, bench, timeout_s=SHORT_TIMEOUT_S if bench.short else TIMEOUT_S)
        except FailedError as error:
            failure = str(error)
        return key, figure, failure, time.monotonic() - began

    if not bench.short:
        yield from map(one, keys)
        return
    with ThreadPoolExecutor(SHORT_AT_A_TIME) as pool:
        yield from pool.map(one, keys)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    import_all()
    keys = chosen(arguments.only)
    if arguments.list:
        print("\n".join(keys))
        return 0
    if os.geteuid():
        print("bench: needs root: it makes network namespaces and packet sockets", file=sys.stderr)
        return 3
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    bench = Bench(arguments.short, cpus if len(cpus) > 1 else cpus * 2)
    results: dict[str, dict[str, object]] = {}
    failures: dict[str, str] = {}
    print_header(machine(), short=arguments.short)
    for key, figure, failure, took_s in figures_of(keys, bench):
        if failure:
            failures[key] = failure
            print(f"{key:18s} no figure: {failure}", flush=True)
        else:
            results[key] = figure
            print_figure(key, figure, took_s=took_s)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    missed = [key for key in results if not results[key]["met"]]
    print(f"\n{len(results)} figures in {arguments.output}; missed: {', '.join(missed) or 'none'}")
    if failures:
        print(f"no figure: {', '.join(failures)}", file=sys.stderr)
        return 3
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nbench: stopped; nothing is left behind", file=sys.stderr, flush=True)
        os._exit(130)  # threads that wait for a benchmark must not be waited for; the kernel ends it with us
