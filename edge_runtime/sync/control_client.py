"""The node's HTTPS client, for control's operations, the bytes of artifacts and the files of backups.

Control is verified with the node's CA (the system's CAs if it has none), the artifact store with both. The credential
is sent only to control, never with a redirect or to a presigned URL, which has its own signature.
"""

import asyncio
import base64
import errno
import ipaddress
import logging
import re
import ssl
import urllib.request
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import aiohttp
import msgspec
from yarl import URL

from control.protocol import version, wire
from control.protocol.bounded_http_client import BoundedConnector
from edge_runtime import clock
from edge_runtime.errors import CodedError, SyncFailed
from edge_runtime.sync import authorities, retries

CONNECT_TIMEOUT = 10.0
"""Seconds for opening a TCP connection."""
ANSWER_TIMEOUT = 30.0
"""Seconds without a byte from the other side, besides the time for which a poll may be held."""
KEEP_ALIVE = 120.0
"""Seconds that an idle connection is kept: less than control's 150, so that the node closes it first."""
ANSWER_LIMIT = 64 * 1024 * 1024
"""The most bytes of an answer of control."""
PROBLEM_LIMIT = 64 * 1024
"""The most bytes of an error of the artifact store."""
POLL = "/v1/poll"
BACKUP_UPLOADS = "/v1/nodes/self/backup/uploads"
TRUST_HEADER = "X-Skerry-Trust"
"""In the answer to a poll with nothing to do: which CAs control distributes, as in `authorities.digest`."""
RELEASE_HEADER = "X-Skerry-Release"
"""In the answer to a poll of a node at its target: the release's group, number and generation."""
HELD_HEADER = "X-Skerry-Held"
"""In the answer to a poll of a node that stays at what it brought back, with nothing to do."""

NO_ARTIFACT = "0" * 64
"""A digest that no artifact has."""
PACKED_FROM = 2048
"""Bytes of records from which they are compressed."""
PACKED = b"\x78\x01"
"""The beginning of compressed records, which no record has."""

PAUSE = 1.0
PAUSE_CAP = 30.0
"""Seconds between two attempts of `until_answered`: the first pause, which doubles each time up to the cap."""

log = logging.getLogger("skerry.agent")

T = TypeVar("T")

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Errors from an answer that isn't the expected JSON: something in front of control may have sent it."""
_ANSWER: msgspec.json.Decoder[wire.Answer] = msgspec.json.Decoder(wire.Answer)


class NoAnswer(CodedError):
    """No HTTP answer came; `code` says how far the request got, the message what to check."""

    def __init__(self, code: str, message: str, *, cut: bool = False) -> None:
        super().__init__(code, message)
        self.cut = cut
        """Whether there was a connection that the other side closed."""


class ControlRefused(CodedError):
    """An unsuccessful HTTP answer; if it is control's, `code` and `message` are from its problem+json."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.status = status
        """The status of the answer."""
        self.retry_after = retry_after
        """Seconds after which control wants the request again; None if it doesn't say."""


class ToldRelease(NamedTuple):
    """A release with control's number for it, which counts within its group."""

    group: str
    number: int
    generation: int


