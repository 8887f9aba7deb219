"""Webhooks: URLs that events are sent to, and what became of each message.

Only for admins of all groups: a receiver's URL may contain a secret, and messages are about every group.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID, uuid4

from msgspec import Meta, Struct, field

from control.api import pagination
from control.api.operations import ApiCall, Reply, operation
from control.api.pagination import LATEST, Paging
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.wire import Body, EventKind, Name
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.telemetry.webhooks import webhook_client, webhook_messages, webhook_signature


class NewWebhook(Body, frozen=True):
    """``POST /v1/webhooks``."""

    name: Name
    url: Annotated[str, Meta(min_length=1, max_length=2000)]
    """``https://…``, or ``http://…`` to networks that `SKERRY_WEBHOOK_NETWORKS` names."""
    kinds: Annotated[list[EventKind], Meta(max_length=20)] = field(default_factory=list)
    """The kinds of events that it gets; none: all."""
    secret: Annotated[str, Meta(max_length=200)] | None = None
    """``whsec_`` and 24 to 64 bytes as base64; without it, control makes one."""


class ListedWebhook(Struct):
    """A URL that events are sent to."""

    name: str
    url: str
    kinds: list[str]
    """The kinds of events that it gets; none: all."""
    created_by: str
    created_at: datetime
    ended_at: datetime | None
    """When its receiver answered 410 Gone, after which it gets nothing more; null if it hasn't."""
    waiting: int
    """Messages that wait to be sent or resent."""
    given_up: int
    """Messages of the last seven days that were given up."""


class MadeWebhook(Struct):
    id: str
    """Identifies the webhook: another one may have its name later."""
    name: str
    url: str
    kinds: list[str]
    secret: str | None
    """The secret with which messages are signed, returned only once; null if the request contained it."""


class WebhookTest(Struct):
    """The message that a test sends."""

    id: str


class WebhookDelivery(Struct):
    """A message to a webhook, and what became of it."""

    id: str
    """The message's id, its `webhook-id`: the same for all webhooks that get it."""
    webhook: str
    kind: str
    times: int
    """How many occurrences the message reports."""
    created_at: datetime
    state: str
    """`waiting`, `delivered` or `given_up`."""
    attempts: int
    next_at: datetime | None
    """When it is sent next; null if it is finished."""
    ended_at: datetime | None
    status: int | None
    """The receiver's last answer; null without one."""
    error: str
    """Why the last attempt failed, or why the message was given up."""


MOST = 50
"""The most webhooks: each message is written once for each of them."""


class WebhookRow(NamedTuple):
    """A webhook that an operation works on."""

    id: str
    name: str
    url: str
    secret: str
    kinds: list[str]
    created_by: str
    created_at: datetime
    ended_at: datetime | None


class DeliveryRow(NamedTuple):
    """A message to a webhook."""

    webhook_id: str
    webhook: str
    id: str
    kind: str
    times: int
    created_at: datetime
    state: str
    attempts: int
    next_at: datetime
    ended_at: datetime | None
    status: int
    error: str


SQL = queries.load("webhooks")
TAKEN = SQL.value("taken", bool)
NUMBER = SQL.value("number", int)
NAMED = SQL.rows("named", WebhookRow)
WEBHOOKS = SQL.rows("webhooks", ListedWebhook)
DELIVERIES = SQL.rows("deliveries", DeliveryRow)


class DeliveryFilter(Paging, forbid_unknown_fields=True):
    webhook: wire.Name | None = None
    """The name of a webhook."""
    state: Literal["waiting", "delivered", "given_up"] | None = None


