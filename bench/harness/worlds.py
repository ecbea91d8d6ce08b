"""A world of its own for each benchmark: PID, mount and network namespaces that end with it, whatever happens.

`run_apart` starts `python -m bench.harness.worlds` under unshare(1). That is the init of the new PID namespace: it
starts the benchmark as its child and buries orphans. When it dies, the kernel kills everything in the PID namespace;
then nobody is left to hold the mounts and the namespaces. It is killed when unshare dies, and that when we die.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from bench.harness.context import REGISTER, Bench
from netprobe.errors import NetprobeError
from netprobe.host import iproute

PRIVATE = ("/run/netns", "/run/netprobe", "/var/log/netprobe", "/var/lib/netprobe")

UNSHARE = (
    # Not preexec_fn: a Ctrl-C that meets Python's hooks around a fork is swallowed.
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--pid", "--kill-child", "--mount-proc", "--propagation", "private"),
)


class FailedError(Exception):
    """A benchmark ended without a figure."""


def run_apart(key: str, bench: Bench, *, timeout_s: float) -> dict[str, object]:
    """Run one benchmark in a world of its own.

    Returns:
        The figure, as in results.json.

    Raises:
        FailedError: it gave none; the text says why.
    """
    order = json.dumps({"key": key, "short": bench.short, "cpus": bench.cpus, "seed": bench.seed})
    reader, writer = os.pipe()
    argv = [*UNSHARE, sys.executable, "-m", "bench.harness.worlds", str(writer), order]
    with os.fdopen(reader, "rb") as answers:
        # A session of its own: Ctrl-C is for us, who then end all of it at once.
        child = subprocess.Popen(
            argv, pass_fds=(writer,), stdin=subprocess.DEVNULL, start_new_session=True, env=_environment()
        )
        os.close(writer)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FailedError(f"took longer than {timeout_s:g} s") from None
        finally:
            child.kill()  # and so, by the kernel, everything in the PID namespace
            child.wait()
        text = answers.read()
    answer = json.loads(text) if text else {"failed": f"died with exit code {child.returncode}"}
    if "failed" in answer:
        raise FailedError(str(answer["failed"]))
    return dict(answer["figure"])


def _environment() -> dict[str, str]:
    """The default places, which are private there, and no governor: it would hold back what is to be measured."""
    places = {"NETPROBE_RUN_DIR", "NETPROBE_AUDIT"}
    return {name: value for name, value in os.environ.items() if name not in places} | {"NETPROBE_GOVERNOR": "off"}


def _prepare() -> None:
    for place in PRIVATE:
        Path(place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    # The sysfs of the machine shows the machine's devices; ours shows those of the new network namespace.
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    iproute.batch(["link set lo up"])


def _measure(order: dict[str, object]) -> dict[str, object]:
    import_all()
    cpus = order["cpus"]
    assert isinstance(cpus, list)
    bench = Bench(bool(order["short"]), tuple(cpus), int(str(order["seed"])))
    try:
        return {"figure": REGISTER[str(order["key"])](bench).document()}
    except NetprobeError as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001  whatever it is, the other benchmarks go on
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def import_all() -> None:
    """Import every module of the folder, so that the register is full."""
    for path in sorted(Path(__file__).parent.parent.glob("*.py")):
        if not path.stem.startswith("_"):
            __import__(f"bench.{path.stem}")


def main(writer: int, order: dict[str, object]) -> int:
    """As init: start the benchmark, bury orphans, end with it."""
    child = os.fork()
    if child:
        os.close(writer)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            pid, status = os.wait()
            if pid == child:
                return os.waitstatus_to_exitcode(status)
    os.set_inheritable(writer, False)  # daemons that outlive the benchmark do not keep the pipe open
    _prepare()
    answer = json.dumps(_measure(order)).encode()
    with os.fdopen(writer, "wb") as out:
        out.write(answer)
    return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]), json.loads(sys.argv[2]))
    sys.stdout.flush()
    os._exit(abs(code))
