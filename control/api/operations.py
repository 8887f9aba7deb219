"""From an HTTP request to a typed call and back: one operation of the table of routes, its input checked first."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar
from uuid import uuid4

import msgspec
import orjson
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from control import wire
from control.api import auth
from control.api.auth import Operator, Role
from control.api.services import Services
from control.problems import ProblemError
from control.storage import idempotency, queries
from control.storage.announcements import Changed

T = TypeVar("T")
Handler = Callable[["Call"], Awaitable["Answer"]]
Read = Callable[[Any], Awaitable[Any]]
Work = Callable[[Any, Changed], Awaitable[Any]]
Renew = Callable[[Any, Changed, Any], Awaitable[Any]]

AUDIT = queries.load("audit")["record"]

SMALL_BODY = 256 * 1024
"""Bytes of a JSON body: what is read of it is read at once, and nothing else goes on meanwhile."""
INVENTORY_BODY = 1536 * 1024
"""Bytes of a body with a node's inventory, which may have some thousand entries."""
SQL_BODY = 8 * 1024 * 1024
"""Bytes of a body with a schema change, which is one long text."""
BIG_BODY = 64 * 1024
"""Bytes from which a body is read in a thread: others have their turn between the steps of that."""

_AT = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")


@dataclass(frozen=True)
class Answer:
    """What a handler answers; `body` is a struct or a dict (JSON), bytes or pieces of them, or None."""

    status: int
    body: Any = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Operation:
    """One method of one path: enough to serve it and to describe it."""

    method: str
    path: str
    summary: str
    handler: Handler
    role: Role | Literal["node", "join"] | None
    """What the caller must be: an operator's role, a node, a joining node, or anybody."""
    answers: Mapping[int, Any]
    """The type of the body of each status that isn't a problem; None for no body, bytes for what isn't JSON."""
    problems: tuple[str, ...] = ()
    """Codes that this operation may answer beside those that its input may get."""
    body: Any = None
    """The type of its JSON body; bytes for a stream that the handler reads."""
    query: Any = None
    """A struct of its query parameters."""
    body_limit: int = SMALL_BODY
    """Bytes of its JSON body, where the setting `body_limit` allows them."""


@dataclass(frozen=True)
class Call:
    """One request, checked."""

    services: Services
    operation: Operation
    path: Mapping[str, Any]
    query: Any
    body: Any
    scope: Scope
    receive: Receive
    operator: Operator
    """Without a name where the call isn't an operator's."""
    node_id: str
    """Of the node that asks, or ''."""
    credential_id: str
    idempotency_key: str
    request_digest: str

    async def write(self, work: Work, *, status: int = 201, renew: Renew | None = None) -> Answer:
        """Run `work` in a transaction with its idempotency key, tell the replicas, and answer what it returned.

        What `work` and `renew` put into their second argument is announced to the replicas, last before COMMIT.
        """
        clock = self.services.clock

        async def run(conn: Any) -> Any:
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

        body = await self.services.writes.transaction(run)
        await self.services.fleet.announced()
        return Answer(status, body)

    async def replayed(self, status: int = 201) -> Answer | None:
        """The answer that was kept under the call's idempotency key, where there is one."""
        if not self.idempotency_key:
            return None
        kept = await self.services.db.read(
            lambda conn: idempotency.find(conn, self.operator.name, self.idempotency_key, self.request_digest)
        )
        return None if kept is None else Answer(status, kept.response)

    async def audit(self, conn: Any, action: str, subject: str, details: dict[str, Any]) -> None:
        """Write down what the operator does, in its transaction."""
        await conn.execute(AUDIT, uuid4(), self.services.clock.now(), self.operator.name, action, subject, details)

    async def read(self, work: Read) -> Answer:
        """Run `work` in one consistent view and answer what it returned."""
        return Answer(200, await self.services.lists.read(work))


async def answer(
    services: Services, operation: Operation, parameters: Mapping[str, str], scope: Scope, receive: Receive
) -> Answer:
    """Check the caller, then the input, then run the operation; raises `ProblemError`."""
    operator, node_id, credential_id = Operator("", "", ""), "", ""
    if operation.role == "node":
        credential = await auth.node(services, scope)
        node_id, credential_id = credential.node_id, credential.id
    elif operation.role == "join":
        await auth.joining(services, scope)
    elif operation.role is not None:
        operator = await auth.operator(services, scope, operation.role)
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
    call = Call(
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
    """Refuse a body that is said to have more than `limit` bytes before it is read; raises `ProblemError`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


async def read_body(services: Services, scope: Scope, receive: Receive, limit: int) -> bytes:
    """A whole body of at most `limit` bytes, within the limits that the settings have; raises `ProblemError`."""
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
    """`raw`, which is JSON, as `type`; raises `ProblemError` with the field that is wrong."""
    try:
        # At once as what it is to be: what isn't wanted of a large body is passed over, and not made into objects.
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
    """`value` as `type`; raises `ProblemError` of that code with the field that is wrong."""
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
    """An answer's body as JSON."""
    return msgspec.json.encode(body)


def prepared(made: Answer) -> Answer:
    """The answer as it is sent: its body bytes, or pieces whose length is in the headers already."""
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
    return Answer(made.status, body, headers)


def refusal(error: ProblemError) -> Answer:
    """`error` as problem+json."""
    headers = [(b"content-type", b"application/problem+json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.allow:
        headers.append((b"allow", error.allow.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return prepared(Answer(error.status, error.body(), tuple(headers)))


class PathTypes(msgspec.Struct):
    """What may stand in a path, by the name of the parameter."""

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
    """The type of each parameter of a path."""
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
    """The database can't hold NUL in a text."""
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
