"""Policies meet a topology: which guest a port is, and what it gets from it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from support.clouds import topology

from netprobe.errors import UsageError
from netprobe.plan.policy_bind import bind
from netprobe.plan.policy_file import parse_policy

GUESTS = topology().guests


def bound(text, guests=GUESTS, **options):
    return bind(parse_policy(text, "p.toml"), guests, "p.toml", **options)


def refused(text, guests=GUESTS):
    with pytest.raises(UsageError) as caught:
        bound(text, guests)
    return str(caught.value)


@pytest.mark.parametrize("name", [GUESTS[0].name, str(GUESTS[0].ipv4), GUESTS[0].mac.upper(), GUESTS[0].iface_id])
def test_a_guest_is_found_by_name_address_mac_or_uuid_and_gives_its_addresses(name):
    """Groups stay the policy's own."""
    guest = GUESTS[0]
    policy = bound(f'[[group]]\nname = "g"\n[[guest]]\nname = "{name}"\ngroups = ["g"]\n')
    (port,) = policy.ports
    assert (port.name, port.id, port.mac, port.network) == (name, guest.iface_id, guest.mac, guest.network)
    assert port.ips == tuple(ip for ip in (guest.ipv4, guest.ipv6) if not ip.is_unspecified)
    assert port.groups == ("g",)


def test_a_guest_of_another_name_is_found_by_what_the_policy_says_of_its_addresses():
    """A cloud's port need not be called as its guest is."""
    guest = GUESTS[1]
    assert bound(f'[[guest]]\nname = "db"\nmac = "{guest.mac}"\n').ports[0].id == guest.iface_id
    assert bound(f'[[guest]]\nname = "db"\nips = ["{guest.ipv4}", "{guest.ipv6}"]\n').ports[0].id == guest.iface_id


def test_more_addresses_than_the_topology_knows_are_kept():
    """An attachment has one address a family; a port may have more."""
    guest = GUESTS[0]
    ips = f'"{guest.ipv4}", "{guest.ipv6}", "10.77.0.1"'
    assert IPv4Address("10.77.0.1") in bound(f'[[guest]]\nname = "{guest.name}"\nips = [{ips}]\n').ports[0].ips


def test_an_unspecified_address_is_none():
    """A guest without IPv6."""
    guest = replace(GUESTS[0], ipv6=IPv6Address("::"))
    assert bound(f'[[guest]]\nname = "{guest.name}"\n', [guest]).ports[0].ips == (guest.ipv4,)


def test_a_guest_that_is_nowhere_is_refused_with_the_nearest_name():
    """Or kept as a member of its groups, with a remark, where the policy is a whole cloud's."""
    name = GUESTS[0].name
    assert refused('[[guest]]\nname = "vm11"\n').startswith("p.toml: guest vm11: unknown guest 'vm11' (allowed: ")
    assert refused('[[guest]]\nname = "vm11"\n').endswith(f"Did you mean {name!r}?")
    text = '[[guest]]\nname = "vm11"\nmac = "02:00:00:00:00:01"\nips = ["10.99.0.1"]\n'
    policy = bound(text, must_exist=False)
    assert (policy.ports[0].mac, policy.ports[0].ips) == ("", (IPv4Address("10.99.0.1"),))
    assert policy.remarks == ("guest vm11 is attached nowhere that netprobe knows: nothing is sent from it or to it",)


def test_what_the_policy_and_the_topology_say_must_agree():
    """MAC, addresses, network."""
    guest = GUESTS[0]
    head = f'[[guest]]\nname = "{guest.name}"\n'
    place = f"p.toml: guest {guest.name}"
    wrong = "Correct one of them."
    assert refused(head + 'mac = "02:00:00:00:99:99"\n') == (
        f"{place}.mac: the policy says 02:00:00:00:99:99, and the guest has {guest.mac}. {wrong}"
    )
    assert refused(head + 'ips = ["10.99.0.1"]\n') == (
        f"{place}.ips: the policy says 10.99.0.1, and the guest has {guest.ipv4}. {wrong}"
    )
    there = replace(guest, network="net1")
    assert refused(head + 'network = "net2"\n', [there]) == (
        f"{place}.network: the policy says net2, and the guest has net1. {wrong}"
    )


def test_two_ports_that_are_one_guest_are_refused():
    """By different names."""
    guest = GUESTS[0]
    text = f'[[guest]]\nname = "{guest.name}"\n[[guest]]\nname = "{guest.ipv4}"\n'
    assert refused(text) == (
        f"p.toml: guest {guest.ipv4}: is guest {guest.name}, which guest {guest.name} is too. Name it once."
    )


def test_a_name_of_several_guests_needs_its_network_or_uuid():
    """Two networks may use the same addresses."""
    one, other = replace(GUESTS[0], network="net1"), replace(GUESTS[1], network="net2", ipv4=GUESTS[0].ipv4)
    assert refused(f'[[guest]]\nname = "{one.ipv4}"\n', [one, other]) == (
        f"p.toml: guest {one.ipv4}: '{one.ipv4}' is said of several guests (allowed: {one.name} on net1, {other.name} "
        "on net2). Name it by its UUID."
    )
    assert bound(f'[[guest]]\nname = "{one.ipv4}"\nnetwork = "net2"\n', [one, other]).ports[0].id == other.iface_id


@pytest.mark.parametrize("network", ["1c7b1b5c-6c1a-4c7e-9b1e-5f0c4a2f9d11"])
def test_a_networks_uuid_is_not_compared_with_a_name(network):
    """Neutron's UUID, OVN's name for it, and the network's own name may all mean one network."""
    text = f'[[guest]]\nname = "{GUESTS[0].name}"\nnetwork = "{network}"\n'
    for real in ("net1", network, f"neutron-{network}"):
        assert bound(text, [replace(GUESTS[0], network=real)]).ports[0].network == real
    assert "the policy says" in refused(text, [replace(GUESTS[0], network=network.replace("1", "2"))])
