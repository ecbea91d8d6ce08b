"""The control socket's client against a small server of our own: answers, refusals, silence, death, and a restart."""

import json
import socket
import threading
from contextlib import contextmanager

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.conntrack import Conntrack
from netprobe.host.unixctl import CommandError, UnixctlClient
from netprobe.judge.conntrack import FiveTuple, parse_line


@contextmanager
def daemon(run_dir, pid, answers):
    """A daemon that gives these answers, one to each request; bytes go as they are, None closes the connection."""
    path = run_dir / f"ovs-vswitchd.{pid}.ctl"
    (run_dir / "ovs-vswitchd.pid").write_text(f"{pid}\n")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    requests = []

    def serve():
        connection, _ = server.accept()
        with connection:
            for answer in answers:
                data = connection.recv(65536)
                if not data:
                    return
                requests.append(json.loads(data))
                if answer is None:
                    return
                connection.sendall(
                    answer if isinstance(answer, bytes) else json.dumps(answer | {"id": requests[-1]["id"]}).encode()
                )
            connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        server.close()
        thread.join()


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path


def test_the_socket_stays_open_from_call_to_call(run_dir):
    answers = [{"result": "ovs-vswitchd 3.1.0\n", "error": None}, {"result": "}" * 600_000, "error": None}]
    with daemon(run_dir, 7, answers) as requests, UnixctlClient(run_dir) as client:
        assert client.call("version") == "ovs-vswitchd 3.1.0\n"
        assert client.call("dpctl/dump-conntrack", "zone=5") == "}" * 600_000
    assert [(r["method"], r["params"]) for r in requests] == [("version", []), ("dpctl/dump-conntrack", ["zone=5"])]


def test_a_refusal_is_told_in_the_daemons_words(run_dir):
    with daemon(run_dir, 7, [{"error": '"nope" is not a valid command\n'}]) as _, UnixctlClient(run_dir) as client:
        with pytest.raises(CommandError, match="nope failed") as caught:
            client.call("nope")
        assert caught.value.said == '"nope" is not a valid command'