@operation(
    "POST",
    "/v1/webhooks",
    "Add a webhook",
    role="admin",
    answers={201: MadeWebhook},
    errors=("name_taken", "webhook_refused", "too_many_webhooks", "unknown_webhook"),
)
async def create(call: ApiCall, body: NewWebhook) -> Reply:
    """Make a webhook. The same request again gets the same secret, while that webhook exists."""
    try:
        host = webhook_client.check_url(body.url, call.services.settings.webhook_networks)
    except ValueError as error:
        raise ProblemError("webhook_refused", f"the URL can't be used: {error}", field="url") from None
    if body.secret is not None:
        try:
            webhook_signature.key(body.secret)
        except ValueError as error:
            raise ProblemError("invalid_body", str(error), field="secret") from None
    made = body.secret is None
    secret = body.secret or webhook_signature.new_secret()
    kinds: list[str] = sorted(set(body.kinds))

    async def work(conn: Connection, _changed: Changed) -> MadeWebhook:
        if await conn.fetchval(TAKEN, body.name):
            raise ProblemError("name_taken", f"there is a webhook {body.name} already", field="name")
        number = await conn.fetchval(NUMBER)
        if number >= MOST:
            raise ProblemError("too_many_webhooks", f"there are {number} webhooks already; remove one first")
        if not number:
            # Events left from before the last webhook was removed are obsolete.
            await conn.execute(SQL["forget_events"])
        id, now, by = uuid4(), call.services.clock.now(), call.operator.name
        await conn.execute(SQL["add"], id, body.name, body.url, secret, kinds, by, now)
        # Only the URL's host: receivers' URLs often contain a secret.
        await call.audit(conn, "webhook.create", body.name, after={"host": host, "kinds": kinds})
        return MadeWebhook(str(id), body.name, body.url, kinds, secret if made else None)

    async def renew(conn: Connection, _changed: Changed, kept: dict[str, Any]) -> MadeWebhook:
        row = await _find(conn, kept["name"])
        if row.id != kept.get("id"):
            # It was removed since: the name is another webhook's, whose secret isn't for this operator.
            raise _unknown(row.name)
        return MadeWebhook(row.id, row.name, row.url, row.kinds, row.secret if made else None)

    return await call.write(work, renew=renew)


@operation("GET", "/v1/webhooks", "Webhooks", role="admin", answers={200: pagination.Page[ListedWebhook]})
async def list_webhooks(call: ApiCall, query: pagination.Paging) -> Reply:
    return await call.read(pagination.by_name(WEBHOOKS, query))


@operation(
    "DELETE",
    "/v1/webhooks/{name}",
    "Remove a webhook",
    role="admin",
    answers={204: None},
    errors=("unknown_webhook",),
)
async def remove(call: ApiCall) -> Reply:
    """Remove a webhook with its messages, including those that wait."""

    async def work(conn: Connection, _changed: Changed) -> None:
        row = await _find(conn, call.path["name"])
        await conn.execute(SQL["remove"], row.id)
        await call.audit(conn, "webhook.remove", row.name, before={"kinds": row.kinds})

    return await call.write(work, status=204)


@operation(
    "POST",
    "/v1/webhooks/{name}/test",
    "Send a message to a webhook",
    role="admin",
    answers={201: WebhookTest},
    errors=("unknown_webhook", "webhook_refused"),
)
async def test(call: ApiCall) -> Reply:
    """Send a message of the kind webhook.test, as all others are sent."""

    async def work(conn: Connection, _changed: Changed) -> WebhookTest:
        row = await _find(conn, call.path["name"])
        if row.ended_at is not None:
            raise ProblemError(
                "webhook_refused",
                f"the receiver of {row.name} has said that it is gone: remove the webhook, and add it again",
                field="name",
            )
        id = await webhook_messages.deliver_test(conn, row.id, call.operator.name, call.services.clock.now())
        await call.audit(conn, "webhook.test", row.name, {"message": id})
        return WebhookTest(id)

    return await call.write(work)


@operation(
    "GET",
    "/v1/webhook-deliveries",
    "What became of messages to webhooks",
    role="admin",
    answers={200: pagination.Page[WebhookDelivery]},
)
async def list_deliveries(call: ApiCall, query: DeliveryFilter) -> Reply:
    """List what became of messages, newest first."""
    begin = pagination.read_cursor(query.cursor, (datetime, UUID, UUID)) or (LATEST, UUID(int=0), UUID(int=0))

    async def work(conn: Connection) -> pagination.Page[WebhookDelivery]:
        return await pagination.fill(
            lambda after, count: conn.fetch(
                DELIVERIES, after[0], str(after[1]), str(after[2]), query.webhook, query.state, count
            ),
            pagination.each(_delivery),
            lambda row: (row.created_at, UUID(row.id), UUID(row.webhook_id)),
            begin,
            query.limit,
        )

    return await call.read(work)


async def _find(conn: Connection, name: str) -> WebhookRow:
    row = await conn.fetchrow(NAMED, name)
    if row is None:
        raise _unknown(name)
    return row


def _unknown(name: str) -> ProblemError:
    return ProblemError("unknown_webhook", f"there is no webhook {name}", field="name")


def _delivery(row: DeliveryRow) -> WebhookDelivery:
    return WebhookDelivery(
        id=row.id,
        webhook=row.webhook,
        kind=row.kind,
        times=row.times,
        created_at=row.created_at,
        state=row.state,
        attempts=row.attempts,
        next_at=row.next_at if row.state == "waiting" else None,
        ended_at=row.ended_at,
        status=row.status or None,
        error=row.error,
    )
