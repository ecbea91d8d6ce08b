"""A tenant, for `netprobe bench harm`: a TCP server or client in a process of its own, in a guest's namespace.

Standard library only, and nothing of netprobe: it is started as a file, so that it imports fast and shares nothing with
the probing whose harm it measures. Orders come on stdin, answers go to stdout, a JSON object a line; the end of stdin
ends it. Beside it: service.tenants.
"""

import gc
import json
import socket
import sys
import threading
import time

REQUEST_BYTES = 64  # a small question and a small answer, as netperf's TCP_RR has them
BULK_BYTES = 65_536
RR, BULK = b"R", b"B"
"""First octet of a connection: what it is for."""

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 5.0


def serve(address: str, port: int) -> None:
    """Answer requests and swallow bulk data until stdin ends."""
    listener = socket.create_server((address, port))
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    _say(listening=True)
    sys.stdin.read()


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_attend, args=(connection,), daemon=True).start()


def _attend(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(BULK_BYTES)
        is_answering = connection.recv(1) == RR
        try:
            while count := connection.recv_into(buffer):
                if is_answering:
                    connection.sendall(memoryview(buffer)[:count])
        except OSError:
            pass  # the client has gone


def ask(address: str, port: int) -> None:
    """Carry out orders, such as {"warm_s": 0.2, "rr_s": 1, "bulk_s": 0.5}, until stdin ends."""
    gc.disable()  # a collection would be taken for the network's delay
    with _connect(address, port, RR) as questions, _connect(address, port, BULK) as bulk:
        _say(connected=True)
        for line in sys.stdin:
            order = json.loads(line)
            _requests(questions, order["warm_s"])
            times_ns = sorted(_requests(questions, order["rr_s"]))
            _say(
                requests=len(times_ns),
                p50_ns=_quantile(times_ns, 50),
                p99_ns=_quantile(times_ns, 99),
                bytes_per_s=_stream(bulk, order["bulk_s"]),
            )


def _connect(address: str, port: int, purpose: bytes) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S)
    connection.settimeout(ANSWER_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(purpose)
    return connection


def _requests(connection: socket.socket, seconds: float) -> list[int]:
    """One request after the other; how long each took, ns."""
    request, times_ns = b"q" * REQUEST_BYTES, []
    end_ns = time.perf_counter_ns() + int(seconds * 1e9)
    began_ns = time.perf_counter_ns()
    while began_ns < end_ns:
        connection.sendall(request)
        left = REQUEST_BYTES
        while left:
            got = len(connection.recv(left))
            if not got:
                raise ConnectionError("the server hung up")
            left -= got
        now_ns = time.perf_counter_ns()
        times_ns.append(now_ns - began_ns)
        began_ns = now_ns
    return times_ns


def _quantile(ordered: list[int], percent: int) -> int:
    """Nearest rank; 0 of nothing."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0


def _stream(connection: socket.socket, seconds: float) -> float:
    """Octets a second that the connection took."""
    chunk, total = b"b" * BULK_BYTES, 0
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        connection.sendall(chunk)
        total += len(chunk)
    return total / passed if passed else 0.0


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main(argv: list[str]) -> int:
    """`server|client ADDRESS PORT`."""
    role, address, port = argv[0], argv[1], int(argv[2])
    try:
        (serve if role == "server" else ask)(address, port)
    except (OSError, KeyboardInterrupt) as error:
        _say(error=str(error) or type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
