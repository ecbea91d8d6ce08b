"""Two tenants of `netprobe bench harm`: a server and a client, processes of their own in the guests' namespaces.

They run service.tenant_program. Blocking: call `Tenants.measure` in a worker thread. Only guests whose namespaces are
on this machine can be tenants.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.netns import in_netns
from netprobe.judge.harm import TenantSlice
from netprobe.model.topology import Attachment

PROGRAM = Path(__file__).with_name("tenant_program.py")
END_TIMEOUT_S = 5.0


class Tenants:
    """A client that is connected to a server; from `open_tenants`."""

    def __init__(self, client: "subprocess.Popen[str]") -> None:
        self._client = client

    def measure(self, *, warm_s: float, rr_s: float, bulk_s: float) -> TenantSlice:
        """One slice: requests that are not counted, requests, bulk data.

        Args:
            warm_s: how long, each.
            rr_s: requests.
            bulk_s: bulk data.

        Raises:
            HostNotReadyError: the client or the server is gone, or no answer came.
        """
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps({"warm_s": warm_s, "rr_s": rr_s, "bulk_s": bulk_s}) + "\n")
        self._client.stdin.flush()
        answer = _answer(self._client, "the tenant's client")
        if not answer["requests"]:
            raise HostNotReadyError("the tenant's client", f"got no answer in {rr_s:g} s")
        return TenantSlice(int(answer["requests"]), *(answer[key] for key in ("p50_ns", "p99_ns", "bytes_per_s")))


def _answer(process: "subprocess.Popen[str]", who: str) -> dict[str, float]:
    out: IO[str] | None = process.stdout
    assert out is not None
    line = out.readline()
    answer = json.loads(line) if line else {"error": "ended without a word"}
    if "error" in answer:
        raise HostNotReadyError(
            who, str(answer["error"]), advice="do the guests' security groups allow TCP between them on this port?"
        )
    return dict(answer)


@contextmanager
def _program(netns: str, role: str, place: tuple[str, int], cpus: frozenset[int]) -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-I", "-S", str(PROGRAM), role, place[0], str(place[1])]

    def start() -> "subprocess.Popen[str]":
        if cpus:
            os.sched_setaffinity(0, cpus)  # of this short-lived thread, which its child inherits
        # A session of its own: Ctrl-C is for us, who then end it.
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    process = in_netns(netns, start)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=END_TIMEOUT_S)


@contextmanager
def open_tenants(
    source: Attachment, target: Attachment, port: int, cpus: frozenset[int] = frozenset()
) -> Iterator[Tenants]:
    """Start a server in `target` and a client in `source` that is connected to it.

    Args:
        source: a guest whose namespace is on this machine.
        target: another.
        port: TCP, of the server.
        cpus: processors that both run on; empty for any.

    Raises:
        UsageError: a guest has no namespace here.
        HostNotReadyError: the client does not reach the server.
    """
    for guest in (source, target):
        if not guest.netns:
            raise UsageError(guest.name, "has no network namespace on this machine", advice="use guests of a lab")
    place = str(target.address(4)), port
    with _program(target.netns, "server", place, cpus) as server:
        _answer(server, f"the tenant's server in {target.name}")
        with _program(source.netns, "client", place, cpus) as client:
            _answer(client, f"the tenant's client in {source.name}")
            yield Tenants(client)
