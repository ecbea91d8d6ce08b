"""Where the collector, /metrics and the live page are listened at: by the same rules, and with the same words.

Errors say whose fault it is: a name that nobody knows is the caller's, a port that is taken is the host's. Who may come
in is others' business: show.web.guard's, and the collector's own.
"""

import errno
import socket

import trio

from netprobe.errors import HostNotReadyError, UsageError

ADVICE = {
    errno.EADDRINUSE: "is another one running?",
    errno.EADDRNOTAVAIL: "give an address that this host has (`ip address`)",
    errno.EACCES: "ports below 1024 are root's: give another one",
}


async def check_address(option: str, address: str, port: int) -> None:
    """Refuse what is neither an address nor a name that this host knows.

    Args:
        option: that it was given with.
        address: as it was given.
        port: likewise.

    Raises:
        UsageError: it is neither.
    """
    try:
        await trio.socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter of names with an empty or too long part
        raise UsageError(
            f"{option} {address}:{port}",
            f"this host knows no {address!r}: {getattr(error, 'strerror', None) or error}",
            allowed="an address of this host, or a name of one",
        ) from error


async def listen_at(option: str, address: str, port: int) -> list[trio.SocketListener]:
    """Listen, at each address that a name has.

    Args:
        option: that it was given with.
        address: an address of this host, or a name of one.
        port: 0 for any.

    Returns:
        At least one; whoever takes them closes them.

    Raises:
        UsageError: the address is none.
        HostNotReadyError: it cannot be listened at.
    """
    await check_address(option, address, port)
    try:
        return await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        raise HostNotReadyError(
            f"{option} {address}:{port}",
            f"cannot be listened at: {error.strerror or error}",
            advice=ADVICE.get(error.errno or 0, "give another address or port"),
        ) from error
