"""netprobe's own certificate authority: a folder with its key, what it has issued, and what it has revoked.

    ca.key ca.crt crl.pem     the authority; only ca.crt and crl.pem ever leave the folder
    NAME.key NAME.crt         what was issued last for NAME, to be taken where it is needed
    issued/SERIAL.crt         everything that was ever issued

Time comes in as `now_ns` (CLOCK_REALTIME). Below: host.certificates, host.certificate_builder. docs/trust.md
says who gets which certificate and why.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from netprobe.errors import HostNotReadyError, UsageError, unknown_name
from netprobe.host.certificate_builder import (
    Holder,
    alternative_names,
    ca_certificate,
    leaf_certificate,
    revocation_list,
)
from netprobe.host.certificates import (
    Identity,
    check_folder,
    datetime_of,
    identity_of_untrusted,
    read_certificate,
    read_file,
    read_revoked,
)
from netprobe.plan.grants import Grants, Role, check_name

DEFAULT_DIR: Final = Path("/etc/netprobe/pki")
CA_DAYS: Final = 3650
MAX_CA_DAYS: Final = 36500
DEFAULT_DAYS: Final = 365
_RESERVED = frozenset({"ca", "crl", "issued"})


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of ours, and when it was revoked, CLOCK_REALTIME in ns; None where it was not."""

    identity: Identity
    revoked_ns: int | None

    def is_valid(self, now_ns: int) -> bool:
        """Whether it may be used."""
        return self.revoked_ns is None and not self.identity.is_expired(now_ns)

    def to_json(self, now_ns: int) -> dict[str, object]:
        """As in docs/json.md."""
        revoked = None if self.revoked_ns is None else datetime_of(self.revoked_ns).isoformat()
        return {**self.identity.to_json(), "revoked": revoked, "expired": self.identity.is_expired(now_ns)}


@dataclass(frozen=True, slots=True)
class NewFiles:
    """What `issue` wrote."""

    issued: Issued
    key: Path
    certificate: Path


