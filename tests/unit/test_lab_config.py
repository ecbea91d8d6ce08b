"""The lab's TOML: what ships is right, what is wrong is refused with words that help."""

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config, layout, topology

TINY = """
[[group]]
name = "g"
[[group.rule]]
direction = "ingress"
{rule}
[[guest]]
name = "vm1"
groups = ["g"]
{rest}
"""


def tiny(rule: str = "", rest: str = "") -> config.LabConfig:
    return config.parse(TINY.format(rule=rule, rest=rest), where="x.toml")


def test_the_lab_that_ships_has_three_guests_and_a_bypass_like_vm1():
    lab = config.load("single")
    assert [guest.name for guest in lab.guests] == ["vm1", "vm2", "vm3"]
    assert lab.bypasses == (config.Bypass("hv1", "vm1"),)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ('protocol = "tcp"\nport = 80', "ingress tcp dport 80 from any"),
        ('protocol = "udp"\nport = "5000-5009"\nethertype = "ipv6"', "ingress ipv6 udp dport 5000-5009 from any"),
        ('remote_prefix = "10.0.0.0/24"', "ingress ipv4 any protocol from 10.0.0.0/24"),
        ('remote_group = "g"\nprotocol = "icmp"', "ingress icmp from group g"),
        ('protocol = "tcp"\nport = "0-65535"', "ingress tcp dport 0-65535 from any"),
    ],
)
def test_rules_say_what_they_mean(rule, text):
    assert tiny(rule).group("g").rules[0].text() == text


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("proto_col = 'tcp'", r"x.toml: group\[0\]: rule\[0\]: unknown key 'proto_col'.*'protocol'"),
        ("protocol = 'tpc'", r"protocol: got 'tpc' .*\btcp\b"),
        ("protocol = 'tcp'\nport = 65536", r"port: got 65536 .*0 to 65535"),
        ("protocol = 'tcp'\nport = '9-1'", "port: '9-1' is a range the wrong way round"),
        ("protocol = 'tcp'\nport = true", "port: got True"),
        ("protocol = 'tcp'\nport = [80]", r"port: got \[80\]"),
        ("port = 80", "no ports in any protocol"),
        ("protocol = 'icmp'\nport = 80", "no ports in icmp"),
        ("remote_prefix = '10.0.0.1/24'", "bits beyond its length"),
        ("remote_prefix = '10.0.0.0/24'\nethertype = 'ipv6'", "not of the rule's family"),
        ("remote_prefix = '10.0.0.0/24'\nremote_group = 'g'", "remote_prefix and remote_group"),
        ("remote_group = 'h'", "unknown group 'h'"),
        ("ethertype = 4", "got 4 .*string"),
    ],
)
def test_a_wrong_rule_is_refused(rule, says):
    with pytest.raises(UsageError, match=says):
        tiny(rule)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("[gest]\n", "unknown key 'gest'.*'guest'"),
        ("[bypass]\ncopy_of = 'vm9'", "unknown guest 'vm9'.*'vm1'"),
        ("[[guest]]\nname = 'vm1'", "two guests are called 'vm1'"),
        ("[[guest]]\nname = 'hv1'", "is 'hv1'"),
        ("[[guest]]\nname = 'a-long-name-indeed'", "is 'a-long-name-indeed'"),
        ("[[guest]]\nname = 'vm2'\ngroups = ['gg']", "unknown group 'gg'"),
        ("[[guest]]\nname = 'vm2'\ngroups = 'g'", "got 'g' .*array"),
        ("[[guest]]\ngroups = []", r"guest\[1\].name: got None"),
        ("bypass = 3", "unknown key 'bypass'"),
    ],
)
def test_a_wrong_document_is_refused(rest, says):
    with pytest.raises(UsageError, match=says):
        tiny(rest=rest)


PAIR_TINY = """
[[guest]]
name = "vm1"
host = "hv1"
network = "net1"
{rest}
"""


def test_the_pair_that_ships_has_guests_on_both_hypervisors_and_a_bypass_nic_on_each():
    lab = config.load("pair")
    assert {guest.name: (guest.host, guest.network) for guest in lab.guests} == {
        "vm1": ("hv1", "net1"),
        "vm2": ("hv2", "net1"),
        "vm3": ("hv1", "net1"),
        "vm4": ("hv2", "net2"),
        "ext1": ("hv2", "ext"),
    }
    assert [guest.name for guest in lab.guests if guest.floating] == ["vm1"]
    assert lab.bypasses == (config.Bypass("hv1", "vm1"), config.Bypass("hv2", "vm2"))


