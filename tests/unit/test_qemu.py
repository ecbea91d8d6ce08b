"""QEMU's command line and its logs: what a guest is started as, and what is told of one that does not boot."""

from dataclasses import replace

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.device_drops import _parse
from netprobe.host.process import ProcessRecord
from netprobe.host.qemu import Machine, TapNic, VhostUserNic, tail


@pytest.fixture
def machine(tmp_path):
    nics = (TapNic("tapvm1", "fa:16:3e:00:00:01"),)
    ports = (("org.netprobe.agent.0", tmp_path / "vm1.serial"),)
    return Machine("vm1", tmp_path, tmp_path / "kernel", tmp_path / "initrd", 128, nics, ports)


def test_a_tap_has_no_offload_and_a_vhost_user_nic_shares_memory_and_has_no_vectors(machine):
    line = " ".join(machine.argv)
    assert "tap,id=net0,ifname=tapvm1,script=no,downscript=no,vhost=off,vnet_hdr=off" in line
    assert "virtio-net-pci,netdev=net0,mac=fa:16:3e:00:00:01,romfile=" in line
    assert "mem0" not in line
    shared = " ".join(replace(machine, nics=(VhostUserNic(machine.directory / "vh.sock", "fa:16:3e:00:00:02"),)).argv)
    assert "memory-backend=mem0" in shared
    assert "share=on" in shared
    assert "vectors=0" in shared


def test_a_comma_in_a_path_is_no_further_option(machine):
    odd = replace(machine, channels=(("p", machine.directory / "a,b"),))
    assert any(word.endswith("a,,b,server=on,wait=off") for word in odd.argv)


def test_a_snapshot_waits_until_it_is_resumed(machine):
    argv = replace(machine, snapshot=machine.directory / "it's").argv
    assert argv[-3:-1] == ("-S", "-incoming")
    assert argv[-1].startswith("exec:cat '")


def test_the_tail_of_a_log_ends_where_the_kernel_panicked_and_is_printable(tmp_path):
    log = tmp_path / "serial.log"
    log.write_bytes(
        b"\x1b[2J\x1bcSeaBIOS\r\n\r\nready\x07\r\n[1.0] Kernel panic - not syncing: no init\r\n[1.1] RIP: 0033\n"
    )
    assert tail(log) == "SeaBIOS / ready / [1.0] Kernel panic - not syncing: no init"
    assert tail(log, 1) == "[1.0] Kernel panic - not syncing: no init"
    assert tail(tmp_path / "none") == ""


def test_a_guest_that_has_ended_is_told_with_what_it_said(machine):
    machine.serial_log.write_text("Kernel panic - not syncing: no init\n")
    machine.log.write_text("qemu: could not set up tap\n")
    gone = ProcessRecord("qemu", machine.argv, 1 << 22, 1)
    with pytest.raises(
        HostNotReadyError, match=r"vm1: has ended; QEMU: qemu: could not set up tap; .*no init"
    ) as caught:
        machine.wait_open(machine.monitor, gone)
    assert caught.value.exit_code == 3


def test_transmit_drops_are_read_by_device():
    quiet, tap = ["9"] * 11 + ["0"] * 5, ["0"] * 11 + ["17"] + ["0"] * 4
    lines = ["Inter-| Receive | Transmit", " face |bytes", f"    lo: {' '.join(quiet)}", f"tap1: {' '.join(tap)}"]
    assert _parse("\n".join(lines)) == {"lo": 0, "tap1": 17}
