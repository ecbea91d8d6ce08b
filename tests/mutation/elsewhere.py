"""The same program in a lab's own machine, where this kernel cannot enforce what the mutants are of (`ovs-kernel`)."""

import json
import sys
from collections.abc import Mapping, Sequence

from netprobe.lab import control

OUT = "mutation.json"


def score_elsewhere(backend: str, words: Sequence[str]) -> tuple[int, Mapping[str, object]]:
    """Bring the machine up, run `python -m mutation` there, take the machine down again; what it prints is printed.

    Args:
        backend: which, one whose lab has its name.
        words: further words for the program.

    Returns:
        Its exit code, and its JSON document.
    """
    control.up(backend)
    try:
        control.execute(["netprobe", "lab", "down"], files={}, write=_quiet)  # it makes its own ones
        program = ["python3", "-m", "mutation", "--here", "--backend", backend, "--out", OUT, *words]
        code = control.execute(program, files={}, write=_write)
        document = bytearray()
        got = control.execute(["cat", OUT], files={}, write=lambda fd, data: document.extend(data if fd == 1 else b""))
        assert got == 0, f"{backend}: the program left no result; it exited with {code}"
        return code, json.loads(document)
    finally:
        control.down()


def _quiet(_fd: int, _data: bytes) -> None:
    """What the lab says when it goes is of no interest."""


def _write(fd: int, data: bytes) -> None:
    stream = (sys.stdout if fd == 1 else sys.stderr).buffer
    stream.write(data)
    stream.flush()
