"""What a user can do to a lab: up, down, status, exec, move, fault set, fault clear. One at a time, under a lock.

The command line (netprobe.cli) and the tests call this module and nothing else of the package. What the functions
return is plain and can go out as JSON.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.lab import (
    build,
    config,
    faults,
    health,
    hypervisor,
    journal,
    layout,
    moving,
    shapes,
    state,
    teardown,
    topology,
)

SCHEMA = 1
INSIDE = "order it there: `netprobe lab exec netprobe ...`"


@dataclass(frozen=True, slots=True)
class LabStatus:
    """What is known about the lab.

    Attributes:
        is_up: whether there is one, complete or not.
        problems: what is broken in it, for people; a lab with problems is not healthy.
        was_up: it was up already, so nothing was done.
        repaired: what was broken and led to its being built again.
        seconds: how long `up` took.
        state: the document of the state file (docs/lab.md), empty when no lab is up.
        counters: what each relay counted, by the port that it stands in.
    """

    is_up: bool
    problems: tuple[str, ...] = ()
    was_up: bool = False
    repaired: tuple[str, ...] = ()
    seconds: float = 0.0
    state: dict[str, object] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Up, and nothing is broken."""
        return self.is_up and not self.problems

    def to_json(self) -> dict[str, object]:
        """The document of `netprobe lab status --json`: the state file's keys and, next to them, what was found."""
        found: dict[str, object] = {"schema": SCHEMA, "up": self.is_up, "healthy": self.is_healthy}
        found |= {"problems": list(self.problems), "was_up": self.was_up, "repaired": list(self.repaired)}
        return {**self.state, **found, "seconds": round(self.seconds, 3), "counters": self.counters}


@dataclass(frozen=True, slots=True)
class DownResult:
    """What `down` did.

    Attributes:
        was_up: whether there was anything to remove.
        left_alone: what looked like the lab's and wasn't.
    """

    was_up: bool
    left_alone: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The document of `netprobe lab down --json`."""
        return {"schema": SCHEMA, "was_up": self.was_up, "left_alone": list(self.left_alone)}


@dataclass(frozen=True, slots=True)
class FaultResult:
    """Faults that were put in or taken out, as in the state file, and the segment whose relay had to go for it."""

    faults: tuple[dict[str, object], ...]
    replaced: str = ""

    def to_json(self) -> dict[str, object]:
        """The document of `netprobe lab fault ... --json`."""
        return {"schema": SCHEMA, **asdict(self), "faults": list(self.faults)}


@dataclass(frozen=True, slots=True)
class MoveResult:
    """What `move` did: the guest, and the hypervisors that it was on and is on; the same when it was there already."""

    guest: str
    old_host: str
    new_host: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The document of `netprobe lab move --json`."""
        return {
            "schema": SCHEMA,
            "guest": self.guest,
            "from": self.old_host,
            "to": self.new_host,
            "seconds": round(self.seconds, 3),
        }


def up(name: str = "single", *, config_path: Path | None = None, with_agents: bool = True) -> LabStatus:
    """Make the lab, unless it is up and healthy already; a broken one is removed and made again, without its faults.

    Args:
        name: which lab.
        config_path: groups and guests instead of those that ship with it.
        with_agents: start the guest agents; a lab in a machine of its own has none.

    Raises:
        UsageError: no such lab, or its configuration is wrong, or another lab or configuration is up.
        HostNotReadyError: not root, a tool is missing, a namespace of that name is somebody else's, or a step failed
            (then what was made is gone again).
    """
    began = time.monotonic()
    wanted = config.load(name, config_path)
    build.check_host(wanted.shape)
    places = state.Places.from_environment()
    repaired: list[str] = []
    with journal.locked(places.lock):
        old = state.load(places.state)
        if old is not None:
            if old.name != name:
                raise UsageError(f"lab {name}", f"lab {old.name} is up", advice="run `netprobe lab down` first")
            repaired = health.problems(old, places)
            if not repaired:
                _refuse_other(old, wanted, config_path)
                return _status(old, was_up=True, seconds=time.monotonic() - began)
            teardown.tear_down(old, places)
        try:
            if build.needs_machine(wanted.shape):
                made = hypervisor.build(wanted, config_path, places)
            else:
                made = build.build(wanted, places, with_agents=with_agents)
        except BaseException:
            _undo(places)
            raise
        seconds = time.monotonic() - began
        return LabStatus(True, repaired=tuple(repaired), seconds=seconds, state=made.to_json())


def _undo(places: state.Places) -> None:
    half = state.load(places.state)
    if half is not None:
        teardown.tear_down(half, places)
    teardown.forget_lock(places)


def _refuse_other(old: state.State, wanted: config.LabConfig, config_path: Path | None) -> None:
    """A lab that is up is not changed: say so when it was made from something else than what is asked for now.

    Where guests are does not count, since they may have been moved.
    """
    if config_path is None:
        return
    asked, there = ([replace(end, host="") for end in ends] for ends in (topology.endpoints(wanted), old.endpoints))
    if (asked, build.rules_of(wanted)) != (there, old.rules):
        raise UsageError(f"lab {old.name}", "is up with another configuration", advice="run `netprobe lab down` first")


def down() -> DownResult:
    """Remove the lab, in whatever state it is; fine when there is none.

    Raises:
        HostNotReadyError: not root, or something cannot be removed.
    """
    build.check_host()
    places = state.Places.from_environment()
    if not places.base.exists():
        return DownResult(was_up=False)
    with journal.locked(places.lock):
        old = state.load(places.state)
        left = [] if old is None else teardown.tear_down(old, places)
        teardown.remove_files(places)
        teardown.forget_lock(places)
    return DownResult(old is not None, tuple(left))


