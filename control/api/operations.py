"""From an HTTP request to a typed call, whose caller and input are checked, and from its result to an HTTP reply."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec
import orjson
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from control import wire
from control.api.auth import Principal, Role
from control.api.services import Services
from control.problems import ProblemError
from control.storage import idempotency, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection

T = TypeVar("T")
Handler = Callable[["ApiCall"], Awaitable["Reply"]]
Read = Callable[[Connection], Awaitable[Any]]
Work = Callable[[Connection, Changed], Awaitable[Any]]
Renew = Callable[[Connection, Changed, Any], Awaitable[Any]]

AUDIT = queries.load("audit")["record"]

SMALL_BODY = 256 * 1024
"""Bytes of an operator's JSON body."""
INVENTORY_BODY = 1536 * 1024
"""Bytes of a body with a node's inventory, which may have some thousand entries."""
SQL_BODY = 8 * 1024 * 1024
"""Bytes of a body with a schema change, which is one long text."""
BIG_BODY = 64 * 1024
"""Bytes of the largest body that is parsed at once; larger ones are parsed in a thread, beside other requests."""

NOBODY = Principal("", "", "")
"""In place of an operator, where the caller is a node or anybody."""

_AT = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")


@dataclass(frozen=True)
class Reply:
    """The result of an operation; `body` is a struct or a dict (sent as JSON), bytes or pieces of them, or None.

    As Starlette's responses it is an ASGI application, which sends the reply once it is `prepared`.
    """

    status: int
    body: Any = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the reply."""
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        if isinstance(self.body, bytes):
            await send({"type": "http.response.body", "body": self.body})
            return
        async with aclosing(self.body) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True)
class Operation:
    """One method of one path: what is needed to serve it and to describe it."""

    method: str
    path: str
    summary: str
    handler: Handler
    role: Role | Literal["node", "join"] | None
    """Who may call it: operators of a role, nodes, joining nodes; None: anybody."""
    answers: Mapping[int, Any]
    """The type of the body by status, for statuses that aren't problems; None: no body, bytes: it isn't JSON."""
    problems: tuple[str, ...] = ()
    """Codes of problems that this operation may answer, beside those that any input may get."""
    body: Any = None
    """The type of its JSON body; bytes: a stream that the handler reads."""
    query: Any = None
    """A struct of its query parameters."""
    body_limit: int = SMALL_BODY
    """Bytes of its JSON body at most; the setting `body_limit` may allow fewer."""


@dataclass(frozen=True)
class ApiCall:
    """One request, whose caller and input are checked."""

    services: Services
    operation: Operation
    path: Mapping[str, Any]
    query: Any
    body: Any
    scope: Scope
    receive: Receive
    operator: Principal
    """With the name '' where the caller is no operator."""
    node_id: str
    """The id of the node that calls, or ''."""
    credential_id: str
    """The id of the node's credential, or ''."""
    idempotency_key: str
    request_digest: str

    async def write(self, work: Work, *, status: int = 201, renew: Renew | None = None) -> Reply:
        """Run `work` in a transaction, once for the call's idempotency key, and answer what it returned.

        Rows that `work` and `renew` put into their second argument are announced to all replicas.
        """
        clock = self.services.clock

        async def run(conn: Connection) -> Any:
            changed = Changed()
            body = await idempotency.once(
                conn,
                clock.now(),
                self.operator.name,
                self.idempotency_key,
                self.request_digest,
                status,
                lambda conn: work(conn, changed),
                None if renew is None else lambda conn, kept: renew(conn, changed, kept),
            )
            await changed.announce(conn)
            return body

        body = await self.services.databases.writes.transaction(run)
        await self.services.fleet.announced()
        return Reply(status, body)

    async def replayed(self, status: int = 201) -> Reply | None:
        """The reply that was kept under the call's idempotency key, or None."""
        if not self.idempotency_key:
            return None
        kept = await self.services.db.read(
            lambda conn: idempotency.find(conn, self.operator.name, self.idempotency_key, self.request_digest)
        )
        return None if kept is None else Reply(status, kept.response)

    async def audit(self, conn: Connection, action: str, subject: str, details: dict[str, Any]) -> None:
        """Record what the operator does, in the same transaction."""
        await conn.execute(AUDIT, uuid4(), self.services.clock.now(), self.operator.name, action, subject, details)

    async def read(self, work: Read) -> Reply:
        """Run `work`, which only reads, and answer what it returned."""
        return Reply(200, await self.services.databases.lists.read(work))


