"""What a result says of the governor: how much was held back, when, and why. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from netprobe.model.load import Backoff
from netprobe.model.results import Json
from netprobe.service.collection import Collection

MAX_STEPS = 20
"""Steps that a result tells of, the first ones; how many there were is told."""


def governor_json(collection: Collection, session: int) -> Json | None:
    """What the governor of the sender's host did to a session; None where it did nothing.

    Args:
        collection: of the run.
        session: its number.
    """
    held = collection.sendings[session].held
    steps = [step for part in collection.parts.values() if session in part.sessions for step in part.backoffs]
    return backoffs_json(held, steps)


def backoffs_json(held: int, steps: Sequence[Backoff]) -> Json | None:
    """The same of steps.

    Args:
        held: probes that were held back.
        steps: in order of time.
    """
    if not held and not steps:
        return None
    return {
        "held_back": held,
        "lowest_share": min((step.share for step in steps), default=1.0),
        "changes": len(steps),
        "steps": [{"at_ns": step.at_ns, "share": step.share, "why": step.why} for step in steps[:MAX_STEPS]],
    }


def governor_notes(governor: Mapping[str, Any] | None) -> list[str]:
    """The same in a sentence."""
    if governor is None:
        return []
    share, first = governor["lowest_share"], governor["steps"][:1]
    why = f": {first[0]['why']}" if first else ""
    held = f"{governor['held_back']} probes were held back, which count as unsent"
    return [f"to spare tenants {held}; at the least {100 * share:g} % of what was due was sent{why}"]
