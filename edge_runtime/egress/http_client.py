"""The HTTP requests that the front makes for functions: workers have no network.

`RequestsInFlight` takes a worker's request, `HttpClient` makes it, and the answer goes back to the worker.

`grants` decides what may be requested; here a name must also resolve to an address that a function may reach
(`control.protocol.checked_resolver`). No redirect is followed, no proxy used, no cookie kept, and nothing of the node's
own is sent along.
"""

import asyncio
import io
import logging
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from control.protocol.bounded_http_client import BoundedConnector
from control.protocol.checked_resolver import AddressRefused, CheckedResolver
from control.protocol.manifest import HttpGrant
from control.protocol.public_addresses import Address, Network, is_own, is_public
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.egress import grants
from edge_runtime.egress.grants import Outgoing
from edge_runtime.ipc import frames, http_messages
from edge_runtime.ipc.http_messages import NotFetched

KEEP_ALIVE: Final = 15.0
"""Seconds that an idle connection is kept."""
LOOKUPS: Final = 32
"""Threads that only wait for name servers, so that a slow one delays nothing else on the node."""
HEADERS_LIMIT: Final = 256
HEADER_BYTES_LIMIT: Final = 65_536
"""Bytes of an answer's header names and values together."""
_PIECE: Final = 65_536

log = logging.getLogger("skerry.egress")


def reachable(host: str, address: Address, networks: Sequence[Network]) -> bool:
    """Return whether the name `host` may resolve to `address` for a function with a grant for it. Pure.

    Names may resolve to public addresses and to those of `networks`, which the node's operator configured; `localhost`
    resolves to loopback. Other addresses must be listed in the manifest as addresses.
    """
    if host == "localhost":
        return address.is_loopback
    if any(address in network for network in networks):
        return True
    return is_public(address)


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        # aiohttp's own message contains the URL and the server's data: either may hold a secret, and this is logged.
        return f"the answer isn't HTTP as it must be ({error.message.partition(':')[0]})"
    return str(error) or type(error).__name__


def resolver(networks: Sequence[Network]) -> CheckedResolver:
    """Return a resolver that looks up names and leaves out the addresses that a function may not reach."""

    def allows(host: str, address: Address) -> bool:
        return reachable(host, address, networks) and (address.is_loopback or not is_own(address))

    return CheckedResolver(allows, LOOKUPS, configured=True)