async def answer(
    services: Services, operation: Operation, parameters: Mapping[str, str], scope: Scope, receive: Receive
) -> Reply:
    """Check the caller, then the input, then run the operation. Raises: ProblemError, when it is refused or fails."""
    operator, node_id, credential_id = NOBODY, "", ""
    if operation.role == "node":
        credential, node = await services.auth.node(scope)
        node_id, credential_id = node.id, credential.id
    elif operation.role == "join":
        await services.auth.joining(scope)
    elif operation.role is not None:
        operator = await services.auth.operator(scope, operation.role)
    path = {name: _path_value(name, text) for name, text in parameters.items()}
    query = _query(operation.query, scope)
    key = _idempotency_key(scope) if operation.method in ("POST", "DELETE") and operator.name else ""
    raw, body = b"", None
    if operation.body is not None and operation.body is not bytes:
        raw = await read_body(services, scope, receive, operation.body_limit)
        _check_media_type(scope)
        if len(raw) <= BIG_BODY:
            body = decode(raw, operation.body)
        else:
            body = await asyncio.to_thread(decode, raw, operation.body)
    elif operation.body is None and operation.method in ("POST", "DELETE"):
        raw = await read_body(services, scope, receive, operation.body_limit)
        if raw.strip() not in (b"", b"{}"):
            raise ProblemError("invalid_body", "this call takes no body")
    digest = idempotency.digest(operation.method, scope["path"], scope["query_string"], raw) if key else ""
    call = ApiCall(
        services,
        operation,
        path,
        query,
        body,
        scope,
        receive,
        operator,
        node_id,
        credential_id,
        key,
        digest,
    )
    return prepared(await operation.handler(call))


def check_length(scope: Scope, limit: int) -> None:
    """Raises: ProblemError body_too_large, when the header says that the body has more than `limit` bytes."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


async def read_body(services: Services, scope: Scope, receive: Receive, limit: int) -> bytes:
    """A whole body of at most `limit` bytes. Raises: ProblemError, when it is larger, too slow, or ends early."""
    limit = min(limit, services.settings.body_limit)
    check_length(scope, limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(services.settings.body_timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError("body_incomplete", "the connection was closed within the body")
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ProblemError(
            "body_timeout", f"the body didn't arrive within {services.settings.body_timeout:.0f} s"
        ) from None


def decode(raw: bytes, type: type[T]) -> T:
    """Parse JSON as `type`. Raises: ProblemError, with the field that is wrong."""
    try:
        # In one step: fields of a large body that `type` doesn't have are skipped, and not made into objects.
        value = msgspec.json.decode(raw, type=type)
    except msgspec.ValidationError as error:
        if len(raw) <= SMALL_BODY / 2:
            _check_syntax(raw)
        raise _invalid("invalid_body", error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_json", f"the body isn't JSON: {error}") from None
    if b"\\u0000" in raw:
        _refuse_nul(orjson.loads(raw), "")
    return value


def _check_syntax(raw: bytes) -> None:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ProblemError("malformed_json", f"the body isn't JSON: {error}") from None


def convert(value: object, type: type[T], code: str, *, strict: bool = True) -> T:
    """Convert `value` to `type`. Raises: ProblemError of this code, with the field that is wrong."""
    try:
        return msgspec.convert(value, type, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(code, error) from None


def _invalid(code: str, error: msgspec.ValidationError) -> ProblemError:
    text = str(error)
    where = _AT.search(text)
    named = _FIELD.search(text)
    path = [part for part in (where[1] if where else "", named[1] if named else "") if part]
    return ProblemError(code, wire.unfit(error), field=".".join(path))


def encode(body: Any) -> bytes:
    """A reply's body as JSON."""
    return msgspec.json.encode(body)