def init(folder: Path, now_ns: int, *, days: int = CA_DAYS) -> Path:
    """Make an authority, with an empty revocation list.

    Returns:
        Its certificate's file, which every agent, operator and collector needs.

    Raises:
        UsageError: there is one already.
        HostNotReadyError: the folder cannot be written.
    """
    if not 1 <= days <= MAX_CA_DAYS:
        raise UsageError("--days", f"got {days}", allowed=f"1 to {MAX_CA_DAYS}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(folder)
        for name in ("ca.key", "ca.crt"):
            if (folder / name).exists():
                raise UsageError(
                    str(folder / name),
                    "is there already",
                    advice="use another --dir; without it all that it issued is void",
                )
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime_of(now_ns)
        certificate = ca_certificate(key, now, now + timedelta(days=days))
        (folder / "issued").mkdir(mode=0o700, exist_ok=True)
        _write_new(folder / "ca.key", _pem_of_key(key), 0o600)
        _write_new(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        _replace(folder / "crl.pem", revocation_list(key, certificate, now, None, []))
    except OSError as error:
        raise _not_ready(folder, error) from error
    return folder / "ca.crt"


class Authority:
    """An authority that was made before.

    Raises:
        UsageError: there is none in the folder, or its files do not belong together.
        RefusedError: others than its owner could use its key.
        HostNotReadyError: the files may not be read.
    """

    def __init__(self, folder: Path = DEFAULT_DIR) -> None:
        check_folder(folder)
        self.folder = folder
        self.certificate = read_certificate(folder / "ca.crt")
        try:
            key = serialization.load_pem_private_key(read_file(folder / "ca.key", is_secret=True), password=None)
        except (ValueError, TypeError) as error:
            raise UsageError(str(folder / "ca.key"), "holds no private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise UsageError(str(folder / "ca.key"), "is not the key of ca.crt")
        self._key = key

    def issue(
        self,
        name: str,
        role: Role,
        grants: Grants,
        now_ns: int,
        *,
        days: int = DEFAULT_DAYS,
        addresses: Sequence[str] = (),
        out: Path | None = None,
    ) -> NewFiles:
        """Make a key and a certificate.

        Args:
            name: of the agent, operator or collector; common name, and the files' name.
            role: who it is.
            grants: what it may do; none but for agents.
            now_ns: CLOCK_REALTIME.
            days: how long it is valid.
            addresses: host names and IP addresses under which a collector is dialled.
            out: folder for the files, default the authority's own.

        Raises:
            UsageError: something about that cannot be, or a valid certificate of that name would be overwritten.
            HostNotReadyError: the files cannot be written.
        """
        where = "netprobe pki issue"
        check_name(name, where)
        if name.lower() in _RESERVED:
            raise UsageError(where, f"the name {name!r} is the authority's own", allowed="any other")
        grants.check_role(name, role)
        alternatives = alternative_names(role, grants, addresses, where)
        now = datetime_of(now_ns)
        not_after = self._until(now, days)
        target = out or self.folder
        paths = (target / f"{name}.key", target / f"{name}.crt")
        self._check_free(paths, now_ns)
        key = ec.generate_private_key(ec.SECP256R1())
        holder = Holder(name, role, alternatives, key.public_key())
        certificate = leaf_certificate(self._key, self.certificate, holder, (now, not_after))
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The record first: what exists is listed, and what is listed can be revoked.
            _write_new(self.folder / "issued" / f"{certificate.serial_number:x}.crt", pem, 0o644)
            for path in paths:
                path.unlink(missing_ok=True)  # of a revoked or expired one
            _write_new(paths[0], _pem_of_key(key), 0o600)
            _write_new(paths[1], pem, 0o644)
        except OSError as error:
            raise _not_ready(target, error) from error
        return NewFiles(Issued(_identity(certificate), None), *paths)

    def everything(self) -> list[Issued]:
        """Everything that was ever issued, the oldest first.

        Raises:
            UsageError: a file in `issued` or the revocation list is damaged.
        """
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in self._crl()}
        found = []
        for path in sorted((self.folder / "issued").glob("*.crt")):
            identity = _identity(read_certificate(path))
            when = revoked.get(identity.serial)
            found.append(Issued(identity, None if when is None else round(when.timestamp()) * 1_000_000_000))
        return sorted(found, key=lambda issued: (issued.identity.not_before_ns, issued.identity.name))

    def revoke(self, target: str, now_ns: int) -> list[Issued]:
        """Revoke a certificate by its serial, or all valid ones of a name; collectors read the list when it changes.

        Returns:
            What was revoked.

        Raises:
            UsageError: there is nothing of that name or serial that could be revoked.
            HostNotReadyError: the list cannot be written.
        """
        issued = self.everything()
        meant = [i for i in issued if target in (i.identity.name, f"{i.identity.serial:x}")]
        if not meant:
            names = {i.identity.name for i in issued}
            raise unknown_name("netprobe pki revoke", target, names, kind="certificate")
        fresh = [i for i in meant if i.revoked_ns is None]
        if not fresh:
            raise UsageError("netprobe pki revoke", f"{target!r} is revoked already")
        now = datetime_of(now_ns)
        old = self._crl()
        try:
            pem = revocation_list(self._key, self.certificate, now, old, [i.identity.serial for i in fresh])
            _replace(self.folder / "crl.pem", pem)
        except OSError as error:
            raise _not_ready(self.folder, error) from error
        return [Issued(i.identity, now_ns) for i in fresh]

    def _crl(self) -> x509.CertificateRevocationList:
        path = self.folder / "crl.pem"
        crl = read_revoked(path)
        if not crl.is_signature_valid(self._key.public_key()):
            raise UsageError(str(path), "is not this authority's revocation list", advice="restore it from a backup")
        return crl

    def _until(self, now: datetime, days: int) -> datetime:
        ends = self.certificate.not_valid_after_utc
        if now >= ends:
            raise UsageError(
                str(self.folder / "ca.crt"),
                f"the authority expired on {ends:%Y-%m-%d}",
                advice="make a new one in another --dir",
            )
        if days < 1:
            raise UsageError("--days", f"got {days}", allowed="1 or more")
        if days > (ends - now).days:
            allowed = f"up to {(ends - now).days}, the authority's own time"
            raise UsageError("--days", f"got {days}", allowed=allowed)
        return now + timedelta(days=days)

    def _check_free(self, paths: Sequence[Path], now_ns: int) -> None:
        there = [path for path in paths if path.exists() or path.is_symlink()]
        if not there:
            return
        known = {issued.identity.serial: issued for issued in self.everything()}
        try:
            old = known.get(read_certificate(paths[1]).serial_number)
        except UsageError:
            old = None
        if old is None or old.is_valid(now_ns):
            raise UsageError(
                str(there[0]), "is there already", advice="move key and certificate away, use --out, or revoke it first"
            )


def _identity(certificate: x509.Certificate) -> Identity:
    return identity_of_untrusted(certificate.public_bytes(serialization.Encoding.DER))


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _replace(path: Path, data: bytes) -> None:
    """A file with a new content, whole at any time."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    _write_new(new, data, 0o644)
    new.replace(path)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that is not there yet, on the disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(fd, "wb") as file:  # noqa: PTH123  it is open already
        file.write(data)
        file.flush()
        os.fsync(fd)


def _not_ready(folder: Path, error: OSError) -> HostNotReadyError:
    return HostNotReadyError(str(folder), f"cannot be written: {error.strerror}", advice="run as root, and make room")
