"""Entries are looked for once and named only when they are there; what the switch is told is checked word by word."""

from ipaddress import ip_address

from netprobe.host.conntrack import Conntrack
from netprobe.host.unixctl import CommandError
from netprobe.judge.conntrack import GRE, ICMPV6, SCTP, UDP, FiveTuple
from netprobe.model.topology import Host
from netprobe.service import own_entries
from netprobe.service.own_entries import delete_tuples, table_of

A, B = ip_address("10.0.0.1"), ip_address("10.0.0.2")


class Switch:
    """A control socket with a table; it keeps what it was asked."""

    def __init__(self, *lines, gone=()):
        self.lines, self.gone, self.calls = lines, gone, []

    def call(self, command, *words):
        self.calls.append((command, *words))
        if command == "dpctl/dump-conntrack":
            return "\n".join(self.lines)
        if any(word in words[-1] for word in self.gone):
            raise CommandError("ovs-vswitchd", command, "failed to flush conntrack (No such file or directory)")
        return ""

    @property
    def named(self):
        return [words for command, *words in self.calls if command == "dpctl/flush-conntrack"]


def line(name, sport, dport, zone=5):
    ends = f"(src=10.0.0.1,dst=10.0.0.2,sport={sport},dport={dport})"
    return f"{name},orig={ends},reply=(src=10.0.0.2,dst=10.0.0.1,sport={dport},dport={sport}),zone={zone}"


def ours(port):
    return FiveTuple(UDP, A, B, port, 53)


def test_one_dump_and_only_what_is_there_is_named():
    switch = Switch(line("udp", 61000, 53), line("udp", 61001, 53), line("udp", 40000, 53), gone=["61001"])
    said = Conntrack(switch).delete_present([ours(61000), ours(61001), ours(61002)], 5)
    assert [command for command, *_ in switch.calls].count("dpctl/dump-conntrack") == 1
    assert [zone for zone, _tuple in switch.named] == ["zone=5", "zone=5"]
    assert (said.deleted, set(said.absent), said.kept) == ((ours(61000),), {ours(61001), ours(61002)}, ())


def test_what_would_mean_others_too_is_not_named():
    """Two GRE entries of the same addresses (the kernel's datapath has keys), and SCTP that is shared."""
    gre, sctp = FiveTuple(GRE, A, B, 0), FiveTuple(SCTP, A, B, 61000, 80)
    switch = Switch(line("47", 0, 0), line("47", 7, 9), line("sctp", 0, 0))
    said = Conntrack(switch).delete_present([gre, sctp], 5)
    assert switch.named == []
    assert [tuple_ for tuple_, _why in said.kept] == [gre, sctp]
    other_zone = Switch(line("47", 0, 0), line("47", 7, 9, zone=6))
    assert Conntrack(other_zone).delete_present([gre]).deleted == (gre,)


def test_icmpv6_is_kept_where_it_is_and_absent_where_it_is_not():
    original, reply = "src=fd00::1,dst=fd00::2,id=7,type=128,code=0", "src=fd00::2,dst=fd00::1,id=7,type=129,code=0"
    here, away = (FiveTuple(ICMPV6, ip_address("fd00::1"), ip_address("fd00::2"), i, 0, 128, 0) for i in (7, 8))
    switch = Switch(f"icmpv6,orig=({original}),reply=({reply}),zone=5")
    said = Conntrack(switch).delete_present([here, away], 5)
    assert (switch.named, said.absent, said.kept) == ([], (away,), ((here, "is ICMPv6"),))


def test_no_tuples_no_question(monkeypatch):
    """Neither socket is opened."""
    monkeypatch.setattr(own_entries, "UnixctlClient", None)
    monkeypatch.setattr(own_entries, "KernelConntrack", None)
    for is_kernel in (False, True):
        said = delete_tuples(
            table_of(Host("hv1", "hv1", "br-int", "/run/x", "", zone=5), is_kernel=is_kernel), iter([])
        )
        assert (said.deleted, said.absent, said.kept) == ((), (), ())
