"""A collector and the one agent of the lab `vm`, as processes in the hypervisor's namespace."""

import subprocess

from support.spread import NETPROBE, Spread, in_netns

ADDRESS, HOST = "127.0.0.1:8620", "hv1"


class SpreadVm(Spread):
    """As Spread, with everything on one host."""

    def start_collector(self):
        words = ["serve", "--listen", ADDRESS, "--pki", self.pki, "--dir", self.folder / "collector"]
        self._start("collector", HOST, [*NETPROBE, *words, "--store", self.folder / "store.duckdb"])
        self.wait_for("collector", "ready")

    def start_agent(self, host, *more):
        lab = self.run_dir / "lab"
        words = ["agent", "vswitch", "--collector", ADDRESS, "--name", host, "--pki", self.pki, "--guests", lab]
        words += [
            "--ovs-rundir",
            lab / host,
            "--allowlist",
            lab / "allow.toml",
            "--spool",
            self.folder / "spool",
            *more,
        ]
        self._start(host, HOST, [*NETPROBE, *words])

    def run(self, plan, *more):
        path = self.folder / "plan.toml"
        path.write_text(plan)
        words = ["run", path, "--collector", ADDRESS, "--pki", self.pki, "--json", *more]
        pipe = subprocess.PIPE
        return subprocess.Popen(in_netns(HOST, [*NETPROBE, *words]), stdout=pipe, stderr=pipe, text=True)
