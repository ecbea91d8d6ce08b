"""Where a stopwatch looks for connections, and has its own removed: with whoever tracks them on the hosts at hand."""

import json
from functools import partial

import pytest
import trio

from netprobe.errors import RefusedError
from netprobe.host.signals import StopRequest
from netprobe.lab import config
from netprobe.lab.state import Places, State
from netprobe.lab.topology import endpoints
from netprobe.plan.policy_file import parse_policy
from netprobe.service import backends, stopwatch
from netprobe.service.discovery import read_topology
from netprobe.service.stopwatch_run import StopwatchOrder
from netprobe.service.verify import VerifyOrder, plan_verify


class Vswitch:
    """Says of itself what one datapath or the other says."""

    datapaths = commands = ""

    def __init__(self, _run_dir):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, command):
        return {"dpctl/dump-dps": self.datapaths, "list-commands": self.commands}[command]


def watched_as_kernel(tmp_path, monkeypatch, lab):
    """Whether the hosts are asked for room in the kernel's table, before anything is sent."""
    wanted = config.load(lab)
    places = Places(tmp_path)
    places.lab.mkdir()
    places.state.write_text(json.dumps(State(lab, places.lab, endpoints=endpoints(wanted)).to_json()))
    topology = read_topology(places.state)
    text = (config.files("netprobe.lab") / f"{lab}.toml").read_text()
    order = VerifyOrder(parse_policy(text, "lab.toml"), "lab.toml")
    asked = []

    def permit(*_, is_kernel):
        asked.append(is_kernel)
        raise RefusedError("host", "goes no further")

    monkeypatch.setattr(backends, "UnixctlClient", Vswitch)
    monkeypatch.setattr(stopwatch, "permit_stopwatch", permit)
    plan = plan_verify(order, topology)
    with pytest.raises(RefusedError, match="goes no further"):
        trio.run(
            partial(stopwatch.watch_change, StopwatchOrder(("true",)), plan, topology, StopRequest(), lambda _: None)
        )
    return asked


@pytest.mark.parametrize(
    ("lab", "datapaths", "is_kernel"),
    [
        ("single", "netdev@ovs-netdev\n", False),
        ("single", "system@ovs-system\n", True),
        ("ovs-kernel", "system@ovs-system\n", True),
        ("bridge", "netdev@ovs-netdev\n", True),
    ],
)
def test_a_stopwatch_counts_connections_where_they_are_tracked(tmp_path, monkeypatch, lab, datapaths, is_kernel):
    monkeypatch.setattr(Vswitch, "datapaths", datapaths)
    assert watched_as_kernel(tmp_path, monkeypatch, lab) == [is_kernel]
