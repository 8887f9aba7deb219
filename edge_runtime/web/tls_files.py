"""The certificate of the local HTTP, and the authorities of clients' certificates: read at startup, and when they
change."""

import logging
import os
import ssl
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from control.protocol.counts import counted
from edge_runtime import clock, files
from edge_runtime.files import FileUnfit

log = logging.getLogger("skerry.front")

SOON: Final = timedelta(days=30).total_seconds()
"""Seconds before a certificate's expiry at which warnings begin."""
REMIND: Final = timedelta(days=1).total_seconds()
"""Seconds between two log lines about its expiry."""
TOLD: Final = 10.0
"""Seconds between two log lines about failed handshakes."""
_UTC_TIME: Final = 0x17
_VERSION: Final = 0xA0


class TlsFiles:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self.context: ssl.SSLContext
        """The context for new connections; set by `start`."""
        self.error = ""
        """Why the files can't be used as they are now, empty if they can: meanwhile the previous certificate is in
        use."""
        self.expires: float | None = None
        """When the certificate in use expires (seconds since 1970); None if that can't be read."""
        self.failed = 0
        """Handshakes that failed since startup."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._stamp: tuple[tuple[int, ...], ...] = ()
        self._told_end = float("-inf")
        self._told = float("-inf")

    def start(self) -> None:
        """Read the files for the first time. Raises: FileUnfit."""
        self._stamp = self._stamps()
        self.context, self.expires = self._read()
        self._tell_end()

    def look(self, *, anew: bool = False) -> None:
        """Read the files again if one has changed, couldn't be used, or `anew` is true. May be called in a separate
        thread."""
        stamp = self._stamps()
        if anew or self.error or stamp != self._stamp:
            self._stamp = stamp
            try:
                made, expires = self._read()
                if expires is not None and expires <= time.time():
                    raise FileUnfit(f"{self._certificate} ended at {_shown(expires)}")
            except FileUnfit as unfit:
                if anew or str(unfit) != self.error:
                    log.error("TLS: %s; the certificate that was read before stays in use", unfit)
                self.error = str(unfit)
            else:
                # Open connections keep their context.
                self.context, self.expires, self.error, self._told_end = made, expires, "", float("-inf")
                until = f", which is good until {_shown(expires)}" if expires is not None else ""
                log.info("TLS: new connections get the certificate in %s%s", self._certificate, until)
        self._tell_end()

    def note_failure(self, client: str, why: str) -> None:
        """Count a failed handshake, and log it, but not too often."""
        self.failed += 1
        now = clock.monotonic()
        if now - self._told >= TOLD:
            self._told = now
            log.warning("a TLS handshake with %s failed, number %d so far: %s", client or "a client", self.failed, why)

    def status(self) -> dict[str, Any]:
        """Return the part of /_skerry/status about TLS."""
        return {
            "certificate": str(self._certificate),
            "expires_at": _shown(self.expires) if self.expires is not None else None,
            "expired": self._expired(),
            "ends_soon": self._ends_within(SOON),
            "asks_clients": self._client_ca is not None,
            "error": self.error or None,
            "failed_handshakes": self.failed,
        }

    def _expired(self) -> bool:
        return self._ends_within(0)

    def _ends_within(self, seconds: float) -> bool:
        return self.expires is not None and self.expires <= time.time() + seconds

    def _tell_end(self) -> None:
        """Log the certificate's expiry when it is near or past, once a day."""
        now, ends = time.time(), self.expires
        if ends is None or ends > now + SOON or (now - self._told_end < REMIND and not self._told_end < ends <= now):
            return
        self._told_end = now
        if ends <= now:
            text = "TLS: the certificate in %s ended at %s: clients refuse it. Put another one in its place"
            log.error(text, self._certificate, _shown(ends))
        else:
            text = "TLS: the certificate in %s ends at %s, in %s: put another one in its place"
            log.warning(text, self._certificate, _shown(ends), counted(int((ends - now) // 86_400), "day"))

    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        paths = (self._certificate, self._key, *([self._client_ca] if self._client_ca is not None else []))
        # Tools that renew certificates use links.
        return tuple(files.stamp(path, follow_symlinks=True) for path in paths)

    def _read(self) -> tuple[ssl.SSLContext, float | None]:
        """Return the context made from the files, and when the certificate expires. Raises: FileUnfit."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.options |= ssl.OP_NO_RENEGOTIATION
        made.set_alpn_protocols(["http/1.1"])
        mode = _mode(self._key)
        if mode & 0o007:
            raise FileUnfit(f"others may use {self._key} (its mode is {mode:04o}): make it `chmod 600`")
        try:
            made.load_cert_chain(self._certificate, self._key, _no_password)
        except OSError as error:
            both = f"the certificate in {self._certificate} and the key in {self._key}"
            raise FileUnfit(f"{both} can't be used, or aren't a pair: {_reason(error)}") from None
        if self._client_ca is not None:
            # A client without a certificate may have a token.
            made.verify_mode = ssl.CERT_OPTIONAL
            # The file may contain a client's own certificate instead of its authority.
            made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            try:
                made.load_verify_locations(self._client_ca)
            except OSError as error:
                raise FileUnfit(f"{self._client_ca} has no certificates in PEM: {_reason(error)}") from None
        return made, _end_of(self._certificate)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise FileUnfit(f"{path} can't be read: {error.strerror}") from None


def _no_password() -> str:
    raise FileUnfit("the key has a password, which a node can't be asked for: keep it without one, in a private file")


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    # OpenSSL reports any malformed file this way.
    return "one of them isn't in PEM, or isn't whole" if "PEM lib" in reason else reason


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _end_of(path: Path) -> float | None:
    """Return when the first certificate in a PEM file expires, in seconds since 1970; None if that can't be read."""
    try:
        text = path.read_text(errors="replace")
        start, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
        return _not_after(ssl.PEM_cert_to_DER_cert(text[start : end + len(ssl.PEM_FOOTER)]))
    except (OSError, ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """Return the field notAfter of a certificate (RFC 5280, 4.1). Raises: ValueError; IndexError."""
    _, certificate, _ = _element(der, 0)
    _, at, _ = _element(der, certificate)
    tag, _, end = _element(der, at)
    # It follows the version (which the oldest certificates lack), the serial number, the algorithm and the issuer.
    for _ in range(2 + (tag == _VERSION)):
        tag, _, end = _element(der, end)
    _, at, _ = _element(der, end)
    _, _, end = _element(der, at)
    tag, at, end = _element(der, end)
    text = der[at:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag, and the start and end of the content, of the element that starts at `at`."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[at : at + count])
        at += count
    return tag, at, at + length
