"""A program for tests: change a switch's flows or run a command, and write down when: just before, and just after.

    python3 -S stamped_change.py STAMPS delete SOCKET TABLE COOKIE    flows with this cookie; "after" is the barrier
    python3 -S stamped_change.py STAMPS run COMMAND...                anything else

Standard library only, and little of it, so that it starts within milliseconds. STAMPS, a file, gets two numbers,
CLOCK_REALTIME in ns.
"""

import os
import socket
import struct
import sys
import time

_VERSION = 4  # OpenFlow 1.3
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _FLOW_MOD, _BARRIER_REQUEST, _BARRIER_REPLY = 0, 1, 2, 3, 14, 20, 21
_DELETE, _ANY, _NO_BUFFER = 3, 0xFFFFFFFF, 0xFFFFFFFF
_HEADER = struct.Struct("!BBHI")
_BARRIER_XID = 7


def _message(kind, xid, body=b""):
    return _HEADER.pack(_VERSION, kind, _HEADER.size + len(body), xid) + body


def delete(path, table, cookie):
    """Delete flows by their cookie, and wait for the barrier. Returns the times around it."""
    # struct ofp_flow_mod: cookie, mask, table, command, timeouts, priority, buffer, port, group, flags; an empty match
    mod = struct.pack(
        "!QQBBHHHIIIHxx", cookie, (1 << 64) - 1, table, _DELETE, 0, 0, 0, _NO_BUFFER, _ANY, _ANY, 0
    ) + struct.pack("!HH4x", 1, 4)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(_message(_HELLO, 1))
        stream = sock.makefile("rb")
        before = 0
        while True:
            _, kind, length, xid = _HEADER.unpack(stream.read(_HEADER.size))
            body = stream.read(length - _HEADER.size)
            if kind == _HELLO:
                before = time.time_ns()
                sock.sendall(_message(_FLOW_MOD, 5, mod) + _message(_BARRIER_REQUEST, _BARRIER_XID))
            elif kind == _ECHO_REQUEST:
                sock.sendall(_message(_ECHO_REPLY, xid, body))
            elif kind == _ERROR:
                sys.exit(f"the switch refuses: {body.hex()}")
            elif kind == _BARRIER_REPLY and xid == _BARRIER_XID:
                return before, time.time_ns()


def run(words):
    """Run a command. Returns the times around it."""
    before = time.time_ns()
    status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp(words[0], words, os.environ), 0)[1])
    after = time.time_ns()
    if status:
        sys.exit(status)
    return before, after


if __name__ == "__main__":
    stamps, what, *rest = sys.argv[1:]
    times = delete(rest[0], int(rest[1]), int(rest[2], 0)) if what == "delete" else run(rest)
    with open(stamps, "w", encoding="ascii") as file:  # noqa: PTH123  pathlib takes long to import
        file.write("{} {}".format(*times))
