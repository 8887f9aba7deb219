"""Certificates that a test makes: an authority, and what it signs for servers and clients."""

import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, in PEM."""

    certificate: bytes
    key: bytes

    @property
    def digest(self) -> str:
        """sha256 of the certificate, as a file of callers has it."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.decode())).hexdigest()

    def put(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Put both into their places, each in one step: NAME.pem and NAME.key."""
        folder.mkdir(exist_ok=True)
        for file, data in ((f"{name}.pem", self.certificate), (f"{name}.key", self.key)):
            made = folder / "made"
            made.write_bytes(data)
            made.chmod(0o600)
            made.replace(folder / file)
        return folder / f"{name}.pem", folder / f"{name}.key"


class Authority:
    def __init__(self, name: str = "the test's authority", life: timedelta = timedelta(days=30)) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign_authority(self._name, self._key, life)

    @property
    def digest(self) -> str:
        """sha256 of the authority's certificate, as a join token has it."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.decode())).hexdigest()

    def put(self, folder: Path, name: str) -> Path:
        """Put the certificate and its key into files, NAME.pem and NAME.key; return the certificate's."""
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return Issued(self.certificate, self._key.private_bytes(*form)).put(folder, name)[0]

    def cross_sign(self, other: "Authority", life: timedelta = timedelta(days=20)) -> bytes:
        """Sign the key of another authority: who trusts this one trusts what the other one signs, too."""
        return self._sign_authority(other._name, other._key, life)

    def _sign_authority(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta) -> bytes:
        made = self._builder(name, key, life)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = made.add_extension(usage, critical=True)
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, life: timedelta = timedelta(days=9), begins: timedelta = -timedelta(days=30)) -> Issued:
        """Sign a certificate for this machine's names; it has ended where `life` is below 0, and is good from `begins`
        from now on."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key, life, begins).add_extension(HOSTS, critical=False)
        signed = made.sign(self._key, hashes.SHA256())
        return Issued(
            signed.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def context(self, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client of servers needs; `shown` is its own certificate, with its key."""
        made = ssl.create_default_context(cadata=self.certificate.decode())
        if shown is not None:
            made.load_cert_chain(*shown)
        return made

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        life: timedelta,
        begins: timedelta = -timedelta(days=30),
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
