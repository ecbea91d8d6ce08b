"""What a tenant's TCP requests have of 1,000 probes a second on the same ports of a userspace Open vSwitch.

`netprobe bench harm` measures, on a lab of its own, with the governor off. On userspace Open vSwitch only: nothing is
claimed of other datapaths.
"""

import json
import subprocess
import sys

from bench.harness import Bench, Figure, Target, benchmark

RATE_PPS = 1000
MIN_SENT = 0.9
LIMIT = 5.0


@benchmark("tenant_shift")
def tenant_shift(bench: Bench) -> Figure:
    netprobe = (sys.executable, "-m", "netprobe.cli.main")
    subprocess.run([*netprobe, "lab", "up", "single", "--json"], check=True, stdout=subprocess.DEVNULL)
    try:
        measured = subprocess.run(
            [
                *(*netprobe, "bench", "harm", "vm1", "vm3", "--json", "--governor", "off", "--rate", str(RATE_PPS)),
                *("--slices", str(bench.rounds(30)), "--slice", "100ms" if bench.short else "1s"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if measured.returncode not in {0, 1, 4}:
            raise RuntimeError(measured.stderr)
    finally:
        subprocess.run([*netprobe, "lab", "down", "--json"], check=True, stdout=subprocess.DEVNULL)
    document = json.loads(measured.stdout)
    figures = {row["name"]: _figure(row, document) for row in document["metrics"]}
    return figures["rr_p99"].also(figures["rr_p50"], figures["throughput"])


def _figure(row, document) -> Figure:
    """A shift in %, beside the one between two slices without probing. Only the p99 has a target."""
    low, high = (100 * end for end in row["interval_95"])
    noise_low, noise_high = (100 * end for end in row["aa_interval_95"])
    is_judged = row["name"] == "rr_p99"
    sent = document["probing"]["sent_share"]
    scale = (1e-3, "us") if row["unit"] == "ns" else (8e-9, "Gbit/s")
    return Figure(
        value=100 * row["shift"],
        unit="% worse",
        peer="A/A, no probes",
        peer_value=100 * row["aa_shift"],
        ratio=None,
        interval=(low, high),
        target=Target(max(LIMIT, (noise_high - noise_low) / 2), "<=", strict=True) if is_judged else None,
        judged="value",
        slices=document["rounds"],
        label=row["name"],
        note=(
            f"A/A [{noise_low:.1f}, {noise_high:.1f}] %; {row['quiet'] * scale[0]:.3g} -> "
            f"{row['probing'] * scale[0]:.3g} {scale[1]}; {100 * sent:.1f} % of the probes sent"
        ),
        broken=f"only {100 * sent:.1f} % of the probes sent" if is_judged and sent < MIN_SENT else "",
    )
