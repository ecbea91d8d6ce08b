"""The host's allowlist: what it lets pass, which line forbids the rest, and which files it trusts."""

import os

import pytest

from netprobe.errors import RefusedError, UsageError
from netprobe.host.allowlist import EXAMPLE, read_allowlist
from netprobe.model.points import Vantage
from netprobe.model.probes import Protocol
from netprobe.plan.allowlist import DEFAULT_PACKET_OUT_PPS, Order, parse_allowlist

TEXT = """\
# which ports may be played
schema = 1
ports = ["vm*", "tap-?"]
protocols = ["udp", "icmp"]
max_pps = 1000
families = [4]
vantages = ["guest", "vswitch"]
"""


def order(**changes):
    values = {"names": ("vm1", "tap-1"), "protocol": Protocol.UDP, "family": 4, "vantage": Vantage.GUEST, "pps": 1000.0}
    return Order(**{**values, **changes})


def test_an_order_within_all_limits_passes():
    parse_allowlist(TEXT, "list").check(order())
    parse_allowlist(TEXT, "list").check(order(names=("db", "tap-7"), vantage=Vantage.VSWITCH, pps=100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"names": ("db", "tap-77")},
            r"list: line 3, ports: port db / tap-77 is not allowed .*\(allowed: vm\*, tap-\?\)",
        ),
        ({"protocol": Protocol.TCP}, r"list: line 4, protocols: protocol tcp .*\(allowed: icmp, udp\)"),
        (
            {"pps": 1001},
            r"list: line 5, max_pps: 1001 packets/s from vantage guest .*\(allowed: up to 1000 packets/s\)",
        ),
        ({"pps": 0}, r"line 5, max_pps"),
        ({"pps": float("nan")}, r"line 5, max_pps"),
        ({"family": 6}, r"list: line 6, families: IPv6 .*\(allowed: IPv4\)"),
        ({"vantage": Vantage.BYPASS}, r"list: line 7, vantages: vantage bypass .*\(allowed: guest, vswitch\)"),
        (
            {"vantage": Vantage.VSWITCH, "pps": 101},
            rf"list: packet_out_pps, by default: 101 packets/s .*\(allowed: up to {DEFAULT_PACKET_OUT_PPS} packets/s\)",
        ),
    ],
)
def test_a_refusal_names_the_line_that_forbids_the_order(changes, message):
    with pytest.raises(RefusedError, match=message):
        parse_allowlist(TEXT, "list").check(order(**changes))


def test_policies_are_proved_only_where_the_list_says_so_and_on_its_ports():
    with pytest.raises(RefusedError, match=r"verify, by default: proving a policy .*\(allowed: `verify = true`\)"):
        parse_allowlist(TEXT, "list").check_verify(("vm1",))
    willing = parse_allowlist(TEXT + "verify = true\n", "list")
    willing.check_verify(("vm1",))
    with pytest.raises(RefusedError, match=r"line 3, ports: port db "):
        willing.check_verify(("db",))
    with pytest.raises(UsageError, match=r"verify: got 1 \(allowed: true or false\)"):
        parse_allowlist(TEXT + "verify = 1\n", "list")


def test_packet_out_is_faster_only_where_the_list_says_so():
    faster = parse_allowlist(TEXT + "packet_out_pps = 500\n", "list")
    faster.check(order(vantage=Vantage.VSWITCH, pps=500))
    with pytest.raises(RefusedError, match="line 8, packet_out_pps"):
        faster.check(order(vantage=Vantage.VSWITCH, pps=501))
    assert parse_allowlist(TEXT + "packet_out_pps = 5000\n", "list").cap_pps(Vantage.VSWITCH) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + "max_pp = 1\n", r"unknown key 'max_pp'.*Did you mean 'max_pps'"),
        (TEXT.replace('"udp"', '"upd"'), r"unknown value 'upd'.*Did you mean 'udp'"),
        (TEXT.replace("schema = 1", "schema = 2"), r"schema: got 2 \(allowed: 1\)"),
        (TEXT.replace("schema = 1\n", ""), r"key 'schema' is missing"),
        (TEXT.replace("max_pps = 1000", "max_pps = -1"), r"max_pps: got -1"),
        (TEXT.replace("max_pps = 1000", "max_pps = true"), r"max_pps: got True"),
        (TEXT.replace("max_pps = 1000", "max_pps = nan"), r"max_pps: got nan"),
        (TEXT.replace("[4]", "[5]"), r"families: got \[5\]"),
        (TEXT.replace("[4]", "4"), r"families: got 4"),
        (TEXT.replace('["vm*", "tap-?"]', '"vm*"'), r"ports: got 'vm\*'"),
        ("schema = ", r"is no TOML"),
    ],
)
def test_a_wrong_list_is_refused_with_what_would_be_right(text, message):
    with pytest.raises(UsageError, match=message):
        parse_allowlist(text, "list")


def write(path, text=TEXT, mode=0o644):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_file_is_read_when_root_alone_can_write_it(tmp_path):
    if os.getuid():
        pytest.skip("needs root to own the file")
    assert read_allowlist(write(tmp_path / "list.toml")).ports == ("vm*", "tap-?")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_refused(tmp_path, mode):
    path = write(tmp_path / "list.toml", mode=mode)
    with pytest.raises(RefusedError, match=r"others can write it|belongs to uid"):
        read_allowlist(path)


def test_a_file_of_another_owner_is_refused(tmp_path):
    path = write(tmp_path / "list.toml")
    if os.getuid():
        pytest.skip("needs root to give the file away")
    os.chown(path, 65534, 65534)
    with pytest.raises(RefusedError, match="belongs to uid 65534"):
        read_allowlist(path)


def test_a_link_a_folder_and_a_pipe_are_refused(tmp_path):
    write(tmp_path / "list.toml")
    (tmp_path / "link").symlink_to("list.toml")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(RefusedError):
            read_allowlist(tmp_path / name)


def test_a_host_without_a_list_allows_nothing_and_says_how_to_make_one(tmp_path):
    with pytest.raises(RefusedError, match=r"nothing may be injected here.*make it") as caught:
        read_allowlist(tmp_path / "none.toml")
    assert EXAMPLE in caught.value.advice
    parse_allowlist(EXAMPLE, "the example").check(order())


def test_a_list_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "list.toml"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(RefusedError):
        read_allowlist(path)
