"""Neutron's API as several versions of the client print it: one policy; and what half an export is told."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from netprobe.errors import UsageError
from netprobe.model.policy import AddressPair, GroupRule, Way
from netprobe.plan.policy_neutron import parse_neutron

WEB, RAW, NET, SUBNET = (f"{n}0000000-0000-4000-8000-000000000000" for n in "abcd")
RULES = [f"0000000{n}-0000-4000-8000-000000000000" for n in range(6)]
PORTS = [f"1000000{n}-0000-4000-8000-000000000000" for n in range(4)]
AG = "e0000000-0000-4000-8000-000000000000"


def api_rule(number, **values):
    empty = dict.fromkeys(
        (
            "protocol",
            "port_range_min",
            "port_range_max",
            "remote_ip_prefix",
            "remote_group_id",
            "remote_address_group_id",
        )
    )
    return {
        "id": RULES[number],
        "security_group_id": WEB,
        "direction": "ingress",
        "ethertype": "IPv4",
        **empty,
        **values,
    }


API_RULES = [
    api_rule(0, protocol="tcp", port_range_min=80, port_range_max=90, remote_ip_prefix="10.0.0.7/8"),
    api_rule(1, protocol="icmp", port_range_min=0, port_range_max=0),
    api_rule(2, protocol="ipv6-icmp", ethertype="IPv6", port_range_min=128, remote_group_id=WEB),
    api_rule(3, direction="egress", remote_ip_prefix="0.0.0.0/0"),
    api_rule(4, protocol="132", direction="egress", ethertype="IPv6", remote_address_group_id=AG),
    api_rule(5, protocol="ipv6-frag", ethertype="IPv6"),
]
WANTED = (
    GroupRule(RULES[0], Way.INGRESS, (4,), 6, (80, 90), remote_prefix=IPv4Network("10.0.0.0/8")),
    GroupRule(RULES[1], Way.INGRESS, (4,), 1, icmp_type=0, icmp_code=0),
    GroupRule(RULES[2], Way.INGRESS, (6,), 58, icmp_type=128, remote_group=WEB),
    GroupRule(RULES[3], Way.EGRESS, (4,)),
    GroupRule(RULES[4], Way.EGRESS, (6,), 132, remote_address_group=AG),
    GroupRule(RULES[5], Way.INGRESS, (6,), 44),
)
API_GROUPS = [
    {"id": WEB, "name": "web", "stateful": True, "security_group_rules": API_RULES},
    {"id": RAW, "name": "raw", "stateful": False, "security_group_rules": []},
]
API_PORTS = [
    {
        "id": PORTS[0],
        "name": "vm1",
        "mac_address": "FA:16:3e:00:00:01",
        "network_id": NET,
        "fixed_ips": [{"subnet_id": SUBNET, "ip_address": "10.0.0.1"}, {"subnet_id": WEB, "ip_address": "fd00::1"}],
        "security_groups": [WEB],
        "port_security_enabled": True,
        "allowed_address_pairs": [
            {"ip_address": "10.0.0.99", "mac_address": "fa:16:3e:00:00:01"},
            {"ip_address": "10.9.0.0/16", "mac_address": "fa:16:3e:00:00:99"},
        ],
        "device_owner": "compute:nova",
        "admin_state_up": True,
    },
    {
        "id": PORTS[1],
        "name": "",
        "mac_address": "fa:16:3e:00:00:02",
        "network_id": NET,
        "fixed_ips": [],
        "security_groups": [],
        "port_security_enabled": False,
        "allowed_address_pairs": [],
        "device_owner": "compute:nova",
    },
    {"id": PORTS[2], "device_owner": "network:dhcp"},
]
API = {
    "security-groups.json": {"security_groups": API_GROUPS, "security_groups_links": []},
    "ports.json": {"ports": API_PORTS},
    "address-groups.json": {
        "address_groups": [{"id": AG, "name": "dns", "addresses": ["fd00::53/128", "10.5.0.0/16"]}]
    },
    "networks.json": {"networks": [{"id": NET, "name": "net1", "subnets": [SUBNET]}]},
}

LIST_RULES = [
    ("tcp", "IPv4", "10.0.0.0/8", "80:90", "ingress", None, None),
    ("icmp", "IPv4", "0.0.0.0/0", "type=0:code=0", "ingress", None, None),
    ("ipv6-icmp", "IPv6", "::/0", "type=128", "ingress", WEB, None),
    (None, "IPv4", "0.0.0.0/0", "", "egress", None, None),
    ("132", "IPv6", "::/0", "", "egress", None, AG),
    ("44", "IPv6", "::/0", "", "ingress", None, None),
]
LIST_COLUMNS = (
    *("IP Protocol", "Ethertype", "IP Range", "Port Range", "Direction", "Remote Security Group"),
    "Remote Address Group",
)
CLIENT_RULES = [
    {"ID": RULES[i], "Security Group": WEB, **dict(zip(LIST_COLUMNS, row, strict=True))}
    for i, row in enumerate(LIST_RULES)
]
CLIENT = {
    "security-groups.json": [
        {"ID": WEB, "Name": "web", "Description": "", "Project": "p", "Tags": []},
        {"ID": RAW, "Name": "raw", "Description": "", "Project": "p", "Tags": []},
    ],
    "security-group-rules.json": CLIENT_RULES,
    "ports.json": [
        {
            "ID": PORTS[0],
            "Name": "vm1",
            "MAC Address": "fa:16:3e:00:00:01",
            "Fixed IP Addresses": [{"subnet_id": SUBNET, "ip_address": "10.0.0.1"}],
            "Status": "ACTIVE",
            "Security Groups": [WEB],
            "Device Owner": "compute:nova",
            "Tags": [],
        }
    ],
    "address-groups.json": [{"ID": AG, "Name": "dns", "Addresses": ["fd00::53/128", "10.5.0.0/16"]}],
    "networks.json": [{"ID": NET, "Name": "net1", "Subnets": [SUBNET]}],
}


def read(files):
    return parse_neutron({name: json.dumps(content) for name, content in files.items()}, "export")


def refused(files):
    with pytest.raises(UsageError) as caught:
        read(files)
    return str(caught.value)


def test_the_apis_own_answer_is_read():
    """Groups with their rules, ports with pairs and port security, address groups and names of networks."""
    policy = read(API)
    web, raw = policy.groups
    assert web.rules == WANTED
    assert ((web.name, web.is_stateful), (raw.name, raw.is_stateful)) == (("web", True), ("raw", False))
    vm1, unnamed = policy.ports
    assert (vm1.name, vm1.id, vm1.network, vm1.mac) == ("vm1", PORTS[0], "net1", "fa:16:3e:00:00:01")
    assert (vm1.ips, vm1.groups) == ((IPv4Address("10.0.0.1"), IPv6Address("fd00::1")), (WEB,))
    assert vm1.allowed_pairs == (
        AddressPair(IPv4Network("10.0.0.99")),
        AddressPair(IPv4Network("10.9.0.0/16"), "fa:16:3e:00:00:99"),
    )
    assert (unnamed.name, unnamed.has_port_security) == (PORTS[1], False)
    assert policy.remarks == ()


def test_lists_of_a_client_are_read_and_what_they_leave_out_is_told():
    """`list` says neither port security, nor pairs, nor what is stateful; ::/0 beside a remote group is no prefix."""
    policy = read(CLIENT)
    assert policy.groups[0].rules == WANTED
    assert policy.ports[0].network == "net1"
    assert policy.remarks == (
        "security-groups.json does not say whether web, raw are stateful: taken for stateful",
        "ports.json does not say of vm1 whether port security is on: taken for on; `openstack port show` does",
        "ports.json does not say of vm1 allowed address pairs: taken for none; `openstack port show` does",
    )


def test_what_show_prints_one_after_another_is_read_and_completes_lists():
    """`xargs -n1 openstack … show` makes a file of several documents."""
    shown = {**API_PORTS[0], "security_group_ids": [WEB], "is_port_security_enabled": True}
    for key in ("security_groups", "port_security_enabled"):
        del shown[key]
    ports = json.dumps(CLIENT["ports.json"]) + "\n" + json.dumps(shown) + "\n" + json.dumps(API_PORTS[1]) + "\n"
    groups = "".join(
        json.dumps({**{k: v for k, v in g.items() if k != "security_group_rules"}, "rules": g["security_group_rules"]})
        for g in API_GROUPS
    )
    others = {name: json.dumps(API[name]) for name in ("address-groups.json", "networks.json")}
    policy = parse_neutron({"security-groups.json": groups, "ports.json": ports, **others}, "export")
    assert policy == read(API)


def test_clients_before_4_0_print_dictionaries_as_text():
    """Lists of dictionaries line by line, or all in one line."""
    rules = "\n".join(
        [
            (
                f"direction='ingress', ethertype='IPv4', id='{RULES[0]}', port_range_max='90', port_range_min='80', "
                "protocol='tcp', remote_ip_prefix='10.0.0.0/8'"
            ),
            f"direction='egress', ethertype='IPv4', id='{RULES[3]}'",
        ]
    )
    port = {
        "id": PORTS[0],
        "name": "vm1",
        "mac_address": "fa:16:3e:00:00:01",
        "fixed_ips": f"ip_address='10.0.0.1', subnet_id='{SUBNET}', ip_address='fd00::1', subnet_id='{WEB}'",
        "security_group_ids": f"{WEB}, {RAW}",
        "port_security_enabled": "True",
        "allowed_address_pairs": "ip_address='10.0.0.99', mac_address='fa:16:3e:00:00:99'",
        "admin_state_up": "UP",
    }
    groups = [{"id": WEB, "name": "web", "stateful": True, "rules": rules}, {"id": RAW, "stateful": True, "rules": ""}]
    policy = read({"security-groups.json": groups, "ports.json": [port]})
    assert policy.groups[0].rules == (WANTED[0], WANTED[3])
    assert policy.ports[0].ips == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert policy.ports[0].groups == (WEB, RAW)
    assert policy.ports[0].allowed_pairs == (AddressPair(IPv4Network("10.0.0.99"), "fa:16:3e:00:00:99"),)


def test_ports_of_one_name_go_by_their_uuids():
    """Names need not be unique in Neutron, and those of networks need not either."""
    two = [{**API_PORTS[0]}, {**API_PORTS[1], "name": "vm1"}]
    networks = [{"ID": NET, "Name": "x"}, {"ID": SUBNET, "Name": "x"}]
    policy = read({**API, "ports.json": two, "networks.json": networks})
    assert [port.name for port in policy.ports] == PORTS[:2]
    assert {port.network for port in policy.ports} == {NET}


def test_a_port_that_is_switched_off_is_told():
    """It drops everything; that is not what the policy asks for."""
    policy = read({**API, "ports.json": [{**API_PORTS[0], "admin_state_up": "DOWN"}]})
    assert policy.remarks == ("vm1 switched off (admin_state_up): nothing passes there, whatever the policy says",)


GROUP_COMMAND = "openstack security group list -f value -c ID | xargs -n1 openstack security group show -f json"
PORT_COMMAND = "openstack port list -f value -c ID | xargs -n1 openstack port show -f json"
RULE_COMMAND = "openstack security group rule list --long -f json"


def without(rows, *columns):
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def with_rule(**values):
    return {**CLIENT, "security-group-rules.json": [{**CLIENT_RULES[0], **values}]}


def with_port(**values):
    return {**API, "ports.json": [{**API_PORTS[0], **values}]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, f"export: has no security-groups.json. Make it: {GROUP_COMMAND} > security-groups.json."),
        ({"security-groups.json": []}, f"export: has no ports.json. Make it: {PORT_COMMAND} > ports.json."),
        (
            {"security-groups.json": [], "port.json": []},
            (
                "export: unknown file 'port.json' (allowed: address-groups.json, networks.json, ports.json, "
                "security-group-rules.json, security-groups.json). Did you mean 'ports.json'?"
            ),
        ),
        (
            {name: rows for name, rows in CLIENT.items() if "rules" not in name},
            (
                "export/security-groups.json: has no rules, and there is no security-group-rules.json. Make it: "
                f"{RULE_COMMAND} > security-group-rules.json."
            ),
        ),
        (
            {**CLIENT, "security-group-rules.json": without(CLIENT_RULES[:1], "Direction", "Ethertype")},
            (
                "export/security-group-rules.json[0]: has no column direction. Its columns are: id, port_range, "
                "protocol, remote_address_group_id, remote_group_id, remote_ip_prefix, security_group_id. Make the "
                f"file with: {RULE_COMMAND}."
            ),
        ),
        (
            {**CLIENT, "security-group-rules.json": without(CLIENT_RULES[:1], "Security Group")},
            "export/security-group-rules.json[0]: has no column security_group_id. Its columns are: ",
        ),
        (
            {**CLIENT, "ports.json": without(CLIENT["ports.json"], "Security Groups")},
            "export/ports.json[0]: has no column security_groups. Its columns are: dev",
        ),
        ({**CLIENT, "security-groups.json": [{"Name": "x"}]}, "export/security-groups.json[0]: has no column id. Its "),
        ({**CLIENT, "ports.json": 3}, f"export/ports.json[0]: is no object. Make the file with: {PORT_COMMAND}."),
        (
            {**CLIENT, "security-groups.json": [{"ID": 7}]},
            "export/security-groups.json[0].id: got 7 (allowed: a text).",
        ),
        (with_rule(Direction="in"), "security-group-rules.json[0].direction: got 'in' (allowed: ingress, egress)."),
        (with_rule(Ethertype="ARP"), "security-group-rules.json[0].ethertype: got 'ARP' (allowed: IPv4, IPv6)."),
        (
            with_rule(**{"IP Protocol": "tpc"}),
            "rules.json[0].protocol: got 'tpc' (allowed: any, a number from 0 to 255",
        ),
        (with_rule(**{"Port Range": "80"}), ""),
        (
            with_rule(**{"Port Range": "90:80"}),
            "port_range: '90-80' is a range the wrong way round (allowed: \"80-90\")",
        ),
        (
            with_rule(**{"Port Range": "http"}),
            "[0].port_range: got 'http' (allowed: 80:80, 22:24, type=3 or type=3:code",
        ),
        (with_rule(**{"Port Range": "type=3:kind=4"}), "[0].port_range: got 'type=3:kind=4' (allowed: 80:80, 22:24, "),
        (with_rule(**{"Port Range": 80}), "[0].port_range: got 80 (allowed: a text, or null)."),
        (with_rule(**{"IP Range": "10.0.0/8"}), "[0].remote_ip_prefix: got '10.0.0/8' (allowed: a prefix such as "),
        (
            with_rule(**{"IP Range": "fd00::/8"}),
            "[0].remote_prefix: fd00::/8 is not of the rule's family IPv4 (allowed: ",
        ),
        (
            with_rule(**{"Remote Security Group": WEB}),
            "export/security-group-rules.json[0]: has remote_prefix and remote_group (allowed: one of them).",
        ),
        (
            with_rule(**{"Security Group": NET}),
            (
                f"export/security-group-rules.json[0].security_group_id: its group '{NET}' is not in "
                f"security-groups.json. Export it as an administrator: {GROUP_COMMAND} > security-groups.json."
            ),
        ),
        (
            {name: rows for name, rows in API.items() if "address" not in name},
            (
                f"export: rule {RULES[4]}: its address group '{AG}' is not in address-groups.json. Export it as an "
                "administrator: openstack address group list -f json > address-groups.json."
            ),
        ),
        (
            with_port(security_groups=[NET]),
            f"export/ports.json: port vm1: its security group '{NET}' is not in security-",
        ),
        (with_port(mac_address="x"), "export/ports.json[0].mac_address: got 'x' (allowed: a unicast MAC such as "),
        (
            with_port(fixed_ips=[{}, {"ip_address": "x"}]),
            "ports.json[0].fixed_ips[1].ip_address: got 'x' (allowed: ",
        ),
        (
            with_port(fixed_ips="10.0.0.1"),
            "ports.json[0].fixed_ips: got '10.0.0.1' (allowed: a list of objects)",
        ),
        (with_port(port_security_enabled="on"), "[0].port_security_enabled: got 'on' (allowed: true or false)."),
        (
            with_port(allowed_address_pairs=[{"ip_address": "x"}]),
            "[0].ip_address: got 'x' (allowed: an address or a pre",
        ),
        (
            {**API, "ports.json": [API_PORTS[0], {**API_PORTS[0], "id": PORTS[3], "name": "vm2"}]},
            (
                "export: guest vm2: has fa:16:3e:00:00:01, which guest vm1 has too on network net1. Give each guest "
                "addresses of its own."
            ),
        ),
    ],
)
def test_another_version_or_half_an_export_is_told_what_is_missing_and_what_to_run(files, message):
    """Place, column, value, command."""
    if not message:
        assert read(files).groups[0].rules[0].ports == (80, 80)
        return
    got = refused(files)
    assert message in got
    if message.startswith("export") and message.endswith((".", "?")):
        assert got == message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":', "[1] x", "\ufeff[]", "nonsense"])
def test_what_is_no_json_is_told_so(text):
    """An empty file is an empty list: there are no groups."""
    files = {"security-groups.json": text, "ports.json": "[]"}
    if not text:
        assert parse_neutron(files, "export").groups == ()
        return
    with pytest.raises(UsageError, match=r"is no JSON|is no object|has no column"):
        parse_neutron(files, "export")
