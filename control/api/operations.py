"""From an HTTP request to a typed call, whose caller and input are checked, and from its result to an HTTP reply."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from control.access import auth, sessions
from control.access.auth import Principal
from control.access.rights import Rights, Role
from control.api import request_input
from control.api.request_input import SMALL_BODY
from control.api.services import Services
from control.problems import ProblemError
from control.storage import audit_log, idempotency
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.connection_quotas import ASKS

T = TypeVar("T")
Handler = Callable[..., Awaitable["Reply"]]
"""Takes the `ApiCall` and, as keyword arguments, the request's `body` and `query`, if it has them."""
Audit = Callable[..., Awaitable[None]]
"""`ApiCall.audit`, or what takes the same where control itself makes a change."""
H = TypeVar("H", bound=Handler)
Read = Callable[[Connection], Awaitable[Any]]
Work = Callable[[Connection, Changed], Awaitable[Any]]
Renew = Callable[[Connection, Changed, Any], Awaitable[Any]]

log = logging.getLogger("skerry.control")

NOBODY = Principal("", "", Rights(()))
"""Stands in for an operator if the caller is a node or anybody."""


@dataclass(frozen=True)
class Reply:
    """The result of an operation; `body` is a struct or a dict (sent as JSON), bytes or pieces of them, or None.

    Like Starlette's responses it is an ASGI application, which sends the reply once it is `prepared`.
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
    """Who may call it: operators with a role, nodes, joining nodes; None: anybody."""
    answers: Mapping[int, Any]
    """The type of the body by status, for statuses that aren't problems; None: no body; bytes: not JSON."""
    problems: tuple[str, ...] = ()
    """Codes of problems that this operation may return, besides those that any input may cause."""
    body: Any = None
    """The type of its JSON body; bytes: a stream that the handler reads."""
    query: Any = None
    """A struct of its query parameters."""
    ended: str = "credential_expired"
    """The code for a node whose credential has ended; '' where that is still good for this call."""
    media: str = "application/wasm"
    """The media type of a body or an answer that isn't JSON."""
    body_limit: int = SMALL_BODY
    """The most bytes of its JSON body; the setting `body_limit` may allow fewer."""
    everywhere: bool = True
    """Whether an operator needs the role for all groups. If not, one group is enough to call it, and the handler checks
    the role for the affected groups and functions, and shows nothing of other groups."""
    when_stale: bool = False
    """Whether it is answered even while this replica hasn't lately read the targets and revocations."""


_DECLARED: list[Operation] = []


def operation(
    method: str,
    path: str,
    summary: str,
    *,
    role: Role | Literal["node", "join"] | None,
    answers: Mapping[int, Any],
    errors: tuple[str, ...] = (),
    everywhere: bool = True,
    when_stale: bool = False,
    ended: str = "credential_expired",
    stream: bool = False,
    media: str = "application/wasm",
    body_limit: int = SMALL_BODY,
) -> Callable[[H], H]:
    """Declare the operation that the decorated handler serves: see `Operation`.

    The types of the JSON body and of the query are those of the handler's parameters `body` and `query`. `stream`: the
    body isn't JSON, and the handler reads it.
    """

    def declare(handler: H) -> H:
        body, query = (handler.__annotations__.get(name) for name in ("body", "query"))
        body = bytes if stream else body
        _DECLARED.append(
            Operation(
                method,
                path,
                summary,
                handler,
                role,
                answers,
                errors,
                body=body,
                query=query,
                ended=ended,
                media=media,
                body_limit=body_limit,
                everywhere=everywhere,
                when_stale=when_stale,
            )
        )
        return handler

    return declare


def declared(*modules: ModuleType) -> tuple[Operation, ...]:
    """Return the operations that these modules declare."""
    names = {module.__name__ for module in modules}
    return tuple(operation for operation in _DECLARED if operation.handler.__module__ in names)


