"""How far a run is while it lasts: values for whoever shows it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionProgress:
    """One session by now.

    Attributes:
        planned: its probes.
        due: of them, whose time has come; some are still on their way.
        arrived: of them, seen at the last point of the path where anybody looks, or by their answers.
    """

    name: str
    src: str
    dst: str
    planned: int
    due: int
    arrived: int
