"""The guest agent as a process in a network namespace: reflector, sender, control socket, zipapp.

Network: namespace st-N-a (192.0.2.1, 2001:db8::1, device eth0) -- veth -- st-N-b (192.0.2.2 and .3, 2001:db8::2), where
N is the test process. Agents run in either; sockets of the test are opened inside by netprobe.host.netns.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trio
from scapy.contrib.stamp import (
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
    STAMPTestTLV,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.waiting import until

from netprobe.errors import HostNotReadyError
from netprobe.host.guest_agent import open_guest_agent
from netprobe.host.netns import in_netns
from netprobe.wire import stamp
from netprobe.wire.control import ControlReader, encode_message, pack_i64

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
A, B = (f"st-{os.getpid()}-{end}" for end in "ab")
MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
HEAD = bytes.fromhex((MAC_B + MAC_A).replace(":", "")) + b"\x88\xb5"
PATIENCE_S = 10.0
UDP_ONLY = b"".join(  # ip proto udp, else nothing: ldh [12]; jeq ip; ldb [23]; jeq udp; ret all; ret none
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x28, 0, 0, 12),
        (0x15, 0, 3, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 0, 1, 17),
        (6, 0, 0, 65535),
        (6, 0, 0, 0),
    )
)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture(scope="module")
def wire():
    """The two namespaces and the veth between them."""
    with contextlib.ExitStack() as undo:
        for name in (A, B):
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            # Unlimited, so that a "port unreachable" that is not there was not sent.
            run("ip", "netns", "exec", name, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit")
        run("ip", "-n", A, "link", "add", "eth0", "address", MAC_A, "type", "veth", "peer", "name", "eth0", "netns", B)
        run("ip", "-n", B, "link", "set", "eth0", "address", MAC_B)
        for name, host in ((A, "1"), (B, "2"), (B, "3")):
            run("ip", "-n", name, "address", "add", f"192.0.2.{host}/24", "dev", "eth0")
            run("ip", "-n", name, "address", "add", f"2001:db8::{host}/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        yield


@contextlib.contextmanager
def agent(namespace, *options, command=None):
    """A guest agent that has said "ready"; terminated at the end, and it must exit with 0."""
    command = command or [sys.executable, "-m", "netprobe_agents.guest"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command, *options],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"},
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def sender(namespace, *options):
    """Exit code and JSON of `send`."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-m", "netprobe_agents.guest", "send", "--json", *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def reflector(wire):
    """A reflector in B on UDP 862, for all tests that don't break it."""
    with agent(B) as process:
        yield process


def ask(octets, to, *, source_port=0, wait_s=PATIENCE_S, tos=0):
    """Send one datagram from A; (answer, address it came from), or None when none came in wait_s."""

    def open_socket():
        return socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)

    with in_netns(A, open_socket) as sock:
        sock.settimeout(wait_s)
        if ":" not in to:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.bind(("", source_port))
        sock.sendto(octets, (to, 862))
        try:
            answer, address = sock.recvfrom(65_536)
        except TimeoutError:
            return None
        return answer, address[0]


