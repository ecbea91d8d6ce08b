"""What a virtual machine answers to an order of its lab is not believed, whatever it is."""

import socket
import threading

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.lab import machines
from netprobe.lab.state import Places


def answering(places, said):
    """The lab port of vm1, at which somebody answers one order with these octets."""
    path = places.lab_port("vm1")
    path.parent.mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def answer():
        with listener, listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(said)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"\x00\xff[{\n", "failed"),
        (b"[" * 4_000 + b"\n", "failed"),
        (b'{"ok": false, "error": "no such device"}\n', "no such device"),
        (b"x" * 50_000, "failed: x"),
        (b"", "the machine has ended"),
        (b'{"ok": true', "the machine has ended"),
    ],
)
def test_garbage_is_an_error_that_names_order_and_machine(tmp_path, said, message):
    places = Places(tmp_path)
    thread = answering(places, said)
    with pytest.raises(HostNotReadyError, match=message) as caught:
        machines.order(places, "vm1", do="clock")
    thread.join()
    assert "order 'clock' for vm1" in str(caught.value)
    assert len(str(caught.value)) < 5_000


def test_an_order_that_was_carried_out_is_none(tmp_path):
    places = Places(tmp_path)
    thread = answering(places, b'{"ok": true}\n')
    machines.order(places, "vm1", do="clock")
    thread.join()