class ControlClient:
    """An open session to one control; use it as an asynchronous context manager.

    Raises `NoAnswer` and `ControlRefused` from each call, and `ValueError` for a control URL that isn't HTTPS.
    """

    def __init__(self, control_url: str, ca: Path | None, credential: str = "") -> None:
        self._base = control_base(control_url)
        self.credential = credential
        self.trust_again(ca)
        self._session: aiohttp.ClientSession | None = None
        self.skew = 0.0
        """Seconds by which control's clock is ahead of ours, by its Date header."""
        self.credential_life = 0.0
        """Seconds for which the credential of `rotate` is valid; 0 if control doesn't say."""
        self.traceparent = ""
        """The `traceparent` of requests to control while a sync is traced."""
        self.release: ToldRelease | None = None
        """The release that the node is at, if the last answer said it."""
        self.held = False
        """Whether the last answer said that the node stays at what it brought back."""
        self.trust = ""
        """Which CAs control distributes, as it last said; '' if it never did."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=BoundedConnector(keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": f"skerry-edge/{version.running().short}", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def trust_again(self, ca: Path | None) -> None:
        """Verify new connections with `ca`. Raises: ValueError; OSError."""
        self._control_tls = authorities.tls_context(ca, system=ca is None)
        self._store_tls = authorities.tls_context(ca, system=True)

    @property
    def closed(self) -> bool:
        """Return whether its session has ended."""
        return self._session is None or self._session.closed

    async def poll(self, poll: wire.Poll) -> wire.Answer | None:
        """Poll control, which holds the poll for up to `poll.wait` seconds; return None if there is nothing to do
        (204)."""
        status, body = await self._call("POST", POLL, poll, wait=poll.wait)
        if status == 204:
            return None
        try:
            return _ANSWER.decode(body)
        except _UNREADABLE as error:
            raise ControlRefused(
                status,
                "answer_unknown",
                f"control answered the poll with something that this edge runtime doesn't understand ({error}); "
                f"it speaks protocol {wire.PROTOCOL}: upgrade it if control is newer",
            ) from None

    async def report(self, sync_id: str, update: wire.SyncUpdate) -> wire.SyncState:
        """Tell control how a sync is going, or how it ended."""
        return await self._typed("PUT", f"/v1/syncs/{sync_id}", update, wire.SyncState)

    async def rehearsal(self, rehearsal_id: str) -> wire.RehearsalOrder:
        """Return what the node is to rehearse."""
        return await self._typed("GET", f"/v1/nodes/self/rehearsals/{rehearsal_id}", None, wire.RehearsalOrder)

    async def tell_rehearsal(self, rehearsal_id: str, result: wire.RehearsalResult) -> None:
        """Tell control how a rehearsal went."""
        await self._call("PUT", f"/v1/nodes/self/rehearsals/{rehearsal_id}", result)

    async def restore_order(self, restore_id: str) -> wire.RestoreOrder:
        """Return what the node's database is to be brought back to."""
        return await self._typed("GET", f"/v1/nodes/self/restores/{restore_id}", None, wire.RestoreOrder)

    async def tell_restore(self, restore_id: str, result: wire.RestoreResult) -> None:
        """Tell control how a restore went."""
        await self._call("PUT", f"/v1/nodes/self/restores/{restore_id}", result)

    async def latest_backup(self) -> wire.RestoreOrder | None:
        """Return the latest state of the node's database that its backup has; None if it has none."""
        try:
            return await self._typed("GET", "/v1/nodes/self/backup/latest", None, wire.RestoreOrder)
        except ControlRefused as refusal:
            # A version of control that knows no backups doesn't know the path either.
            if refusal.status == 404:
                return None
            raise

    async def tell_rows(self, counts: wire.Message) -> None:
        """Send `PUT /v1/nodes/self/row-counts`."""
        await self._call("PUT", "/v1/nodes/self/row-counts", counts)

    async def rotate(self) -> str:
        """Return a new credential; the present one stays valid until the new one is used."""
        rotated = await self._typed("POST", "/v1/nodes/self/credential", None, wire.Rotated)
        self.credential_life = rotated.credential_life
        return rotated.credential

    async def sql_run(self, run: wire.SqlRun) -> None:
        """Report SQL that somebody ran on the node to control."""
        await self._call("POST", "/v1/nodes/self/sql", run)

    async def send_records(
        self, watch: str, lines: bytes, *, sampled: int = 0, left_out: int = 0, done: bool = False
    ) -> float:
        """Send records of a watch, as lines of JSON; return how many may be sent per second from now on.

        `sampled` records were left out to keep within that rate, `left_out` older ones for another reason; `done`:
        everything that existed when the question arrived was sent.
        """
        query = f"sampled={sampled}&left_out={left_out}&done={str(done).lower()}"
        path = f"/v1/nodes/self/watches/{watch}?{query}"
        body = lines if len(lines) < PACKED_FROM else await asyncio.to_thread(zlib.compress, lines, 1)
        return (await self._typed("POST", path, body, wire.BatchTaken)).rate

    async def authorities(self) -> str:
        """Return the CAs that control distributes, in PEM, perhaps with other text between them."""
        status, body = await self._call("GET", "/v1/ca", None)
        if len(body) > authorities.SIZE_LIMIT:
            text = f"control gives out {len(body)} bytes of CAs, and {authorities.SIZE_LIMIT} are allowed"
            raise ControlRefused(status, "answer_too_large", text)
        return authorities.decoded(body)

    async def is_known(self) -> None:
        """Let control check only the credential. Raises: ControlRefused, when it refuses it."""
        try:
            await self._call("GET", f"/v1/artifacts/{NO_ARTIFACT}", None)
        except ControlRefused as refused:
            if refused.code != "unknown_artifact":
                raise

    async def join(self, join: wire.Join) -> wire.Joined:
        """Become a node; the session's credential is the join token."""
        return await self._typed("POST", "/v1/nodes", join, wire.Joined)

    @asynccontextmanager
    async def open_artifact(
        self, url: str, start: int, end: int | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Request an artifact's bytes from `start` on, or those before `end`; the answer (200, or 206 if that isn't
        all of them) is read as a stream.

        `url` is from a plan: absolute and presigned, or a path of control, which may redirect to the store (307).
        """
        own = not URL(url, encoded=True).absolute
        target = self._base.join(URL(url, encoded=True)) if own else URL(url, encoded=True)
        last = "" if end is None else str(end - 1)
        headers = {"Range": f"bytes={start}-{last}"} if start or last else {}
        for _ in range(2):
            _refuse_plain(target, "an artifact")
            extra = self._own_headers() if own else {}
            async with self._request(
                "GET", target, headers | extra, None, ANSWER_TIMEOUT, self._control_tls if own else self._store_tls
            ) as response:
                if own and response.status in (302, 303, 307, 308) and "Location" in response.headers:
                    # Followed here, so that the next request has no Authorization: S3 refuses two signatures.
                    target = target.join(URL(response.headers["Location"], encoded=True))
                    own = False
                    continue
                if response.status not in (200, 206):
                    raise refusal(response, await read_limited(response, PROBLEM_LIMIT), own)
                yield response
                return
        raise ControlRefused(
            502, "redirected", f"{_shown(target)} sends on again instead of answering with the artifact"
        )

    async def artifact_size(self, sha256: str) -> int:
        """Return the bytes of an artifact that control would give the node."""
        async with self.open_artifact(f"/v1/artifacts/{sha256}", 0) as response:
            return response.content_length or 0

    async def backup_places(self, lineage: str, names: Sequence[str]) -> wire.Uploads:
        """Return URLs at which files of the node's backup may be put, in the order of their names."""
        wanted = wire.UploadsWanted(lineage, list(names))
        uploads = await self._typed("POST", BACKUP_UPLOADS, wanted, wire.Uploads)
        if len(uploads.urls) != len(names):
            text = f"control gave {len(uploads.urls)} places for {len(names)} files of a backup"
            raise ControlRefused(200, "answer_unknown", text)
        return uploads

    async def backed_up(self, lineage: str, name: str) -> wire.UploadedFile | None:
        """Return what the store has under the name of a file of the node's backup; None if it has nothing."""
        try:
            return await self._typed("GET", f"{BACKUP_UPLOADS}/{lineage}/{name}", None, wire.UploadedFile)
        except ControlRefused as refused:
            if refused.code == "unknown_backup_file":
                return None
            raise

    async def put_backup(self, url: str, body: AsyncIterator[bytes], size: int, md5: bytes, wait: float) -> None:
        """Put a file of the node's backup, of `size` bytes with this MD5, where there is nothing yet.

        `url` is from `backup_places`: absolute and presigned, or a path of control. The answer may take `wait` seconds
        after the last byte was sent. Raises: SyncFailed, when the URL isn't one that is followed.
        """
        own = not URL(url, encoded=True).absolute
        target = self._base.join(URL(url, encoded=True)) if own else URL(url, encoded=True)
        _refuse_plain(target, "a file of the backup")
        headers = {
            "If-None-Match": "*",
            # The store compares it before there is an object. The ETag says it afterwards, and not at every store.
            "Content-MD5": base64.b64encode(md5).decode(),
            "Content-Length": str(size),
            "Content-Type": "application/octet-stream",
        }
        if own:
            headers |= self._own_headers()
        tls = self._control_tls if own else self._store_tls
        async with self._request("PUT", target, headers, body, wait, tls) as response:
            told = await read_limited(response, PROBLEM_LIMIT)
            if response.status not in (200, 201, 204):
                raise refusal(response, told, own)

    async def _typed(self, method: str, path: str, message: wire.Message | bytes | None, kind: type[T]) -> T:
        status, body = await self._call(method, path, message)
        try:
            return msgspec.json.decode(body, type=kind)
        except _UNREADABLE as error:
            message_ = f"control's answer to {method} {path} makes no sense: {error}"
            raise ControlRefused(status, "answer_unknown", message_) from None

    async def _call(
        self, method: str, path: str, message: wire.Message | bytes | None, wait: float = 0.0
    ) -> tuple[int, bytes]:
        headers = self._own_headers()
        body = b""
        if isinstance(message, bytes):
            body = message
            headers["Content-Type"] = "application/x-ndjson"
            if body.startswith(PACKED):
                headers["Content-Encoding"] = "deflate"
        elif message is not None:
            headers["Content-Type"] = "application/json"
            body = msgspec.json.encode(message)
        url = self._base.join(URL(path))
        sent = datetime.now(UTC)
        async with self._request(method, url, headers, body, wait + ANSWER_TIMEOUT, self._control_tls) as response:
            data = await read_limited(response, ANSWER_LIMIT)
            self._note_date(response.headers.get("Date"), sent)
            if path == POLL:  # other requests are made in parallel with polls
                self.release = told_release(response.headers.get(RELEASE_HEADER, ""))
                self.held = HELD_HEADER in response.headers
                self.trust = response.headers.get(TRUST_HEADER, self.trust)
            if response.status >= 300:
                raise refusal(response, data, True)
            return response.status, data

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | AsyncIterator[bytes] | None,
        read: float,
        tls: ssl.SSLContext,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "the client is not open"  # noqa: S101
        timeout = aiohttp.ClientTimeout(connect=2 * CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=read)
        proxy, proxy_headers = proxy_for(url)
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=timeout,
                ssl=tls,
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=proxy_headers,
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise unreachable(error, url, proxy) from error

    def now(self) -> datetime:
        """Return control's time, as far as it is known: control checks the times that this node sends."""
        return clock.now() + timedelta(seconds=self.skew)

    def _own_headers(self) -> dict[str, str]:
        traced = {"traceparent": self.traceparent} if self.traceparent else {}
        return {"Authorization": f"Bearer {self.credential}", **traced}

    def _note_date(self, date: str | None, sent: datetime) -> None:
        if date is None:
            return
        try:
            theirs = parsedate_to_datetime(date).astimezone(UTC)
        except ValueError:
            return
        self.skew = clock_skew(theirs, sent, datetime.now(UTC))


