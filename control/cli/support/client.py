"""The client of control's API for operators: HTTPS, safe retries, and errors that say what to do.

Every call that changes something carries an Idempotency-Key, the same in each of its retries, so that control does it
once even if an answer is lost.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import random
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import orjson

from control.cli.support import logins
from control.settings import is_loopback, is_safe

ATTEMPTS = 5
"""How often a call is tried while control can't be reached or answers 503."""
FIRST_PAUSE = 0.25
"""Seconds before the second attempt; doubled each time, with jitter, unless control says Retry-After."""
LONGEST_PAUSE = 5.0
"""Maximum seconds between two attempts, whatever Retry-After says."""
TLS_END = 0.25
"""Seconds to wait for the end of a TLS connection that control closes; aiohttp doesn't wait."""
READ_SECONDS, UPLOAD_SECONDS = 90.0, 300.0
"""Seconds without a byte of an answer until a call is retried; an upload waits for its turn to be checked."""
BACKUP_SECONDS = 3600.0
"""Seconds likewise for what control makes of a backup: it may read gigabytes before it answers."""
CHUNK = 1024 * 1024
"""Bytes of a file that are read and sent at a time."""
HOME_FILE = "cli.json"
"""The file in SKERRY_HOME in which `skerry up` leaves the URL, token and CA for the commands."""
CA_CURE = "set SKERRY_CA to the file with control's CA"
SIGN_IN_CURE = (
    "run `skerry login`, or set SKERRY_TOKEN to a valid operator's token (an admin makes one: `skerry operator add`)"
)
ELSEWHERE = "set SKERRY_URL and SKERRY_TOKEN, or run this as the user that has started `skerry up`"
AGAIN = "start `skerry up` again: it writes the file anew"
MOST_NAMES = 500
"""Maximum names that an unknown one is compared with."""
_UNKNOWN = re.compile(r"\bno (node|group|function|operator|webhook) ([a-z0-9-]{1,63})$")
_UNKNOWN_VERSION = re.compile(r"\bno version [0-9]+ of ([a-z0-9-]{1,63})$")

Json = dict[str, Any]


class Failure(Exception):
    """A command failed. `exit_code` is the program's, `code` the error's (docs/errors.md), `cure` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, code: str = "", field: str = "", cure: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.cure = cure


class RequestRefused(Failure):
    """Control refused the request with a 4xx status."""

    exit_code = 3


class Unreachable(Failure):
    """Control couldn't be reached, or answered 503, in all attempts."""

    exit_code = 4


class NotConverged(Failure):
    """Nodes failed, or weren't at their target within the time given."""

    exit_code = 5


class NotReached(Failure):
    """No node failed or was late; some weren't waited for, because they are offline or revoked."""

    exit_code = 6


class NotConnected(Failure):
    """There is no usable URL, token or CA of a control."""

    exit_code = 2


@dataclass(frozen=True)
class ConnectionSettings:
    """Control's URL, an operator's token, the file of control's CA (None: the system's CAs), and an edge's URL."""

    url: str
    token: str
    ca: Path | None
    edge: str = ""


def home() -> Path:
    """Return the folder of `skerry up`'s own installation: SKERRY_HOME, or .skerry in the current folder."""
    return Path(os.environ.get("SKERRY_HOME") or ".skerry").absolute()


def read_home_file() -> dict[str, str]:
    """Return what `skerry up` wrote for the commands; {} where it hasn't run.

    Raises: NotConnected, when the file can't be read.
    """
    path = logins.local_home(HOME_FILE) / HOME_FILE
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise NotConnected(f"{path} is closed to this user", cure=ELSEWHERE) from error
    except (OSError, orjson.JSONDecodeError) as error:
        raise NotConnected(f"{path} can't be read: {error}", cure=AGAIN) from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise NotConnected(f"{path} isn't what `skerry up` writes", cure=AGAIN)
    return value


