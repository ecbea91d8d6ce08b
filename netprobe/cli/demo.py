"""`netprobe demo`: the whole story on a lab of its own, told with the commands that a user would type.

Every step runs the real command line in this process, prints it first, and shows what it prints; nothing is staged. The
demo ends with the lab gone, also when a step fails or the user presses Ctrl-C.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from netprobe.cli import main as command_line
from netprobe.cli.output import print_json
from netprobe.errors import HostNotReadyError
from netprobe.host import netns
from netprobe.service.discovery import state_path

Command = Callable[[Sequence[str]], int]
PROBES = ("--count", "2000", "--rate", "1250")
INTERRUPTED = 130
FAULTY = "vm1.backend..vm2.backend"


class Story:
    """Prints chapters and runs commands; counts what did not come out as told.

    Args:
        run: the command line.
        is_quiet: print nothing and keep what the commands print, for --json.
    """

    def __init__(self, run: Command, *, is_quiet: bool) -> None:
        self._run = run
        self._is_quiet = is_quiet
        self.steps: list[dict[str, object]] = []
        self.surprises: list[str] = []

    def say(self, text: str) -> None:
        """One line of the story."""
        if not self._is_quiet:
            print(text, flush=True)

    def chapter(self, title: str, *lines: str) -> None:
        """A heading with a few sentences."""
        self.say(f"\n\033[1m{title}\033[0m" if os.isatty(1) else f"\n== {title}")
        for line in lines:
            self.say(line)

    def command(self, *words: str, expect: int = 0) -> None:
        """Run one command, with its exit code shown where it is not 0."""
        line = f"netprobe {' '.join(words)}"
        self.say(f"\n$ {line}")
        output = io.StringIO()
        with contextlib.redirect_stdout(output) if self._is_quiet else contextlib.nullcontext():
            code = self._run(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            self.say(f"(exit code {code})")
        if code != expect:
            self.surprises.append(f"{line}: exit code {code}, expected {expect}")
        step: dict[str, object] = {"command": line, "exit_code": code, "expected": expect}
        self.steps.append(step | ({"output": output.getvalue()} if self._is_quiet else {}))


@contextlib.contextmanager
def _own_places() -> Iterator[Path]:
    """A store and an audit log of the demo's own: it leaves nothing in the machine's."""
    with tempfile.TemporaryDirectory(prefix="netprobe-demo-") as folder:
        before = os.environ.get("NETPROBE_AUDIT")
        os.environ["NETPROBE_AUDIT"] = str(Path(folder) / "audit.jsonl")
        try:
            yield Path(folder) / "demo.duckdb"
        finally:
            if before is None:
                del os.environ["NETPROBE_AUDIT"]
            else:
                os.environ["NETPROBE_AUDIT"] = before


def _tell(story: Story, store: Path) -> None:
    keep = ("--store", str(store))
    story.chapter(
        "1. A lab comes up",
        "One hypervisor with its own Open vSwitch, three guests and a bypass NIC, each in a network namespace;",
        "security groups are conntrack flows in the switch. vm1 -> vm2 crosses: guest, its port, the switch, guest.",
    )
    story.command("lab", "up")
    story.chapter(
        "2. One path from three vantages",
        "Marked probes go in inside the guest, through the bypass NIC, and by OpenFlow packet-out at the switch.",
        "Each is seen at every point that it passes: one row a segment, what it lost and how long it took.",
    )
    for vantage in ("guest", "bypass", "vswitch"):
        story.command("trace", "vm1", "vm2", "--vantage", vantage, *PROBES, *keep)
    story.chapter(
        "3. A fault that netprobe is not told about",
        "A relay in one segment delays everything by 300 us and drops 2 %. netprobe compares with what it measured",
        "before, and says which segment changed, and by how much.",
    )
    story.command("lab", "fault", "set", FAULTY, "--delay", "300us", "--loss", "2%", "--seed", "7")
    story.command("trace", "vm1", "vm2", *PROBES, "--tmax", "300ms", "--compare", *keep)
    story.command("lab", "fault", "clear")
    story.chapter(
        "4. A packet that a security group drops",
        "vm2's groups let TCP 80 in, and nobody lets 8080 in. netprobe says where it ends and by which rule,",
        "and proves it: bursts in a secret pattern, and the rule's counter follows. Exit code 1: the answer is no.",
    )
    story.command(
        "trace", "vm1", "vm2", "--proto", "tcp", "--dport", "8080", "--vantage", "vswitch",
        "--rate", "1000", "--tmax", "300ms", *keep, expect=1,
    )  # fmt: skip
    story.chapter("5. Nothing is left behind")


def run(args: argparse.Namespace) -> int:
    """Tell the story; 0 when every step came out as told."""
    if state_path().exists():
        raise HostNotReadyError("netprobe demo", "a lab is up already", advice="run `netprobe lab down` first")
    story = Story(command_line.main, is_quiet=args.json)
    started = time.monotonic()
    with _own_places() as store:
        try:
            _tell(story, store)
        finally:
            story.command("lab", "down")
    left = [name for name in ("hv1", "vm1", "vm2", "vm3") if netns.exists(name)]
    seconds = time.monotonic() - started
    story.say(f"namespaces left: {', '.join(left) or 'none'}; the demo took {seconds:.0f} s")
    for surprise in story.surprises:
        story.say(f"not as told: {surprise}")
    if args.json:
        print_json({"steps": story.steps, "surprises": story.surprises, "left": left, "seconds": round(seconds, 1)})
    return 1 if story.surprises or left else 0
