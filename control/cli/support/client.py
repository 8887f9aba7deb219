"""The CLI's side of the operators' API: HTTPS, retries that are safe, and errors for the person.

Every changing call carries an Idempotency-Key that stays the same over its retries, so asking again after a lost
answer never does a thing twice.
"""

import asyncio
import os
import random
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

ATTEMPTS = 5
"""How often a call is tried where control can't be reached or answers 503."""
FIRST_PAUSE = 0.25
"""Seconds before the second attempt; doubled each time, with jitter, unless control says Retry-After."""
LONGEST_PAUSE = 5.0
TLS_END = 0.25
"""Seconds for the end of a TLS connection that control closed; aiohttp doesn't wait for it."""
CHUNK = 1024 * 1024
HOME_FILE = "cli.json"
CA_CURE = "set SKERRY_CA to the file with control's CA"
AGAIN = "start `skerry up` again: it writes the file anew"

Json = dict[str, Any]


class Failure(Exception):
    """A command failed; `exit_code` says how (see the table in docs/operations.md)."""

    exit_code = 1

    def __init__(self, message: str, *, code: str = "", field: str = "", cure: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.cure = cure


class RequestRefused(Failure):
    """Control refused the request (4xx)."""

    exit_code = 3


class Unreachable(Failure):
    """Control couldn't be reached, or had no time for us, in all attempts."""

    exit_code = 4


class NotConverged(Failure):
    """Nodes failed, or weren't at their target in time."""

    exit_code = 5


class NotConnected(Failure):
    """Nobody said which control to talk to."""

    exit_code = 2


@dataclass(frozen=True)
class ConnectionSettings:
    """Where control is: an https URL, an operator's token, the CA's file (None: the system's), the edge's URL."""

    url: str
    token: str
    ca: Path | None
    edge: str = ""


def home() -> Path:
    """The directory of a local installation: SKERRY_HOME, or .skerry here."""
    return Path(os.environ.get("SKERRY_HOME") or ".skerry").absolute()


def read_home_file() -> dict[str, str]:
    """What `skerry up` wrote for the commands; empty where it hasn't run."""
    path = home() / HOME_FILE
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise NotConnected(f"{path} can't be read: {error}", cure=AGAIN) from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise NotConnected(f"{path} isn't what `skerry up` writes", cure=AGAIN)
    return value


def connection_settings() -> ConnectionSettings:
    """SKERRY_URL, SKERRY_TOKEN and SKERRY_CA; where no URL is set, what `skerry up` left in SKERRY_HOME.

    The two aren't mixed: a token of the local installation never goes to another control.
    """
    url, token, ca = (os.environ.get(name, "") for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_CA"))
    edge = os.environ.get("SKERRY_EDGE_URL", "")
    if not url:
        local = read_home_file()
        if "url" not in local or "token" not in local:
            raise NotConnected(
                f"no control to talk to: SKERRY_URL isn't set and {home() / HOME_FILE} isn't there",
                cure="set SKERRY_URL, SKERRY_TOKEN and SKERRY_CA, or start a local one with `skerry up`",
            )
        url, token, ca = local["url"], token or local["token"], ca or local.get("ca", "")
        edge = edge or local.get("edge", "")
    elif not token:
        raise NotConnected("SKERRY_URL is set but SKERRY_TOKEN isn't", cure="set SKERRY_TOKEN to an operator's token")
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))):
        raise NotConnected(f"SKERRY_URL must be an https URL, not {url!r}")
    return ConnectionSettings(url.rstrip("/"), token, Path(ca) if ca else None, edge)


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def path(*parts: str | int) -> str:
    """A path under /v1 of parts that are escaped each for itself."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


class Client:
    """Calls to one control; an asynchronous context manager."""

    def __init__(self, to: ConnectionSettings) -> None:
        self._to = to
        self._session: aiohttp.ClientSession | None = None
        self._ending = False
        try:
            self._tls = ssl.create_default_context(cafile=None if to.ca is None else str(to.ca))
        except (OSError, ssl.SSLError) as error:
            raise NotConnected(f"the CA file {to.ca} can't be read: {error}", cure=CA_CURE) from error

    @property
    def url(self) -> str:
        """The URL of control, without a slash at its end."""
        return self._to.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            if self._ending:
                await asyncio.sleep(TLS_END)

    async def get(self, where: str, **query: str | int | None) -> Json:
        return await self.call("GET", where, query=query)

    async def post(self, where: str, body: Json | None = None, **query: str | int | None) -> Json:
        return await self.call("POST", where, body=body, query=query)

    async def delete(self, where: str, **query: str | int | None) -> None:
        await self.call("DELETE", where, query=query)

    async def items(self, where: str, most: int | None = None, **query: str | int | None) -> list[Json]:
        """All items of a list, page by page, or the first `most`."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            page = await self.get(where, **query, cursor=cursor, limit=None if most is None else min(most, 100))
            found += page["items"]
            cursor = page.get("next")
            if cursor is None or (most is not None and len(found) >= most):
                return found if most is None else found[:most]

    async def has(self, where: str) -> bool:
        """Whether a HEAD of it answers 2xx; False for 404."""
        try:
            await self.call("HEAD", where)
        except RequestRefused as refused:
            if refused.code in ("404", "unknown_artifact"):
                return False
            raise
        return True

    async def upload(self, where: str, file: Path, sent: Callable[[int], None]) -> Json:
        """PUT the file's bytes, streamed; `sent` is told how many went in each piece, and -n when it starts again."""
        return await self.call("PUT", where, file=file, sent=sent)

    async def call(
        self,
        method: str,
        where: str,
        *,
        body: Json | None = None,
        query: dict[str, str | int | None] | None = None,
        file: Path | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> Json:
        """One call with its retries. Raises `RequestRefused`, `Unreachable` or `Failure`."""
        headers = {"accept": "application/json"}
        if self._to.token:
            headers["authorization"] = f"Bearer {self._to.token}"
        if method in ("POST", "PUT", "DELETE"):
            headers["idempotency-key"] = str(uuid.uuid4())
        if body is not None:
            headers["content-type"] = "application/json"
        if file is not None:
            # Refused before the bytes are sent, where the size or the token is refused.
            headers |= {"content-type": "application/wasm", "content-length": str(file.stat().st_size)}
        parameters = {name: str(value) for name, value in (query or {}).items() if value is not None}
        for attempt in range(1, ATTEMPTS + 1):
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311
            data: Any = None if body is None else orjson.dumps(body)
            if file is not None:
                data = _pieces(file, sent)
            try:
                async with self._open().request(
                    method,
                    self._to.url + where,
                    params=parameters,
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                    expect100=file is not None,
                ) as response:
                    content = await response.read()
                    self._ending = self._ending or response.headers.get("connection", "").lower() == "close"
            except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
                raise Unreachable(
                    f"{self._to.url} can't be trusted: {error}",
                    code="tls",
                    cure="set SKERRY_CA to the file of control's CA, and use a name that its certificate has",
                ) from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = Unreachable(
                    f"{self._to.url} can't be reached: {error or type(error).__name__}",
                    code="unreachable",
                    cure="is control running, and is SKERRY_URL right?",
                )
                if attempt == ATTEMPTS:
                    raise failure from error
            else:
                if response.status != 503:
                    return _answer(method, where, response.status, content)
                if attempt == ATTEMPTS:
                    raise _problem(Unreachable, method, where, response.status, content)
                pause = max(pause, min(_seconds(response.headers.get("retry-after")), LONGEST_PAUSE))
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A proxy from the environment, but never for what is on this machine.
            proxies = not is_loopback(urlsplit(self._to.url).hostname or "")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls),
                trust_env=proxies,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90),
            )
        return self._session