def connection_settings() -> ConnectionSettings:
    """Read SKERRY_URL, SKERRY_TOKEN and SKERRY_CA; what isn't set comes from the login stored for that control.

    Without a URL, use the control that `skerry up` left in SKERRY_HOME, or that of the newest login. A stored token is
    never sent to any control but its own.

    Raises: NotConnected, when no control is named, there is no token for it, or the URL isn't https.
    """
    url, token, ca = (os.environ.get(name, "") for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_CA"))
    edge = os.environ.get("SKERRY_EDGE_URL", "")
    local = {} if url else read_home_file()
    if "url" in local and "token" in local:
        url, token, ca = local["url"], token or local["token"], ca or local.get("ca", "")
        edge = edge or local.get("edge", "")
    elif not token:
        login = find_login(url)
        if login is None and url:
            raise NotConnected(f"SKERRY_URL is set, and there is no token for {url}", cure=SIGN_IN_CURE)
        if login is None:
            raise NotConnected(
                f"no control to talk to: SKERRY_URL isn't set and {home() / HOME_FILE} isn't there",
                cure="sign in with `skerry login https://…`, or start a local one with `skerry up`; a script sets "
                "SKERRY_URL, SKERRY_TOKEN and SKERRY_CA",
            )
        if datetime.fromisoformat(login.ends_at) <= datetime.now(UTC):
            raise NotConnected(f"the login at {login.url} ended at {login.ends_at}", cure="run `skerry login` again")
        url, token, ca = login.url, login.token, ca or login.ca
    elif not url:
        raise NotConnected(
            "SKERRY_TOKEN is set but SKERRY_URL isn't", cure="set SKERRY_URL to the control that it is of"
        )
    check_url(url)
    return ConnectionSettings(url.rstrip("/"), token, Path(ca) if ca else None, edge)


def check_url(url: str) -> None:
    """Check a URL of control. Raises: NotConnected, when it is neither https nor http on loopback."""
    if not is_safe(url):
        raise NotConnected(
            f"control's URL must be an https URL, not {url!r}",
            cure="give it as https://HOST:PORT (http on this machine only), with `skerry login` or in SKERRY_URL",
        )


def find_login(url: str = "") -> logins.Login | None:
    """Return the login stored for a control, or the newest one. Raises: NotConnected, when it can't be read."""
    try:
        return logins.find(url.rstrip("/"))
    except (OSError, ValueError) as error:
        raise NotConnected(
            f"{logins.file()} can't be read: {error}", cure="remove it and run `skerry login`"
        ) from error


def path(*parts: str | int) -> str:
    """Return the path under /v1 of these parts, each percent-encoded."""
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


class Client:
    """A client of one control, an asynchronous context manager. Its methods raise what `call` raises."""

    def __init__(self, to: ConnectionSettings) -> None:
        self._to = to
        self._session: Any = None
        self._ending = False
        try:
            self._tls = ssl.create_default_context(cafile=None if to.ca is None else str(to.ca))
        except (OSError, ssl.SSLError) as error:
            raise NotConnected(f"the CA file {to.ca} can't be read: {error}", cure=CA_CURE) from error

    @property
    def url(self) -> str:
        """The URL of control, without a trailing slash."""
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

    async def put(self, where: str, body: Json) -> Json:
        return await self.call("PUT", where, body=body)

    async def delete(self, where: str, **query: str | int | None) -> Json:
        return await self.call("DELETE", where, query=query)

    async def items(self, where: str, most: int | None = None, **query: str | int | None) -> list[Json]:
        """Return all items of a list, read page by page, or the first `most`."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            page = await self.get(where, **query, cursor=cursor, limit=None if most is None else min(most, 100))
            found += page["items"]
            cursor = page.get("next")
            if cursor is None or (most is not None and len(found) >= most):
                return found if most is None else found[:most]

    async def has(self, where: str) -> bool:
        """Return whether control has this path: whether HEAD answers 2xx, and not 404."""
        try:
            await self.call("HEAD", where)
        except RequestRefused as refused:
            if refused.code in ("404", "unknown_artifact"):
                return False
            raise
        return True

    async def upload(self, where: str, file: Path, sent: Callable[[int], None]) -> Json:
        """PUT a file; `sent` gets the size of each piece, and the negated sum when the upload starts over."""
        return await self.call("PUT", where, file=file, sent=sent)

    async def download(self, where: str, target: Path, **query: str | int | None) -> dict[str, str]:
        """GET a file that is new here, with the size and the digest that control says; it is on disk then. Return the
        answer's headers, by their names in lower case.

        Raises: RequestRefused and Unreachable, as `call`; Failure, when there is a file, its bytes didn't arrive, or
        the disk takes none.
        """
        import aiohttp

        if os.path.lexists(target):
            raise Failure(f"{target} is there already", cure="give the name of a new file")
        headers = {"authorization": f"Bearer {self._to.token}"} if self._to.token else {}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=BACKUP_SECONDS)
        parameters = {name: str(value) for name, value in query.items() if value is not None}
        asked = {"params": parameters, "headers": headers, "timeout": limits, "allow_redirects": False}
        try:
            async with self._open().get(self._to.url + where, **asked) as response:
                if response.status != 200:
                    kind = Unreachable if response.status == 503 else RequestRefused
                    raise problem_of(kind, "GET", where, response.status, await response.read())
                found = {name.lower(): value for name, value in response.headers.items()}
                await _write_new(target, response.content.iter_chunked(CHUNK), found)
                return found
        except RequestRefused as refused:
            await self._suggest(refused)
            raise
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise self.untrusted(error) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error
        except OSError as error:
            raise Failure(f"{target} can't be written: {error.strerror}") from error

    async def _suggest(self, refused: RequestRefused) -> None:
        """Name the intended thing in a refusal, if control doesn't know one."""
        with contextlib.suppress(Failure):  # the refusal matters more
            refused.cure = refused.cure or await _cure_of_name(refused.code, str(refused), self.items)

    async def call(
        self,
        method: str,
        where: str,
        *,
        body: Json | None = None,
        query: dict[str, str | int | None] | None = None,
        file: Path | None = None,
        sent: Callable[[int], None] | None = None,
        seconds: float = READ_SECONDS,
    ) -> Json:
        """Make a call, retrying while control can't be reached or answers 503, and return the JSON object answered.

        Raises: RequestRefused, when control answers 4xx; Unreachable, when it can't be reached or trusted, or still
        answers 503 after `ATTEMPTS`; Failure, when it answers anything else that isn't a success.
        """
        # Imported here: it takes a third of a command's start-up time, and shell completion makes no calls.
        import aiohttp

        headers = {"accept": "application/json"}
        if self._to.token:
            headers["authorization"] = f"Bearer {self._to.token}"
        if method in ("POST", "PUT", "DELETE"):
            headers["idempotency-key"] = str(uuid.uuid4())
        if body is not None:
            headers["content-type"] = "application/json"
        if file is not None:
            # With these, control refuses a size or a token before the bytes are sent.
            headers |= {"content-type": "application/wasm", "content-length": str(file.stat().st_size)}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=UPLOAD_SECONDS if file else seconds)
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
                    timeout=limits,
                    expect100=file is not None,
                ) as response:
                    content = await response.read()
                    self._ending = self._ending or response.headers.get("connection", "").lower() == "close"
            except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
                raise self.untrusted(error) from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if attempt == ATTEMPTS:
                    raise self.unreachable(error) from error
            else:
                if response.status != 503:
                    try:
                        return answer_of(method, where, response.status, content)
                    except RequestRefused as refused:
                        await self._suggest(refused)
                        raise
                if attempt == ATTEMPTS:
                    raise problem_of(Unreachable, method, where, response.status, content)
                pause = max(pause, min(_seconds(response.headers.get("retry-after")), LONGEST_PAUSE))
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def untrusted(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"{self._to.url} can't be trusted: {error}",
            code="tls",
            cure="set SKERRY_CA to the file of control's CA, and use a name that its certificate has",
        )

    def unreachable(self, error: Exception) -> Unreachable:
        cure = "is control running, and is SKERRY_URL right?"
        if self._to.url.startswith("http://"):
            cure += " Where control has a certificate, it is https://"
        return Unreachable(
            f"{self._to.url} can't be reached: {error or type(error).__name__}", code="unreachable", cure=cure
        )

    def _open(self) -> Any:
        import aiohttp

        from control.protocol.bounded_http_client import BoundedConnector

        if self._session is None:
            # Proxies from the environment are used, but not for this machine.
            proxies = not is_loopback(urlsplit(self._to.url).hostname or "")
            made = BoundedConnector(ssl=self._tls)
            self._session = aiohttp.ClientSession(connector=made, trust_env=proxies)
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


