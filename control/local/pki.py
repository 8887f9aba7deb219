"""The certificates that a local or small installation makes for itself: an authority and what it signs.

A production setup brings its own certificates instead.
"""

import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=397)
"""The longest lifetime that clients accept for a server certificate (CA/Browser Forum, baseline requirements 6.3.2)."""
RENEW_BEFORE = timedelta(days=30)
"""A certificate that ends sooner than this is renewed."""
LOCAL_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pki:
    """The files of one authority and one server certificate signed by it, and the authority's fingerprint."""

    ca: Path
    certificate: Path
    key: Path
    fingerprint: str


def ensure(directory: Path, names: Iterable[str] = (), *, mutual: bool = False, now: datetime | None = None) -> Pki:
    """Make what is missing in `directory`: ``ca.pem``, ``ca.key``, ``server.pem``, ``server.key`` (keys 0600).

    The server certificate is for `LOCAL_NAMES` and `names` (host names or addresses). It is renewed when it is within
    `RENEW_BEFORE` of its end, lacks a name or isn't signed by the authority; the authority only near its own end, since
    nodes trust only the one that they joined with. With `mutual` the server certificate is also valid for clients.

    Raises: ValueError, when a file holds something other than its certificate or key.
    """
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki_files = Pki(directory / "ca.pem", directory / "server.pem", directory / "server.key", "")
    ca_key_file = directory / "ca.key"
    ca = _read_certificate(pki_files.ca)
    ca_key = _read_key(ca_key_file)
    if ca is None or ca_key is None or not _matches(ca, ca_key) or _near_end(ca, now):
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _make_authority(ca_key, now)
        _write(ca_key_file, _key_bytes(ca_key), 0o600)
        _write(pki_files.ca, _pem(ca), 0o644)

    wanted = {*LOCAL_NAMES, *names}
    server = _read_certificate(pki_files.certificate)
    key = _read_key(pki_files.key)
    if (
        server is None
        or key is None
        or not _matches(server, key)
        or _near_end(server, now)
        or not _signed_by(server, ca)
        or not wanted <= _names(server)
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if mutual else [])]
        server = _make_server(key, ca, ca_key, wanted, purposes, now)
        _write(pki_files.key, _key_bytes(key), 0o600)
        _write(pki_files.certificate, _pem(server), 0o644)
    return Pki(pki_files.ca, pki_files.certificate, pki_files.key, ca.fingerprint(hashes.SHA256()).hex())


def _make_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The name is unique, so that a trust store with an older authority of ours doesn't mistake it for this one.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Skerry local authority {secrets.token_hex(4)}")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _make_server(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: set[str],
    purposes: list[x509.ObjectIdentifier],
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Skerry control")])
    return (
        _builder(subject, ca.subject, key, now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in sorted(names)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Valid from an hour ago, for nodes whose clocks are behind.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(a) for a in alternatives.get_values_for_type(x509.IPAddress)}
    return addresses | set(alternatives.get_values_for_type(x509.DNSName))


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _matches(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Return whether the certificate is for this key; it isn't if the process was killed between writing the two."""
    return certificate.public_key() == key.public_key()


def _near_end(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc - now < RENEW_BEFORE


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ValueError(f"{path} holds no PEM certificate; move it away to have it made anew") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no elliptic-curve key; move it away to have it made anew")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` atomically: nobody can read part of it, or a key before its mode is set."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
