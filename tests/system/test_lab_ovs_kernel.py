"""The lab `ovs-kernel`: the kernel's module forwards and tracks connections; in a machine of its own where it must be.

Network: one machine without KVM, which boots Debian's kernel; in it the lab `single`, but with the kernel's datapath.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.policy_texts import forty_file
from support.verifying import document, forty_lab

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import process
from netprobe.lab import build, control, hypervisor, machines
from netprobe.lab.shapes import SHAPES
from netprobe.lab.state import Places

pytestmark = pytest.mark.system

NEEDS_MODULE = pytest.mark.skipif(
    not build.needs_machine(SHAPES["ovs-kernel"]), reason="this kernel has the module openvswitch: no machine is needed"
)
PPS = 150
"""More, and an emulated machine does not keep up."""
NETPROBE = [sys.executable, "-m", "netprobe.cli.main"]


@pytest.fixture
def no_lab(lab_place):
    control.down()
    yield
    control.down()


def in_shell(text):
    """What a command in the machine prints."""
    done = subprocess.run([*NETPROBE, "lab", "exec", "sh", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_machine(*words):
    """`netprobe lab exec` of a command of netprobe's: exit code, output, errors."""
    done = subprocess.run(
        [*NETPROBE, "lab", "exec", "netprobe", *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


PING = "nsenter --net=/run/netns/vm1 /bin/busybox ping -c 3 -W 2 10.0.0.2"
LOOKUPS = (
    "cd /run/netprobe/lab/hv1; OVS_RUNDIR=$PWD ovs-appctl -t $PWD/ovs-vswitchd.$(cat ovs-vswitchd.pid).ctl dpctl/show"
)

LOOK = """
cd /run/netprobe/lab/hv1
export OVS_RUNDIR=$PWD
switch="ovs-appctl -t $PWD/ovs-vswitchd.$(cat ovs-vswitchd.pid).ctl"
$switch dpctl/show -s
$switch upcall/show
$switch coverage/show
$switch dpctl/dump-flows -m | head -n 40
for each in /run/netns/*; do echo "== $each"; nsenter --net=$each cat /proc/net/dev /proc/net/softnet_stat; done
for each in $(nsenter --net=/run/netns/hv1 ls /sys/class/net); do
    echo "== $each"
    nsenter --net=/run/netns/hv1 tc -s filter show dev $each ingress
    nsenter --net=/run/netns/hv1 tc -s filter show dev $each egress
done
cat /sys/devices/system/clocksource/clocksource0/current_clocksource /sys/devices/system/cpu/online
grep -v poll_loop ovs-vswitchd.log | tail -n 40
dmesg | tail -n 20
"""
"""Where a frame may have got lost in the machine: switch, datapath, devices, filters, kernel."""


def looked_at_while_it_fails():
    """Another short proof, and what the machine shows of itself meanwhile."""
    again = f"(timeout -s INT 90 netprobe verify {hypervisor.CONFIG} --no-store --rate {PPS} >/dev/null 2>&1 &)"
    done = subprocess.run(
        [*NETPROBE, "lab", "exec", "sh", "-c", f"{again}; sleep 45; {LOOK}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def records():
    state = control.status().state
    return [process.ProcessRecord(**{**each, "argv": tuple(each["argv"])}) for each in state["processes"]]


@NEEDS_MODULE
def test_a_machine_that_does_not_boot_is_an_error_with_the_end_of_its_serial_log(no_lab, tmp_path, monkeypatch):
    """An initramfs with nothing in it: the kernel panics. What was made is gone again."""
    shutil.copy(machines.guest_image().kernel, tmp_path / "kernel")
    for name in ("initrd", "disk"):
        (tmp_path / name).write_bytes(bytes(512))
    monkeypatch.setenv(hypervisor.IMAGE, str(tmp_path))
    with pytest.raises(HostNotReadyError, match=r"hypervisor: ended while it booted.*Kernel panic") as caught:
        control.up("ovs-kernel")
    assert caught.value.exit_code == 3
    assert not control.status().is_up
    assert not Places.from_environment().lab.exists()


@pytest.mark.long
def test_forty_rules_are_enforced_as_in_the_lab_single_and_nothing_is_left_of_the_machine(no_lab, tmp_path):
    """Nothing wrong is found; a packet fares as in userspace, but for what is either one's nature."""
    path = forty_file(tmp_path, "ovs-kernel")
    status = control.up("ovs-kernel", config_path=path)
    assert status.is_healthy
    before = records()
    code, out, wrong = in_machine("verify", hypervisor.CONFIG, "--no-store", "--rate", PPS, "--tmax", "1s", "--json")
    kernel = json.loads(out)
    if code:
        print(looked_at_while_it_fails())
    assert code == 0, (wrong, kernel["counts"], kernel["notes"], kernel["findings"][:5])
    assert kernel["backend"] == "ovs-kernel"
    assert (kernel["policy"]["rules"], kernel["counts"]) == (40, dict.fromkeys(kernel["counts"], 0)), kernel["findings"]
    assert kernel["unsent"] == kernel["forged"] == kernel["overflow"] == 0
    assert None not in kernel["truth"].values()
    assert control.down().was_up
    assert not any(process.is_alive(record) for record in before)
    assert not Places.from_environment().lab.exists()
    with forty_lab("single", tmp_path) as here:
        _, userspace = document(here)
    tables = kernel["truth"], userspace["truth"]
    excused = {packet for each in (kernel, userspace) for row in each["differences"] for packet in row["packets"]}
    scenarios = {packet.rpartition("#")[0] for packet in excused}
    only_one = set(tables[0]) ^ set(tables[1])
    assert {key for key in only_one if key.rpartition("#")[0] not in scenarios} == set()
    common = set(tables[0]) & set(tables[1])
    assert {key for key in common if tables[0][key] != tables[1][key]} <= excused
    assert len(common) > 1000


@pytest.mark.long
@NEEDS_MODULE
def test_the_machine_is_a_lab_like_others_and_is_repaired_when_it_was_killed(no_lab, tmp_path):
    """Shipped groups; what runs there is told apart from what runs here; `down` leaves nothing.

    Frames that its kernel has no flow for yet reach the vswitch, however fast it booted.
    """
    assert not control.up("ovs-kernel").was_up
    assert "3 packets received" in in_shell(PING)
    assert " lost:0\n" in in_shell(LOOKUPS)
    assert control.up("ovs-kernel").was_up
    with pytest.raises(UsageError, match="in a machine of its own"):
        control.fault_set("vm1.backend..vm2.backend", delay_ns=1)
    code, _, wrong = in_machine("trace", "vm1", "vm9")
    assert (code, "Traceback" in wrong, "vm9" in wrong) == (2, False, True)
    code, out, wrong = in_machine("lab", "status", "--json")
    assert (code, json.loads(out)["healthy"]) == (0, True), wrong
    here = subprocess.run([*NETPROBE, "verify", "x"], capture_output=True, text=True, check=False)
    assert here.returncode in (2, 3)
    first = records()
    os.kill(first[0].pid, signal.SIGKILL)
    assert not control.status().is_healthy
    assert in_machine("doctor")[0] == 3
    assert control.up("ovs-kernel").repaired
    second = records()
    control.down()
    assert not any(process.is_alive(record) for record in (*first, *second))
    assert list(Path(os.environ["NETPROBE_RUN_DIR"]).glob("lab*")) == []