async def _write_new(target: Path, pieces: AsyncIterator[bytes], headers: dict[str, str]) -> None:
    """Write a new file, which is whole and on disk once it has its name.

    Raises: Failure, when it hasn't the size and the digest in the headers, or there is one; OSError.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("xb") as file:
            async for piece in pieces:
                digest.update(piece)
                size += len(piece)
                await asyncio.to_thread(file.write, piece)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        said = headers.get("content-length"), headers.get("repr-digest")
        if said != (str(size), f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"):
            raise Failure(f"what arrived for {target} isn't what control has sent", cure="run it again")
        try:
            os.link(part, target)
        except FileExistsError:
            raise Failure(f"{target} is there already", cure="give the name of a new file") from None
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        await asyncio.to_thread(os.fsync, folder)
    finally:
        os.close(folder)


def answer_of(method: str, where: str, status: int, content: bytes) -> Json:
    if 400 <= status < 500:
        raise problem_of(RequestRefused, method, where, status, content)
    if not 200 <= status < 300:
        raise problem_of(Failure, method, where, status, content)
    if not content:
        return {}
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Failure(f"{method} {where} answered {status} with no JSON object", cure="is SKERRY_URL really a control?")
    return value


def problem_of(kind: type[Failure], method: str, where: str, status: int, content: bytes) -> Failure:
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


CURES = {
    "401": SIGN_IN_CURE,
    "credentials_missing": SIGN_IN_CURE,
    "credentials_invalid": SIGN_IN_CURE,
    "session_ended": "run `skerry login`",
    "role_insufficient": "ask someone who has that role, or an admin to give it (`skerry operator change`)",
    "version_in_target": "--release takes it out of the groups' releases first",
    "version_needed": "--force deletes it all the same",
}


async def _cure_of_name(code: str, message: str, items: Callable[..., Awaitable[list[dict[str, Any]]]]) -> str:
    """Suggest the intended name if control doesn't know a node, group, function, operator or webhook.

    For an unknown version of a known function, name the command that lists its versions. Return '' for other errors.

    `code` and `message` are those of the error; `items` requests a list from control, as `Client.items` does, and
    raises the same.
    """
    if not code.startswith("unknown_"):
        return ""
    if version := _UNKNOWN_VERSION.search(message):
        kind, name = "function", version[1]
    elif unknown := _UNKNOWN.search(message):
        kind, name = unknown.groups()
    else:
        return ""
    half = (len(name) + 1) // 2
    # In a large fleet, not all names are read: a name with one typo mostly has one correct half.
    queries = [{"find": part} for part in (name[:half], name[half:]) if part] if kind == "node" else [{}]
    found = {one["name"] for query in queries for one in await items(f"/v1/{kind}s", MOST_NAMES, **query)}
    if name in found:
        return f"`skerry function show {name}` shows its versions" if version else ""
    near = get_close_matches(name, sorted(found), 1, 0.7)
    return f"is {near[0]} meant?" if near else f"`skerry {kind} list` shows those that there are"