def test_a_bypass_nic_copies_the_first_guest_of_its_hypervisor_or_the_first_of_all():
    two = '[[guest]]\nname = "vm2"\nhost = "hv2"\nnetwork = "net2"\n'
    alone = config.parse(PAIR_TINY.format(rest=""), where="x.toml", lab="pair")
    both = config.parse(PAIR_TINY.format(rest=two), where="x.toml", lab="pair")
    assert [bypass.copy_of for bypass in alone.bypasses] == ["vm1", "vm1"]
    assert [bypass.copy_of for bypass in both.bypasses] == ["vm1", "vm2"]


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("[[guest]]\nname = 'vm2'\nhost = 'hv3'\nnetwork = 'net1'", "unknown value 'hv3'.*'hv2'"),
        ("[[guest]]\nname = 'vm2'\nhost = 'hv2'\nnetwork = 'net3'", "unknown value 'net3'"),
        ("[[guest]]\nname = 'vm2'\nhost = 'hv2'\nnetwork = 'ext'\nfloating = true", "vm2 is on ext itself"),
        ("floating = 1", "floating: got 1 .*true or false"),
        ("[[guest]]\nname = 'fabric'\nhost = 'hv2'\nnetwork = 'net1'", "is 'fabric'"),
        ("[bypass]\nhost = 'hv1'", "unknown key 'host'"),
        (
            "[[acl]]\nname = 'a'\ndirection = 'egress'\npriority = 1\naction = 'drop'\nnetwork = 'net9'",
            "unknown network 'net9'",
        ),
        ("[[bypass]]\nhost = 'hv1'\n[[bypass]]\nhost = 'hv1'", "two bypass NICs on 'hv1'"),
        ("[[bypass]]\nhost = 'hv2'\ncopy_of = 'vm2'", "unknown guest 'vm2'"),
    ],
)
def test_a_wrong_document_for_the_pair_is_refused(rest, says):
    with pytest.raises(UsageError, match=says):
        config.parse(PAIR_TINY.format(rest=rest), where="x.toml", lab="pair")


def test_where_there_is_one_hypervisor_there_is_no_key_to_choose_it_with():
    with pytest.raises(UsageError, match="unknown key 'host'"):
        tiny(rest="[[guest]]\nname = 'vm2'\nhost = 'hv1'")


@pytest.mark.parametrize("text", ["", "guest = 3", "guest = [3]", "group = {}", "[[guest]", "\x00"])
def test_what_is_no_lab_at_all_is_refused(text):
    with pytest.raises(UsageError, match=r"x\.toml"):
        config.parse(text, where="x.toml")


def test_an_unknown_lab_and_an_unreadable_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"unknown lab 'single1'.*'single'"):
        config.load("single1")
    with pytest.raises(UsageError, match="cannot be read"):
        config.load("single", tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        config.load("single", tmp_path / "latin.toml")


def test_machines_are_few_and_may_have_no_agent():
    """Only where guests are virtual machines; the key is unknown elsewhere."""
    text = '[[group]]\nname = "g"\n' + "".join(f'[[guest]]\nname = "m{n}"\ngroups = ["g"]\n' for n in range(9))
    with pytest.raises(UsageError, match=r"has 9 guests.*1-8"):
        config.parse(text, where="x", lab="vm")
    silent = '[[group]]\nname = "g"\n[[guest]]\nname = "m1"\ngroups = ["g"]\nagent = false\n'
    assert not config.parse(silent, where="x", lab="vm").guest("m1").has_agent
    with pytest.raises(UsageError, match="agent"):
        config.parse(silent, where="x", lab="single")


def test_a_machine_has_no_namespace_and_its_point_no_device():
    """What is behind a tap can be looked at by the machine's agent alone; the tap is a device like a veth."""
    lab = config.load("vm")
    ends = topology.endpoints(lab)
    machine, bypass = ends[0], ends[-1]
    assert (machine.is_machine, machine.netns, machine.tap) == (True, "", "tapvm1")
    assert not bypass.is_machine
    chains = layout.layout(lab.shape, ends).chains
    assert [(p.id, p.netns, p.device) for p in chains["vm1"]] == [
        ("vm1.guest", "", ""),
        ("vm1.backend", "hv1", "tapvm1"),
    ]
