"""A certificate authority of a few lines, for bundles good and bad."""

import datetime as dt
import ipaddress
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.topics import Speaker
from protocols.transport.tls import Bundle

DAY: Final = dt.timedelta(days=1)
PEM: Final = serialization.Encoding.PEM


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Authority:
    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = self._subject(name)
        made = self._builder(name, self._key, now() - DAY, now() + DAY)
        self._certificate = made.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(PEM).decode()

    @staticmethod
    def _subject(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, start: dt.datetime, end: dt.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(self._subject(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )

    def issue(
        self,
        name: str,
        *,
        host: str = "127.0.0.1",
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        **more: Any,
    ) -> Bundle:
        """Return a bundle whose certificate is good for `host` as a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        certificate = (
            self._builder(name, key, start or now() - DAY, end or now() + DAY)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        fields: dict[str, Any] = {
            "name": name,
            "speaker": Speaker.NODE,
            "cell": "cell-1",
            "broker_host": "127.0.0.1",
            "broker_port": 8883,
            "api_url": "https://127.0.0.1:8443",
            "key_pem": secret.decode(),
            "certificate_pem": certificate.public_bytes(PEM).decode(),
            "ca_pem": self.pem,
        }
        return Bundle(**fields | more)

    def revoke(self, bundle: Bundle, *, end: dt.datetime | None = None) -> str:
        """Return a revocation list that holds this certificate."""
        certificate = x509.load_pem_x509_certificate(bundle.certificate_pem.encode())
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(now() - DAY)
            .build()
        )
        return (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now() - 2 * DAY)
            .next_update(end or now() + DAY)
            .add_revoked_certificate(entry)
            .sign(self._key, hashes.SHA256())
            .public_bytes(PEM)
            .decode()
        )