def json_reply(status: int, body: bytes) -> Reply:
    """A reply as it is sent, whose body is JSON already."""
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    return Reply(status, body, headers)


def prepared(made: Reply) -> Reply:
    """The reply as it is sent: its body is bytes, or pieces whose length is in the headers already."""
    headers, body = made.headers, made.body
    if isinstance(body, AsyncIterator):
        return made
    if body is None:
        body = b""
    elif not isinstance(body, bytes):
        body = encode(body)
        headers = (*headers, (b"content-type", b"application/json"))
    if made.status != 204 and not any(name == b"content-length" for name, _ in headers):
        headers = (*headers, (b"content-length", b"%d" % len(body)))
    return Reply(made.status, body, headers)


def refusal(error: ProblemError) -> Reply:
    """The reply to a request that is refused or fails: problem+json."""
    headers = [(b"content-type", b"application/problem+json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.allow:
        headers.append((b"allow", error.allow.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return prepared(Reply(error.status, error.body(), tuple(headers)))


class PathTypes(msgspec.Struct):
    """The types of the parameters in paths, by name."""

    name: wire.Name
    sha256: wire.Sha256
    version: wire.Number
    number: wire.Number
    group: wire.Name
    node: str
    """A node's id or name."""
    id: wire.Uuid


@cache
def path_types() -> dict[str, Any]:
    """`PathTypes` as a dict."""
    return {f.name: f.type for f in msgspec.structs.fields(PathTypes)}


def _path_value(name: str, text: str) -> Any:
    if name == "node" and not (wire.NAME.fullmatch(text)):
        raise ProblemError("invalid_parameter", f"{text!r} is neither a node's name nor its id", field="node")
    try:
        return convert(text, path_types()[name], "invalid_parameter", strict=False)
    except ProblemError as error:
        raise ProblemError("invalid_parameter", error.detail, field=name) from None


def _query(type: Any, scope: Scope) -> Any:
    given = QueryParams(scope["query_string"])
    names = {f.encode_name for f in msgspec.structs.fields(type)} if type else set()
    for name, text in given.multi_items():
        if name not in names:
            raise ProblemError("invalid_parameter", f"this call has no parameter {name!r}", field=name[:100])
        if "\x00" in text or len(given.getlist(name)) > 1:
            raise ProblemError("invalid_parameter", "it must be given once, without NUL", field=name)
    return convert(dict(given), type, "invalid_parameter", strict=False) if type else None


def _idempotency_key(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            if not re.fullmatch(rb"[\x21-\x7e]{1,200}", value):
                raise ProblemError(
                    "invalid_parameter", "a key has 1 to 200 visible ASCII characters", field="Idempotency-Key"
                )
            return str(value, "ascii")
    return ""


def _check_media_type(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type" and value.partition(b";")[0].strip().lower() not in (b"application/json", b""):
            raise ProblemError("unsupported_media_type", "send JSON, with content-type: application/json")


def _too_large(limit: int) -> ProblemError:
    return ProblemError("body_too_large", f"the body has more than {limit} bytes")


def _refuse_nul(value: object, path: str) -> None:
    """Raises: ProblemError, when a text has a NUL, which the database can't store."""
    if isinstance(value, str):
        if "\x00" in value:
            raise ProblemError("invalid_body", "there is a NUL character in it", field=path)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_nul(key, path)
            _refuse_nul(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nul(item, f"{path}[{index}]")
