"""The CAs that a node trusts: the certificates of a PEM file, when they end, and TLS contexts that go by them."""

import hashlib
import re
import ssl
from pathlib import Path

SIZE_LIMIT = 64 * 1024
"""Bytes that the certificates of CAs may have."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def decoded(data: bytes) -> str:
    """Return PEM as text. What stands between certificates, such as their names, may be in any encoding: it is left out
    as far as it isn't ASCII."""
    return data.decode("ascii", "ignore")


def read(file: Path) -> str:
    """Return the content of a PEM file as text. Raises: OSError."""
    return decoded(file.read_bytes())


def ders(pem: str) -> dict[str, bytes]:
    """Return the certificates of a PEM text by their sha256 (hex); what isn't a certificate is left out."""
    found = {}
    for part in _PEM.findall(pem):
        try:
            der = ssl.PEM_cert_to_DER_cert(part)
        except ValueError:
            continue
        found[hashlib.sha256(der).hexdigest()] = der
    return found


def pem_of(pem: str, fingerprint: str) -> str | None:
    """Return the certificate in a PEM text that has this sha256 (hex), as PEM; None where there is none."""
    der = ders(pem).get(fingerprint)
    return None if der is None else ssl.DER_cert_to_PEM_cert(der)


def digest(pem: str) -> str:
    """Return 16 hex digits that say which certificates these are, whatever their order; '' where there are none.

    Control makes the same of those that it gives out.
    """
    found = sorted(ders(pem))
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16] if found else ""


def last_end(pem: str) -> float | None:
    """Return when the last of the CAs ends (Unix seconds); None where that can't be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
        return max((ssl.cert_time_to_seconds(str(ca["notAfter"])) for ca in context.get_ca_certs()), default=None)
    except (ssl.SSLError, ValueError, KeyError):
        return None


def tls_context(ca: Path | None, *, system: bool) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later that trusts `ca` and, if `system` is true, the system's CAs.

    Raises: ValueError, when the file holds no certificate; OSError, when it can't be read.
    """
    context = ssl.create_default_context() if system else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None:
        try:
            context.load_verify_locations(cadata=read(ca))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{ca} holds no PEM certificate ({error}); join again to have it fetched anew") from None
    return context
