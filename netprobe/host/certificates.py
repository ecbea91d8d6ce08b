"""Certificates, keys and revocation lists as files and octets: read, and refused where they cannot be trusted.

Whom a certificate names is an `Identity`. Below: plan.grants. Above: host.pki makes these files, host.tls proves that a
peer holds a key.
"""

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.plan.grants import Grants, Role, check_name, parse_uris_untrusted

MAX_FILE_BYTES = 4 << 20
_WHERE = "certificate"
_ODD = (ValueError, TypeError, x509.DuplicateExtension, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType)
"""What cryptography raises for octets that are no certificate, or a strange one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a certificate names.

    Attributes:
        serial: of the certificate, unique in its CA.
        not_before_ns, not_after_ns: CLOCK_REALTIME.
    """

    name: str
    role: Role
    grants: Grants
    serial: int
    not_before_ns: int
    not_after_ns: int

    def is_expired(self, now_ns: int) -> bool:
        """Whether the certificate is over; a connection may outlive it, so ask again from time to time."""
        return now_ns > self.not_after_ns

    def to_json(self) -> dict[str, object]:
        """As in docs/json.md."""
        return {
            "name": self.name,
            "role": self.role.value,
            "report": list(self.grants.report),
            "inject": [{"ports": grant.glob, "pps": grant.pps} for grant in self.grants.inject],
            "serial": f"{self.serial:x}",
            "not_after": datetime_of(self.not_after_ns).isoformat(),
        }


def datetime_of(time_ns: int) -> datetime:
    """A time for people and for cryptography: UTC, whole seconds."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)


def identity_of_untrusted(der: bytes) -> Identity:
    """Whom a certificate names. That it is genuine must have been proved already.

    Args:
        der: the certificate.

    Raises:
        RefusedError: it is none of netprobe's, or odd in any way.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
        is_ca = any(isinstance(e.value, x509.BasicConstraints) and e.value.ca for e in certificate.extensions)
        not_before_ns, not_after_ns = (
            round(t.timestamp()) * 1_000_000_000
            for t in (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        )
    except _ODD as error:
        raise RefusedError(_WHERE, "is none that `netprobe pki issue` makes") from error
    if len(names) != 1 or not isinstance(names[0], str) or is_ca:
        raise RefusedError(_WHERE, "it does not name one agent, operator or collector")
    try:
        name = check_name(names[0], _WHERE)
        role, grants = parse_uris_untrusted(uris, f"{_WHERE} of {name}")
        grants.check_role(name, role)
    except RefusedError:
        raise
    except UsageError as error:
        raise RefusedError(error.where, error.problem, allowed=error.allowed) from error
    return Identity(name, role, grants, certificate.serial_number, not_before_ns, not_after_ns)


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate out of a PEM file.

    Raises:
        UsageError: it is not there, or none.
    """
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError as error:
        raise UsageError(str(path), "holds no certificate") from error


def read_revoked(path: Path) -> x509.CertificateRevocationList:
    """A revocation list out of a PEM file.

    Raises:
        UsageError: it is not there, or none.
    """
    try:
        return x509.load_pem_x509_crl(read_file(path))
    except ValueError as error:
        raise UsageError(str(path), "holds no revocation list") from error


def revoked_serials(crl: x509.CertificateRevocationList) -> frozenset[int]:
    """The certificates that a list revokes."""
    return frozenset(entry.serial_number for entry in crl)


def read_file(path: Path, *, is_secret: bool = False) -> bytes:
    """What stands in a file. The checks are made on the open file, so that it cannot be exchanged in between.

    Args:
        path: of the file.
        is_secret: refuse one that others than its owner could have read, or that belongs to somebody else.

    Raises:
        UsageError: it is not there, or no plain file of a sane size.
        RefusedError: it is no secret.
        HostNotReadyError: it may not be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise UsageError(str(path), "is not there", advice="see `netprobe pki --help`") from error
    except OSError as error:
        raise HostNotReadyError(str(path), f"cannot be read: {error.strerror}", advice="run as its owner") from error
    with open(fd, "rb") as file:  # noqa: PTH123  it is open already
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise UsageError(str(path), "is no plain file of a sane size", allowed=f"up to {MAX_FILE_BYTES} octets")
        if is_secret:
            _check_secret(path, status)
        return file.read()


def check_folder(path: Path) -> None:
    """A folder that nobody else can put files into.

    Raises:
        UsageError: it is not there.
        RefusedError: others can.
    """
    try:
        status = path.stat()
    except OSError as error:
        advice = f"make it with `netprobe pki init --dir {path}`"
        raise UsageError(str(path), f"cannot be used: {error.strerror}", advice=advice) from error
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(str(path), "is no folder")
    _check_owner(path, status)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError(
            str(path),
            f"mode {_mode(status)}: others can write in it",
            allowed="0700 or 0755",
            advice=f"run `chmod go-w {path}`",
        )


def _check_secret(path: Path, status: os.stat_result) -> None:
    _check_owner(path, status)
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RefusedError(
            str(path),
            f"mode {_mode(status)}: others can use this key",
            allowed="0600 or 0400",
            advice=f"run `chmod 600 {path}`",
        )


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        allowed = "root" if os.geteuid() == 0 else f"root or uid {os.geteuid()}"
        raise RefusedError(
            str(path), f"belongs to uid {status.st_uid}", allowed=allowed, advice=f"run `chown root {path}`"
        )


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
