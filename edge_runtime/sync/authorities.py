"""The CAs that a node trusts: the certificates of a PEM file, when they expire, and TLS contexts that use them."""

import hashlib
import re
import ssl
from pathlib import Path

SIZE_LIMIT = 64 * 1024
"""The most bytes of the CAs' certificates."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def decoded(data: bytes) -> str:
    """Return PEM as text.

    Text between certificates, such as their names, may be in any encoding: what isn't ASCII is left out.
    """
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
    """Return the certificate with this sha256 (hex) from a PEM text, as PEM; None if there is none."""
    der = ders(pem).get(fingerprint)
    return None if der is None else ssl.DER_cert_to_PEM_cert(der)


def digest(pem: str) -> str:
    """Return 16 hex digits that identify these certificates, whatever their order; '' if there are none.

    Control computes the same for those that it distributes.
    """
    found = sorted(ders(pem))
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16] if found else ""


def last_end(pem: str) -> float | None:
    """Return when the last of the CAs expires (Unix seconds); None if that can't be read."""
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