async def until_answered(ask: Callable[[], Awaitable[T]], what: str) -> T | None:
    """Ask control, again and again where it can't be reached; None if it refuses for good: it no longer wants `what`,
    as the log says then."""
    pause = PAUSE
    while True:
        try:
            return await ask()
        except (NoAnswer, ControlRefused) as error:
            if isinstance(error, ControlRefused) and retries.final(error.status):
                log.info("control no longer wants %s: %s", what, error.message)
                return None
        await clock.sleep(pause)
        pause = min(PAUSE_CAP, 2 * pause)


def continues(response: aiohttp.ClientResponse, start: int) -> bool:
    """Return whether the answer begins at `start`: a server may ignore Range and send everything."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def told_release(header: str) -> ToldRelease | None:
    """Read which release the node is at according to control; None if it doesn't say."""
    told = re.fullmatch(r"([a-z0-9-]{1,63}) (\d{1,18}) (\d{1,18})", header)
    return None if told is None else ToldRelease(told[1], int(told[2]), int(told[3]))


def clock_skew(theirs: datetime, sent: datetime, received: datetime) -> float:
    """Return the seconds by which another clock is ahead of ours.

    It showed `theirs` at some time between the request and the answer, which may be far apart if a poll was held. Since
    the Date header has whole seconds, a skew below 2 s counts as none.
    """
    skew = (theirs - min(max(theirs, sent), received)).total_seconds()
    return skew if abs(skew) > 2.0 else 0.0


