"""Commands in a lab's own machine: both ends of the order port, over a socket in place of the machine's serial port."""

import base64
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import netprobe_agents
import pytest
from support.waiting import until

from netprobe.cli.main import main
from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.process import ProcessRecord, command_line, start_ticks
from netprobe.lab import build, config, control, hypervisor
from netprobe.lab.machines import machine_name
from netprobe.lab.shapes import SHAPES
from netprobe.lab.state import Places, State, load
from netprobe.lab.topology import endpoints
from netprobe.service.discovery import read_topology

SCRIPT = Path(netprobe_agents.__file__).parent.parent / "guest-image" / "orders.py"


def orders():
    spec = importlib.util.spec_from_file_location("orders", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Lab:
    """A lab in a machine; the machine is this process, and its port is a socket that somebody serves."""

    def __init__(self, base):
        self.places = Places(base)
        self.folder = base / "work"
        self.places.lab.mkdir(parents=True)
        self.folder.mkdir()
        name = machine_name(hypervisor.NAME)
        record = ProcessRecord(name, command_line(os.getpid()), os.getpid(), start_ticks(os.getpid()))
        self.state = State("ovs-kernel", self.places.lab, processes=(record,), machine=hypervisor.NAME)

    @contextmanager
    def served(self, talk=None):
        """While somebody answers one client after the other."""
        program = orders()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.places.lab_port(hypervisor.NAME)))
            server.listen()

            def serve():
                while True:
                    try:
                        client, _ = server.accept()
                    except OSError:
                        return
                    with client:
                        if talk is None:
                            program.serve(program.Port(client.fileno()), self.folder)
                        else:
                            talk(client)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield
            finally:
                server.shutdown(socket.SHUT_RDWR)
                thread.join(20)
                assert not thread.is_alive()

    def run(self, *words, files=None, timeout_s=20):
        said = {1: b"", 2: b""}

        def write(fd, data):
            said[fd] += data

        code = hypervisor.run(self.state, self.places, words, files=files, write=write, timeout_s=timeout_s)
        return code, said[1].decode(), said[2].decode()


@pytest.fixture
def lab():
    with tempfile.TemporaryDirectory(prefix="np-") as place:  # a socket's path is short, pytest's are not
        yield Lab(Path(place))


def test_what_a_command_writes_comes_back_stream_by_stream_with_its_exit_code(lab):
    with lab.served():
        code = lab.run("sh", "-c", "cat file; echo wrong >&2; exit 7", files={"file": b"text !"})
        assert code == (7, "text !", "wrong\n")
        assert lab.run("sh", "-c", "kill -9 $$")[0] == 128 + 9


def test_long_output_is_whole(lab):
    with lab.served():
        code, out, _ = lab.run("sh", "-c", "seq 200000")
    assert (code, out) == (0, "".join(f"{number}\n" for number in range(1, 200001)))


def test_a_file_goes_into_the_folder_whatever_its_name_says(lab):
    with lab.served():
        lab.run("true", files={"../../outside": b"x"})
    assert (lab.folder / "outside").read_bytes() == b"x"


def test_a_command_that_is_not_there_is_said_and_the_next_one_runs(lab):
    with lab.served():
        code, out, wrong = lab.run("no-such-command")
        assert (code, out) == (127, "")
        assert "no-such-command" in wrong
        assert lab.run("echo", "on")[:2] == (0, "on\n")


def test_a_daemon_that_a_command_leaves_does_not_keep_it_waiting(lab):
    with lab.served():
        code, out, _ = lab.run("sh", "-c", "sleep 600 & echo $!")
        os.kill(int(out), signal.SIGKILL)
    assert code == 0


def test_when_nobody_listens_any_more_the_command_is_interrupted(lab):
    script = """if True:
        import signal
        try:
            open("began", "w").close()
            signal.pause()
        except KeyboardInterrupt:
            open("interrupted", "w").close()
    """
    with lab.served():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(lab.places.lab_port(hypervisor.NAME)))
        sock.sendall(json.dumps({"id": "1", "argv": [sys.executable, "-c", script]}).encode() + b"\n")
        until((lab.folder / "began").exists)
        sock.close()
        until((lab.folder / "interrupted").exists)
        assert lab.run("echo", "next")[:2] == (0, "next\n")


def test_what_is_no_order_is_said_and_serving_goes_on(lab):
    with lab.served():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(lab.places.lab_port(hypervisor.NAME)))
        sock.settimeout(20)
        with sock, sock.makefile("rb") as lines:
            for line in (b"\xff\xfe", b"[]", b'{"id": "1"}', b'{"id": "2", "argv": ["true"], "files": {"a": 1}}'):
                sock.sendall(line + b"\n")
                said, ended = json.loads(lines.readline()), json.loads(lines.readline())
                assert base64.b64decode(said["data"]).startswith(b"order: ")
                assert ended["code"] == 127


def test_what_an_earlier_command_left_in_the_port_is_passed_over(lab):
    def talk(client):
        order = json.loads(client.makefile("rb").readline())
        old = json.dumps({"id": "old", "code": 9}).encode()
        mine = [{"id": order["id"], "fd": 1, "data": base64.b64encode(b"new").decode()}, {"id": order["id"], "code": 0}]
        client.sendall(b'ta": "cut"}\n[1]\n' + old + b"\n" + b"".join(json.dumps(one).encode() + b"\n" for one in mine))

    with lab.served(talk):
        assert lab.run("x") == (0, "new", "")


