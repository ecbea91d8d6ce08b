"""Delivery as a whole: spool, links and block log over a pipe that breaks anywhere, with programs that die at any time.

The law: in the log every block of a (run, boot) stands once, in order and unchanged, or a lost range stands in its
place; and lost is only what the spool had no room for, or what a loss of power tore out of the disk.
"""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.delivery import DeliveryWorld

SIZES = [0, 10, 3_000, 60_000, 150_000]


class Delivery(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.world = DeliveryWorld()

    @rule(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=8))
    def observe(self, sizes):
        self.world.observe(sizes)

    @rule(there=st.integers(0, 400_000), back=st.integers(0, 400), is_committed=st.booleans())
    def carry(self, there, back, is_committed):
        self.world.connect()
        self.world.carry(there, back)
        if is_committed:
            self.world.commit()

    @rule(passed_ms=st.integers(1, 900))
    def wait(self, passed_ms):
        self.world.wait(passed_ms)

    @rule()
    def cut_the_link(self):
        self.world.cut_the_link()

    @rule(torn=st.none() | st.integers(1, 200_000))
    def kill_the_agent(self, torn):
        self.world.kill_the_agent(torn)

    @rule(keep=st.floats(0, 1))
    def kill_the_collector(self, keep):
        self.world.kill_the_collector(keep)

    @invariant()
    def laws_hold(self):
        self.world.check()

    def teardown(self):
        self.world.end_in_peace()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(deadline=None, derandomize=True, max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("seed", range(15))
def test_long_lives(seed):
    """As above, with chances as in life: much is delivered between two disasters."""
    rng, world = random.Random(seed), DeliveryWorld()
    disasters = {
        "cut": world.cut_the_link,
        "agent": lambda: world.kill_the_agent(None),
        "power": lambda: world.kill_the_agent(rng.randrange(1, 200_000)),
        "collector": lambda: world.kill_the_collector(rng.random()),
    }
    for _ in range(120):
        world.connect()
        if rng.random() < 0.5:
            world.observe(rng.choices(SIZES, k=rng.randrange(1, 6)))
        for _ in range(rng.randrange(4)):
            world.carry(rng.choice([7, 5_000, 400_000]), rng.choice([3, 60, 10_000]))
        if rng.random() < 0.5:
            world.commit()
        world.wait(rng.randrange(1, 400))
        if rng.random() < 0.15:
            disasters[rng.choices(list(disasters), [6, 2, seed % 2, 2])[0]]()
        world.check()
    world.end_in_peace()