class _Undone(Exception):
    """Ends the transaction of a dry run; `body` is its answer."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


@dataclass(frozen=True)
class ApiCall:
    """One request, whose caller and input are checked."""

    services: Services
    path: Mapping[str, Any]
    scope: Scope
    receive: Receive
    operator: Principal
    """With the name '' if the caller isn't an operator."""
    node_id: str
    """The id of the calling node, or ''."""
    credential_id: str
    """The id of the node's credential, or ''."""
    idempotency_key: str
    request_digest: str

    async def write(self, work: Work, *, status: int = 201, renew: Renew | None = None) -> Reply:
        """Run `work` in a transaction, once for the call's idempotency key, and reply with what it returned.

        Rows that `work` and `renew` put into their second argument are announced to all replicas.
        """
        clock = self.services.clock

        async def run(conn: Connection) -> Any:
            if self.operator.id:
                await auth.refuse_changed(conn, self.operator)
                await sessions.refuse_signed_out(conn, self.operator)
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

    async def dry_run(self, work: Work) -> Reply:
        """Run `work` in a transaction, undo all of it, and reply with what it returned: for plans."""

        async def run(conn: Connection) -> None:
            raise _Undone(await work(conn, Changed()))

        try:
            await self.services.databases.writes.transaction(run)
        except _Undone as undone:
            return Reply(200, undone.body)
        raise AssertionError("a dry run always ends by its exception")

    async def replayed(self, status: int = 201) -> Reply | None:
        """Return the reply that was kept under the call's idempotency key, or None."""
        if not self.idempotency_key:
            return None
        kept = await self.services.db.read(
            lambda conn: idempotency.find(conn, self.operator.name, self.idempotency_key, self.request_digest)
        )
        return None if kept is None else Reply(status, kept.response)

    async def audit(
        self,
        conn: Connection,
        action: str,
        target: str,
        details: Mapping[str, Any] | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        node: str = "",
    ) -> None:
        """Record a change that this request makes, in the same transaction, as `audit_log.record` describes.

        `node`: the name of the node that makes it; '' if it is an operator.
        """
        if self.operator.signed_in:
            details = {**(details or {}), "session": dict(self.operator.signed_in)}
        actor = auth.actor(self.scope, node or self.operator.name, "node" if node else "operator")
        now = self.services.clock.now()
        await audit_log.record(conn, now, actor, action, target, details, before=before, after=after)

    async def read(self, work: Read) -> Reply:
        """Run `work`, which only reads, and reply with what it returned."""
        return Reply(200, await self.services.databases.lists.read(work))


async def answer(
    services: Services, operation: Operation, parameters: Mapping[str, str], scope: Scope, receive: Receive
) -> Reply:
    """Check the caller, then the input, then run the operation. Raises: ProblemError, when it is refused or fails."""
    operator, node_id, credential_id = NOBODY, "", ""
    if operation.role not in (None, "join") and not operation.when_stale:
        await services.fleet.read_late()
    if operation.role == "node":
        credential, node = await services.auth.node(scope, services.clock.now(), operation.ended)
        node_id, credential_id = node.id, credential.id
        ASKS.set(node_id)
    elif operation.role == "join":
        services.fleet.refuse_restoring()
        await services.join_tokens.check(scope)
    elif operation.role is not None:
        operator = await services.sessions.operator(scope)
        ASKS.set(operator.id)
        if operation.everywhere:
            operator.need(operation.role, None)
        else:
            operator.need_somewhere(operation.role)
    if operation.role not in (None, "join") and not operation.when_stale:
        services.fleet.refuse_stale()
    path = {name: request_input.path_value(name, text) for name, text in parameters.items()}
    query = request_input.query_value(operation.query, scope)
    key = request_input.idempotency_key(scope) if operation.method in ("POST", "DELETE") and operator.name else ""
    raw, body = b"", None
    if operation.body is not None and operation.body is not bytes:
        raw = await request_input.read_body(services.settings, services.clock, scope, receive, operation.body_limit)
        request_input.check_media_type(scope)
        if len(raw) <= request_input.BIG_BODY:
            body = request_input.decode(raw, operation.body)
        else:
            body = await asyncio.to_thread(request_input.decode, raw, operation.body)
    elif operation.body is None and operation.method in ("POST", "DELETE"):
        raw = await request_input.read_body(services.settings, services.clock, scope, receive, operation.body_limit)
        if raw.strip() not in (b"", b"{}"):
            raise ProblemError("invalid_body", "this call takes no body")
    digest = idempotency.digest(operation.method, scope["path"], scope["query_string"], raw) if key else ""
    call = ApiCall(
        services,
        path,
        scope,
        receive,
        operator,
        node_id,
        credential_id,
        key,
        digest,
    )
    return prepared(await operation.handler(call, **inputs(body, query)))


def inputs(body: Any, query: Any) -> dict[str, Any]:
    """Return a handler's arguments besides the call; None means that it has no such parameter."""
    return {name: value for name, value in (("body", body), ("query", query)) if value is not None}


def encode(body: Any) -> bytes:
    """Encode a reply's body as JSON."""
    return msgspec.json.encode(body)


def json_reply(status: int, body: bytes) -> Reply:
    """Make a reply, ready to be sent, of a body that is JSON already."""
    headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    return Reply(status, body, headers)


def prepared(made: Reply) -> Reply:
    """Return the reply ready to be sent: its body is bytes, or pieces whose length is in the headers already."""
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
    """Make the reply to a request that is refused or fails: problem+json."""
    headers = [(b"content-type", b"application/problem+json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.allow:
        headers.append((b"allow", error.allow.encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return prepared(Reply(error.status, error.body(), tuple(headers)))


def internal(scope: Scope) -> ProblemError:
    """Log the exception that is being handled, a fault of control's own; return the problem to answer."""
    request_id = scope["request_id"].decode()
    log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
    return ProblemError("internal", f"this is a fault of control; its log has more about request {request_id}")
