"""The callers that a node knows: who they are, what each may call, and how often.

The file is read at startup, and again when it has changed; an unusable file leaves the callers as they were.
"""

import hmac
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from edge_runtime import clock, files
from edge_runtime.dispatch.outcomes import Refusal, refused
from edge_runtime.files import FileUnfit
from edge_runtime.token_bucket import TokenBucket
from edge_runtime.web import callers_file
from edge_runtime.web.callers_file import CallerEntry
from edge_runtime.web.parser import Exchange

log = logging.getLogger("skerry.front")

BEARER: Final = "Bearer"
CERTIFICATE: Final = "Certificate"
"""How a caller was identified: AUTH_TYPE in a function's environment."""

Counts = dict[tuple[str, str], int]
"""Calls by function and outcome; the function is empty if the release doesn't have it."""


class Caller:
    """A caller that is in force."""

    __slots__ = ("bucket", "counts", "entry")

    def __init__(self, entry: CallerEntry, before: "Caller | None") -> None:
        """`before` is the previous caller of that name."""
        self.entry = entry
        self.counts: Counts = before.counts if before is not None else {}
        self.bucket: TokenBucket | None
        if before is not None and (before.entry.rate, before.entry.burst) == (entry.rate, entry.burst):
            # A change of the file doesn't refill the rate limit.
            self.bucket = before.bucket
        else:
            self.bucket = TokenBucket(entry.burst, entry.rate) if entry.rate else None

    @property
    def name(self) -> str:
        return self.entry.name

    def count(self, function: str, outcome: str) -> None:
        """Count a call."""
        key = function, outcome
        self.counts[key] = self.counts.get(key, 0) + 1

    def too_often(self, now: float) -> Refusal | None:
        """Count a call against the rate limit; return why it is refused, or None."""
        if self.bucket is None or self.bucket.take(1, now):
            return None
        wait = math.ceil(self.bucket.wait(1, now)) or 1
        text = f"{self.name} calls more often than its rate, {self.entry.rate:g} a second; ask again in {wait} s."
        return self._refused("rate_exceeded", text, wait)

    def closed(self, function: str) -> Refusal | None:
        """Return why the caller may not call a function, or None if it may."""
        functions = self.entry.functions
        if functions is None or function in functions:
            return None
        return self._refused("caller_forbidden", f"The caller {self.name} may not call this function.")

    def no_pages(self) -> Refusal | None:
        """Return why the caller may not read the node's own pages, or None if it may."""
        if self.entry.pages:
            return None
        return self._refused("caller_forbidden", f"The caller {self.name} may not read the node's own pages.")

    def _refused(self, code: str, text: str, retry_after: int = 0) -> Refusal:
        self.count("", code)
        return refused(code, text, retry_after)


class _InForce(NamedTuple):
    """The callers from one reading of the file, found by their tokens and certificates."""

    by_name: dict[str, Caller]
    by_token: dict[bytes, Caller]
    by_certificate: dict[bytes, Caller]


class Callers:
    def __init__(self, path: Path, *, certificates: bool) -> None:
        """`certificates`: whether clients are asked for theirs."""
        self.path = path
        self.error = ""
        """Why the file can't be used as it is now; empty if it can."""
        self.unknown = 0
        """Requests that came from no known caller."""
        self._certificates = certificates
        self._stamp: tuple[int, ...] | None = None
        self._in_force = _InForce({}, {}, {})

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._in_force.by_name.values())

    def start(self) -> None:
        """Read the file for the first time. Raises: FileUnfit."""
        self._stamp = files.stamp(self.path)
        self._take(self._read())

    def look(self, *, anew: bool = False) -> None:
        """Read the file again if it has changed, couldn't be used, or `anew` is true. May be called in a separate
        thread."""
        seen = files.stamp(self.path)
        if seen == self._stamp and not anew and not self.error:
            return
        self._stamp = seen
        try:
            entries = self._read()
        except FileUnfit as unfit:
            if anew or str(unfit) != self.error:
                log.error("callers: %s; the callers that were read before stay in force", unfit)
            self.error = str(unfit)
            return
        self._take(entries)
        self.error = ""
        log.info("callers: %s was read again and has %d", self.path, len(entries))

    def admit(self, exchange: Exchange, certificate: bytes, token: bytes, *, page: bool) -> Refusal | None:
        """Find a request's caller, and count the request; return why it is refused, or None.

        `certificate` is the sha256 of the client's, `token` the request's; both may be empty. `page`: the request is
        for one of the node's own pages.
        """
        caller, exchange.auth_type = self.of_certificate(certificate), CERTIFICATE
        if caller is None:
            caller, exchange.auth_type = self.of_token(token), BEARER
        if caller is None:
            self.unknown += 1
            text = "The node asks who calls: send a caller's token as `Authorization: Bearer`, or show its certificate."
            return refused("caller_unknown", text)
        exchange.caller = caller
        return caller.no_pages() if page else caller.too_often(clock.monotonic())

    def of_token(self, token: bytes) -> Caller | None:
        """Return the caller with this token."""
        if not token:
            return None
        # How long the search takes depends on the digest, which reveals nothing about the token.
        digest = callers_file.token_digest(token)
        caller = self._in_force.by_token.get(digest)
        return caller if caller and any(hmac.compare_digest(digest, one) for one in caller.entry.tokens) else None

    def of_certificate(self, digest: bytes) -> Caller | None:
        """Return the caller whose certificate has this sha256; None for an empty one."""
        return self._in_force.by_certificate.get(digest)

    def status(self) -> dict[str, Any]:
        """Return the part of /_skerry/status about callers."""
        return {"file": str(self.path), "error": self.error or None, "names": list(self._in_force.by_name)}

    def _read(self) -> list[CallerEntry]:
        try:
            entries = callers_file.parse(files.read_private(self.path, callers_file.SIZE_LIMIT), str(self.path))
        except FileNotFoundError:
            raise FileUnfit(f"{self.path} isn't there: `skerry-edge caller add` makes it") from None
        for entry in entries if not self._certificates else ():
            if entry.certificates:
                text = f"{self.path}: {entry.name} has certificate_sha256, and clients aren't asked for certificates"
                raise FileUnfit(f"{text}: set SKERRY_EDGE_TLS_CLIENT_CA")
        return entries

    def _take(self, entries: list[CallerEntry]) -> None:
        before = self._in_force.by_name
        callers = [Caller(entry, before.get(entry.name)) for entry in entries]
        # In one step: the event loop's thread looks up callers meanwhile.
        self._in_force = _InForce(
            {caller.name: caller for caller in callers},
            {digest: caller for caller in callers for digest in caller.entry.tokens},
            {digest: caller for caller in callers for digest in caller.entry.certificates},
        )
