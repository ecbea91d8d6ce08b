"""The certificates and revocation lists that netprobe's authority signs: values in, signed values out, no files.

P-256 everywhere: every OpenSSL takes it for TLS 1.3, also one in FIPS mode. Above: host.pki.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from netprobe.errors import UsageError
from netprobe.plan.grants import Grants, Role, format_uris

BACKDATE: Final = timedelta(minutes=5)  # a host whose clock is a little late still takes a new certificate
MAX_ADDRESSES: Final = 64


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate is for.

    Attributes:
        alternatives: from `alternative_names`.
    """

    name: str
    role: Role
    alternatives: Sequence[x509.GeneralName]
    public: ec.EllipticCurvePublicKey


def ca_certificate(key: ec.EllipticCurvePrivateKey, now: datetime, not_after: datetime) -> x509.Certificate:
    """An authority's certificate of itself."""
    # Two authorities must not have one name: a list or a chain would be tried with the wrong key.
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"netprobe CA {serial:040x}"[:40])])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def leaf_certificate(
    key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, holder: Holder, times: tuple[datetime, datetime]
) -> x509.Certificate:
    """The certificate of an agent, operator or collector.

    Args:
        key: of the authority.
        ca: its certificate.
        holder: whom it names.
        times: from when until when it is valid.
    """
    # A collector is a TLS server and nothing else, all others are clients and nothing else: no stolen agent's
    # certificate makes a collector, whatever the agents check.
    usage = ExtendedKeyUsageOID.SERVER_AUTH if holder.role is Role.COLLECTOR else ExtendedKeyUsageOID.CLIENT_AUTH
    not_before, not_after = times
    issuer = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, holder.name)]))
        .issuer_name(ca.subject)
        .public_key(holder.public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(holder.alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(holder.public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
    old: x509.CertificateRevocationList | None,
    serials: Sequence[int],
) -> bytes:
    """A revocation list as PEM: all that the old one has, and more.

    Args:
        key: of the authority.
        ca: its certificate.
        now: when the new serials are revoked.
        old: the list so far.
        serials: to revoke.
    """
    number = 1
    if old is not None:
        number += old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now)
        # It is a file beside the collector, renewed when something is revoked. One that expired would shut out
        # everybody, so it is valid as long as its authority.
        .next_update(max(ca.not_valid_after_utc, now + timedelta(days=1)))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for entry in old or ():
        builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def alternative_names(role: Role, grants: Grants, addresses: Sequence[str], where: str) -> list[x509.GeneralName]:
    """What a certificate says of its holder beside the name.

    Raises:
        UsageError: an address is none, or nobody dials somebody of this role.
    """
    if addresses and role is not Role.COLLECTOR:
        raise UsageError(where, f"addresses for a certificate of role {role.value}", allowed="role collector")
    if len(addresses) > MAX_ADDRESSES:
        raise UsageError(where, f"{len(addresses)} addresses", allowed=f"up to {MAX_ADDRESSES}")
    found: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in format_uris(role, grants)]
    for address in addresses:
        try:
            found.append(x509.IPAddress(ip_address(address)))
        except ValueError:
            is_name = address.isascii() and 0 < len(address) <= 253 and all(c.isalnum() or c in ".-" for c in address)
            if not is_name:
                raise UsageError(where, f"{address[:80]!r} is no address", allowed="an IP or a host name") from None
            found.append(x509.DNSName(address))
    return found
