"""The kernel's conntrack table over a socket that answers as it is told: retries, their bound, and what is refused."""

import errno
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host import nf_conntrack
from netprobe.host.nf_conntrack import MAX_TRIES, KernelConntrack
from netprobe.judge.conntrack import TCP, UDP, CtState, FiveTuple, state_for

DUMP = (Path(__file__).parent / "data" / "nf_conntrack_dump.bin").read_bytes()
GUEST, HOST = ip_address("10.77.0.2"), ip_address("10.77.0.1")
SEEN = FiveTuple(UDP, GUEST, HOST, 61000, 5353)


def numbered(data, sequence, flags=0):
    """The messages with this sequence number and more flags."""
    out, place = bytearray(data), 0
    while place < len(out):
        length = int.from_bytes(out[place : place + 4], "little")
        out[place + 6] |= flags
        out[place + 8 : place + 12] = sequence.to_bytes(4, "little")
        place += length + -length % 4
    return bytes(out)


def outcome(sequence, code):
    return (20).to_bytes(4, "little") + b"\2\0\0\0" + sequence.to_bytes(4, "little") + bytes(4) + error(code)


def error(code):
    return (-code).to_bytes(4, "little", signed=True)


class Kernel:
    """Answers dumps by `dumps`, one after the other, and deletions by `codes`."""

    def __init__(self, dumps, codes=()):
        self.dumps, self.codes = list(dumps), list(codes)
        self.opened, self.deleted, self.waiting, self.senders = 0, [], [], []

    def sendto(self, data, address):
        assert address == (0, 0)
        place = 0
        while place < len(data):
            length, kind = int.from_bytes(data[place : place + 4], "little"), data[place + 4]
            sequence = int.from_bytes(data[place + 8 : place + 12], "little")
            if kind == 1:
                self.waiting.append(self.dumps.pop(0)(sequence))
            else:
                self.deleted.append(data[place + 20 : place + length])
                self.waiting.append(outcome(sequence, self.codes.pop(0)))
            place += length

    def recvmsg(self, _size):
        if not self.waiting:
            raise TimeoutError
        answer = self.waiting.pop(0)
        if isinstance(answer, OSError):
            raise answer
        flags = socket.MSG_TRUNC if len(answer) < 16 else 0
        return answer, [], flags, (self.senders.pop(0) if self.senders else 0, 0)

    def close(self):
        self.waiting.clear()


@pytest.fixture
def opened(monkeypatch):
    def with_kernel(kernel):
        def new_socket(_self):
            kernel.opened += 1
            return kernel

        monkeypatch.setattr(KernelConntrack, "_open", new_socket)
        return KernelConntrack("")

    return with_kernel


def whole(sequence):
    return numbered(DUMP, sequence)


def interrupted(sequence):
    return numbered(DUMP, sequence, flags=0x10)


def overrun(_sequence):
    return OSError(errno.ENOBUFS, "No buffer space available")


def truncated(sequence):
    return whole(sequence)[:8]


@pytest.mark.parametrize("broken", [interrupted, overrun, truncated, lambda n: outcome(n, errno.EINTR)])
def test_a_dump_that_was_broken_off_is_read_again_over_a_new_socket(opened, broken):
    kernel = Kernel([broken, broken, whole])
    with opened(kernel) as table:
        assert len(table.dump()) == 13
    assert kernel.opened == 3


@pytest.mark.parametrize("broken", [interrupted, overrun])
def test_not_for_ever(opened, broken):
    kernel = Kernel([broken] * MAX_TRIES)
    with opened(kernel) as table, pytest.raises(HostNotReadyError, match=f"in {MAX_TRIES} tries"):
        table.dump()
    assert kernel.dumps == []


def test_answers_to_another_question_or_from_another_sender_do_not_count(opened):
    kernel = Kernel([lambda n: whole(n + 7) + whole(n)])
    with opened(kernel) as table:
        assert len(table.dump()) == 13
    kernel = Kernel([whole])
    kernel.senders = [4711]
    with opened(kernel) as table, pytest.raises(HostNotReadyError, match="no answer within"):
        table.dump()


def test_an_entry_that_is_dumped_twice_is_one(opened):
    """It happens when the entry at which the kernel resumes has gone meanwhile."""
    with opened(Kernel([lambda n: whole(n)[:-20] + whole(n)])) as table:
        assert len(table.dump()) == 13


def test_where_nothing_is_tracked_there_are_no_entries(opened, monkeypatch, tmp_path):
    """Linux without the module: nfnetlink says EINVAL, and there is no count; with it, the module that dumps lacks."""
    monkeypatch.setattr(nf_conntrack, "KERNEL_TABLE", tmp_path)
    with opened(Kernel([lambda n: outcome(n, errno.EINVAL)])) as table:
        assert table.dump() == ()
        with pytest.raises(HostNotReadyError, match="odprobe nf_conntrack"):
            table.use()
    (tmp_path / "nf_conntrack_count").write_text("3\n")
    table = opened(Kernel([lambda n: outcome(n, errno.EINVAL)]))
    with table, pytest.raises(HostNotReadyError, match="nf_conntrack_netlink"):
        table.dump()


def test_who_may_not_is_told(opened):
    with opened(Kernel([lambda n: outcome(n, errno.EPERM)])) as table, pytest.raises(HostNotReadyError, match="root"):
        table.dump()


def test_rubbish_is_no_dump(opened):
    with opened(Kernel([lambda _n: b"\1" * 40])) as table, pytest.raises(HostNotReadyError, match="newer"):
        table.dump()


@pytest.mark.parametrize(
    ("code", "field"), [(0, "deleted"), (errno.ENOENT, "absent"), (errno.EBUSY, "kept")], ids=["ok", "gone", "busy"]
)
def test_what_became_of_an_entry(opened, code, field):
    """The tuple of an answer (swapped) and one that nobody has are absent, and are not named to the kernel."""
    kernel = Kernel([whole], [code])
    swapped, nobody = FiveTuple(UDP, HOST, GUEST, 5353, 61000), FiveTuple(TCP, GUEST, HOST, 61001, 80)
    with opened(kernel) as table:
        said = table.delete_own([SEEN, SEEN, swapped, nobody], None)
    assert len(kernel.deleted) == 1
    expected = {"deleted": (), "absent": (swapped, nobody), "kept": ()}
    expected[field] += ((SEEN, "Device or resource busy"),) if field == "kept" else (SEEN,)
    assert (said.deleted, said.absent, said.kept) == (expected["deleted"], expected["absent"], expected["kept"])


def test_in_another_zone_it_is_somebody_elses(opened):
    kernel = Kernel([whole])
    with opened(kernel) as table:
        assert table.delete_own([SEEN], 6).absent == (SEEN,)
    assert kernel.deleted == []


def test_nothing_to_delete_asks_nothing(opened):
    with opened(Kernel([])) as table:
        assert table.delete_own([], None).deleted == ()


def test_linux_says_itself_whether_an_entry_was_answered(opened):
    """So a second echo of an answered one is established, and one of an unanswered one is new."""
    with opened(Kernel([whole])) as table:
        entries = table.dump()
    answered = next(e for e in entries if e.is_answered)
    assert state_for(answered.original, entries) is CtState.ESTABLISHED
    assert state_for(SEEN, entries) is CtState.NEW
