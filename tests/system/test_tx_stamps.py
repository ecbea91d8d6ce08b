"""The guest agent's send times are the kernel's: behind T1, which it wrote itself, and before the other end's stamp."""

import socket
import struct
import threading
from array import array

import pytest
from netprobe_agents.sockopts import SO_TIMESTAMPNS, timespec_ns
from netprobe_agents.transmitter import SendOrder, transmit
from netprobe_agents.tx_stamps import TransmitStamps

from netprobe.host import iproute
from netprobe.host.netns import in_netns

pytestmark = pytest.mark.system

COUNT, FRAME_BYTES, T1_AT = 200, 60, 20
NTP_TO_UNIX_S = 2_208_988_800


@pytest.fixture
def pair():
    names = ("np-txa", "np-txb")
    iproute.delete_namespaces(names)
    iproute.add_namespaces(names)
    try:
        iproute.batch([f"link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"])
        for name in names:
            iproute.batch(["link set eth0 up"], netns=name)
        yield names
    finally:
        iproute.delete_namespaces(names)


def order():
    frames = bytearray()
    for i in range(COUNT):
        frames += bytes.fromhex("ffffffffffff020000000001 88b5") + struct.pack("!I", i) + bytes(FRAME_BYTES - 18)
    bounds = range(0, (COUNT + 1) * FRAME_BYTES, FRAME_BYTES)
    due_ns = array("q", [i * 200_000 for i in range(COUNT)])
    return SendOrder(1, frames, bounds, due_ns, 20_000_000, T1_AT, None)


def test_times_lie_between_t1_and_the_other_ends_stamp(pair):
    sending, receiving = pair
    with in_netns(receiving, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.settimeout(5)
        given = order()
        sent = in_netns(sending, lambda: transmit(given, "eth0", threading.Event()))
        for i in range(COUNT):
            frame, control, _, _ = sock.recvmsg(2048, 128)
            seconds, fraction = struct.unpack_from("!II", frame, T1_AT)
            t1_ns = (seconds - NTP_TO_UNIX_S) * 10**9 + (fraction * 10**9 >> 32)
            assert struct.unpack_from("!I", frame, 14) == (i,)
            assert t1_ns < sent.times_ns[i] <= timespec_ns(control[0][2])


def test_after_a_frame_that_was_refused_times_are_our_own_again(pair):
    """Whether the kernel counted it nobody knows, so no later stamp can be told apart."""

    def go():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as sock:
            sock.bind(("eth0", 0))
            stamps, times = TransmitStamps(sock), array("q", [1, 1, 1])
            for i in range(3):
                sock.send(bytes(60))
                stamps.sent(i)
                stamps.collect(times, 2)
                if i == 1:
                    stamps.refused()
            return times.tolist()

    first, second, third = in_netns(pair[0], go)
    assert 1 < first <= second
    assert third == 1
