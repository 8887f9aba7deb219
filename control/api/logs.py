"""Nodes' logs and their slow and failed calls, live: operators watch, nodes send."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope

from control.access import auth, sessions
from control.access.auth import AuthError
from control.api import operations, request_input
from control.api.operations import ApiCall, Reply, operation
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.storage.connection import Connection
from control.storage.connection_quotas import ASKS
from control.sync.fleet_cache import CachedNode
from control.telemetry.watching import node_records
from control.telemetry.watching.view import Ask, View

BATCHES = "/v1/nodes/self/watches/"
"""The beginning of a batch's path; the watch's id follows."""
BATCH_ROUTE = BATCHES + "{id}"
OLDEST = timedelta(days=30)
"""The greatest age of records that are searched if no time is given."""

Level = Literal["debug", "info", "warning", "error"]
Count = Annotated[int, Meta(ge=0, le=2**31)]


class LogFilter(msgspec.Struct, forbid_unknown_fields=True):
    kind: node_records.Kind = "lines"
    """Lines of the log, calls that were slow or failed, or a node's counts of its functions' calls."""
    node: wire.Name | None = None
    """A node's name or id."""
    group: wire.Name | None = None
    function: wire.Name | None = None
    level: Level = "debug"
    """The lowest level."""
    call: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)")] | None = None
    """The id of a call."""
    since: Annotated[datetime, Meta(tz=True)] | None = None
    """The time of the oldest record."""
    follow: bool = False
    """Continue with new records; without `since`, return only those."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    """The most existing records of each node: the newest."""
    failed: bool = False
    """Only failed calls."""
    slowest: bool = False
    """The slowest calls rather than the newest."""


class BatchHead(msgspec.Struct, forbid_unknown_fields=True):
    sampled: Count = 0
    """Records that the node left out since the last batch to keep within its rate."""
    left_out: Count = 0
    """Whether there are older matching records than those sent."""
    done: bool = False
    """Whether this is the last of the existing records."""


@operation(
    "GET",
    "/v1/logs",
    "What nodes have logged, and their slow and failed calls, as they come",
    role="read",
    everywhere=False,
    answers={200: bytes},
    media="application/x-ndjson",
    errors=("unknown_node", "unknown_group", "too_many_watches"),
)
async def watch(call: ApiCall, query: LogFilter) -> Reply:
    """Stream records as lines of JSON, until the client goes."""
    services, query, operator = call.services, query, call.operator
    if query.kind == "functions" and query.node is None:
        raise ProblemError(
            "invalid_parameter", "what is counted of functions is asked of one node: name it", field="node"
        )
    now = services.clock.now()
    live_alone = query.follow and query.since is None
    question = wire.Question(
        id="",
        since=query.since or (now if live_alone else now - OLDEST),
        kind=query.kind,
        history=not live_alone,
        follow=query.follow,
        limit=query.limit,
        level=query.level,
        function=query.function or "",
        call=query.call or "",
        failed=query.failed,
        slowest=query.slowest,
    )
    groups = operator.rights.groups("read")
    ask = Ask(operator.name, lambda: _ended(services, operator), groups, query.node, query.group, question)

    async def confirm(conn: Connection) -> None:
        await auth.refuse_changed(conn, operator)
        await sessions.refuse_signed_out(conn, operator)

    view = await services.watching.begin(ask, confirm)
    # A proxy that buffers answers would hold lines back.
    headers = (
        (b"content-type", b"application/x-ndjson"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    )
    return Reply(200, _stream(services, view, call.receive), headers)


@operation(
    "POST",
    "/v1/nodes/self/watches/{id}",
    "Send records that somebody watches",
    role="node",
    answers={200: wire.BatchTaken},
    media="application/x-ndjson",
    errors=("watch_ended",),
    stream=True,
)
async def take(call: ApiCall, query: BatchHead) -> Reply:
    """Take a batch of records, as lines of JSON."""
    node = call.services.fleet.nodes[call.node_id]
    return await _take(call.services, node, call.path["id"], query, call.scope, call.receive)


async def take_at_once(services: Services, scope: Scope, receive: Receive) -> Reply:
    """Take a batch in front of Starlette: a node that logs a line a minute sends a batch for every three polls.

    Raises: ProblemError, when it is refused.
    """
    await services.fleet.read_late()
    _credential, node = await services.auth.node(scope, services.clock.now())
    services.fleet.refuse_stale()
    ASKS.set(node.id)
    id = request_input.path_value("id", scope["path"].removeprefix(BATCHES))
    head = request_input.query_value(BatchHead, scope)
    return operations.prepared(await _take(services, node, id, head, scope, receive))


async def _take(
    services: Services, node: CachedNode, id: str, head: BatchHead, scope: Scope, receive: Receive
) -> Reply:
    watching = services.watching
    watch = await watching.watch_of(id, node)
    raw = await request_input.read_body(services.settings, services.clock, scope, receive, node_records.BATCH_BYTES)
    encoding = next((value for name, value in scope["headers"] if name == b"content-encoding"), b"")
    kind = watch.question.kind

    def check() -> node_records.CheckedLines:
        return node_records.check(node_records.unpack(raw, encoding), kind, node.name)

    # A small compressed body may be a large one.
    small = len(raw) <= request_input.BIG_BODY / (8 if encoding else 1)
    found = check() if small else await asyncio.to_thread(check)
    rate = watching.take(watch, node, found, sampled=head.sampled, left_out=head.left_out, done=head.done)
    return Reply(200, wire.BatchTaken(rate))


async def _stream(services: Services, view: View, receive: Receive) -> AsyncIterator[bytes]:
    """Yield what the operator gets. Only `receive` tells that the client has gone: sending raises nothing then."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(left())
    try:
        async for piece in view.pieces(gone, lambda: services.watching.silent(view)):
            yield piece
    finally:
        gone.cancel()
        services.watching.leave(view)


async def _ended(services: Services, operator: auth.Principal) -> str:
    """Return why an operator may see no more, as an error's code; '' while it may, and while control can't know."""
    try:
        now = await services.sessions.now(operator)
    except AuthError as refused:
        return refused.code
    except ProblemError:
        return ""
    return "" if now.rights == operator.rights else "role_insufficient"
