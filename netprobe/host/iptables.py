"""The host firewall's rules, counters and sets as text, read in a network namespace. Never written to.

What the texts mean is judge.iptables_rules'.
"""

from netprobe.errors import HostNotReadyError
from netprobe.host.process import netns_argv, run

TIMEOUT_S = 10.0
"""Ten thousand rules are printed within a second; nft may wait for another's transaction."""

_SAVE = {4: "iptables-save", 6: "ip6tables-save"}


def read_rules(netns: str, family: int = 4) -> str:
    """The rules of a family with their counters, which are exact and up to date.

    Args:
        netns: network namespace, "" for the caller's own.
        family: 4 or 6.

    Raises:
        HostNotReadyError: the command is missing, or not permitted.
    """
    return _run(netns, _SAVE[family], "-c")


def read_sets(netns: str) -> str:
    """The ipsets; "" where ipset is not installed, because then no rule can refer to one.

    Raises:
        HostNotReadyError: it is not permitted.
    """
    try:
        return _run(netns, "ipset", "save")
    except HostNotReadyError as error:
        if "not installed" in error.problem or "No such file" in error.problem:
            return ""
        raise


def read_ebtables(netns: str) -> str:
    """The rules for frames; "" where ebtables is not installed.

    Raises:
        HostNotReadyError: it is not permitted.
    """
    try:
        return _run(netns, "ebtables-save")
    except HostNotReadyError as error:
        if "not installed" in error.problem or "No such file" in error.problem:
            return ""
        raise


def _run(netns: str, *command: str) -> str:
    return run(netns_argv(netns, command) if netns else command, timeout_s=TIMEOUT_S)
