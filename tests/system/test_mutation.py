"""A sample of the mutants of `make mutation`: one change of what is enforced, and `netprobe verify` finds it."""

import pytest
from mutation.enforcement import BACKENDS
from mutation.score import score

pytestmark = pytest.mark.system

SAMPLE = 20
PACKETS = 10_000
"""A survivor is equivalent only when none of so many, near the policy's own boundaries, fares otherwise."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_verify_finds_each_mutant_that_any_packet_shows(backend, lab_place, tmp_path):
    """Each sort of change is in the sample, at the user's level and at the compiled one."""
    found = score(backend, tmp_path, count=SAMPLE, seed=3, packets=PACKETS)
    assert found.mutants == SAMPLE
    assert found.killed + len(found.survivors) == SAMPLE
    missed = [f"{one.mutant.name}: {one.difference}" for one in found.survivors if one.difference]
    assert not missed
    assert all(one.packets >= PACKETS for one in found.survivors)
    assert found.killed >= SAMPLE * 0.8
