"""`python -m mutation`: the mutation score of each backend, as a table and as JSON. Root; brings its labs up itself."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from support.workers import RUN_DIR, World

from mutation.enforcement import BACKENDS
from mutation.score import PACKETS, Score, score


def main() -> int:
    """Returns 1 where a score is not good enough."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("--backend", choices=[*BACKENDS], action="append", help="which (repeatable); all by default")
    parser.add_argument("--count", type=int, default=200, help="mutants a backend")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--packets", type=int, default=PACKETS, help="what a survivor is sent at the least")
    parser.add_argument("--only", default="", help="of the chosen ones try those with this in their names")
    parser.add_argument("--out", type=Path, default=Path("mutation.json"))
    args = parser.parse_args()
    scores: dict[str, Score] = {}
    world = World()  # another lab may be up on this machine
    os.environ["NETPROBE_RUN_DIR"] = str(RUN_DIR)
    try:
        with tempfile.TemporaryDirectory() as place:
            os.environ["NETPROBE_AUDIT"] = f"{place}/audit.jsonl"
            for backend in args.backend or BACKENDS:
                print(f"{backend}: {args.count} mutants, seed {args.seed}", file=sys.stderr, flush=True)
                terms = {"count": args.count, "seed": args.seed, "packets": args.packets, "only": args.only}
                scores[backend] = score(backend, Path(place), **terms, tell=_tell)
                args.out.write_text(json.dumps({name: one.to_json() for name, one in scores.items()}, indent=1) + "\n")
    finally:
        world.close()
    _print(scores)
    return int(any(one.problems() for one in scores.values()))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(scores: dict[str, Score]) -> None:
    print(f"{'backend':8} {'mutants':>8} {'killed':>7} {'equivalent':>11} {'missed':>7} {'score':>8} {'s':>7}")
    for name, one in scores.items():
        missed = len(one.survivors) - one.equivalent
        share = one.killed / max(one.mutants - one.equivalent, 1)
        row = f"{one.mutants:8d} {one.killed:7d} {one.equivalent:11d} {missed:7d} {share:8.1%} {one.seconds:7.0f}"
        print(f"{name:8} {row}")
    for name, one in scores.items():
        for survivor in one.survivors:
            mutant, what = survivor.mutant, survivor.difference or f"equivalent after {survivor.packets} packets"
            print(f"{name}: {mutant.level}, {mutant.kind}: {mutant.name}\n    {what}: {survivor.why}")
        for problem in one.problems():
            print(f"{name}: FAILED: {problem}")


if __name__ == "__main__":
    sys.exit(main())
