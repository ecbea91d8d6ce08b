"""What an agent does not do, whatever the collector orders."""

from dataclasses import replace

import pytest
from support.wire_frames import make_session

from netprobe.model.probes import Protocol
from netprobe.service.agent_part import is_of_our_ports


@pytest.mark.parametrize(
    ("port", "is_ours"), [(61_000, True), (65_535, True), (60_999, False), (5_000, False), (443, False)]
)
def test_entries_of_others_sessions_are_deleted_only_on_ports_of_our_own(port, is_ours):
    """A tenant's connection that is described as a passing session keeps its conntrack entry."""
    session = make_session(Protocol.UDP)
    assert is_of_our_ports(replace(session, type_p=replace(session.type_p, src_port=port))) == is_ours


def test_echoes_of_others_are_left_to_their_timeout():
    """An identifier says nothing about whose it is."""
    assert not is_of_our_ports(make_session(Protocol.ICMP))
