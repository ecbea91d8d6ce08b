"""TLS 1.3 with certificates on both sides, between agents or operators and the collector.

Only netprobe's own authority is believed, never the system's. A collector looks at its files again before each
handshake, so that a revocation or a renewed certificate needs no restart. Below: host.certificates. A client learns
that its certificate was refused when it first reads (TLS 1.3 has no answer to the client's last word): `why_broken`.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from netprobe.errors import HostNotReadyError, NetprobeError, RefusedError, UsageError
from netprobe.host.certificates import (
    Identity,
    identity_of_untrusted,
    read_certificate,
    read_file,
    read_revoked,
    revoked_serials,
)
from netprobe.plan.grants import Role

HANDSHAKE_S: Final = 5.0
ALERT_S: Final = 1.0
_FOREIGN: Final = frozenset({2, 3, 18, 19, 20})  # X509_V_ERR_*: no issuer, no list of the issuer's, self-signed

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files that one program needs (PEM).

    Attributes:
        ca: the authority's certificate.
        certificate, key: the program's own.
        crl: the authority's revocation list. A collector must have one; an agent that has one notices a collector whose
            certificate was revoked.
    """

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path, name: str) -> "Credentials":
        """As `netprobe pki` names them; the list where there is one."""
        crl = folder / "crl.pem"
        return cls(folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key", crl if crl.exists() else None)


class ServerTls:
    """A collector's side.

    Attributes:
        identity: its own.

    Raises:
        UsageError: a file is missing or not what it should be.
        RefusedError: others could use its key, or it is no collector's certificate.
    """

    def __init__(self, credentials: Credentials) -> None:
        if credentials.crl is None:
            advice = "`netprobe pki init` makes crl.pem; take it along with ca.crt"
            raise UsageError("collector", "has no revocation list", advice=advice)
        self._files = (credentials.ca, credentials.certificate, credentials.key, credentials.crl)
        self._credentials = credentials
        self._stamp: Stamp = ()
        self._revoked: frozenset[int] = frozenset()
        self.identity, self._context = self._load()
        if self.identity.role is not Role.COLLECTOR:
            raise _wrong_role(credentials.certificate, self.identity, "collector")

    def refresh(self) -> bool:
        """Look at the files again.

        Returns:
            Whether they changed: then ask `is_revoked` for every connection that is open.

        Raises:
            UsageError: they are damaged now; nobody new should be let in.
        """
        if self._read_stamp() == self._stamp:
            return False
        self.identity, self._context = self._load()
        return True

    def is_revoked(self, identity: Identity) -> bool:
        """Whether the list that was read last revokes a certificate."""
        return identity.serial in self._revoked

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._context

    def _load(self) -> tuple[Identity, ssl.SSLContext]:
        stamp = self._read_stamp()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Sessions are not resumed: a resumed one would be spared the look at the revocation list.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        identity = _prepare(context, self._credentials)
        assert self._credentials.crl is not None
        self._revoked = revoked_serials(read_revoked(self._credentials.crl))
        self._stamp = stamp
        return identity, context

    def _read_stamp(self) -> Stamp:
        try:
            return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (path.stat() for path in self._files))
        except OSError as error:
            raise UsageError(f"collector: {error.filename}", f"cannot be read: {error.strerror}") from error


class ClientTls:
    """An agent's or operator's side; the files are read once, so make a new one for each connection.

    Args:
        credentials: its own.
        server_name: host name or IP that the collector's certificate must have; "" for any that says it is a collector.

    Attributes:
        identity: its own.

    Raises:
        UsageError: a file is missing or not what it should be.
        RefusedError: others could use its key, or it is a collector's certificate.
    """

    def __init__(self, credentials: Credentials, server_name: str = "") -> None:
        self.server_name = server_name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = bool(server_name)
        self.identity = _prepare(self.context, credentials)
        if self.identity.role is Role.COLLECTOR:
            raise _wrong_role(credentials.certificate, self.identity, "agent or operator")


