"""OVN's routers and NAT from a few rows: who is behind whom, and what wins where several rows fit."""

from ipaddress import IPv4Address

import pytest

from netprobe.model.inventory import DatapathRow, NatRow, Northbound, PortBindingRow, Southbound, SwitchRow
from netprobe.model.topology import RouterLink
from netprobe.plan.ovn_networks import OvnNetworks, addresses_in

GUEST = PortBindingRow("guest", "", "net")
OUTSIDER = PortBindingRow("outsider", "", "ext")
ADDRESS = IPv4Address("10.0.0.5")


def switch(name):
    return DatapathRow(name, name, 1, is_router=False, northbound_id=f"nb-{name}")


def router(name):
    return DatapathRow(name, name, 2, is_router=True, northbound_id=f"nb-{name}")


def joined(one, network, mac="0a:00:00:00:00:01 10.0.0.254/24", *, central="", kind="patch", chassis=""):
    """A router's port on a network (or on another router), both sides of it."""
    inner, outer = f"{one}-{network}", f"{network}-{one}"
    rows = [
        PortBindingRow(inner, kind, one, chassis, (mac,), peer=outer),
        PortBindingRow(outer, kind, network, chassis, ("router",), peer=inner),
    ]
    if central:
        rows.append(PortBindingRow(f"cr-{inner}", "chassisredirect", one, central, redirected=inner))
    return rows


def networks(datapaths, *bindings, nats=(), subnets=()):
    rows = tuple(row for rows in bindings for row in rows)
    north = Northbound(nats=tuple(nats), switches=tuple(subnets))
    return OvnNetworks(Southbound((), tuple(datapaths), rows), north, lambda chassis: f"host-{chassis}")


def nat(kind, external, logical, router="r", **more):
    return NatRow(f"nb-{router}", kind, external, logical, **more)


def simple(*nats):
    """A guest on net, r, and ext: the port on ext is served by chassis c1."""
    return networks(
        [switch("net"), switch("ext"), router("r")], joined("r", "net"), joined("r", "ext", central="c1"), nats=nats
    )


def test_a_gateways_host_is_its_chassis_host():
    """Named by the caller's own rule."""
    assert simple().links == (
        RouterLink("r", "ext", is_central=True, gateway="host-c1"),
        RouterLink("r", "net"),
    )


def test_a_guests_own_row_wins_over_a_prefix_and_a_longer_prefix_over_a_shorter():
    """ovn-nb(5): the longest match."""
    rows = [nat("snat", "9.0.0.1", "10.0.0.0/8"), nat("snat", "9.0.0.2", "10.0.0.0/24")]
    assert simple(*rows).nat_of(GUEST, ADDRESS).behind == {"ext": IPv4Address("9.0.0.2")}
    found = simple(*rows, nat("snat", "9.0.0.3", "10.0.0.5"), nat("dnat_and_snat", "9.0.0.9", "10.0.0.5")).nat_of(
        GUEST, ADDRESS
    )
    assert (found.floating, found.behind) == (IPv4Address("9.0.0.9"), {"ext": IPv4Address("9.0.0.9")})


@pytest.mark.parametrize(
    "row",
    [
        nat("dnat", "9.0.0.1", "10.0.0.5"),
        nat("snat", "9.0.0.1", "10.0.1.0/24"),
        nat("snat", "fd00::1", "fd00:1::/64"),
        nat("snat", "nonsense", "10.0.0.0/24"),
        nat("snat", "9.0.0.1", "nonsense"),
        nat("snat", "9.0.0.1", "10.0.0.0/24", router="other"),
    ],
)
def test_rows_that_do_not_fit_translate_nothing(row):
    """Other addresses, other families, other routers, and what makes no sense."""
    assert simple(row).nat_of(GUEST, ADDRESS).behind == {}


def test_a_floating_ip_with_a_mac_and_a_port_is_translated_at_home():
    """Both columns, and the port is the guest's own (ovn-nb(5), distributed NAT)."""
    mac = {"external_mac": "0a:00:00:00:00:99"}
    assert (
        simple(nat("dnat_and_snat", "9.0.0.9", "10.0.0.5", logical_port="guest", **mac))
        .nat_of(GUEST, ADDRESS)
        .floating_mac
        == "0a:00:00:00:00:99"
    )
    other = simple(nat("dnat_and_snat", "9.0.0.9", "10.0.0.5", logical_port="other", **mac))
    assert other.nat_of(GUEST, ADDRESS).floating_mac == ""


def test_who_is_outside_is_not_behind_what_is_inside():
    """In ext - r - net - far - away a guest on ext comes in through r's gateway, and is not behind far's."""
    found = networks(
        [switch("net"), switch("ext"), switch("away"), router("r"), router("far")],
        joined("r", "net"),
        joined("r", "ext", central="c1"),
        joined("far", "net"),
        joined("far", "away", central="c2"),
        nats=[nat("snat", "9.0.0.1", "0.0.0.0/0", router="far")],
    )
    assert found.nat_of(OUTSIDER, ADDRESS).behind == {}
    assert found.nat_of(GUEST, ADDRESS).behind == {"away": IPv4Address("9.0.0.1")}


def test_routers_that_are_joined_directly_have_a_network_between_them():
    """No switch, and yet a way: net - r - edge (one chassis's own) - pub."""
    found = networks(
        [switch("net"), switch("pub"), router("r"), router("edge")],
        joined("r", "net"),
        [
            PortBindingRow("r-edge", "patch", "r", "", ("0a:00:00:00:00:02 100.64.0.1/24",), peer="edge-r"),
            PortBindingRow("edge-r", "l3gateway", "edge", "c3", ("0a:00:00:00:00:03 100.64.0.2/24",), peer="r-edge"),
        ],
        joined("edge", "pub", kind="l3gateway", chassis="c3"),
        nats=[nat("snat", "9.0.0.1", "10.0.0.0/24", router="edge")],
    )
    assert RouterLink("edge", "pub", is_central=True, gateway="host-c3") in found.links
    assert {link.network for link in found.links} == {"net", "pub", "edge-r--r-edge"}
    assert found.nat_of(GUEST, ADDRESS).behind == {"pub": IPv4Address("9.0.0.1")}


def test_without_a_router_the_configured_subnet_is_the_prefix():
    """other_config:subnet and :ipv6_prefix, which has no length."""
    subnets = [SwitchRow("nb-net", "net", ("10.0.0.0/24", "fd00:1::", "nonsense"))]
    found = networks([switch("net")], subnets=subnets)
    assert [str(prefix) for prefix in found.prefixes(GUEST)] == ["10.0.0.0/24", "fd00:1::/64"]
    assert (found.gateway_macs("net"), found.network_of(GUEST)) == ((), "net")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((), ("", ())),
        (("unknown",), ("", ())),
        (("dynamic",), ("", ())),
        (("router",), ("", ())),
        (("unknown", "FA:16:3E:00:00:01 10.0.0.1 fd00::1"), ("fa:16:3e:00:00:01", ("10.0.0.1", "fd00::1"))),
        (("fa:16:3e:00:00:01",), ("fa:16:3e:00:00:01", ())),
        (("",), ("", ())),
    ],
)
def test_a_column_of_addresses_is_read(texts, found):
    """The first entry that begins with a MAC."""
    assert addresses_in(texts) == found
