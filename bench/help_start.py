"""How long `netprobe --help` takes, beside a Python that imports nothing."""

import subprocess
import sys
import time
from pathlib import Path

from bench.harness import Bench, Figure, at_most, benchmark, measure, pinned

NETPROBE = Path(sys.executable).parent / "netprobe"


@benchmark("help_start")
def help_start(bench: Bench) -> Figure:
    def timed_ms(*argv: object) -> float:
        began = time.perf_counter()
        subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - began) * 1e3

    with pinned(bench.cpus[0]):
        slices = bench.alternate(
            {"own": lambda: timed_ms(NETPROBE, "--help"), "bare": lambda: timed_ms(sys.executable, "-c", "pass")},
            rounds=20,
        )
    return measure(slices["own"], unit="ms", target=at_most(150), peer="python -c pass", peer_values=slices["bare"])
