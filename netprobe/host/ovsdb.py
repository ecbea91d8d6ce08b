"""Which port of a bridge is a guest's, as OVSDB has it: read-only questions by ovs-vsctl, always with a timeout."""

import json
import subprocess
from pathlib import Path

from netprobe.errors import HostNotReadyError

TIMEOUT_S = 5


def bound_ports(rundir: str) -> dict[str, int]:
    """OpenFlow port number of each port that carries an iface-id.

    Args:
        rundir: the switch's run directory; it holds `db.sock`.

    Raises:
        HostNotReadyError: OVSDB does not answer.
    """
    socket = Path(rundir) / "db.sock"
    command = ["ovs-vsctl", f"--db=unix:{socket}", f"--timeout={TIMEOUT_S}", "--format=json"]
    command += ["--columns=ofport,external_ids", "list", "Interface"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S + 1, check=True)
        rows = json.loads(done.stdout)["data"]
        found = {dict(ids[1]).get("iface-id", ""): ofport for ofport, ids in rows}
    except FileNotFoundError as error:
        raise HostNotReadyError("ovs-vsctl", "is not installed", advice="run `netprobe doctor`") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise HostNotReadyError(f"OVSDB at {socket}", said[0], advice="is ovsdb-server running?") from error
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise HostNotReadyError(f"OVSDB at {socket}", f"gave no answer: {error}", advice="is it running?") from error
    return {name: port for name, port in found.items() if name and isinstance(port, int) and port > 0}
