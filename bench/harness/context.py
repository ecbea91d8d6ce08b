"""What a benchmark gets: processors, slices in alternation, namespaces with a veth pair. And the register."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness.figures import Figure
from netprobe.errors import HostNotReadyError
from netprobe.host import iproute

SHORT_ROUNDS = 2


class MissingToolError(HostNotReadyError):
    """A tool that the benchmark compares with is not here."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(tool, "is not installed", advice=f"apt-get install {package} (scripts/setup does it)")


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark's surroundings.

    Attributes:
        short: few and short slices, whose times nobody judges.
        cpus: processors that may be used, at least one; the last is the first again where there is only one.
        seed: for whatever the benchmark draws.
    """

    short: bool
    cpus: tuple[int, ...]
    seed: int = 1

    def seconds(self, full: float, short: float = 0.1) -> float:
        """How long something takes."""
        return short if self.short else full

    def rounds(self, full: int, short: int = SHORT_ROUNDS) -> int:
        """How many slices of each arm, or how many of anything else."""
        return short if self.short else full

    def alternate(
        self, arms: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: bool = True
    ) -> dict[str, list[float]]:
        """Run arms in alternation: A B B A ..., so that a drift of the machine meets all alike.

        Args:
            arms: each call is one slice and returns its figure.
            rounds: slices an arm; two with `--short`.
            warm_up: run each arm once before, unrecorded.

        Returns:
            Figures of each arm; those at the same index are a pair.
        """
        names = list(arms)
        figures: dict[str, list[float]] = {name: [] for name in names}
        if warm_up and not self.short:
            for name in names:
                arms[name]()
        for turn in range(self.rounds(rounds)):
            for name in names if turn % 2 == 0 else reversed(names):
                figures[name].append(float(arms[name]()))
        return figures

    @contextmanager
    def pair(self, *names: str) -> Iterator[tuple[str, str]]:
        """Two namespaces, joined by a veth pair: device "eth0" in each, MACs 02:00:00:00:00:01 and :02.

        IPv4 10.77.0.1/24 and .2/24 with a permanent neighbour entry, IPv6 off: nothing but the benchmark sends.
        Transmit checksums are real (offload off), so that what is on the wire is what a peer wrote.

        Args:
            names: of the namespaces; "left" and "right" without.
        """
        left, right = names or ("left", "right")
        iproute.add_namespaces((left, right))
        try:
            iproute.batch([f"link add eth0 netns {left} type veth peer name eth0 netns {right}"])
            for own, other, name in ((1, 2, left), (2, 1, right)):
                sysctl = "net.ipv6.conf.all.disable_ipv6=1"
                subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", sysctl], check=True)
                iproute.batch(
                    [
                        f"link set eth0 address 02:00:00:00:00:0{own}",
                        f"addr add 10.77.0.{own}/24 dev eth0",
                        "link set lo up",
                        "link set eth0 up",
                        f"neigh replace 10.77.0.{other} lladdr 02:00:00:00:00:0{other} dev eth0 nud permanent",
                    ],
                    netns=name,
                )
                command = ["ip", "netns", "exec", name, "ethtool", "-K", "eth0", "tx", "off"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            yield left, right
        finally:
            iproute.delete_namespaces((left, right))


Function = Callable[[Bench], Figure]

REGISTER: dict[str, Function] = {}


def benchmark(key: str) -> Callable[[Function], Function]:
    """Register a function under its key in results.json."""

    def register(function: Function) -> Function:
        assert key not in REGISTER, f"two benchmarks are called {key}"
        REGISTER[key] = function
        return function

    return register


@contextmanager
def pinned(*cpus: int) -> Iterator[None]:
    """This thread, and the processes and threads that it starts meanwhile, run on these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin_processes(cpus: Mapping[str, set[int]]) -> None:
    """Pin all threads of the processes whose command lines have a word; a benchmark's PID namespace has no others.

    Args:
        cpus: word -> processors.
    """
    for process in Path("/proc").glob("[0-9]*"):
        command = (process / "cmdline").read_text()
        for word, here in cpus.items():
            if word in command:
                for task in (process / "task").iterdir():
                    os.sched_setaffinity(int(task.name), here)


def run(
    argv: Sequence[str], *, cpu: int | None = None, netns: str = "", timeout_s: float = 60.0, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run a peer to its end, pinned to a processor, in a namespace.

    Raises:
        MissingToolError: the program is not here.
        subprocess.CalledProcessError: it failed, and `check` is on.
    """
    where = ["ip", "netns", "exec", netns] if netns else []
    place = ["taskset", "-c", str(cpu)] if cpu is not None else []
    done = subprocess.run([*where, *place, *argv], capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode in {126, 127} or "failed to execute" in done.stderr:
        raise MissingToolError(argv[0], f"the package with {argv[0]}")
    if check:
        done.check_returncode()
    return done