@pytest.mark.parametrize("to", ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"])
def test_a_sender_packet_built_by_scapy_is_answered_as_the_rfc_says(reflector, to):
    question = STAMPSessionSenderTestUnauthenticated(
        seq=41,
        ts=1.5,
        ssid=0xABCD,
        tlv_objects=[
            STAMPTestTLV(flags=0x80, type=240, len=4, value=b"mark"),
            STAMPTestTLV(flags=0x80, type=2, len=2, value=b"??"),
        ],
    )
    before_ns = time.time_ns()
    octets, source = ask(bytes(question), to)
    assert source == to  # answered from the address that was asked
    answer = STAMPSessionReflectorTestUnauthenticated(octets)
    assert len(octets) == len(bytes(question))
    assert (answer.seq_sender, answer.ssid, answer.ttl_sender) == (41, 0xABCD, 64)
    assert octets[28:36] == bytes(question)[4:12]  # T1
    assert [(int(t.flags), t.type, t.value) for t in answer.tlv_objects] == [(0, 240, b"mark"), (0x80, 2, b"??")]
    packet = stamp.decode_reflector_untrusted(octets)
    t2_ns, t3_ns = stamp.ntp_to_ns(packet.receive_timestamp), stamp.ntp_to_ns(packet.timestamp)
    assert before_ns <= t2_ns < t3_ns <= time.time_ns()  # T2 and T3 are separate times
    assert answer.err_estimate.multiplier > 0


def test_questions_that_must_get_no_answer_get_none(reflector):
    """Each is followed by a good one on another socket: once that is answered, the reflector has judged the bad one."""
    good = bytes(44)
    for bad, port in ((bytes(43), 0), (good, 862), (b"", 0)):
        with in_netns(A, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind(("", port))
            sock.sendto(bad, ("192.0.2.2", 862))
            assert ask(good, "192.0.2.2") is not None
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)


def test_a_question_to_the_subnets_broadcast_address_gets_no_answer(reflector):
    with in_netns(A, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(bytes(44), ("192.0.2.255", 862))
        assert ask(bytes(44), "192.0.2.2") is not None
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_the_answer_has_the_questions_dscp_without_ecn_and_ttl_255(reflector):
    def open_raw():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        raw.bind(("eth0", 0x0800))
        raw.settimeout(PATIENCE_S)
        return raw

    with in_netns(A, open_raw) as raw:
        assert ask(bytes(44), "192.0.2.2", tos=3 << 2 | 1) is not None
        while True:
            frame = Ether(raw.recv(2_000))
            if frame[IP].src == "192.0.2.2":
                assert (frame[IP].tos, frame[IP].ttl) == (3 << 2, 255)
                return


def test_100_000_random_and_mutated_datagrams_at_the_port_leave_the_reflector_alive_and_answering(reflector):
    """And no answer is longer than the question of its length: the sum of answers never exceeds that of questions."""
    rng = np.random.default_rng(3)
    sound = bytearray(stamp.encode_sender(stamp.SenderPacket(1, 1 << 32, 0x0101, 7, bytes(40))))
    asked = answered = 0
    with in_netns(A, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        for i in range(100_000):
            data = bytearray(rng.bytes(int(rng.integers(0, 300)))) if i % 2 else bytearray(sound)
            if data:
                data[int(rng.integers(len(data)))] ^= int(rng.integers(256))
            asked += len(data)
            with contextlib.suppress(BlockingIOError):
                sock.sendto(data, ("192.0.2.2", 862))
            with contextlib.suppress(BlockingIOError):
                while True:
                    answer = sock.recv(2_048)
                    assert len(answer) <= 300
                    answered += len(answer)
    assert 0 < answered <= asked
    # First it works off what the socket still holds; it may also hold us for a flooder for a moment.
    assert until(lambda: ask(bytes(44), "192.0.2.2"), timeout_s=30) is not None
    assert reflector.poll() is None


@pytest.mark.parametrize("options", [["192.0.2.2"], ["2001:db8::2", "--ptp"], ["192.0.2.2", "--size", "500"]])
def test_the_sender_measures_to_the_reflector(reflector, options):
    code, document = sender(A, "--count", "50", "--rate", "1000", "--to", *options)
    assert (code, document["sent"], document["received"], document["lost"], document["bad"]) == (0, 50, 50, 0, 0)
    assert 0 < document["round_trip"]["min_ns"] <= document["round_trip"]["p50_ns"] <= document["round_trip"]["max_ns"]
    assert document["forward"]["clock_dependent"]
    assert document["forward"]["min_ns"] > 0  # one clock here, so these are real delays
    assert document["backward"]["min_ns"] > 0


def test_nobody_there_is_exit_code_1(wire):
    code, document = sender(A, "--count", "3", "--rate", "1000", "--to", "192.0.2.2", "--port", "9", "--wait", "0.1")
    assert (code, document["received"], document["lost"]) == (1, 0, 3)


def test_authenticated_mode_end_to_end(wire, tmp_path):
    for name, secret in (("right", b"k" * 16), ("wrong", b"w" * 16)):
        (tmp_path / name).write_bytes(secret)
        (tmp_path / name).chmod(0o600)
    common = ("--port", "5862", "--count", "5", "--rate", "1000", "--wait", "0.2", "--to", "192.0.2.2")
    with agent(B, "--reflect-port", "5862", "--key-file", str(tmp_path / "right")):
        assert sender(A, *common, "--auth-key-file", str(tmp_path / "right"))[1]["received"] == 5
        assert sender(A, *common, "--auth-key-file", str(tmp_path / "wrong"))[1]["received"] == 0
        assert sender(A, *common)[1]["received"] == 0


@pytest.fixture
def control(wire, tmp_path):
    """The control socket of an agent in A."""
    path = tmp_path / "guest.sock"
    with agent(A, "--control", str(path), "--reflect-port", "0"):
        assert path.stat().st_mode & 0o777 == 0o600
        yield str(path)
    assert not path.exists()


def within_patience(function):
    """Run an async test, but not forever."""

    async def bounded():
        with trio.fail_after(PATIENCE_S):
            await function()

    trio.run(bounded)


def probes(count, ip):
    """STAMP questions from A to B's reflector with zero T1, shape (count, octets), checksums right; and T1's offset."""
    rows = []
    for seq in range(count):
        payload = stamp.encode_sender(stamp.SenderPacket(seq, 0, 1, 7))
        frame = Ether(src=MAC_A, dst=MAC_B) / ip / UDP(sport=40_000, dport=862) / Raw(payload)
        rows.append(np.frombuffer(bytes(frame), np.uint8))
    block = np.stack(rows)
    return block, block.shape[1] - 44 + 4


async def gather(guest, wanted):
    """Frames until `wanted` of them are there: list of (t_ns, direction, octets)."""
    seen = []
    while len(seen) < wanted:
        batch = await guest.receive_frames()
        for i in range(len(batch)):
            start = int(batch.offsets[i])
            octets = batch.buf[start : start + int(batch.lengths[i])].tobytes()
            seen.append((int(batch.t_ns[i]), int(batch.direction[i]), octets))
    return seen


@pytest.mark.parametrize(
    "ip", [IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")], ids=["ipv4", "ipv6"]
)
def test_the_agent_sends_200_paced_probes_and_observes_their_answers(reflector, control, ip):
    """B's kernel drops a wrong UDP checksum, so an answer also proves the repair after T1 was written."""
    block, t1_offset = probes(200, ip)
    due_ns = np.arange(200) * 500_000

    async def main():
        async with open_guest_agent(control) as guest:
            assert (guest.hello.device, guest.hello.mac.hex(":")) == ("eth0", MAC_A)
            await guest.absorb([40_000], family=6 if isinstance(ip, IPv6) else 4)
            await guest.observe(b"", snap_bytes=256)
            sent = await guest.send(
                block, block.shape[1], due_ns, t1_offset=t1_offset, checksum_offset=t1_offset - 6, lead_ns=20_000_000
            )
            answers = {}
            while len(answers) < 200:
                for t_ns, direction, octets in await gather(guest, 1):
                    packet = Ether(octets)
                    if UDP in packet and packet[UDP].sport == 862:
                        assert direction == 0
                        answer = stamp.decode_reflector_untrusted(bytes(packet[UDP].payload))
                        answers[answer.sender_seq] = (t_ns, answer)
            status, _ = await guest.status()
            assert (status.dropped, status.shed, status.unstamped) == (0, 0, 0)
        assert sent.pacing.unsent == 0 == sent.refused
        assert np.all(np.diff(sent.times_ns) > 0)
        assert np.all(sent.times_ns >= sent.start_ns + due_ns - 1_000_000)
        for seq, (t4_ns, answer) in answers.items():
            left_ns = int(sent.times_ns[seq])  # by the kernel's stamp: T1 was written before
            assert stamp.ntp_to_ns(answer.sender_timestamp) < left_ns
            assert left_ns < stamp.ntp_to_ns(answer.receive_timestamp) < stamp.ntp_to_ns(answer.timestamp) < t4_ns

    within_patience(main)


def test_frames_of_several_lengths_leave_in_order_and_paced(reflector, control):
    """Each at its place in the whole, with the time of its sending; nothing is written into them."""
    frames = [HEAD + i.to_bytes(2, "big") + bytes(44 + 13 * i) for i in range(50)]

    async def main():
        async with open_guest_agent(control) as guest:
            await guest.observe(b"", snap_bytes=1_024, outgoing=True)
            sent = await guest.send_mixed(frames, [i * 500_000 for i in range(50)], lead_ns=20_000_000)
            seen = []
            while len(seen) < 50:
                seen += [octets for _, _, octets in await gather(guest, 1) if octets.startswith(HEAD)]
            assert seen == frames
            assert sent.pacing.unsent == 0 == sent.refused
            due_ns = np.arange(50) * 500_000
            assert np.all(sent.times_ns >= sent.start_ns + due_ns - 1_000_000), "late it may be, early it may not"

    within_patience(main)


def test_the_filter_decides_what_is_seen_and_own_frames_are_seen_only_if_asked(reflector, control):
    block, t1_offset = probes(5, IP(src="192.0.2.1", dst="192.0.2.2"))
    other = block.copy()
    other[:, 12:14] = (0x88, 0xB5)  # an EtherType that the filter does not pass

    async def main():
        for outgoing, expected in ((True, [0, 1]), (False, [0])):
            async with open_guest_agent(control) as guest:
                await guest.observe(UDP_ONLY, outgoing=outgoing)
                await guest.send(other, block.shape[1], [0] * 5)
                await guest.send(block, block.shape[1], [0] * 5, t1_offset=t1_offset, checksum_offset=t1_offset - 6)
                seen = await gather(guest, 5 * len(expected))
                assert sorted({direction for _, direction, _ in seen}) == expected
                assert all(Ether(octets).type == 0x0800 for _, _, octets in seen)

    within_patience(main)


def test_absorbed_ports_answer_no_port_unreachable(wire, control):
    """A closed port is asked after the absorbed one: when its refusal is back, the absorbed one's would be, too."""

    async def main():
        async with open_guest_agent(control) as guest:
            await guest.absorb([5_001], family=4)
            await trio.to_thread.run_sync(check)
            with pytest.raises(HostNotReadyError, match="UDP port 5001: cannot be absorbed"):
                await guest.absorb([5_001], family=4)

    def check():
        def connect(port):
            sock = in_netns(B, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect(("192.0.2.1", port))
            sock.settimeout(PATIENCE_S)
            return sock

        with connect(5_001) as absorbed, connect(5_002) as closed:
            absorbed.send(b"x")
            closed.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                closed.recv(10)
            assert absorbed.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    within_patience(main)


def test_a_second_controller_is_refused_and_the_first_goes_on(control):
    async def main():
        async with open_guest_agent(control) as first:
            with pytest.raises(HostNotReadyError, match="another controller is connected"):
                async with open_guest_agent(control):
                    pytest.fail("must not be let in")
            await first.status()

    within_patience(main)


async def wait_until_free(path):
    """Connect as soon as the agent lets go of its last controller, which it does when all that one's orders ended."""
    while True:
        try:
            async with open_guest_agent(path) as guest:
                return guest.hello
        except HostNotReadyError as error:
            if "another controller" not in str(error):
                raise
            await trio.lowlevel.checkpoint()


def test_when_the_controller_dies_its_sends_stop(control):
    """The order would take an hour; the agent lets the next controller in only when the last one's orders ended."""
    block, _ = probes(60, IP(src="192.0.2.1", dst="192.0.2.9"))
    due_ns = pack_i64(minute * 60 * 10**9 for minute in range(60))
    orders = (
        encode_message("hello", id=1, version=1)
        + encode_message("observe", id=2, snap=256, outgoing=True)
        + encode_message("send", block.tobytes() + due_ns, id=3, frame_bytes=block.shape[1], count=60, lead_ns=0)
    )

    async def main():
        stream = await trio.open_unix_socket(control)
        await stream.send_all(orders)
        reader, types = ControlReader(), set()
        while "frames" not in types:  # the first ordered frame has been seen leaving
            types |= {message.type for message in reader.feed(bytes(await stream.receive_some(65_536)))}
        with pytest.raises(HostNotReadyError, match="another controller"):
            async with open_guest_agent(control):
                pytest.fail("the order is under way")
        await trio.aclose_forcefully(stream)  # no bye
        await wait_until_free(control)

    within_patience(main)


def test_a_send_that_is_cancelled_stops_and_the_session_goes_on(control):
    block, _ = probes(2, IP(src="192.0.2.1", dst="192.0.2.9"))

    async def main():
        async with open_guest_agent(control) as guest:
            await guest.observe(b"", outgoing=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.send, block, block.shape[1], [0, 3600 * 10**9])
                await gather(guest, 1)
                nursery.cancel_scope.cancel()
            sent = await guest.send(block, block.shape[1], [0, 0])
            assert sent.pacing.unsent == 0

    within_patience(main)


@pytest.mark.parametrize(
    "octets",
    [b"GET / HTTP/1.0\r\n\r\n", bytes(64), struct.pack("!II", 6, 2) + b"{}", b"\xff" * 100_000],
    ids=["http", "zeroes", "no-type", "ones"],
)
def test_garbage_gets_an_error_and_a_closed_connection(control, octets):
    async def main():
        received = b""
        async with await trio.open_unix_socket(control) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(octets)
            with contextlib.suppress(trio.BrokenResourceError):
                while chunk := await stream.receive_some(4_096):
                    received += chunk
        assert b'"type":"error"' in received
        await wait_until_free(control)

    within_patience(main)


def test_sound_orders_that_fail_leave_the_session_open(control):
    async def main():
        async with open_guest_agent(control) as guest:
            with pytest.raises(HostNotReadyError, match="cannot be observed"):
                await guest.observe(struct.pack("HBBI", 0x28, 0, 0, 12))  # a program without ret
            await guest.observe(b"")
            with pytest.raises(HostNotReadyError, match="observes already"):
                await guest.observe(b"")

    within_patience(main)


def test_an_agent_that_is_not_there_is_a_clear_error(tmp_path):
    async def main():
        async with open_guest_agent(str(tmp_path / "none.sock")):
            pytest.fail("must not connect")

    with pytest.raises(HostNotReadyError, match="Is the agent running"):
        trio.run(main)


def test_a_killed_agents_socket_file_is_replaced_and_a_live_ones_is_not(wire, tmp_path):
    path = tmp_path / "guest.sock"
    options = ("--control", str(path), "--reflect-port", "0")
    with agent(A, *options) as first:
        first.kill()
        first.wait()
    assert path.is_socket()
    with agent(A, *options):
        command = ["ip", "netns", "exec", A, sys.executable, "-m", "netprobe_agents.guest", *options]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"}
        second = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert second.returncode == 3
        assert "an agent serves it already" in second.stderr
    assert not path.exists()


def test_a_missing_device_and_a_taken_port_are_exit_code_3(reflector, tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"}
    for namespace, options, text in (
        (
            A,
            ["--control", str(tmp_path / "x.sock"), "--device", "eth9", "--reflect-port", "0"],
            "eth9: cannot be opened",
        ),
        (B, [], "UDP port 862: cannot be bound"),
    ):
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "netprobe_agents.guest", *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.sock").exists()


def test_sigint_is_a_clean_exit(wire, tmp_path):
    path = tmp_path / "guest.sock"
    with agent(A, "--control", str(path), "--reflect-port", "0") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert not path.exists()


def test_the_zipapp_reflects_with_nothing_but_python_and_trio(wire, tmp_path):
    """Isolated mode without site-packages; a folder with links to trio and what it needs is the only addition."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"):
        module = Path(__import__(name).__file__).parent
        (site / name).symlink_to(module)
    zipapp = tmp_path / "netprobe-agent-guest.pyz"
    run(sys.executable, str(ROOT / "agents" / "build_zipapp.py"), str(zipapp))
    start = (
        f"import sys, runpy; sys.path.append({str(site)!r}); sys.argv = ['agent', *sys.argv[1:]];"
        f"runpy.run_path({str(zipapp)!r}, run_name='__main__')"
    )
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", start]
    with agent(B, "--reflect-port", "7862", command=python):
        code, document = sender(A, "--count", "3", "--rate", "100", "--to", "2001:db8::2", "--port", "7862")
        assert (code, document["received"]) == (0, 3)
