"""The whole exception tree.

An error says who, what value, what is allowed and what to do; its class says whose fault it is, and so the exit code
(docs/json.md): 2 usage or configuration, 3 this host is not ready, 4 no answer, 5 a fault of netprobe itself.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class NetprobeError(Exception):
    """Base of every error that netprobe raises on purpose.

    Args:
        where: who or what the error is about, as the user wrote it: `site.toml: session[2].rate`.
        problem: one clause: what is wrong, with the offending value.
        allowed: what would have been right, interpolated from the constant that the check used.
        advice: the one next step.
    """

    exit_code = 5

    def __init__(self, where: str, problem: str, *, allowed: str = "", advice: str = "") -> None:
        self.where = where
        self.problem = problem
        self.allowed = allowed
        self.advice = advice
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.where}: {self.problem}"
        if self.allowed:
            text += f" (allowed: {self.allowed})"
        if self.advice:
            text += f". {self.advice[0].upper()}{self.advice[1:]}"
        return text if text.endswith((".", "?")) else text + "."


class UsageError(NetprobeError):
    """The caller asked for something that cannot be: a value, a name, a file or a permission is wrong."""

    exit_code = 2


class RefusedError(UsageError):
    """A host's allowlist, a budget or an invariant of design §6a forbids what was asked."""


class HostNotReadyError(NetprobeError):
    """This host lacks a tool, a privilege or a kernel feature, or a system on it does not answer."""

    exit_code = 3


class NoAnswerError(NetprobeError):
    """The question could not be decided: nobody was looking."""

    exit_code = 4


class WireError(NetprobeError):
    """Bytes from outside are not what they claim to be. The only error that a decoder may raise."""

    exit_code = 4

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)


def unknown_name(where: str, name: str, known: Iterable[str], *, kind: str = "name") -> UsageError:
    """A UsageError for a name that does not exist, with the nearest known one as advice."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else ""
    return UsageError(where, f"unknown {kind} {name!r}", allowed=", ".join(names) or "none", advice=advice)
