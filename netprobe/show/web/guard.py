"""Who may look at the live page, or at /metrics: pure decisions about one request, asked before it is answered.

On loopback every program of this machine may look, but no page of another site that a browser has open: its requests
carry that site's name in Host (DNS rebinding) or say so in Sec-Fetch-Site. Elsewhere a token is needed. The page is for
looking only, so nothing but GET and HEAD is ever answered.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from netprobe.errors import UsageError

MIN_TOKEN = 16
METHODS = frozenset({"GET", "HEAD"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPTIONS = ("--web", "--web-token FILE or NETPROBE_WEB_TOKEN")
CHALLENGE = 'Basic realm="netprobe", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """What a request must have.

    Attributes:
        hosts: names that a Host header may have, without port; None: any.
        token: what it must know; "": nothing.
    """

    hosts: frozenset[str] | None
    token: str

    def refusal(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Why a request is refused, None where it is not.

        Args:
            method: of HTTP.
            headers: by their names in lower case.
        """
        if method not in METHODS:
            return Refusal(405, "this page is for looking only", (("allow", "GET, HEAD"),))
        if self.hosts is not None and _name_of(headers.get("host", "")) not in self.hosts:
            return Refusal(421, "this is not the host that was asked for: open the page by its own address")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return Refusal(403, "another site's page may not ask")
        if self.token and not hmac.compare_digest(_token_of(headers.get("authorization", "")), self.token.encode()):
            text = "a token is needed: as password (any user name), or as `Authorization: Bearer TOKEN`"
            return Refusal(401, text, (("www-authenticate", CHALLENGE),))
        return None


def _name_of(host: str) -> str:
    """The host in a Host header, without its port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _token_of(authorization: str) -> bytes:
    """The token in an Authorization header, b"" where there is none."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode()
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def guard_of(address: str, token: str, options: tuple[str, str] = OPTIONS) -> Guard:
    """What requests to a page at this address must have.

    Args:
        address: where it listens, without port.
        token: "" for none.
        options: what the address and what a token is given with, for errors.

    Raises:
        UsageError: others can reach it and there is no token, or it is one that can be guessed.
    """
    if token and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(
            f"token of the page ({options[1]})",
            f"it has {len(token)} characters" if len(token) < MIN_TOKEN else "it has characters that no browser sends",
            allowed=f"{MIN_TOKEN} printable ASCII characters or more",
            advice="`openssl rand -hex 24` makes one",
        )
    if not is_loopback(address):
        if not token:
            raise UsageError(
                f"{options[0]} {address}",
                "others can reach that address, and the page shows who may reach whom",
                advice=f"give a token with {options[1]}, or use 127.0.0.1",
            )
        return Guard(None, token)
    own = f"[{address}]" if ":" in address else address
    return Guard(LOCAL_NAMES | {own.lower()}, token)
