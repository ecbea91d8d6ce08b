"""An agent that lies about its host: whatever its inventory says, nothing that others have goes anywhere else."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import databases
from support.clouds import pair

from netprobe.model.inventory import HostInventory, InterfaceRow
from netprobe.plan.topology_merge import merge
from netprobe.service.agents import HostReport

CLOUD = pair()
texts = st.sampled_from(["", "x", "tapvm1", "br-int", "geneve", "hv1", "fa:16:3e:00:00:01", "10.1.0.1", "/", "é" * 200])
rows = st.builds(
    InterfaceRow,
    name=texts,
    bridge=texts,
    kind=texts,
    ofport=st.integers(-1, 70_000),
    iface_id=st.sampled_from([*(one.iface_id for one in CLOUD.attachments), "", "unknown"]),
    mac=texts,
    driver=texts,
    remote_ip=texts,
    is_up=st.booleans(),
    error=texts,
)
inventories = st.builds(
    HostInventory,
    host=st.sampled_from(["hv2", "fabric", "nowhere"]),
    chassis=st.sampled_from(["hv1", "hv2", "uuid-of-hv1", "x", ""]),
    encap_ips=st.lists(texts, max_size=3).map(tuple),
    is_offload_on=st.booleans(),
    interfaces=st.lists(rows, max_size=8).map(tuple),
    offloaded=st.dictionaries(texts, texts, max_size=3),
)


def chassis_with_uuids(given_now):
    """OVN as it often is: chassis have UUIDs, and nothing but their host names tells whose they are."""
    south = given_now.southbound
    names = {"hv1": "uuid-of-hv1", "hv2": "uuid-of-hv2"}
    chassis = tuple(replace(row, name=names[row.name]) for row in south.chassis)
    bindings = tuple(replace(row, chassis=names.get(row.chassis, row.chassis)) for row in south.bindings)
    found = {name: replace(one, chassis=names[name]) for name, one in given_now.inventories.items()}
    return replace(given_now, southbound=replace(south, chassis=chassis, bindings=bindings), inventories=found)


@pytest.mark.parametrize("has_uuids", [False, True])
@settings(deadline=None, derandomize=True, max_examples=150)
@given(lie=inventories)
def test_no_inventory_moves_what_is_on_another_host(has_uuids, lie):
    """hv1, and every guest that OVN has bound there, are the same with the lie and without."""
    HostReport(lie).check()
    base, given_now = CLOUD, databases.sources(CLOUD)
    if has_uuids:
        base = replace(base, hosts=tuple(replace(host, chassis="") for host in base.hosts))
        given_now = chassis_with_uuids(given_now)
    honest = merge(base, given_now)
    lied = merge(base, replace(given_now, inventories={**given_now.inventories, lie.host: lie}))
    assert lied.host("hv1") == honest.host("hv1")
    on_hv1 = [one for one in honest.attachments if one.host == "hv1"]
    assert [one for one in lied.attachments if one.name in {a.name for a in on_hv1}] == on_hv1
    assert [one.host for one in lied.attachments] == [one.host for one in honest.attachments]