def status() -> LabStatus:
    """What is up, and whether it is healthy. Takes no lock: it only looks.

    Raises:
        HostNotReadyError: not root, or the state file is not of this netprobe.
    """
    build.check_host()
    places = state.Places.from_environment()
    old = state.load(places.state)
    return LabStatus(is_up=False) if old is None else _status(old, problems=health.problems(old, places))


def _status(
    old: state.State,
    *,
    was_up: bool = False,
    problems: list[str] | None = None,
    seconds: float = 0.0,
) -> LabStatus:
    counters = {fault.splice.port: _counters(Path(fault.counters)) for fault in old.faults}
    return LabStatus(True, tuple(problems or ()), was_up, seconds=seconds, state=old.to_json(), counters=counters)


def _counters(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(value) for name, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}


def needs_machine(name: str) -> bool:
    """Whether a lab is brought up in a machine of its own on this host, which takes half a minute; of no lab, no."""
    return name in shapes.SHAPES and build.needs_machine(shapes.SHAPES[name])


def execute(words: Sequence[str], *, files: Mapping[str, bytes], write: hypervisor.Write) -> int:
    """Run a command in the machine that a lab is in (lab `ovs-kernel`).

    Args:
        words: the command.
        files: what is put into the folder that it runs in, by name.
        write: takes what it writes, as it comes: 1 (standard output) or 2, and octets.

    Returns:
        Its exit code.

    Raises:
        UsageError: the lab is in no machine of its own.
        HostNotReadyError: no lab is up, its machine has ended, or another command is under way there.
    """
    build.check_host()
    places = state.Places.from_environment()
    old = state.load(places.state)
    if old is None or not old.is_complete:
        raise HostNotReadyError("lab", "is not up", advice="run `netprobe lab up`")
    if not old.machine:
        raise UsageError(f"lab {old.name}", "is in no machine of its own", advice="run the command here")
    return hypervisor.run(old, places, words, write=write, files=files)


@contextmanager
def _complete_lab() -> Iterator[tuple[state.State, state.Places]]:
    """The lab, locked, and fit to be changed."""
    build.check_host()
    places = state.Places.from_environment()
    advice = "run `netprobe lab up`"
    if not places.state.exists():
        raise HostNotReadyError("lab", "is not up", advice=advice)
    with journal.locked(places.lock):
        old = state.load(places.state)
        if old is None:
            raise HostNotReadyError("lab", "is not up", advice=advice)
        if old.machine:
            raise UsageError(f"lab {old.name}", "is in a machine of its own", advice=INSIDE)
        broken = health.problems(old, places)
        if broken:
            raise HostNotReadyError("lab", f"is broken: {'; '.join(broken)}", advice=f"{advice}, which rebuilds it")
        yield old, places


def move(guest: str, host: str) -> MoveResult:
    """Move a running guest to another hypervisor; fine when it is there already.

    Args:
        guest: its name.
        host: the hypervisor's name.

    Raises:
        UsageError: no such guest or hypervisor, or a fault that knows where the guest is has not been cleared.
        HostNotReadyError: no healthy lab is up, or a step failed (then the lab is broken, and `up` repairs it).
    """
    began = time.monotonic()
    with _complete_lab() as (lab, places):
        old_host = moving.move(lab, places, guest, host)
        return MoveResult(guest, old_host, host, time.monotonic() - began)


def fault_set(
    segment: str,
    *,
    delay_ns: int = 0,
    jitter_ns: int = 0,
    loss: float = 0.0,
    duplicate: float = 0.0,
    reorder: float = 0.0,
    seed: int = 0,
    share: float = 1.0,
    expose: bool = False,
) -> FaultResult:
    """Put a fault into a segment, in its direction alone. One relay a port: setting again replaces what is there.

    Args:
        segment: its id, as in `netprobe lab status`.
        delay_ns: added delay, ns.
        jitter_ns: the delay is uniform in [delay - jitter, delay + jitter], never below 0; the order is kept.
        loss: fraction dropped, 0-1.
        duplicate: fraction sent twice, 0-1.
        reorder: fraction held back by 3 ms more, 0-1.
        seed: of all draws.
        share: fraction of the frames that is delayed at all, 0-1.
        expose: the relay becomes a segment of its own, with a point on each side.

    Raises:
        UsageError: an unknown segment, one that no relay can stand in, or a number out of range.
        HostNotReadyError: no healthy lab is up, or the relay cannot be put in.
    """
    spec = layout.FaultSpec(delay_ns, jitter_ns, loss, duplicate, reorder, seed, share, expose)
    with _complete_lab() as (lab, places):
        before = {fault.splice.port: fault.splice.segment for fault in lab.faults}
        record = faults.put(lab, places, segment, spec)
        entry = lab.fault_json(record.splice.port)
        return FaultResult((entry,), before.get(record.splice.port, ""))


def fault_clear(segment: str | None = None) -> FaultResult:
    """Take a fault out, or all of them; the ports are as they were before. Truth logs stay until `down`.

    Args:
        segment: its id, None for all.

    Raises:
        UsageError: no fault is in that segment.
        HostNotReadyError: no healthy lab is up, or a port does not move back.
    """
    with _complete_lab() as (lab, places):
        gone = []
        for record in faults.chosen(lab, segment):
            gone.append(lab.fault_json(record.splice.port))
            faults.take_out(lab, places, record)
        return FaultResult(tuple(gone))
