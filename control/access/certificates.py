"""Control's own certificate and the CAs that nodes should trust: read at the start, and again when the files change.

New files are used only if they work as a whole: the key matches the certificate, which is valid now and accepted by
clients that trust the CAs. Otherwise the previous ones stay in use.
"""

import hashlib
import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from control.clock import Clock
from control.metrics import ControlMetrics
from control.reread_files import stamp
from control.settings import ControlSettings

SOON = timedelta(days=30)
"""How long before a certificate expires the warnings begin."""
REMIND = timedelta(days=1)
"""Time between two log lines about the same expiry."""
LONGEST_CHAIN = 8
"""The most certificates in a chain from control's own to a CA."""

log = logging.getLogger("skerry.control")


class CertificateError(Exception):
    """Files of certificates can't be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class CertificateEnd:
    """A certificate in use, and when it expires."""

    what: Literal["control", "ca"]
    name: str
    """Its subject, as RFC 4514 writes it."""
    sha256: str
    """Of its DER, in hex: join tokens contain it for a CA."""
    begins_at: datetime
    ends_at: datetime
    """For control's own: the earliest end of a certificate in its chain to the CA, if that is before its own."""


@dataclass(frozen=True)
class Trust:
    """The CAs that nodes should trust."""

    pem: bytes = b""
    """The certificates in PEM, as /v1/ca returns them; empty if there are none to distribute."""
    digest: str = ""
    """Identifies these CAs, whatever their order: `trust_digest`."""
    fingerprint: str = ""
    """The sha256 of the CA of control's current certificate, which join tokens contain; '' if there is none."""


@dataclass(frozen=True)
class _Files:
    """The contents of the files at one time."""

    context: ssl.SSLContext | None
    trust: Trust
    ends: tuple[CertificateEnd, ...]


class ControlCertificates:
    """The certificates of one replica."""

    def __init__(self, settings: ControlSettings, clock: Clock, metrics: ControlMetrics | None = None) -> None:
        self.error = ""
        """Why the files can't be used as they are now, if they can't."""
        self._certificate, self._key, self._ca = settings.tls_cert, settings.tls_key, settings.ca_cert
        self._clock = clock
        self._metrics = metrics
        self._stamps: list[tuple[int, ...]] = []
        self._told: dict[str, datetime] = {}
        """When a certificate's expiry was last logged, by its sha256."""
        self._in_force = _Files(None, Trust(), ())

    @property
    def context(self) -> ssl.SSLContext | None:
        """Return the TLS context for new connections; None if control doesn't use TLS."""
        return self._in_force.context

    def served(self) -> ssl.SSLContext:
        """Return `context`, which exists where control speaks TLS."""
        assert self._in_force.context is not None  # noqa: S101
        return self._in_force.context

    @property
    def trust(self) -> Trust:
        """Return the CAs that nodes should trust now."""
        return self._in_force.trust

    @property
    def ends(self) -> tuple[CertificateEnd, ...]:
        """Return the certificates in use, control's own first."""
        return self._in_force.ends

    def start(self) -> None:
        """Read the files for the first time. Raises: CertificateError."""
        self._stamps = self._stamps_now()
        self._take(self._read())
        self.tell()

    def look(self, *, anew: bool = False) -> bool:
        """Read the files again if one has changed or couldn't be used, or `anew`; return whether something else is in
        use now. May be called in a thread of its own.
        """
        stamps = self._stamps_now()
        if not (anew or self.error or stamps != self._stamps):
            self.tell()
            return False
        self._stamps, before = stamps, self._in_force
        try:
            made = self._read()
        except CertificateError as error:
            if anew or str(error) != self.error:
                log.error("certificates: %s; those that were read before stay in use", error)
            self.error = str(error)
            self.tell()
            return False
        self.error = ""
        self._take(made)
        if made.ends != before.ends:
            listed = "; ".join(f"{told(end)}, until {_day(end.ends_at)}" for end in made.ends)
            log.info("certificates: the files were read again, new connections get what is in them: %s", listed)
        self.tell()
        return made.ends != before.ends

    def warnings(self) -> list[str]:
        """Return a line for each certificate in use that has ended or ends soon."""
        now = self._clock.now()
        return [_warning(end, now) for end in self.ends if end.ends_at - now < SOON]

    def tell(self) -> None:
        """Log near or past expiries, each once a day."""
        now = self._clock.now()
        for end in self.ends:
            if end.ends_at - now >= SOON:
                continue
            ended = end.ends_at <= now
            key = f"{end.sha256}{ended}"
            if key not in self._told or now - self._told[key] >= REMIND:
                self._told[key] = now
                log.log(logging.ERROR if ended else logging.WARNING, "certificates: %s", _warning(end, now))

    def _take(self, made: _Files) -> None:
        self._in_force = made
        if self._metrics is not None:
            own = [end.ends_at for end in made.ends if end.what == "control"]
            authorities = [end.ends_at for end in made.ends if end.what == "ca"]
            self._metrics.certificates_end(max(own, default=None), max(authorities, default=None))

    def _stamps_now(self) -> list[tuple[int, ...]]:
        return [stamp(path) for path in (self._certificate, self._key, self._ca) if path is not None]

    def _read(self) -> _Files:
        """Read and check the files. Raises: CertificateError."""
        authorities = [] if self._ca is None else read_certificates(self._ca)
        if self._ca is not None and not authorities:
            raise CertificateError(f"{self._ca} has no certificate in PEM")
        if self._certificate is None or self._key is None:
            return _Files(None, _trust(authorities, None), tuple(map(_end_of_ca, authorities)))
        chain = read_certificates(self._certificate)
        if not chain:
            raise CertificateError(f"{self._certificate} has no certificate in PEM")
        self._check_dates(chain[0])
        try:
            self._key.read_bytes()
        except OSError as error:
            cure = f". As root: chgrp {os.getegid()} {self._key} && chmod 0640 {self._key}"
            raise CertificateError(
                f"the key {self._key} can't be read by control's user (id {os.geteuid()}): {error.strerror}"
                f"{cure if isinstance(error, PermissionError) else ''}"
            ) from error
        try:
            context = server_context(self._certificate, self._key)
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{self._certificate} and {self._key} aren't a certificate and its key: "
                f"{getattr(error, 'reason', None) or error}. Both are read when either changes: put the other one in "
                "its place, too"
            ) from error
        way = [chain[0]]
        if authorities:
            if refused := refusal(context, authorities):
                raise CertificateError(
                    f"nodes would refuse the certificate in {self._certificate}: with the CAs in {self._ca} it isn't "
                    f"trusted ({refused}). A new CA is added there before control's certificate is of it, and an old "
                    "one stays there until then (docs/how-to/change-the-ca.md)"
                )
            way = _way(chain[0], chain[1:], authorities) or way
        own = CertificateEnd(
            "control",
            chain[0].subject.rfc4514_string(),
            _sha256(chain[0]),
            chain[0].not_valid_before_utc,
            min(certificate.not_valid_after_utc for certificate in way),
        )
        return _Files(
            context,
            _trust(authorities, way[-1] if len(way) > 1 else None),
            (own, *map(_end_of_ca, authorities)),
        )

    def _check_dates(self, certificate: x509.Certificate) -> None:
        """Check that a certificate is valid now. Raises: CertificateError, when it has expired or isn't valid yet."""
        now, begins, ends = self._clock.now(), certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if ends <= now:
            raise CertificateError(
                f"the certificate in {self._certificate} ended at {_day(ends)}: nodes and operators would refuse "
                "control. Put one that is good in its place"
            )
        if begins > now:
            raise CertificateError(
                f"the certificate in {self._certificate} is good from {_day(begins)} on, and it is {_day(now)} here: "
                "put another one in its place, or set this machine's clock"
            )


