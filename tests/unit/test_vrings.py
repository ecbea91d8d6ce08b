"""What is at vrings, without a switch: filter entries, the ring buffer's records, libraries that are not there."""

import mmap
import os
import shutil
import struct
import subprocess
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import libbpf
from netprobe.host.libbpf import BpfObject, RingBuffer
from netprobe.host.ovsdb import AF_PACKET
from netprobe.host.vhost_devices import find_library
from netprobe.model.probes import Flow, ProbeSession, Protocol, TypeP
from netprobe.plan.allowlist import parse_allowlist
from netprobe.wire import mark
from netprobe.wire.vring_filter import KEY, class_marks, filter_entries

SIZE = 1 << 16
SOURCE = Path(libbpf.__file__).parent.parent / "observe" / "bpf" / "vring.bpf.c"


def session(number=1, protocol=Protocol.UDP, *, dst="10.0.0.2", src_ports=(), dscp=3):
    type_p = TypeP(protocol, 4, 110, dscp, 61_000 + number, 862, Flow.NEW_PER_PROBE if src_ports else Flow.SAME, 64)
    macs = bytes.fromhex("fa163e000001"), bytes.fromhex("fa163e000002")
    count = len(src_ports) or 10
    return ProbeSession(number, bytes(16), type_p, *macs, ip_address("10.0.0.1"), ip_address(dst), count, src_ports)


def entries(*sessions):
    return {KEY.unpack(key): value for key, value in filter_entries(sessions)}


def key(family, protocol, source, target):
    return (family, protocol, *(ip_address(a).packed.ljust(16, b"\0") if a else bytes(16) for a in (source, target)))


def test_a_session_passes_on_its_tuple_both_ways_and_so_do_errors_toward_its_source():
    found = entries(session())
    forward = struct.unpack_from("=II4H", found[key(4, 17, "10.0.0.1", "10.0.0.2")])
    back = struct.unpack_from("=II4H", found[key(4, 17, "10.0.0.2", "10.0.0.1")])
    assert forward == (1, 0, 61_001, 61_001, 862, 862)
    assert back == (1, 0, 862, 862, 61_001, 61_001)
    assert key(4, 1, "", "10.0.0.1") in found
    assert key(4, 1, "", "10.0.0.2") not in found
    assert key(4, 17, "10.0.0.1", "10.0.0.3") not in found


def test_echoes_pass_by_their_magic():
    found = entries(session(protocol=Protocol.ICMP))
    assert struct.unpack_from("=II", found[key(4, 1, "10.0.0.1", "10.0.0.2")]) == (0, 1)


def test_too_many_rectangles_become_one_that_covers_them():
    many = [session(n) for n in range(1, 20)]
    found = struct.unpack_from("=II4H", entries(*many)[key(4, 17, "10.0.0.1", "10.0.0.2")])
    assert found == (1, 0, 61_001, 61_019, 862, 862)


def test_class_marks_are_bits():
    assert class_marks([session(dscp=3), session(2, dscp=None), session(3, dscp=46)]) == 1 << 3 | 1 << 46


def test_the_programs_know_where_the_identity_stands():
    """The C source has it as a constant, for the kernel must know it before it lets the program read there."""
    assert f"#define STAMP_IDENTITY {mark.STAMP_IDENTITY_OFFSET}\t" in SOURCE.read_text()


class Memory:
    """A BPF ring buffer's memory, as the kernel maps it: consumer, producer, data twice."""

    def __init__(self):
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.position = 0

    def write(self, data, *, flags=0):
        for byte, at in zip(
            struct.pack("=II", len(data) | flags, 0) + data, range(self.position, SIZE * 8), strict=False
        ):
            for copy in (0, SIZE):
                os.pwrite(self.fd, bytes([byte]), 2 * mmap.PAGESIZE + at % SIZE + copy)
        self.position += (len(data) + 8 + 7) & ~7
        os.pwrite(self.fd, struct.pack("=Q", self.position), mmap.PAGESIZE)


def read(ring, length):
    with ring.records() as (data, starts):
        return [bytes(data[start : start + length]) for start in starts.tolist()]


