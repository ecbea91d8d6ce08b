"""How full a conntrack table is: the userspace datapath says it, for the kernel's datapath Linux does."""

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host import conntrack
from netprobe.host.conntrack import Conntrack
from netprobe.host.unixctl import CommandError
from netprobe.plan.budget import Room


class Switch:
    """A control socket that says the same to everything."""

    def __init__(self, said, *, is_error=False):
        self.said, self.is_error = said, is_error

    def call(self, command, *words):
        if self.is_error:
            raise CommandError("ovs-vswitchd", command, self.said)
        return self.said


def test_the_userspace_datapath_says_it_itself():
    """One number a command."""
    assert Conntrack(Switch("17\n")).use() == Room(17, 17)


def test_for_the_kernels_datapath_linux_says_it(tmp_path, monkeypatch):
    """As OVS 3.1 words it: "nconns could not be retrieved (Operation not supported)"."""
    (tmp_path / "nf_conntrack_count").write_text("412\n")
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    monkeypatch.setattr(conntrack, "KERNEL_TABLE", tmp_path)
    switch = Switch("nconns could not be retrieved (Operation not supported)", is_error=True)
    assert Conntrack(switch).use() == Room(412, 262_144)
    (tmp_path / "nf_conntrack_max").unlink()
    with pytest.raises(HostNotReadyError, match="nf_conntrack_max"):
        Conntrack(switch).use()


def test_another_error_is_not_hidden():
    """A switch that says no for another reason has not said how full its table is."""
    with pytest.raises(CommandError):
        Conntrack(Switch("no such datapath", is_error=True)).use()