class HttpClient:
    """An HTTP client, open as an asynchronous context manager.

    A worker asks for one request at a time, so there are never more requests than workers.
    """

    def __init__(self, networks: Sequence[Network] = (), tls: ssl.SSLContext | None = None) -> None:
        """Names may resolve to `networks` in addition to public addresses. Without `tls` the system's CAs are
        trusted."""
        self._networks = networks
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=BoundedConnector(
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
                resolver=resolver(self._networks),
                # Without `tls`, aiohttp's own context of the system's CAs, made at its import: to read them takes 5 ms.
                ssl=self._tls or True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def fetch(
        self,
        grant: HttpGrant | None,
        request: bytes,
        sending: Callable[[], None] | None = None,
        traceparent: str = "",
    ) -> bytes:
        """Make the request of a parcel, and return the answer's parcel.

        `traceparent` is the call's place in a trace, which is sent along unless the function sets one. `sending` is
        called before a request that can't be sent twice. Raises: NotFetched, when there is no answer.
        """
        if grant is None:
            raise NotFetched("not_granted", "This function's manifest grants it no HTTP: set `http`.", "http_host")
        outgoing = grants.read(request, grant)
        if traceparent and not any(name.lower() == "traceparent" for name, _ in outgoing.headers):
            outgoing.headers.append(("traceparent", traceparent))
        if sending is not None and outgoing.method not in http_messages.REPEATABLE:
            sending()
        where = f"{outgoing.scheme}://{outgoing.host}"
        limit = grant.time_limit_ms
        try:
            async with asyncio.timeout(limit / 1000):
                return await self._answer(outgoing, grant.response_bytes)
        except TimeoutError:
            text = f"{where} had not answered after {limit} ms (the manifest's `http.time_limit_ms`)."
            raise NotFetched("http_timeout", text) from None
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, AddressRefused):
                text = (
                    f"{outgoing.host} leads to an address that isn't public: name the address itself in `http.hosts`, "
                    "or have the node's operator allow its network (http_networks)."
                )
                raise NotFetched("not_granted", text, "http_address") from None
            raise NotFetched("http_failed", f"{outgoing.host} has no address: {error.os_error}.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotFetched("http_failed", f"The request to {where} failed: {_why(error)}.") from None

    async def _answer(self, outgoing: Outgoing, limit: int) -> bytes:
        if self._session is None:
            raise NotFetched("http_failed", "The node is being stopped.")
        headers = list(outgoing.headers)
        if not any(name.lower() == "user-agent" for name, _ in headers):
            headers.append(("User-Agent", "skerry"))
        host = f"[{outgoing.host}]" if ":" in outgoing.host else outgoing.host
        url = URL(f"{outgoing.scheme}://{host}:{outgoing.port}{outgoing.target}", encoded=True)
        # Raw bytes would be sent in one piece.
        data = io.BytesIO(outgoing.body) if outgoing.body else None
        async with self._session.request(
            outgoing.method, url, headers=headers, data=data, allow_redirects=False
        ) as answered:
            size = sum(len(name) + len(value) for name, value in answered.raw_headers)
            if len(answered.raw_headers) > HEADERS_LIMIT or size > HEADER_BYTES_LIMIT:
                answered.close()
                raise NotFetched("http_failed", f"{outgoing.host} answered with more headers than a node takes.")
            body = bytearray()
            async for piece in answered.content.iter_chunked(_PIECE):
                body += piece
                if len(body) > limit:
                    answered.close()
                    text = f"The answer is larger than {limit} bytes (the manifest's `http.response_bytes`)."
                    raise NotFetched("http_too_large", text)
            if not outgoing.lasting:
                # A pattern can match any number of hosts: their connections aren't kept.
                answered.close()
            return http_messages.answer(answered.status, answered.raw_headers, body)


class RequestsInFlight:
    """The requests of running calls: begun when a worker asks, cancelled when the worker exits. `run` must be
    running."""

    def __init__(self, egress: HttpClient) -> None:
        self._egress = egress
        self._group: asyncio.TaskGroup | None = None
        self._waiting: set[WorkerLink] = set()
        """The workers that are waiting for an answer, one each."""

    async def run(self) -> None:
        """Serve until cancelled; then cancel the requests in progress."""
        async with self._egress, asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def begin(self, link: WorkerLink, call: Call, request: bytes) -> None:
        """Begin an HTTP request for a running call; its answer is sent to the worker later. Never raises."""
        if self._group is None or link in self._waiting:
            # An honest worker asks for one request at a time.
            why = "The node is being stopped." if self._group is None else "The last request isn't answered yet."
            link.send(call.id, frames.HTTP_ANSWER, b"", _refused("http_failed", why))
            return
        self._waiting.add(link)
        task = self._group.create_task(self._answer(link, call, call.id, request))

        def give_up(_: object) -> None:
            task.cancel()

        def ended(_: object) -> None:
            link.ended.remove_done_callback(give_up)
            self._waiting.discard(link)

        # A worker does nothing else while it waits: its call can end before the answer only if the worker exits.
        link.ended.add_done_callback(give_up)
        task.add_done_callback(ended)

    async def _answer(self, link: WorkerLink, call: Call, id: int, request: bytes) -> None:
        served = call.served
        try:
            traceparent = call.traced.request() if call.traced is not None else ""
            answer = await self._egress.fetch(served.function.manifest.http, request, call.sends, traceparent)
        except NotFetched as error:
            if error.denied:
                served.tally.deny(error.denied)
            answer = _refused(error.code, str(error))
        except Exception:
            log.exception("a request of %s failed in a way that nobody foresaw", served.function.name)
            answer = _refused("http_failed", "The edge runtime made a mistake; the node's log has more.")
        # Before the answer is sent: the next request may come before this task's end is known.
        self._waiting.discard(link)
        if not link.ended.done():
            link.send(id, frames.HTTP_ANSWER, b"", answer)


def _refused(code: str, message: str) -> bytes:
    return http_messages.parcel(http_messages.refused(code, message))
