"""What a benchmark needs: see bench/__init__.py. Knows no benchmark."""

from bench.harness.context import Bench, MissingToolError, benchmark, pin_processes, pinned, run
from bench.harness.figures import Figure, Target, at_least, at_most, compare, measure

__all__ = [
    "Bench",
    "Figure",
    "MissingToolError",
    "Target",
    "at_least",
    "at_most",
    "benchmark",
    "compare",
    "measure",
    "pin_processes",
    "pinned",
    "run",
]