def control_base(url: str) -> URL:
    """Check the URL of control, and return its origin. Raises: ValueError, when it isn't an https URL."""
    try:
        base = URL(url)
    except ValueError:
        raise ValueError(f"{url!r} is no URL; control's looks like https://control.example.org:8443") from None
    if base.scheme != "https" or not base.host:
        raise ValueError(f"{url!r} is no HTTPS URL; control's looks like https://control.example.org:8443")
    if base.user or base.password:
        raise ValueError("control's URL must not hold a user or a password")
    return base.origin()


def _refuse_plain(url: URL, what: str) -> None:
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.host)):
        raise SyncFailed(
            "artifact_url_refused",
            f"control names {_shown(url)} for {what}, and only https is followed beyond this machine; "
            "set SKERRY_ARTIFACTS_PUBLIC_URL at control to the store's https address",
        )


def _shown(url: URL) -> str:
    """Return a URL without its query, which in a presigned URL has a secret signature."""
    return str(url.with_query(None).with_user(None))


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts = bytearray()
    async for chunk in response.content.iter_any():
        parts += chunk
        if len(parts) > limit:
            raise ControlRefused(
                response.status, "answer_too_large", f"an answer of more than {limit} bytes was not read"
            )
    return bytes(parts)


def refusal(response: aiohttp.ClientResponse, body: bytes, own: bool) -> ControlRefused:
    status = response.status
    retry_after = response.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdecimal() else None
    try:
        problem = msgspec.json.decode(body, type=wire.Problem)
    except _UNREADABLE:
        whom = "control" if own else "the artifact store"
        text = " ".join(body[:200].decode("utf-8", "replace").split())
        return ControlRefused(
            status, f"http_{status}", f"{whom} (or something before it) answered {status}: {text}", seconds
        )
    return ControlRefused(status, problem.code, problem.detail or problem.title, seconds)


