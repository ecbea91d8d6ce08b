"""iptables, ip6tables and ipset written in a namespace, by their restore and save commands: the lab's alone.

What is only read, on any host, is netprobe.host.iptables'.
"""

from netprobe.host.process import netns_argv, run

PROGRAMS = {4: "iptables", 6: "ip6tables"}


def restore(netns: str, family: int, text: str) -> None:
    """Make these the rules of the tables that the text names, each table at once; other tables stay.

    Args:
        netns: the namespace.
        family: 4 or 6.
        text: as `save` gives it; counters are taken over where it has them.

    Raises:
        HostNotReadyError: the command refuses it.
    """
    run(netns_argv(netns, (f"{PROGRAMS[family]}-restore", "--counters")), stdin=text)


def save(netns: str, family: int) -> str:
    """The rules of a family with their counters.

    Raises:
        HostNotReadyError: the command fails.
    """
    return run(netns_argv(netns, (f"{PROGRAMS[family]}-save", "--counters")))


def restore_sets(netns: str, text: str) -> None:
    """Make ipsets and their members.

    Raises:
        HostNotReadyError: the command refuses it, or a set is there already.
    """
    if text:
        run(netns_argv(netns, ("ipset", "restore")), stdin=text)


def save_sets(netns: str) -> str:
    """All ipsets with their members.

    Raises:
        HostNotReadyError: the command fails.
    """
    return run(netns_argv(netns, ("ipset", "save")))
