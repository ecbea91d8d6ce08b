"""`netprobe` as users run it: a process of its own."""

import json
import subprocess
import sys

COMMAND = (sys.executable, "-m", "netprobe.cli.main")


def start(*words):
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def traced(*words, timeout_s=60):
    """The JSON document of `netprobe trace vm1 vm2 ...`."""
    command = [*COMMAND, "trace", "vm1", "vm2", *words, "--no-store", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
