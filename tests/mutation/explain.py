"""Why a mutant survived, for people. Pure."""

from mutation.mutants import Mutant
from netprobe.service.verify import VerifyPlan


def explanation(mutant: Mutant, plan: VerifyPlan, difference: str) -> str:
    """Why it is equivalent, or what the probes lack."""
    rule = mutant.name.split()[0].removeprefix("[")
    for shadowed, why in plan.cover.shadowed:
        if shadowed == rule:
            return f"rule {rule} never decides: {why}"
    if difference:
        return "no scenario sends such a packet"
    return "another rule says the same of every packet that these ports may send"