def unreachable(error: Exception, url: URL, proxy: URL | None) -> NoAnswer:
    where = f"{url.host}:{url.port}"
    through = f" through the proxy {_shown(proxy)}" if proxy is not None else ""
    match error:
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
            if getattr(cause, "verify_code", 0) == 9:  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID
                return NoAnswer(
                    "clock_behind",
                    f"by this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, the certificate of "
                    f"{where} isn't valid yet: set the clock right (timedatectl set-ntp true), and it is asked again",
                )
            return NoAnswer(
                "tls_untrusted",
                f"the certificate of {where} is not trusted ({cause}): is it the right host, is this machine's clock "
                "right, was the authority replaced?",
            )
        case aiohttp.ClientHttpProxyError() | aiohttp.ClientProxyConnectionError():
            return NoAnswer("proxy_failed", f"the proxy {_shown(proxy or url)} gave no way to {where}: {error}")
        case aiohttp.ClientConnectorDNSError():
            return NoAnswer("name_unknown", f"the name {url.host} can't be resolved{through}: {error.strerror}")
        case TimeoutError():
            return NoAnswer("timed_out", f"{where} did not answer in time{through}")
        case aiohttp.ClientConnectorError():
            cause = error.os_error
            text = f"no connection to {where}{through}: {error.strerror or str(cause) or type(cause).__name__}"
            # A connection is refused if nobody listens, and closed within its TLS handshake if the server is stopping.
            cut = isinstance(cause, ConnectionError) and not isinstance(cause, ConnectionRefusedError)
            return NoAnswer("unreachable", text, cut=cut)
        case _:
            cut = isinstance(error, aiohttp.ServerDisconnectedError) or getattr(error, "errno", 0) == errno.ECONNRESET
            text = f"no answer from {where}{through}: {error or type(error).__name__}"
            return NoAnswer("unreachable", text, cut=cut)


def is_loopback(host: str | None) -> bool:
    """Return whether connections to a name or address never leave this machine."""
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: URL) -> tuple[URL | None, dict[str, str]]:
    """Return the proxy that the environment names for `url` (HTTPS_PROXY, NO_PROXY, …), and the headers for it.

    Loopback never has a proxy.
    """
    host = url.host or ""
    if is_loopback(host):
        return None, {}
    proxies = urllib.request.getproxies_environment()
    wanted = proxies.get(url.scheme) or proxies.get("all")
    if not wanted or urllib.request.proxy_bypass(host, proxies):
        return None, {}
    proxy = URL(wanted if "://" in wanted else f"http://{wanted}")
    headers = {}
    if proxy.user:
        headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return proxy.with_user(None), headers
