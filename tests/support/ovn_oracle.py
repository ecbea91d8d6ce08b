"""OVN itself, without any host: two databases and northd in a folder, and ovn-trace to ask what an ACL does."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

SCHEMAS = Path("/usr/share/ovn")
SWITCH, SENDER, RECEIVER = "sw0", "a", "b"
MACS = {SENDER: "02:00:00:00:00:0a", RECEIVER: "02:00:00:00:00:0b"}


class Oracle:
    """A switch with two ports, no port security, and one ACL at a time."""

    def __init__(self, folder):
        self.folder = folder
        self.remote = f"unix:{folder}/nb.sock"
        self._env = {**os.environ, "OVN_RUNDIR": str(folder), "OVS_RUNDIR": str(folder), "OVN_LOGDIR": str(folder)}
        self._pids = []

    def run(self, *words):
        return subprocess.run(words, env=self._env, check=True, capture_output=True, text=True, timeout=30).stdout

    def start(self):
        for name in ("nb", "sb"):
            self.run("ovsdb-tool", "create", f"{self.folder}/{name}.db", str(SCHEMAS / f"ovn-{name}.ovsschema"))
            self._daemon("ovsdb-server", name, f"{self.folder}/{name}.db", f"--remote=punix:{self.folder}/{name}.sock")
        databases = (f"--ovnnb-db={self.remote}", f"--ovnsb-db=unix:{self.folder}/sb.sock")
        self._daemon("ovn-northd", "northd", *databases)
        self.nbctl("ls-add", SWITCH)
        for port in (SENDER, RECEIVER):
            self.nbctl("lsp-add", SWITCH, port, "--", "lsp-set-addresses", port, MACS[port])

    def _daemon(self, program, name, *words):
        pid_file = f"{self.folder}/{name}.pid"
        common = (
            "-vconsole:off",
            "--detach",
            "--no-chdir",
            f"--pidfile={pid_file}",
            f"--log-file={self.folder}/{name}.log",
        )
        self.run(program, *words, *common, f"--unixctl={self.folder}/{name}.ctl")
        self._pids.append(int(Path(pid_file).read_text()))

    def stop(self):
        for pid in reversed(self._pids):
            os.kill(pid, 15)

    def nbctl(self, *words):
        return self.run("ovn-nbctl", "--timeout=10", f"--db={self.remote}", *words)

    def set_acl(self, match):
        """Drop what matches, on its way to a port."""
        self.nbctl("--wait=sb", "acl-del", SWITCH, "--", "acl-add", SWITCH, "to-lport", "1000", match, "drop")

    def passes(self, flow):
        """Whether a packet from the first port to the second arrives; `flow` in OVN's own words."""
        ends = f'inport == "{SENDER}" && eth.src == {MACS[SENDER]} && eth.dst == {MACS[RECEIVER]}'
        said = self.run(
            "ovn-trace", f"--db=unix:{self.folder}/sb.sock", "--minimal", SWITCH, f"{ends} && {flow} && ip.ttl == 64"
        )
        return f'output("{RECEIVER}")' in said


@contextmanager
def ovn_oracle(folder):
    """An oracle in a folder of its own."""
    oracle = Oracle(folder)
    try:
        oracle.start()
        yield oracle
    finally:
        oracle.stop()
