"""How both ends of a virtio-serial port agree where a session begins. Pure; standard library only.

A port is one stream that nobody connects: what a dead controller left in it comes first, and either end may start anew
at any time. So a session begins with a preamble of the controller's: a magic number that no message contains but by
accident, and a number of its own choice (a nonce). The agent ends whatever it was doing, and repeats the nonce behind a
magic number of its own; the controller passes over everything before that. What follows on both sides is
netprobe.wire.control's. The two ends: netprobe_agents.port, netprobe/host/guest_agent.py.
"""

SERIAL = "serial:"
"""How the path of a virtio-serial port's socket begins, where an agent's control socket could stand as well."""

NONCE_BYTES = 16
_MAGIC_BYTES = 16
PREAMBLE_BYTES = _MAGIC_BYTES + NONCE_BYTES

CONTROLLER_MAGIC = bytes.fromhex("00ff6e70a7c1d35b8e0f41926d2ce8b4")
AGENT_MAGIC = bytes.fromhex("00ff6e7051f0b26c9ad743eb1c85f709")


def preamble(magic: bytes, nonce: bytes) -> bytes:
    """What begins a session, or answers that."""
    assert len(magic) == _MAGIC_BYTES
    assert len(nonce) == NONCE_BYTES
    return magic + nonce


class PreambleFinder:
    """Finds preambles in a stream of octets, however they are cut.

    Args:
        magic: whose preambles: CONTROLLER_MAGIC or AGENT_MAGIC.
        nonce: only with this one; None takes any.
    """

    def __init__(self, magic: bytes, nonce: bytes | None = None) -> None:
        self._magic = magic
        self._nonce = nonce
        self._tail = b""

    def find(self, data: bytes) -> tuple[bytes, int] | None:
        """The last preamble that ends in `data`: its nonce, and where in `data` the octets behind it begin."""
        joined = self._tail + data
        found = None
        at = joined.find(self._magic)
        while 0 <= at <= len(joined) - PREAMBLE_BYTES:
            nonce = joined[at + _MAGIC_BYTES : at + PREAMBLE_BYTES]
            if self._nonce in (None, nonce):
                found = nonce, at + PREAMBLE_BYTES - len(self._tail)
            at = joined.find(self._magic, at + 1)
        self._tail = joined[-(PREAMBLE_BYTES - 1) :]
        if found is not None:  # what is behind it may begin another one; it itself is done with
            self._tail = data[found[1] :][-(PREAMBLE_BYTES - 1) :]
        return found
