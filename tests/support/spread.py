"""A collector and agents as processes of their own, in the lab pair: started, killed, cut off, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.waiting import until

from netprobe.host import iproute
from netprobe.host.process import run as run_command

COLLECTOR = ("172.31.0.1", 8620)
NETPROBE = [sys.executable, "-m", "netprobe.cli.main"]
READY_S = 20.0


def netprobe(*words, **options):
    """Run a command to its end."""
    done = subprocess.run([*NETPROBE, *map(str, words)], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_netns(name, argv):
    return ["ip", "netns", "exec", name, *map(str, argv)]


class Spread:
    """The processes of one spread cloud, all ended by `close`."""

    def __init__(self, folder: Path, run_dir: Path):
        self.folder = folder
        self.run_dir = run_dir
        self.pki = folder / "pki"
        self.processes = {}
        self.logs = {}
        netprobe("pki", "init", "--dir", self.pki)
        netprobe("pki", "issue", "collector", "--role", "collector", "--dir", self.pki)
        netprobe("pki", "issue", "operator", "--role", "operator", "--dir", self.pki)
        for host in ("hv1", "hv2"):
            self.issue(host, f"{host}/*")

    def issue(self, name, *places, inject="*@20000"):
        for old in (self.pki / f"{name}.key", self.pki / f"{name}.crt"):
            old.unlink(missing_ok=True)
        grants = [word for place in places for word in ("--report", place)]
        netprobe("pki", "issue", name, "--role", "vswitch", "--dir", self.pki, *grants, "--inject", inject)

    def _start(self, name, netns, argv):
        self.logs[name] = self.folder / f"{name}-{len(list(self.folder.glob('*.log')))}.log"
        with self.logs[name].open("wb") as log:
            self.processes[name] = subprocess.Popen(in_netns(netns, argv), stdout=log, stderr=subprocess.STDOUT)

    def said(self, name):
        return self.logs[name].read_text(errors="replace")

    def wait_for(self, name, text, timeout_s=READY_S):
        deadline = time.monotonic() + timeout_s
        while text not in self.said(name):
            assert self.processes[name].poll() is None, self.said(name)
            assert time.monotonic() < deadline, f"{name} did not say {text!r}: {self.said(name)}"
            time.sleep(0.02)

    def start_collector(self):
        address, port = COLLECTOR
        words = ["serve", "--listen", f"{address}:{port}", "--pki", self.pki, "--dir", self.folder / "collector"]
        self._start("collector", "central", [*NETPROBE, *words, "--store", self.folder / "store.duckdb"])
        self.wait_for("collector", "ready")

    def start_agent(self, host, *more):
        lab, (address, port) = self.run_dir / "lab", COLLECTOR
        own = "172.31.0.11" if host == "hv1" else "172.31.0.12"
        words = ["agent", "vswitch", "--collector", f"{address}:{port}", "--name", host, "--pki", self.pki]
        words += ["--ovs-rundir", lab / host, "--allowlist", lab / f"{host}.allow.toml", "--guests", lab]
        words += ["--spool", self.folder / f"spool-{host}", "--exchange", f"{own}:8621", *more]
        self._start(host, host, [*NETPROBE, *words])

    def start_all(self, **clocks):
        """Collector and both agents, and what they have to say of their hosts."""
        self.start_collector()
        for host in ("hv1", "hv2"):
            self.start_agent(host, *(["--test-clock", clocks[host]] if host in clocks else []))
        for host in ("hv1", "hv2"):
            self.wait_for("collector", f"{host} is on {host}")

    def kill(self, name):
        """As the kernel would: no farewell."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def run(self, plan, *more):
        """Begin a run; `finish` waits for its result."""
        path = self.folder / "plan.toml"
        path.write_text(plan)
        address, port = COLLECTOR
        words = ["run", path, "--collector", f"{address}:{port}", "--pki", self.pki, "--json", *more]
        return subprocess.Popen(
            in_netns("central", [*NETPROBE, *words]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_probes(self, host, guest, count):
        """Until so many more frames have gone to a guest, and a run is under way: in the lab it hears little else."""
        command = ["ip", "-n", host, "-s", "-j", "link", "show", f"tap{guest}"]

        def frames():
            return json.loads(run_command(command))[0]["stats64"]["tx"]["packets"]

        enough = frames() + count
        until(lambda: frames() >= enough, READY_S)

    def finish(self, run, timeout_s=200):
        out, err = run.communicate(timeout=timeout_s)
        assert run.returncode in (0, 1, 4), err
        return json.loads(out)

    def cut(self, host, *, is_cut):
        """The management link of a host: down, and up again."""
        iproute.batch([f"link set mgmt0 {'down' if is_cut else 'up'}"], netns=host)

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def session(src, dst, rate, seconds, **more):
    """One [[session]] of a plan."""
    keys = {"name": f"{src}-{dst}", "src": src, "dst": dst, "rate": rate, "count": int(rate * seconds), **more}
    return "[[session]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
