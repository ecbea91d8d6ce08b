"""Why a mutant survived, for people. Pure.

A survivor is equivalent because no packet showed a difference; this only says what is known about such mutants.
"""

from mutation.mutants import Mutant
from netprobe.service.verify import VerifyPlan

LACKING = "no scenario sends such a packet"

_REASONS = (
    ("RELATED", "what the port may send or get anyway passes by a rule without a state"),
    ("ct_state=-trk", "what comes from a port without port security is untracked, all else was tracked at its sender"),
    ("ct_state", "the sender's own port stops what has this state, or another flow says the same"),
    ("icmp", "conntrack knows no other types that open a connection, or a rule about all of ICMP says the same"),
    ("--sport", "a rule about everything says the same of the ports beside"),
    ("--dport", "a rule about everything says the same of the ports beside"),
    ("flow gone", "its other side is the port itself, and nobody speaks to itself through the switch"),
    ("port group", "the group's rules decide nothing at that port: the default deny says the same"),
    ("ACL", "another ACL, or the default deny, says the same"),
    ("priority", "nothing that says otherwise stands in between at that port"),
)


def explanation(mutant: Mutant, plan: VerifyPlan, difference: str) -> str:
    """Why it is equivalent, or what the probes lack."""
    if difference:
        return LACKING
    rule = mutant.name.split()[0].removeprefix("[")
    for shadowed, why in plan.cover.shadowed:
        if shadowed == rule:
            return f"rule {rule} never decides: {why}"
    if any(acl.id in mutant.name and not acl.action.allows for acl in plan.policy.acls):
        return "no other rule lets that pass at this port, so the default deny says the same"
    what = f"{mutant.kind} {mutant.name.rpartition(': ')[2]} {mutant.name}"
    return next((why for word, why in _REASONS if word in what), "another rule says the same of all that may be sent")
