"""Open vSwitch with DPDK: how a private switch is started, and how its ports are said. Used by netprobe.lab.

DPDK never looks at the machine's own devices here (`--no-pci`), and keeps its files in the switch's own directory. It
takes huge pages only where free ones are there already: how many the machine has is not ours to change.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from netprobe.host.ovs import PortSpec, PrivateSwitch

PROGRAM = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
PACKAGES = "openvswitch-switch-dpdk librte-net-af-packet23 librte-mempool-ring23 librte-bus-vdev23"
MEMORY_MIB = 256
PORT_MEMORY_MIB = 64
"""With a pool for each port: some 16,400 buffers of 2.9 KB, and those of its queues."""

PMD_MAX_SLEEP_US = 200
"""A polling thread that finds nothing sleeps, up to this long: some 15 % of a processor, up to 0.2 ms more delay."""

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class DpdkSwitch(PrivateSwitch):
    """A switch with DPDK.

    Attributes:
        ports: how many it will have at most; its memory is for as many.
        max_sleep_us: how long an idle polling thread may sleep; 0: never.
    """

    ports: int = 8
    max_sleep_us: int = PMD_MAX_SLEEP_US

    @property
    def program(self) -> str:
        """A link to the program, under the name that everybody knows it by."""
        return str(self.run_dir / "ovs-vswitchd")

    @property
    def more_places(self) -> tuple[str, ...]:
        """DPDK puts its files below the run directory too."""
        return ("RUNTIME_DIRECTORY",)

    def configure(self) -> None:
        """What must be set before ovs-vswitchd runs."""
        Path(self.program).symlink_to(PROGRAM)
        processors = sorted(os.sched_getaffinity(0))
        memory = MEMORY_MIB + PORT_MEMORY_MIB * self.ports
        values = {
            "dpdk-init": "true",
            "dpdk-lcore-mask": f"{1 << processors[0]:#x}",
            "pmd-cpu-mask": f"{1 << processors[-1]:#x}",
            "pmd-maxsleep": str(self.max_sleep_us),
            "per-port-memory": "true",
            **_memory(memory),
        }
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *(f'other_config:{k}="{v}"' for k, v in values.items()))


def _memory(mib: int) -> dict[str, str]:
    if free_huge_mib() >= mib:
        return {"dpdk-extra": "--no-pci", "dpdk-socket-mem": str(mib)}
    # Without --legacy-mem OVS adds --in-memory, which DPDK refuses beside --no-huge.
    return {"dpdk-extra": f"--no-pci --no-huge --legacy-mem -m {mib}"}


def free_huge_mib() -> int:
    """MiB in free huge pages of the usual size."""
    text = MEMINFO.read_text()
    free, size = (re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE) for name in ("HugePages_Free", "Hugepagesize"))
    return int(free[1]) * int(size[1]) // 1024 if free and size else 0


def vhost_port(name: str, socket: Path, spec: PortSpec) -> PortSpec:
    """A guest's vhost-user port, whose socket QEMU serves."""
    return PortSpec(
        name, spec.ofport, spec.iface_id, spec.mac, "dpdkvhostuserclient", {"vhost-server-path": str(socket)}
    )


def packet_port(name: str, device: str, number: int, spec: PortSpec) -> PortSpec:
    """A port over a device of the kernel, by DPDK's af_packet driver.

    What it sends goes through the device's qdisc, where packet rings and tc's filters can see it; by default it would
    go past both.

    Args:
        name: of the port.
        device: of the kernel.
        number: no other port of the switch has it.
        spec: its OpenFlow number, and the guest behind it.
    """
    arguments = f"eth_af_packet{number},iface={device},qdisc_bypass=0"
    return PortSpec(name, spec.ofport, spec.iface_id, spec.mac, "dpdk", {"dpdk-devargs": arguments})
