"""The file of resting source ports: shared by all runs on a host, so that no port comes again too early.

Read, chosen, written back under one lock. Content and choice are plan.port_ledger's and plan.budget's, below.
"""

import fcntl
from collections.abc import Iterable
from pathlib import Path

from netprobe.errors import HostNotReadyError
from netprobe.plan.budget import PORT_BLOCK, allocate_ports
from netprobe.plan.port_ledger import DEFAULT_TIMEOUT_S, PortLedger

DEFAULT_PATH = Path("/var/lib/netprobe/ports.json")


def reserve_ports(
    key: str,
    count: int,
    now_ns: int,
    *,
    in_use: Iterable[int] = (),
    last_use_ns: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    block: tuple[int, int] = PORT_BLOCK,
    path: Path = DEFAULT_PATH,
) -> tuple[int, ...]:
    """Take source ports for one flow and write down that they rest.

    Args:
        key: plan.port_ledger.flow_key of the flow.
        count: how many.
        now_ns: CLOCK_REALTIME.
        in_use: ports of the same flow that conntrack has now.
        last_use_ns: when the last one will be used, CLOCK_REALTIME; default: now.
        timeout_s: conntrack's timeout of the entries, seconds.
        block: first and last port.
        path: the ledger.

    Raises:
        RefusedError: not enough ports are free; it says when there will be.
        UsageError: the file is no ledger.
        HostNotReadyError: the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ledger = PortLedger.from_json(path.read_text(encoding="utf-8") if path.exists() else "", str(path))
            ledger.forget_old(now_ns)
            resting = ledger.resting(key, now_ns)
            ports = allocate_ports(block, in_use, count, now_ns, resting=resting, where=f"source ports of {key}")
            ledger.add(key, ports, max(now_ns, last_use_ns or 0), timeout_s=timeout_s)
            new = path.with_suffix(".new")  # written beside and renamed: a full disk must not spoil the old one
            new.write_text(ledger.to_json(), encoding="utf-8")
            new.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise HostNotReadyError(
            str(path), f"cannot be used: {error}", advice="are you root, and is the disk full?"
        ) from error
    return ports
