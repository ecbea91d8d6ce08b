"""A sample of the mutants of `make mutation`: one change of what is enforced, and `netprobe verify` finds it."""

import pytest
from mutation.enforcement import BACKENDS
from mutation.score import score

pytestmark = pytest.mark.system

SAMPLE, SMALL = 20, {"ovs-dpdk": 6}
"""How many that are not equivalent; few where the flows are another backend's on another datapath."""

PACKETS = 10_000
"""A survivor is equivalent only when none of so many, near the policy's own boundaries, fares otherwise."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_verify_finds_each_mutant_that_any_packet_shows(backend, lab_place, tmp_path):
    """Each sort of change is in the sample, at the user's level and at the compiled one."""
    count = SMALL.get(backend, SAMPLE)
    found = score(backend, tmp_path, count=count, seed=3, packets=PACKETS)
    assert found.real == count
    assert found.killed + len(found.survivors) == found.mutants
    missed = [f"{one.mutant.name}: {one.difference}" for one in found.survivors if one.difference]
    assert not missed
    assert all(one.packets >= PACKETS for one in found.survivors)
    assert found.killed == count
    assert found.equivalent <= count * 0.2
