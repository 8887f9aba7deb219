"""TLS of control's server: the context that it serves with, and the fingerprint by which nodes know its CA."""

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's context for TLS 1.2 and later (R 7.2), with `certificate` (PEM, also a chain) and its `key`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def ends(pem: bytes) -> float:
    """When the first certificate in this text ends, in Unix seconds."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def fingerprint(pem: bytes | str) -> str:
    """The sha256 of the first certificate in `pem` (its DER), 64 hex digits. Raises: ValueError, when it has none."""
    data = pem.encode() if isinstance(pem, str) else pem
    return x509.load_pem_x509_certificate(data).fingerprint(hashes.SHA256()).hex()