@contextmanager
def batch_daemon(run_dir, answer_of, most=10**9):
    """A daemon that takes what came at once, answers each request, and closes the connection after `most`."""
    (run_dir / "ovs-vswitchd.pid").write_text("7\n")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(run_dir / "ovs-vswitchd.7.ctl"))
    server.listen(1)
    at_once = []

    def serve():
        connection, _ = server.accept()
        with connection:
            answered = 0
            while data := connection.recv(65536).decode():
                requests = [json.loads("{" + one) for one in data.split("{")[1:]]
                at_once.append(len(requests))
                for request in requests:
                    if answered == most:
                        return
                    answered += 1
                    connection.sendall(json.dumps({"id": request["id"]} | answer_of(request["params"])).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield at_once
    finally:
        server.close()
        thread.join()


def shout(params):
    return {"error": "it is odd\n"} if int(params[0]) % 2 else {"result": f"{params[0]} {{é}}", "error": None}


def test_many_questions_go_out_ten_at_once_and_their_answers_come_back_in_order(run_dir):
    with batch_daemon(run_dir, shout) as at_once, UnixctlClient(run_dir) as client:
        found = client.call_each("trace", [[str(n)] for n in range(25)])
        assert client.call("trace", "26") == "26 {é}"
        assert client.call_each("trace", []) == []
    assert at_once == [10, 10, 5, 1]
    assert found[::2] == [f"{n} {{é}}" for n in range(0, 25, 2)]
    assert {(type(one), one.said) for one in found[1::2]} == {(CommandError, "it is odd")}


def test_when_the_daemon_dies_in_the_middle_all_that_is_left_has_no_answer(run_dir):
    with batch_daemon(run_dir, lambda _: {"result": "x", "error": None}, most=14), UnixctlClient(run_dir) as client:
        found = client.call_each("trace", [["1"]] * 30)
    assert found[:10] == ["x"] * 10
    assert {type(one) for one in found[10:]} == {HostNotReadyError}
    assert len(found) == 30


@pytest.mark.parametrize(
    "answer", [b'{"id": 1, "result": "x', b"not json}", b'{"id": 99, "result": ""}', b"[1]}", None]
)
def test_a_daemon_that_hangs_dies_or_babbles_is_not_ready(run_dir, answer):
    with (
        daemon(run_dir, 7, [answer]) as _,
        UnixctlClient(run_dir, timeout_s=0.05) as client,
        pytest.raises(HostNotReadyError),
    ):
        client.call("version")


def test_after_a_restart_the_next_call_finds_the_new_pid(run_dir):
    with UnixctlClient(run_dir) as client:
        with daemon(run_dir, 7, [None]), pytest.raises(HostNotReadyError, match="closed the connection"):
            client.call("version")
        with daemon(run_dir, 8, [{"result": "back", "error": None}]):
            assert client.call("version") == "back"
            client.close()


def test_a_host_without_the_daemon_says_so(run_dir):
    with pytest.raises(HostNotReadyError, match="no pid in"):
        UnixctlClient(run_dir).call("version")
    (run_dir / "ovs-vswitchd.pid").write_text("7")
    with pytest.raises(HostNotReadyError, match="version: No such file"):
        UnixctlClient(run_dir).call("version")


TEXT = (
    "udp,orig=(src=10.0.0.1,dst=10.0.0.2,sport={0},dport=53),"
    "reply=(src=10.0.0.2,dst=10.0.0.1,sport=53,dport={0}),zone=5"
)
ECHO = (
    "icmpv6,orig=(src=fd00::1,dst=fd00::2,id=78,type=128,code=0),"
    "reply=(src=fd00::2,dst=fd00::1,id=78,type=129,code=0),zone=5"
)


class FakeSwitch(UnixctlClient):
    """Answers flush-conntrack and dump-conntrack from a list; a socket is never opened."""

    def __init__(self, lines, failing=()):
        super().__init__("nowhere")
        self.lines = list(lines)
        self.failing = failing
        self.flushed = []

    def call(self, command, *arguments):
        if command == "dpctl/dump-conntrack":
            return "\n".join(self.lines)
        if command != "dpctl/flush-conntrack":
            return {"dpctl/ct-get-nconns": "12\n", "dpctl/ct-get-maxconns": "x\n"}[command]
        self.flushed.append(arguments)
        for line in self.lines:
            if f"ct_tp_src={parse_line(line).original.src_port}," in arguments[-1]:
                if line in self.failing:
                    raise CommandError("switch", command, "failed to flush conntrack (Permission denied)")
                self.lines.remove(line)
                return ""
        raise CommandError("switch", command, "ovs-vswitchd: failed to flush conntrack (No such file or directory)")


def tuples(*texts):
    return [parse_line(text).original for text in texts]


def test_what_was_deleted_what_was_gone_and_what_stays_is_told_apart():
    lines = [TEXT.format(61000), TEXT.format(61001), ECHO]
    switch = FakeSwitch(lines, failing=[lines[1]])
    gone6 = FiveTuple(58, *(tuples(ECHO)[0].src, tuples(ECHO)[0].dst), 79, 0, 128)
    wanted = [*tuples(lines[0], TEXT.format(61005), lines[1], ECHO), gone6]
    result = Conntrack(switch).delete_own(wanted, zone=5)
    assert result.deleted == (wanted[0],)
    assert result.absent == (wanted[1], gone6)
    assert [(t, why) for t, why in result.kept] == [
        (wanted[2], "failed to flush conntrack (Permission denied)"),
        (wanted[3], "is ICMPv6"),
    ]


def test_nothing_is_flushed_but_whole_tuples_in_their_zone():
    switch = FakeSwitch([])
    hole = FiveTuple(17, *(tuples(TEXT.format(1))[0].src, tuples(TEXT.format(1))[0].dst), 0, 53)
    Conntrack(switch, "netdev@ovs-netdev").delete_own([hole, *tuples(TEXT.format(61000), ECHO)], zone=5)
    [(datapath, zone, words)] = switch.flushed
    assert (datapath, zone) == ("netdev@ovs-netdev", "zone=5")
    assert len(words.split(",")) == 5


def test_a_number_that_is_none_is_not_believed():
    with pytest.raises(HostNotReadyError, match="ct-get-maxconns printed 'x'"):
        Conntrack(FakeSwitch([])).use()