def test_records_of_a_ring_buffer_are_read_once_also_over_its_end():
    memory = Memory()
    ring = RingBuffer(memory.fd, SIZE)
    written = []
    for number in range(SIZE // 500):  # a little more than fits, in two goes
        data = struct.pack("=I", number) * 130
        memory.write(data)
        written.append(data)
        if number == 50:
            assert read(ring, 520) == written
            written.clear()
    assert read(ring, 520) == written
    assert read(ring, 520) == []
    ring.close()


def test_a_record_that_is_being_written_is_waited_for_and_a_discarded_one_is_passed_over():
    memory = Memory()
    ring = RingBuffer(memory.fd, SIZE)
    memory.write(b"first...")
    memory.write(b"nothing.", flags=libbpf.DISCARDED)
    at = memory.position
    memory.write(b"busy....", flags=libbpf.BUSY)
    memory.write(b"behind..")
    assert read(ring, 8) == [b"first..."]
    memory.position = at
    memory.write(b"done....")
    memory.write(b"behind..")
    assert read(ring, 8) == [b"done....", b"behind.."]
    ring.close()


def test_without_libbpf_the_error_says_which_package(monkeypatch, tmp_path):
    monkeypatch.setattr(libbpf, "LIBRARY", "libnothing.so.1")
    path = tmp_path / "x.bpf.o"
    path.write_bytes(b"x")
    with pytest.raises(HostNotReadyError, match="pt-get install libbpf1"):
        BpfObject(path)


def test_an_object_that_is_not_there_or_is_none_is_said(tmp_path):
    with pytest.raises(HostNotReadyError, match="make bpf"):
        BpfObject(tmp_path / "x.bpf.o")
    path = tmp_path / "y.bpf.o"
    path.write_bytes(b"no ELF")
    with pytest.raises(HostNotReadyError, match=r"y\.bpf\.o: cannot be read"):
        BpfObject(path)


@pytest.mark.parametrize(
    ("appended", "text"), [(b"", "no Open vSwitch with DPDK"), (b"VHOST_CONFIG", "linked into the program itself")]
)
def test_a_program_without_the_library_is_told_from_one_that_has_it_inside(tmp_path, appended, text):
    program = tmp_path / "ovs-vswitchd"
    shutil.copy("/bin/sleep", program)
    with program.open("ab") as file:
        file.write(appended)
    child = subprocess.Popen([program, "60"])
    try:
        with pytest.raises(HostNotReadyError, match=text):
            find_library(child.pid)
    finally:
        child.kill()
        child.wait()


def test_a_process_that_is_gone_has_no_library():
    with pytest.raises(HostNotReadyError, match="is gone"):
        find_library(1 << 22)


def test_a_host_that_says_nothing_allows_no_uprobes():
    text = 'schema = 1\nports = ["*"]\nprotocols = ["udp"]\nmax_pps = 1\n'
    assert parse_allowlist(text, "x").vring_uprobes_s == 0
    assert parse_allowlist(text + "vring_uprobes_s = 2.5\n", "x").vring_uprobes_s == 2.5
    for bad in ("true", "-1", "100000", '"1"'):
        with pytest.raises(UsageError, match="vring_uprobes_s"):
            parse_allowlist(text + f"vring_uprobes_s = {bad}\n", "x")


@pytest.mark.parametrize(
    ("arguments", "device"),
    [
        ("eth_af_packet3,iface=tapbyp,qdisc_bypass=0", "tapbyp"),
        ("net_af_packet0,qpairs=1,iface=e1", "e1"),
        ("0000:01:00.0", ""),
    ],
)
def test_the_device_behind_an_af_packet_port_is_known(arguments, device):
    found = AF_PACKET.match(arguments)
    assert (found[1] if found else "") == device


def test_an_empty_block_stays_empty():
    memory = Memory()
    ring = RingBuffer(memory.fd, SIZE)
    with ring.records() as (_, starts):
        assert starts.dtype == np.int64
        assert len(starts) == 0
    ring.close()
