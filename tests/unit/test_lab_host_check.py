"""Each lab says which tools and packages it lacks, and asks for nothing that it does not use."""

import os
import shutil

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.lab import build
from netprobe.lab.shapes import SHAPES


@pytest.fixture
def bare_host(monkeypatch):
    """Root, on a host without the tools that only one lab needs."""
    special = {*build.OVN_TOOLS, *build.HYBRID_TOOLS}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in special else f"/bin/{tool}")


def test_single_needs_neither_ovn_nor_iptables(bare_host):
    build.check_host(SHAPES["single"])


@pytest.mark.parametrize(
    ("lab", "tool", "packages"),
    [("bridge", "ip6tables-restore", "iptables ipset"), ("pair", "ovn-northd", "ovn-central ovn-host")],
)
def test_what_is_missing_is_named_with_its_packages(bare_host, lab, tool, packages):
    with pytest.raises(HostNotReadyError, match=rf"needs .*{tool}.*pt-get install .*{packages}"):
        build.check_host(SHAPES[lab])
