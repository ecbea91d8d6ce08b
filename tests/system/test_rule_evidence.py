"""The rule that the model blames, proved by its own counter: a switch's, OVN's on another host, iptables'.

The packets are real ones of a guest, each on a tuple of its own, to a port that no group opens.
"""

import itertools
import socket
import time
from pathlib import Path

import pytest
import trio
from support.waiting import until

from netprobe.host.netns import in_netns
from netprobe.lab import control
from netprobe.model.model_answers import ModelQuestion
from netprobe.model.packets import ConnState, Packet
from netprobe.model.policy import UDP
from netprobe.service.discovery import read_topology
from netprobe.service.policy_models import ModelAsker
from netprobe.service.rule_evidence import prove_rule

pytestmark = pytest.mark.system

CLOSED = 9999
_ports = itertools.count(61000)


@pytest.fixture
def bridge_lab(lab_place):
    """The guests behind Linux bridges, guarded by iptables."""
    if control.status().state.get("name", "bridge") != "bridge":
        control.down()
    return control.up("bridge")


def came_in(netns, tap):
    """Packets that a hypervisor's tap has received of its guest."""
    table = in_netns(netns, lambda: Path("/proc/thread-self/net/dev").read_text())
    line = next(line for line in table.splitlines() if line.strip().startswith(f"{tap}:"))
    return int(line.split(":")[1].split()[1])


def send_from(src, dst, port, netns):
    """Sends datagrams from a guest, each from a port of its own, and waits until its tap has them all."""

    def send(count):
        before = came_in(netns, src.chain[1].device)

        def go():
            for _ in range(count):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind(("", next(_ports)))
                    sock.sendto(b"netprobe", (str(dst.ipv4), port))

        in_netns(src.netns, go)
        until(lambda: came_in(netns, src.chain[1].device) >= before + count)
        return count

    return send


def model_of(topology, src, dst):
    packet = Packet(src.mac, dst.mac, src.ipv4, dst.ipv4, UDP, 61000, CLOSED)

    async def go():
        with ModelAsker() as asker:
            return await asker.ask([ModelQuestion(packet, src, dst, ConnState.NEW)], topology)

    return trio.run(go)[0]


def check(send_to=CLOSED):
    topology = read_topology()
    src, dst = (topology.guest(name, "test") for name in ("vm1", "vm2"))
    send = send_from(src, dst, send_to, topology.host(src.host).netns)
    send(1)  # the guest asks for the target's MAC first
    answer = model_of(topology, src, dst)
    assert (answer.is_allowed, answer.kind, answer.point.port) == (False, "default-deny", "vm2")
    return prove_rule(answer, 4, topology, send)


def test_a_switchs_rule_is_proved(lab):
    assert check().evidence == "counter-pattern"


def test_an_acl_on_another_host_is_proved(pair_lab):
    answer = check()
    assert (answer.evidence, answer.host) == ("counter-pattern", "hv2")


def test_an_iptables_rule_is_proved_within_seconds(bridge_lab):
    begin = time.monotonic()
    answer = check()
    assert answer.evidence == "counter-pattern"
    assert time.monotonic() - begin < 10


def test_packets_that_the_rule_never_sees_take_the_prediction_back(bridge_lab):
    """Sent to a port that is open: the default deny's counter stands still."""
    answer = check(send_to=5003)
    assert (answer.evidence, "disagree" in answer.detail) == ("predicted", True)
