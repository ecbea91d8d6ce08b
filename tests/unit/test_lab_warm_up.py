"""Which pings a lab's warm-up waits for: those that cross each way, and that the groups allow."""

import pytest

from netprobe.lab import config, topology
from netprobe.lab.warm_up import Ping, pings

PAIR = config.load("pair")

ONE_WAY = """
[[group]]
name = "out"
[[group.rule]]
direction = "egress"
{egress}
[[group]]
name = "in"
[[group.rule]]
direction = "ingress"
protocol = "icmp"
{ingress}
[[guest]]
name = "vm1"
host = "hv1"
network = "net1"
groups = ["out"]
floating = true
[[guest]]
name = "ext1"
host = "hv2"
network = "ext"
groups = ["in", "out"]
[[guest]]
name = "vm2"
host = "hv2"
network = "net1"
groups = ["in"]
"""


def wanted(text: str) -> set[tuple[str, str]]:
    lab = config.parse(text, where="x.toml", lab="pair")
    ends = topology.endpoints(lab)
    guests = {end.name for end in ends if not end.copy_of}
    addresses = {end.ipv4 for end in ends if not end.copy_of} | {end.floating for end in ends}
    found = {(ping.source, ping.address) for ping in pings(lab, ends)}
    return {(source, address) for source, address in found if source in guests and address in addresses}


def test_the_shipped_pair_is_warmed_up_on_every_way():
    found = pings(PAIR, topology.endpoints(PAIR))
    for source, address in [
        ("hv1", "172.30.0.2"),
        ("vm1", "10.1.0.2"),
        ("vm1", "10.2.0.4"),
        ("vm1", "172.24.0.15"),
        ("ext1", "172.24.0.101"),
        ("vm4", "fd00:1::1"),
        ("bypass2", "10.1.0.1"),
    ]:
        netns = {"bypass2": "byp2"}.get(source, source)
        assert Ping(source, netns, address) in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("egress", "ingress", "found"),
    [
        ("", "", {("vm1", "172.24.0.12"), ("vm1", "10.1.0.3"), ("ext1", "10.1.0.3")}),
        ("protocol = 'tcp'", "", set()),
        ("ethertype = 'ipv6'", "", set()),
        ("remote_prefix = '172.24.0.0/24'", "", {("vm1", "172.24.0.12")}),
        # Behind the router vm1 is its floating address, and no member of any group.
        ("", "remote_prefix = '172.24.0.101/32'", {("vm1", "172.24.0.12")}),
        ("", "remote_group = 'out'", {("vm1", "10.1.0.3"), ("ext1", "10.1.0.3")}),
    ],
)
def test_only_what_the_groups_allow_is_waited_for(egress, ingress, found):
    assert wanted(ONE_WAY.format(egress=egress, ingress=ingress)) == found
