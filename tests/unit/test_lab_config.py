"""The lab's TOML: what ships is right, what is wrong is refused with words that help."""

import pytest

from netprobe.errors import UsageError
from netprobe.lab import config

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
        ("protocol = 'tpc'", r"unknown value 'tpc'.*'tcp'"),
        ("protocol = 'tcp'\nport = 65536", r"port: is 65536 .*0-65535"),
        ("protocol = 'tcp'\nport = '9-1'", "port: is '9-1'"),
        ("protocol = 'tcp'\nport = true", "port: is True"),
        ("protocol = 'tcp'\nport = [80]", r"port: is \[80\]"),
        ("port = 80", "goes with protocol 'any'"),
        ("protocol = 'icmp'\nport = 80", "goes with protocol 'icmp'"),
        ("remote_prefix = '10.0.0.1/24'", "has host bits set"),
        ("remote_prefix = '10.0.0.0/24'\nethertype = 'ipv6'", "not of the rule's ethertype"),
        ("remote_prefix = '10.0.0.0/24'\nremote_group = 'g'", "both"),
        ("remote_group = 'h'", "unknown group 'h'"),
        ("ethertype = 4", "is 4 .*string"),
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
        ("[[guest]]\nname = 'vm1'", "two guests named 'vm1'"),
        ("[[guest]]\nname = 'hv1'", "is 'hv1'"),
        ("[[guest]]\nname = 'a-long-name-indeed'", "is 'a-long-name-indeed'"),
        ("[[guest]]\nname = 'vm2'\ngroups = ['gg']", "unknown group 'gg'"),
        ("[[guest]]\nname = 'vm2'\ngroups = 'g'", "is 'g' .*list"),
        ("[[guest]]\ngroups = []", "has no 'name'"),
        ("bypass = 3", "unknown key 'bypass'"),
    ],
)
def test_a_wrong_document_is_refused(rest, says):
    with pytest.raises(UsageError, match=says):
        tiny(rest=rest)


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