async def accept(stream: trio.abc.Stream, tls: ServerTls) -> tuple[trio.SSLStream[trio.abc.Stream], Identity]:
    """A collector's handshake with somebody who dialled.

    Returns:
        The encrypted stream, and who is at the other end.

    Raises:
        RefusedError: no certificate, a foreign, expired or revoked one, or one that says anything odd.
        HostNotReadyError: the handshake broke, or took longer than HANDSHAKE_S.
        UsageError: the collector's own files are damaged now.
    """
    tls.refresh()
    secure = trio.SSLStream(stream, tls.context, server_side=True)
    await _shake(secure, "peer")
    identity = peer_identity(secure)
    if identity.role is Role.COLLECTOR or tls.is_revoked(identity):
        raise RefusedError(f"certificate of {identity.name}", "cannot be used to dial a collector")
    return secure, identity


async def dial(stream: trio.abc.Stream, tls: ClientTls) -> tuple[trio.SSLStream[trio.abc.Stream], Identity]:
    """An agent's or operator's handshake with a collector; whether that takes our certificate, the first read tells.

    Returns:
        The encrypted stream, and who is at the other end: a collector.

    Raises:
        RefusedError: it is no collector of ours.
        HostNotReadyError: the handshake broke, or took longer than HANDSHAKE_S.
    """
    secure = trio.SSLStream(stream, tls.context, server_hostname=tls.server_name or None)
    await _shake(secure, "collector")
    identity = peer_identity(secure)
    if identity.role is not Role.COLLECTOR:
        raise RefusedError(f"certificate of {identity.name}", f"is of role {identity.role.value}", allowed="collector")
    return secure, identity


def peer_identity(stream: trio.SSLStream[trio.abc.Stream]) -> Identity:
    """Who is at the other end of a stream whose handshake is done.

    Raises:
        RefusedError: somebody without a certificate, or with an odd one.
    """
    der = stream.getpeercert(binary_form=True)
    if not der:
        raise RefusedError("peer", "has shown no certificate")
    return identity_of_untrusted(der)


def why_broken(error: BaseException) -> str:
    """What lies behind a stream's error: what the peer's last alert said, or OpenSSL, or the kernel."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            foreign = "another authority issued it: " if cause.verify_code in _FOREIGN else ""
            return f"its certificate is not taken: {foreign}{cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.lower().replace("_", " ")
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__
    return str(error) or "the connection broke"


def _prepare(context: ssl.SSLContext, credentials: Credentials) -> Identity:
    """What both sides have in common; who the program is."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    read_file(credentials.key, is_secret=True)
    certificate = read_certificate(credentials.certificate)
    read_certificate(credentials.ca)
    try:
        context.load_cert_chain(credentials.certificate, credentials.key)
        context.load_verify_locations(credentials.ca)
        if credentials.crl is not None:
            read_revoked(credentials.crl)
            context.load_verify_locations(credentials.crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            str(credentials.certificate), f"cannot be used with its key: {why_broken(error)}", advice="issue it anew"
        ) from error
    return identity_of_untrusted(certificate.public_bytes(Encoding.DER))


async def _shake(secure: trio.SSLStream[trio.abc.Stream], peer: str) -> None:
    failure: NetprobeError | None = None
    with trio.move_on_after(HANDSHAKE_S) as scope:
        try:
            await secure.do_handshake()
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            is_over = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
            kind = RefusedError if isinstance(cause, ssl.SSLError) and not is_over else HostNotReadyError
            failure = kind(f"TLS handshake with the {peer}", why_broken(error))
            failure.__cause__ = error
    if scope.cancelled_caught:
        failure = HostNotReadyError(f"TLS handshake with the {peer}", f"took longer than {HANDSHAKE_S:g} s")
    if failure is not None:
        await _say_alert(secure)
        await trio.aclose_forcefully(secure)
        raise failure


async def _say_alert(secure: trio.SSLStream[trio.abc.Stream]) -> None:
    """Send the alert that OpenSSL has left, so that the peer can say why it is not let in; trio (0.35) forgets it."""
    left: ssl.MemoryBIO | None = getattr(secure, "_outgoing", None)
    alert = b"" if left is None else left.read()
    with trio.move_on_after(ALERT_S):
        try:
            await secure.transport_stream.send_all(alert)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def _wrong_role(path: Path, identity: Identity, allowed: str) -> RefusedError:
    return RefusedError(str(path), f"names {identity.name}, of role {identity.role.value}", allowed=f"role {allowed}")
