"""What a tenant's TCP requests have of 1,000 probes a second on the same ports of a userspace Open vSwitch.

`netprobe bench harm` measures, on a lab of its own, with the governor off. First as on a hypervisor whose processors
are shared out: tenants and vswitch on one, netprobe (the run and the guests' agents) on the other; that is judged. Then
with nothing pinned, so that all of it fights for two processors; that is reported. On userspace Open vSwitch only:
nothing is claimed of other datapaths.
"""

import json
import subprocess
import sys

from bench.harness import Bench, Figure, Target, benchmark, pin_processes, pinned

NETPROBE = (sys.executable, "-m", "netprobe.cli.main")
RATE_PPS = 1000
MIN_SENT = 0.9
LIMIT = 5.0
ROUNDS, UNPINNED_ROUNDS = 24, 12


@benchmark("tenant_shift")
def tenant_shift(bench: Bench) -> Figure:
    tenants, probing = bench.cpus[:2]
    subprocess.run([*NETPROBE, "lab", "up", "single", "--json"], check=True, stdout=subprocess.DEVNULL)
    try:
        pin_processes({"ovs-vswitchd": {tenants}, "netprobe_agents.guest": {probing}})
        with pinned(probing):
            apart = _harm(bench.rounds(ROUNDS), "--tenant-cpus", str(tenants), short=bench.short)
        pin_processes({word: set(bench.cpus) for word in ("ovs-vswitchd", "netprobe_agents.guest")})
        together = None if bench.short else _harm(UNPINNED_ROUNDS, short=False)
    finally:
        subprocess.run([*NETPROBE, "lab", "down", "--json"], check=True, stdout=subprocess.DEVNULL)
    p50, p99, throughput = (_figure(row, apart) for row in apart["metrics"])
    rows = together["metrics"] if together else ()
    others = (_figure(row, together, label=f"unpinned {row['name']}") for row in rows)
    return p99.also(p50, throughput, *others)


def _harm(rounds: int, *more: str, short: bool):
    """The document of `netprobe bench harm`."""
    words = ("vm1", "vm3", "--json", "--governor", "off", "--rate", str(RATE_PPS), "--slices", str(rounds))
    done = subprocess.run(
        [*NETPROBE, "bench", "harm", *words, "--slice", "100ms" if short else "1s", *more],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in {0, 1, 4}:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def _figure(row, document, label: str = "") -> Figure:
    """A shift in %, beside the one between two slices without probing. Only the p99 of the pinned ones has a target."""
    low, high = (100 * end for end in row["interval_95"])
    noise_low, noise_high = (100 * end for end in row["aa_interval_95"])
    is_judged = row["name"] == "rr_p99" and not label
    sent = document["probing"]["sent_share"]
    scale, unit = (1e-3, "us") if row["unit"] == "ns" else (8e-9, "Gbit/s")
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
        label=label or row["name"],
        note=(
            f"A/A [{noise_low:.1f}, {noise_high:.1f}] %; {row['quiet'] * scale:.3g} -> "
            f"{row['probing'] * scale:.3g} {unit}; {100 * sent:.1f} % of the probes sent"
        ),
        broken=f"only {100 * sent:.1f} % of the probes sent" if sent < MIN_SENT else "",
    )
