"""`python -m mutation`: the mutation score of each backend, as a table and as JSON. Root; brings its labs up itself."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from mutation.elsewhere import score_elsewhere
from mutation.enforcement import ALL, BACKENDS
from mutation.score import PACKETS, score
from netprobe.lab import build, config


def main() -> int:
    """Returns 1 where a score is not good enough."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    names = f"{', '.join(BACKENDS)} by default"
    parser.add_argument("--backend", choices=[*ALL], action="append", help=f"which (repeatable); {names}")
    parser.add_argument("--count", type=int, default=200, help="mutants a backend, equivalent ones not counted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--packets", type=int, default=PACKETS, help="what a survivor is sent at the least")
    parser.add_argument("--only", default="", help="try those with this in their names")
    parser.add_argument("--out", type=Path, default=Path("mutation.json"))
    parser.add_argument("--here", action="store_true", help="this machine has no other lab, nor will have one")
    args = parser.parse_args()
    if args.here:
        return _all_scores(args)
    from support.workers import RUN_DIR, World  # noqa: PLC0415  needs pytest, which a lab's own machine has not

    world = World()  # another lab may be up on this machine
    os.environ["NETPROBE_RUN_DIR"] = str(RUN_DIR)
    try:
        return _all_scores(args)
    finally:
        world.close()


def _all_scores(args):
    """Each backend's score, where it can be had; written down as they come."""
    scores, documents, codes = {}, {}, []
    with tempfile.TemporaryDirectory() as place:
        os.environ["NETPROBE_AUDIT"] = f"{place}/audit.jsonl"
        for backend in args.backend or BACKENDS:
            terms = {"count": args.count, "seed": args.seed, "packets": args.packets, "only": args.only}
            if build.needs_machine(config.load(ALL[backend].lab).shape):
                words = [f"--{name}={value}" for name, value in terms.items()]
                code, there = score_elsewhere(backend, words)
                documents |= there
                codes.append(code)
            else:
                print(f"{backend}: {args.count} mutants, seed {args.seed}", file=sys.stderr, flush=True)
                scores[backend] = score(backend, Path(place), **terms, tell=_tell)
                documents[backend] = scores[backend].to_json()
            args.out.write_text(json.dumps(documents, indent=1) + "\n")
    _print(scores)
    return int(any(codes) or any(one.problems() for one in scores.values()))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(scores):
    if not scores:
        return
    print(f"{'backend':10} {'mutants':>8} {'killed':>7} {'equivalent':>11} {'missed':>7} {'score':>8} {'s':>7}")
    for name, one in scores.items():
        missed = len(one.survivors) - one.equivalent
        share = one.killed / max(one.real, 1)
        row = f"{one.mutants:8d} {one.killed:7d} {one.equivalent:11d} {missed:7d} {share:8.1%} {one.seconds:7.0f}"
        print(f"{name:10} {row}")
    for name, one in scores.items():
        for survivor in one.survivors:
            mutant, what = survivor.mutant, survivor.difference or f"equivalent after {survivor.packets} packets"
            print(f"{name}: {mutant.level}, {mutant.kind}: {mutant.name}\n    {what}: {survivor.why}")
        for problem in one.problems():
            print(f"{name}: FAILED: {problem}")


if __name__ == "__main__":
    sys.exit(main())
