"""How long `netprobe verify` takes for a policy of 1,000 rules over 50 guests, enforced by an Open vSwitch.

From the command to its document: reading the policy, planning, all rounds of probes, what the switch's own tables say
of each packet, and the judgement. The lab enforces the very policy, so anything that is found is an error.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Bench, Figure, at_most, benchmark, measure
from bench.peers.policies import policy_text

NETPROBE = (sys.executable, "-m", "netprobe.cli.main")
GUESTS, RULES = 50, 1000
RATE_PPS = 8_000
LIMIT_S = 30.0


@benchmark("verify_thousand")
def verify_thousand(bench: Bench) -> Figure:
    guests, rules = bench.rounds(GUESTS, 4), bench.rounds(RULES, 16)
    with tempfile.TemporaryDirectory() as place:
        policy = Path(place) / "policy.toml"
        policy.write_text(policy_text(guests, rules), encoding="utf-8")
        subprocess.run(
            [*NETPROBE, "lab", "up", "single", "--config", str(policy), "--json"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            runs = [_verified(policy) for _ in range(bench.rounds(3, 1))]
        finally:
            subprocess.run([*NETPROBE, "lab", "down", "--json"], check=True, stdout=subprocess.DEVNULL)
    took, found = [seconds for seconds, _ in runs], runs[0][1]
    plan, size = found["plan"], found["policy"]
    note = (
        f"{size['rules']} rules, {size['ports']} guests, --rate {RATE_PPS}; {plan['scenarios']} scenarios, "
        f"{found['sent']} packets, {found['counts']['unproven']} unproven; all pairs x all ports: {plan['naive']}"
    )
    return measure(
        took if len(took) > 1 else took * 2,
        unit="s",
        target=at_most(LIMIT_S),
        note=note,
        broken="; ".join(filter(None, (_wrong(document) for _, document in runs))),
    )


def _verified(policy: Path) -> tuple[float, dict[str, Any]]:
    """Seconds, and the document."""
    began = time.perf_counter()
    command = [*NETPROBE, "verify", str(policy), "--rate", str(RATE_PPS), "--json", "--no-store"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return took, dict(json.loads(done.stdout))


def _wrong(document: dict[str, Any]) -> str:
    """Findings; what a small policy cannot prove is none."""
    counts = document["counts"]
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items() if count and kind != "unproven")