async def _pieces(file: Path, sent: Callable[[int], None] | None) -> AsyncIterator[bytes]:
    gone = 0
    try:
        with file.open("rb") as stream:
            while piece := await asyncio.to_thread(stream.read, CHUNK):
                yield piece
                gone += len(piece)
                if sent is not None:
                    sent(len(piece))
        gone = 0
    finally:
        if gone and sent is not None:
            sent(-gone)


def _answer(method: str, where: str, status: int, content: bytes) -> Json:
    if 400 <= status < 500:
        raise _problem(RequestRefused, method, where, status, content)
    if not 200 <= status < 300:
        raise _problem(Failure, method, where, status, content)
    if not content:
        return {}
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Failure(f"{method} {where} answered {status} with no JSON object", cure="is SKERRY_URL really a control?")
    return value


def _problem(kind: type[Failure], method: str, where: str, status: int, content: bytes) -> Failure:
    try:
        problem = orjson.loads(content)
    except orjson.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict):
        return kind(f"{method} {where} answered {status}", code=str(status))
    message = problem.get("detail") or problem.get("title") or f"{method} {where} answered {status}"
    code = str(problem.get("code") or status)
    return kind(str(message), code=code, field=str(problem.get("field") or ""), cure=CURES.get(code, ""))


def _seconds(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or 0), 0)
    except ValueError:
        return 0


_LOGIN = "set SKERRY_TOKEN to a valid operator's token (an admin makes one: `skerry operator add`)"
CURES = {
    "401": _LOGIN,
    "credentials_missing": _LOGIN,
    "credentials_invalid": _LOGIN,
    "role_insufficient": "ask someone with a higher role, or an admin for a token of it (`skerry operator add`)",
    "version_in_target": "--release takes it out of the groups' releases first",
}
