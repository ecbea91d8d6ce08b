"""Whatever happens to a cloud, its topology is what the databases say, and every path in it can be observed.

A cloud lives through random events, in its databases and in a small model of plain dicts; both must agree after each.
"""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support import databases
from support.clouds import pair

from netprobe.errors import UsageError
from netprobe.model.inventory import InterfaceRow, PortBindingRow
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.plan.paths import build_path, next_hop, translations
from netprobe.plan.topology_merge import merge

CLOUD = pair()
HOSTS = [host.name for host in CLOUD.hosts]
NAMES = [guest.name for guest in CLOUD.guests] + ["new1", "new2"]
IFACE = {one.name: one.iface_id for one in CLOUD.attachments} | {"new1": "n-1", "new2": "n-2"}


@dataclass
class Model:
    """What should be found: where each guest's port is claimed, and where it is plugged in."""

    claimed: dict = field(default_factory=lambda: {g.name: g.host for g in CLOUD.guests})
    plugged: dict = field(default_factory=lambda: {g.name: g.host for g in CLOUD.guests})
    offloaded: set = field(default_factory=set)


def apply(model, given, event):
    """One event, in the model and in the databases."""
    kind, name, host = event
    iface = IFACE[name]
    if kind == "claim" and name in model.claimed:
        model.claimed[name] = host
        return replace(given, southbound=databases.rebind(given.southbound, iface, chassis=host))
    if kind == "create" and name not in model.claimed:
        model.claimed[name] = host
        number = NAMES.index(name) + 50
        text = f"fa:16:3e:bb:00:{number:02x} 10.1.0.{number} fd00:10:1::{number}"
        row = PortBindingRow(iface, "", "dp-net1", host, (text,))
        return replace(given, southbound=replace(given.southbound, bindings=(*given.southbound.bindings, row)))
    if kind == "delete" and name in model.claimed:
        del model.claimed[name]
        return replace(given, southbound=databases.without_binding(given.southbound, iface))
    if kind == "plug" and host and name not in model.plugged:
        model.plugged[name] = host
        row = InterfaceRow(f"tap{name}", "br-int", "", NAMES.index(name) + 1, iface, is_up=True)
        return databases.with_ports(given, host, row)
    if kind == "unplug" and name in model.plugged:
        return databases.with_ports(given, model.plugged.pop(name), gone={iface})
    if kind == "offload" and host:
        model.offloaded ^= {(host, f"tap{name}")}
        old = given.inventories[host]
        devices = {device: "in_hw" for on, device in model.offloaded if on == host}
        return replace(given, inventories={**given.inventories, host: replace(old, offloaded=devices)})
    return given


events = st.tuples(
    st.sampled_from(["claim", "create", "delete", "plug", "unplug", "offload"]),
    st.sampled_from(NAMES),
    st.sampled_from([*HOSTS, ""]),
)


def expected(model):
    """(host, bound, observed) of each guest that should be there."""
    found = {}
    for name in NAMES:
        claim, plug = model.claimed.get(name), model.plugged.get(name)
        was = next((g.host for g in CLOUD.guests if g.name == name), None)
        if claim is None and (plug is None or was is None):
            continue  # nobody knows it; or a new one that OVN does not know
        if claim == "" and was is None:
            continue  # a new one that is bound nowhere
        host = plug if claim is None else claim or was
        is_here = plug == host
        is_seen = (is_here or was == host) and not (is_here and (host, f"tap{name}") in model.offloaded)
        found[name] = (host, is_here and claim != "", is_seen)
    return found


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(events, max_size=12))
def test_after_any_events_the_topology_is_what_the_databases_say(history):
    """Host, bound or not, observable or not; and merging what was merged changes nothing."""
    model, given_now = Model(), databases.sources(CLOUD)
    for event in history:
        given_now = apply(model, given_now, event)
    cloud = merge(CLOUD, given_now)
    names = {iface: name for name, iface in IFACE.items()}
    found = {names[g.iface_id]: (g.host, g.is_bound, not g.unobserved) for g in cloud.guests}
    assert found == expected(model)
    assert merge(cloud, given_now) == cloud
    for guest in cloud.guests:
        assert guest.chain[-1].host == guest.host
        assert bool(guest.unobserved) == (guest.chain[-1].id in cloud.unobserved)
        assert not guest.unobserved or not guest.chain[-1].device
        if guest.is_bound and not guest.unobserved:
            assert (guest.chain[-1].netns, guest.chain[-1].device) == (guest.host, f"tap{names[guest.iface_id]}")


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(events, max_size=8), st.sampled_from(list(Vantage)), st.sampled_from(list(Protocol)))
def test_every_path_leads_there_and_back_through_the_same_points(history, vantage, protocol):
    """The answer's way is the probe's, turned round; no (point, direction) stands twice on a leg."""
    model, given_now = Model(), databases.sources(CLOUD)
    for event in history:
        given_now = apply(model, given_now, event)
    cloud = merge(CLOUD, given_now)
    for sender in cloud.guests:
        for target in cloud.guests:
            if sender.name == target.name:
                continue
            path = build_path(cloud, sender, target, vantage, protocol)
            for leg in (path.forward, path.returned):
                assert len({(s.point.id, s.direction) for s in leg}) == len(leg)
            if path.returned:
                first = len(sender.chain) if vantage is Vantage.GUEST else 1
                there = [(s.point.place, 1 - s.direction) for s in path.forward[first:]]
                back = [(s.point.place, int(s.direction)) for s in reversed(path.returned)]
                assert there == back[-len(there) :]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from(CLOUD.guests), st.sampled_from(CLOUD.guests), st.sampled_from([4, 6]))
def test_what_is_sent_arrives_at_the_target(sender, target, family):
    """The last address pair has the target's own address; the first is the sender's; the MAC is a neighbour's."""
    try:
        sent_to, pairs = translations(CLOUD, sender, target, family)
    except UsageError as error:
        assert "has no floating IP" in str(error)  # noqa: PT017  what may be raised, not what must be
        assert target.floating is None
        return
    assert (pairs[-1].dst_ip if pairs else sent_to) == target.address(family)
    assert all(pair.src_ip != sender.address(family) or pair.dst_ip != sent_to for pair in pairs)
    if sender.name != target.name:
        mac = next_hop(sender, target, family)
        assert mac == (target.mac if sender.network == target.network else sender.gateway_mac)
