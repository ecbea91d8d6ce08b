"""The topology once, as it is now: what was written down, with what OVN and the hosts say.

For whoever must know routers and NAT before a run (plan.mesh); a run itself follows the topology (service.following).
"""

from functools import partial
from pathlib import Path

import trio

from netprobe.model.topology import Topology
from netprobe.plan.plans import RunPlan
from netprobe.service.discovery import read_topology
from netprobe.service.following import open_follower


async def view_topology(plan: RunPlan, state_file: Path) -> Topology:
    """The topology that a plan is compiled with: the whole view where meshes need it, else what was written down.

    Args:
        plan: as written.
        state_file: where the topology is written down.

    Raises:
        HostNotReadyError: it is not there, or cannot be read.
    """
    base = await trio.to_thread.run_sync(partial(read_topology, state_file))
    if not plan.meshes:
        return base
    async with open_follower(base) as follower:
        return follower.topology
