"""Runs of `netprobe verify` as other programs use it, and labs that enforce the policy of 40 rules."""

import json
import subprocess
import sys
from contextlib import contextmanager

from support.policy_texts import forty_file

from netprobe.lab import control

COMMAND = [sys.executable, "-m", "netprobe.cli.main", "verify"]
WORSE = ("leak", "overblock", "wrong place", "divergence")


@contextmanager
def forty_lab(name, place):
    """A lab that enforces the 40 rules, and the policy's file."""
    path = forty_file(place, name)
    control.down()
    control.up(name, config_path=path, with_agents=False)
    try:
        yield path
    finally:
        control.down()


def verify(*words, timeout=120):
    """The command, run to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, words), "--no-store"], capture_output=True, text=True, timeout=timeout, check=False
    )


def document(*words):
    """Its JSON document; (exit code, document)."""
    done = verify(*words, "--json")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def worse(found):
    """Findings that say that something is wrong, as short texts."""
    return [f"{f['kind']}: {f['scenario']}: {f['detail']}" for f in found["findings"] if f["kind"] in WORSE]
