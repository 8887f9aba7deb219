"""Sends one message of a webhook: an HTTP POST that leads nowhere inside unless that is allowed.

A name's addresses are looked up and checked for each attempt (`control.protocol.checked_resolver`). No redirect is
followed, no proxy used, no cookie kept, and nothing of the answer's body is read. What may come before it is bounded
(`control.protocol.bounded_http_client`).
"""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp

from control.clock import Clock
from control.protocol.bounded_http_client import BoundedConnector
from control.protocol.checked_resolver import AddressRefused, CheckedResolver
from control.protocol.public_addresses import Address, Network, is_own, is_public

TIME_LIMIT = 15.0
"""Seconds for an attempt: names, connection, TLS, and the answer's head."""
LOOKUPS = 64
"""Threads that wait for name servers. Each webhook has one attempt at a time, so a slow server holds up its own."""
LONGEST_URL = 2000
GONE = 410
"""The status by which a receiver says that it wants no more messages."""

_HOST = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")


class Attempt(NamedTuple):
    """How an attempt ended."""

    error: str
    """Why it failed; '' where it succeeded."""
    status: int = 0
    """The answer's status; 0 if none came."""
    wait: float = 0.0
    """Seconds for which the receiver asks not to be tried again."""


def check_url(url: str, networks: Sequence[Network]) -> str:
    """Check what can be checked in a webhook's URL without looking up names; return its host.

    Raises: ValueError, with a reason, when no message would ever be sent to it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"it isn't a URL: {error}") from None
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > LONGEST_URL:
        raise ValueError(f"a URL has at most {LONGEST_URL} characters of ASCII, and neither blanks nor backslashes")
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise ValueError("it must begin with https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must not have a user or a password: messages are signed, that is how they are known")
    if parts.scheme == "http" and not networks:
        raise ValueError("plain http is for networks that SKERRY_WEBHOOK_NETWORKS names; use https")
    if not _HOST.fullmatch(host):
        raise ValueError("its host is no name and no address")
    if ":" in host or host.replace(".", "").isdigit():
        # The client looks up no name for these, so that this is their only check.
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError("its host is no name and no address") from None
        _check(host, address, networks, plain=parts.scheme == "http")
    return host


def _check(host: str, address: Address, networks: Sequence[Network], *, plain: bool) -> None:
    """Raises: ValueError, when messages may not be sent to this address of `host`."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = address if mapped is None else mapped
    if any(address in network for network in networks):
        return
    where = f"{host} leads to {address}" if str(address) != host else host
    if plain:
        raise ValueError(f"{where}: plain http is for networks that SKERRY_WEBHOOK_NETWORKS names; use https")
    if not is_public(address) or is_own(address):
        raise ValueError(f"{where}, which isn't public, and SKERRY_WEBHOOK_NETWORKS doesn't name its network")


def _resolver(networks: Sequence[Network], *, plain: bool) -> CheckedResolver:
    """Return what looks up names and refuses each that has an address which isn't allowed."""

    def allows(host: str, address: Address) -> bool:
        try:
            _check(host, address, networks, plain=plain)
        except ValueError as error:
            raise AddressRefused(str(error)) from None
        return True

    return CheckedResolver(allows, LOOKUPS)


class WebhookClient:
    """An HTTP client, open as an asynchronous context manager."""

    def __init__(self, networks: Sequence[Network], clock: Clock) -> None:
        """Messages may go to `networks` besides public addresses. The system's CAs are trusted."""
        self._networks = networks
        self._clock = clock
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        """By scheme; each is made for its first message, since that of https reads all of the system's CAs."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            await session.close()

    def _session(self, scheme: str) -> aiohttp.ClientSession:
        if scheme not in self._sessions:
            connector = BoundedConnector(
                limit=0,
                force_close=True,
                use_dns_cache=False,
                resolver=_resolver(self._networks, plain=scheme == "http"),
                ssl=ssl.create_default_context() if scheme == "https" else True,
            )
            self._sessions[scheme] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                headers={"user-agent": "skerry", "content-type": "application/json"},
                skip_auto_headers=("accept-encoding",),
            )
        return self._sessions[scheme]

    async def post(self, url: str, headers: dict[str, str], body: bytes, limit: float = TIME_LIMIT) -> Attempt:
        """Send a message, for which the receiver has `limit` seconds. The attempt's texts have nothing of the URL
        except its host."""
        try:
            host = check_url(url, self._networks)
        except ValueError as error:
            return Attempt(str(error))
        session = self._session(url.partition(":")[0].lower())
        try:
            async with (
                self._clock.timeout(limit),
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                status, wait = answer.status, _seconds(answer.headers.get("retry-after", ""))
        except TimeoutError:
            return Attempt(f"{host} hadn't answered after {limit:g} s")
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, AddressRefused):
                return Attempt(str(error.os_error))
            return Attempt(f"{host} has no address: {error.os_error}")
        except aiohttp.ClientConnectorCertificateError as error:
            return Attempt(f"the certificate of {host} isn't trusted: {error.certificate_error}")
        except aiohttp.ClientResponseError as error:
            # Its own text has the URL.
            return Attempt(f"the answer of {host} isn't HTTP as it must be ({error.message.partition(':')[0]})")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(f"the request to {host} failed: {str(error) or type(error).__name__}")
        if 200 <= status < 300:
            return Attempt("", status)
        if 300 <= status < 400:
            return Attempt(f"{host} answered {status}, a redirect, which isn't followed: use the URL behind it", status)
        return Attempt(f"{host} answered {status}", status, wait)


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() and len(retry_after) < 9 else 0.0