def test_a_machine_that_ends_while_a_command_runs_is_an_error_with_the_end_of_its_serial_line(lab):
    (lab.places.lab / "hypervisor.serial.log").write_text("Kernel panic - not syncing: no memory\n")
    with (
        lab.served(lambda client: client.recv(1)),
        pytest.raises(HostNotReadyError, match=r"ended while a command ran.*Kernel panic"),
    ):
        lab.run("x")


def test_what_no_machine_of_ours_says_is_the_end_of_it(lab):
    def talk(client):
        order = json.loads(client.makefile("rb").readline())
        client.sendall(json.dumps({"id": order["id"], "fd": 1}).encode() + b"\n")

    with lab.served(talk), pytest.raises(HostNotReadyError, match="ended while a command ran"):
        lab.run("x")


def test_a_reader_that_goes_away_is_not_the_end_of_the_machine(lab):
    """As in `netprobe lab exec dmesg | head -1`."""

    def write(_fd, _data):
        raise BrokenPipeError

    with lab.served(), pytest.raises(BrokenPipeError):
        hypervisor.run(lab.state, lab.places, ["echo", "x"], files={}, write=write, timeout_s=20)


def test_a_machine_that_is_silent_is_an_error_after_a_while(lab):
    silent = threading.Event()
    with lab.served(lambda _: silent.wait(20)):
        with pytest.raises(HostNotReadyError, match=r"has not answered in 0\.05 s"):
            lab.run("x", timeout_s=0.05)
        silent.set()


def test_a_machine_that_is_gone_is_said_so(lab):
    lab.state.processes = (ProcessRecord(machine_name(hypervisor.NAME), ("qemu",), 1 << 22, 1),)
    with pytest.raises(HostNotReadyError, match="guest hypervisor: has ended"):
        lab.run("x")
    assert "has ended" in hypervisor.ping(lab.state, lab.places)


def test_one_command_at_a_time_and_a_busy_machine_is_a_healthy_one(lab):
    with lab.served(), hypervisor._turn(lab.places):
        with pytest.raises(HostNotReadyError, match="runs another command"):
            lab.run("true")
        assert hypervisor.ping(lab.state, lab.places) == ""


def test_only_a_kernel_without_the_module_needs_a_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "OPENVSWITCH_MODULE", tmp_path / "none")
    assert [name for name, shape in SHAPES.items() if build.needs_machine(shape)] == ["ovs-kernel"]
    monkeypatch.setattr(build, "OPENVSWITCH_MODULE", tmp_path)
    assert not build.needs_machine(SHAPES["ovs-kernel"])


def test_the_state_file_says_that_it_is_in_a_machine_and_nothing_is_looked_for_here(lab):
    lab.places.state.write_text(json.dumps(lab.state.to_json()))
    assert load(lab.places.state).machine == hypervisor.NAME
    with pytest.raises(HostNotReadyError, match=r"in a machine of its own.*netprobe lab exec netprobe"):
        read_topology(lab.places.state)


def test_a_state_file_from_before_has_no_machine(lab):
    document = lab.state.to_json()
    del document["machine"]
    lab.places.state.write_text(json.dumps(document))
    assert load(lab.places.state).machine == ""


def test_faults_and_moves_are_ordered_in_the_machine(lab, monkeypatch):
    monkeypatch.setattr(build, "check_host", lambda *_: None)
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(lab.places.base))
    lab.places.state.write_text(json.dumps(lab.state.to_json()))
    for change in (lambda: control.fault_set("a..b"), control.fault_clear, lambda: control.move("vm1", "hv2")):
        with pytest.raises(UsageError, match=r"in a machine of its own.*lab exec"):
            change()


def test_a_command_for_a_lab_without_a_machine_is_refused(lab, monkeypatch):
    monkeypatch.setattr(build, "check_host", lambda *_: None)
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(lab.places.base))
    with pytest.raises(HostNotReadyError, match="is not up"):
        control.execute(["true"], files={}, write=lambda *_: None)
    ends = endpoints(config.load("single"))
    lab.places.state.write_text(json.dumps(State("single", lab.places.lab, endpoints=ends).to_json()))
    with pytest.raises(UsageError, match="lab single: is in no machine of its own"):
        control.execute(["true"], files={}, write=lambda *_: None)


@pytest.mark.parametrize("words", [["sh", "-c", "cat file; exit 3"], ["--", "sh", "-c", "cat file; exit 3"]])
def test_the_command_line_hands_over_words_files_and_the_exit_code(lab, monkeypatch, tmp_path, capfdbinary, words):
    lab.state.endpoints = endpoints(config.load("ovs-kernel"))
    lab.places.state.write_text(json.dumps(lab.state.to_json()))
    monkeypatch.setattr(build, "check_host", lambda *_: None)
    monkeypatch.setenv("NETPROBE_RUN_DIR", str(lab.places.base))
    (tmp_path / "file").write_bytes(b"\xffoctets")
    with lab.served():
        assert main(["lab", "exec", "--file", str(tmp_path / "file"), *words]) == 3
    assert capfdbinary.readouterr().out == b"\xffoctets"


@pytest.mark.parametrize(("words", "text"), [([], "no command"), (["--file", "/none/x", "true"], "cannot be read")])
def test_what_cannot_be_handed_over_is_a_usage_error(capsys, words, text):
    assert main(["lab", "exec", *words]) == 2
    assert text in capsys.readouterr().err