def told(end: CertificateEnd) -> str:
    """Return a certificate in words."""
    return "control's own certificate" if end.what == "control" else f"the CA {end.name} ({end.sha256[:16]})"


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make a server's context for TLS 1.2 and later (R 7.2), with `certificate` (PEM, also a chain) and its `key`.

    Raises: OSError, when they don't match; ValueError, when the key has a password.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, _no_password)
    return context


def fingerprint(pem: bytes | str) -> str:
    """Return the sha256 of the first certificate in `pem` (its DER) in hex. Raises: ValueError, when there is none."""
    data = pem.encode() if isinstance(pem, str) else pem
    return _sha256(x509.load_pem_x509_certificate(data))


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, each once, in its order. Raises: CertificateError, when it can't be read."""
    try:
        data = path.read_bytes()
        found = x509.load_pem_x509_certificates(data) if b"-----BEGIN CERTIFICATE-----" in data else []
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} can't be read as certificates in PEM: {error}") from error
    return list({_sha256(certificate): certificate for certificate in found}.values())


def trust_digest(ders: Sequence[bytes]) -> str:
    """Return 16 hex digits that say which certificates these are, in any order; nodes make the same of theirs."""
    each = sorted(hashlib.sha256(der).hexdigest() for der in ders)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16] if each else ""


def refusal(server: ssl.SSLContext, authorities: Sequence[x509.Certificate]) -> str:
    """Return why a node that trusts `authorities` refuses what a server with this context shows; '' if it doesn't.

    OpenSSL does a handshake in memory, so the result is the same as on a node.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=b"".join(map(_der, authorities)))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    try:
        for _ in range(LONGEST_CHAIN):
            for side in sides:
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return ""


def _way(
    certificate: x509.Certificate, between: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return the way from a certificate to one of `authorities` that is good for longest; empty if there is none."""
    ways: list[list[x509.Certificate]] = []

    def follow(way: list[x509.Certificate]) -> None:
        for authority in authorities:
            if authority not in way and _signed(way[-1], authority):
                ways.append([*way, authority])
        for issuer in between:
            if issuer not in way and len(way) < LONGEST_CHAIN and _signed(way[-1], issuer):
                follow([*way, issuer])

    follow([certificate])
    return max(ways, key=lambda way: (min(c.not_valid_after_utc for c in way), -len(way)), default=[])


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    with suppress(ValueError, TypeError, InvalidSignature):
        certificate.verify_directly_issued_by(issuer)
        return True
    return False


def _trust(authorities: Sequence[x509.Certificate], present: x509.Certificate | None) -> Trust:
    """Make what nodes are to trust. `present`: the CA of control's certificate; None if that isn't known."""
    if not authorities:
        return Trust()
    pem = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in authorities)
    return Trust(pem, trust_digest(list(map(_der, authorities))), _sha256(present or authorities[0]))


def _end_of_ca(ca: x509.Certificate) -> CertificateEnd:
    return CertificateEnd(
        "ca", ca.subject.rfc4514_string(), _sha256(ca), ca.not_valid_before_utc, ca.not_valid_after_utc
    )


def _warning(end: CertificateEnd, now: datetime) -> str:
    if end.ends_at <= now:
        who = "nodes and operators refuse control" if end.what == "control" else "nodes don't go by it any more"
        return f"{told(end)} ended at {_day(end.ends_at)}: {who}"
    left = end.ends_at - now
    soon = f"in {left.days} days" if left.days > 1 else f"in {left // timedelta(hours=1)} h"
    return f"{told(end)} ends at {_day(end.ends_at)}, {soon}"


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _sha256(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _no_password() -> str:
    raise ValueError("the key has a password, which control can't be asked for: keep it without one, in a private file")
