"""Certificates and revocation lists: EC P-256, SHA-256. No files, no clock."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.trust.index import Entry
from protocols.errors import UserError
from protocols.topics import Speaker

BACKDATE: Final = timedelta(days=1)
"""Certificates and lists begin this long before they are made, for clocks that are behind."""
AUTHORITY_DAYS: Final = 20 * 365
DEFAULT_DAYS: Final = 5 * 365
"""A device that was in a drawer for a year must come back by itself."""
OWN_MACHINE: Final = ("localhost", "127.0.0.1", "::1")
"""What every controller's certificate carries, for sessions from its own machine."""
ADDRESSES_MAX: Final = 64

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


class Signer(NamedTuple):
    """What signs: the authority's key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Issued(NamedTuple):
    """A new identity in PEM, and the line about it for the index."""

    key_pem: str
    certificate_pem: str
    entry: Entry


def make_authority(name: str, now: datetime) -> Signer:
    """Return a new authority that signs for AUTHORITY_DAYS and signs no other authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), key.public_key(), now)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return Signer(key, builder.sign(key, hashes.SHA256()))


def make_identity(
    signer: Signer,
    name: str,
    speaker: Speaker,
    cell: str,
    addresses: Sequence[str],
    days: int,
    now: datetime,
) -> Issued:
    """Return a key and a certificate with common name `name`, unit `speaker`, organization `cell`.

    Valid for `days`, but no longer than the authority. A controller may also serve, at `addresses`
    and on its own machine; a node at `addresses`, where it has any. Raises UserError.
    """
    alternatives = subject_alternatives(addresses)
    end = signer.certificate.not_valid_after_utc
    if not 1 <= days <= AUTHORITY_DAYS:
        raise UserError(f"{days} days: a certificate lives for 1 to {AUTHORITY_DAYS} days")
    if now >= end:
        raise UserError(f"the authority expired on {end:%Y-%m-%d}: make a new one, `tona ca init`")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cell),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, speaker.value),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = signer.certificate.subject
    builder = (
        _builder(subject, issuer, key.public_key(), signer.key.public_key(), now)
        .not_valid_after(min(end, now + timedelta(days=days)))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
    )
    if speaker is Speaker.CONTROLLER:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        own = subject_alternatives(OWN_MACHINE)
        names = x509.SubjectAlternativeName(dict.fromkeys((*alternatives, *own)))
        builder = builder.add_extension(names, critical=False)
    elif addresses and speaker is Speaker.NODE:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names = x509.SubjectAlternativeName(alternatives)
        builder = builder.add_extension(names, critical=False)
    elif addresses:
        raise UserError(f"{name} is a {speaker}, which serves nobody: give no addresses")
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    certificate = builder.sign(signer.key, hashes.SHA256())
    entry = Entry(
        name=name,
        speaker=speaker,
        cell=cell,
        serial=f"{certificate.serial_number:x}",
        issued=now,
        expires=certificate.not_valid_after_utc,
        addresses=tuple(addresses),
    )
    return Issued(key_pem(key), certificate_pem(certificate), entry)


def make_list(signer: Signer, entries: Iterable[Entry], number: int, now: datetime) -> str:
    """Return the revocation list in PEM, valid as long as the authority itself.

    It is replaced at every revocation by whoever reads it from the same machine, so an early end
    would protect nobody, and would lock the whole fleet out on the day it is reached.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now - BACKDATE)
        .next_update(signer.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
            critical=False,
        )
    )
    for entry in entries:
        one = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(entry.serial, 16))
            .revocation_date(entry.revoked or now)
            .build()
        )
        builder = builder.add_revoked_certificate(one)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(_PEM).decode()


def list_number(pem: bytes) -> int | None:
    """Return the number of a revocation list; None when the bytes are no list of ours."""
    try:
        crl = x509.load_pem_x509_crl(pem)
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        return None


def subject_alternatives(addresses: Sequence[str]) -> list[x509.GeneralName]:
    """Return host names and IP addresses as a certificate carries them. Raises UserError."""
    if len(addresses) > ADDRESSES_MAX:
        raise UserError(f"{len(addresses)} addresses: a certificate takes {ADDRESSES_MAX}")
    found: list[x509.GeneralName] = []
    for address in addresses:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            if _HOST.fullmatch(address) is None:
                raise UserError(
                    f"{address!r} is neither a host name nor an IP address: give those alone, "
                    "without port or scheme"
                ) from None
            found.append(x509.DNSName(address))
    return found


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the key in PEM, not encrypted: the file's mode guards it."""
    return key.private_bytes(
        _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return the certificate in PEM."""
    return certificate.public_bytes(_PEM).decode()


def serial_of(pem: str) -> str:
    """Return the serial of the first certificate in `pem`, in hexadecimal. Raises ValueError."""
    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"


def load_signer(key: bytes, certificate: bytes) -> Signer:
    """Read what `key_pem` and `certificate_pem` wrote. Raises ValueError."""
    try:
        loaded = serialization.load_pem_private_key(key, password=None)
    except TypeError as error:  # encrypted: not by us
        raise ValueError(str(error)) from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")  # noqa: TRY004 - bad bytes, not a bad call
    parsed = x509.load_pem_x509_certificate(certificate)
    if parsed.public_key() != loaded.public_key():
        raise ValueError("key and certificate do not belong together")
    return Signer(loaded, parsed)


_PEM: Final = serialization.Encoding.PEM


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer_public: ec.EllipticCurvePublicKey,
    now: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False
        )
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
