"""Settings for all tests, and what pytest-xdist's workers (`make test`) have for themselves."""

import os
import signal

import pytest
from hypothesis import settings
from support.workers import Scheduling, Turns, World

# How long an example takes is no claim of any test, and other workers are at it at the same time.
settings.register_profile("netprobe", deadline=None)
settings.load_profile("netprobe")

# Those that run longest, in the order of their lengths: no worker is left alone with one of them at the end.
LONGEST = (
    "mutation",
    "spread",
    "dashboards",
    "lab_pair",
    "truth_pair",
    "hostile_agents",
    "cli",
    "reasons_ovn",
    "sweep",
    "reasons",
    "lab",
)


def pytest_configure(config):
    """What is so for every run, and for workers."""
    # This machine's load is the tests' own, and harms no tenant.
    os.environ.setdefault("NETPROBE_GOVERNOR", "off")
    for number in (signal.SIGHUP, signal.SIGINT):
        # Under nohup or in a shell's background: ignored here as before, but not by programs that tests start and stop.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    move_to_own_world(config)


def move_to_own_world(config):
    """A worker moves to a world of its own; without root nothing is there that could collide."""
    if "PYTEST_XDIST_WORKER" not in os.environ or os.geteuid():
        return
    world, turns = World(), Turns()
    config.add_cleanup(world.close)
    config.add_cleanup(turns.close)
    config.pluginmanager.register(turns, "turns")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Who gets which tests."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Workers: what must be alone comes first, then the longest; short tests fill what is left at the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    longest = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}

    def rank(item):
        is_alone, is_system = (item.get_closest_marker(name) is not None for name in ("alone", "system"))
        return (not is_alone, not is_system, longest.get(item.path.name, len(longest)))

    items.sort(key=rank)
