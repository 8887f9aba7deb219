"""`POST /v1/poll`, the hot path: a plain ASGI function that, for a node at target, touches no database.

A poll with nothing to do is held until there is something, until its time is up, until its credential is revoked or
its client has gone. Holding costs a timer and the ASGI receive that sees the client go.
"""

import asyncio
import random
from enum import Enum

import msgspec
from starlette.types import Message, Receive, Scope

from control import wire
from control.api import artifacts, auth, operations
from control.api.auth import AuthError
from control.api.operations import Answer
from control.api.services import Services
from control.problems import ProblemError
from control.sync import plan, requirements
from control.sync.fleet_cache import STALE_AFTER, Credential, Node, Waiter
from control.sync.reconciler import Opened, ReportWanted, Request, Waits

PATH = "/v1/poll"
AT_TARGET = Answer(204, b"")
"""What is answered where there is nothing to do, or not yet."""
KEPT_BYTES = 1024
"""Of a node's last poll; one at target has some 200."""
SPREAD = 0.25
"""Each hold is shortened by a random part up to this, so that nodes which came together don't return together."""
SIGNED = 20
"""URLs that are signed before others have their turn."""
SHUTDOWN_RETRY = 1
"""Seconds after which a node asks again, then of another replica or a new process."""

_decode = msgspec.json.Decoder(wire.Poll).decode


class _Unread(msgspec.Struct):
    """A poll, of which this alone is looked at."""

    capabilities: msgspec.Raw = msgspec.Raw(b"")


_decode_unread = msgspec.json.Decoder(_Unread).decode


class Held(Enum):
    """What a poll is to do now that it is held no longer."""

    LOOK = "something may have changed, or its time is up"
    END = "its time is over, or the node has polled again: nothing to do"
    GONE = "its client has gone"


async def answer(services: Services, scope: Scope, receive: Receive) -> Answer | None:
    """The answer to one poll, or None where its client has gone; raises `ProblemError`."""
    if scope["method"] != "POST":
        raise ProblemError("method_not_allowed", f"{PATH} takes POST", allow="POST")
    credential = await auth.node(services, scope)
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        raw = message["body"]
    else:
        raw = await _rest(services, scope, message, receive)
    if credential.last is not None and credential.last[0] == raw:
        poll = credential.last[1]
    else:
        poll = _read(raw) if len(raw) <= operations.BIG_BODY else await asyncio.to_thread(_read, raw)
        credential.last = (raw, poll) if len(raw) <= KEPT_BYTES else None
    fleet, inventory, told = services.fleet, poll.inventory, poll.capabilities
    loop, until = fleet.loop, 0.0
    if poll.wait:
        until = loop.time() + min(poll.wait, services.settings.hold) * (1 - random.random() * SPREAD)  # noqa: S311
    while True:
        node = _look(services, credential)
        group = fleet.groups[node.group_id]
        counted, limit = "at_target", until
        if not fleet.at_target(node, poll):
            services.presence.seen(node.id)
            outcome = await services.opener.ask(
                Request(node.id, poll.digest, inventory, poll.failed, poll.capabilities_digest, told, poll.protocol)
            )
            inventory = told = None  # they are stored now
            if isinstance(outcome, Opened):
                services.metrics.poll("plan")
                return operations.prepared(Answer(200, await _plan(services, outcome)))
            if isinstance(outcome, ReportWanted):
                services.metrics.poll("report")
                return operations.prepared(Answer(200, wire.Report()))
            if isinstance(outcome, Waits):
                seconds = (outcome.until - services.clock.now()).total_seconds()
                counted, limit = "waits", min(until, loop.time() + seconds)
            if _look(services, credential) is not node or fleet.groups[node.group_id] is not group:
                # Something was announced while the database decided. This poll wasn't held yet, so nobody has woken
                # it, and the decision may be the one from before.
                continue
        if counted == "at_target":
            services.presence.confirmed(node.id)
        held = Held.END
        if until and until > (now := loop.time()):
            held = await _hold(services, credential, max(limit - now, 0.01), receive)
        if held is Held.GONE:
            return None
        if held is Held.END:
            services.metrics.poll(counted)
            return AT_TARGET


async def _rest(services: Services, scope: Scope, message: Message, receive: Receive) -> bytes:
    """A body that came in parts. Its time is the guard's to bound: a timer for each would cost a tenth of a poll."""
    limit = min(operations.INVENTORY_BODY, services.settings.body_limit)
    operations.check_length(scope, limit)
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        parts.append(message["body"])
        size += len(parts[-1])
        if size > limit:
            raise ProblemError("body_too_large", f"the body has more than {limit} bytes")
        if not message["more_body"]:
            return b"".join(parts)
        message = await receive()
    raise ProblemError("body_incomplete", "the connection was closed within the body")


async def _hold(services: Services, credential: Credential, seconds: float, receive: Receive) -> Held:
    waiters, node_id = services.fleet.waiters, credential.node_id
    earlier = waiters.get(node_id)
    if earlier is not None:
        earlier.replaced = True
        earlier.wake()
    waiter: Waiter | None = None
    try:
        async with asyncio.timeout(seconds) as timeout:
            waiter = waiters[node_id] = Waiter(timeout, credential.id)
            await receive()  # the body was read, so this is the client's going away
        return Held.GONE
    except TimeoutError:
        return Held.END if waiter is not None and waiter.replaced else Held.LOOK
    finally:
        if waiter is not None:
            waiter.done()
            if waiters.get(node_id) is waiter:
                del waiters[node_id]


def _look(services: Services, credential: Credential) -> Node:
    """The node as it is known now; raises `ProblemError` where it may not be answered."""
    fleet = services.fleet
    if fleet.closing:
        raise ProblemError("shutting_down", "this replica stops; poll again", retry_after=SHUTDOWN_RETRY)
    if not fleet.fresh:
        raise ProblemError("database_unavailable", f"the targets couldn't be read for {STALE_AFTER:.0f} s; poll again")
    known = fleet.credentials.get(credential.id)
    node = fleet.nodes.get(credential.node_id)
    if known is None or known.revoked_at is not None or node is None or node.removed:
        raise AuthError("credentials_invalid", "the node's credential was revoked", "revoked")
    return node


def _read(raw: bytes) -> wire.Poll:
    if len(raw) > operations.BIG_BODY:
        _check_capabilities(raw)
    try:
        poll = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        poll = operations.decode(raw, wire.Poll)  # says what is wrong
    if poll.inventory is not None:
        wrong = plan.inconsistency(poll.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")
        if wire.digest(poll.inventory) != poll.digest:
            raise ProblemError("invalid_body", "digest isn't the digest of inventory", field="digest")
    if poll.capabilities is not None:
        if not poll.capabilities_digest:
            raise ProblemError("invalid_body", "capabilities come with their digest", field="capabilities_digest")
        poll = operations.decode(raw, wire.Poll)  # it is kept as it is, so there must be no NUL in it
        requirements.check("capabilities", poll.capabilities)
    return poll


def _check_capabilities(raw: bytes) -> None:
    """Refuse capabilities that are too large before they are made into objects."""
    try:
        told = _decode_unread(raw).capabilities
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # what is wrong is found out by the whole reading
    # Written with spaces or escapes, they may be longer than they are kept.
    if len(bytes(told)) > 6 * requirements.LIMIT:
        detail = f"it has {requirements.LIMIT} bytes at most, as JSON, and not {len(bytes(told))}"
        raise ProblemError("invalid_body", detail, field="capabilities")


async def _plan(services: Services, opened: Opened) -> wire.Plan:
    """The answer that a sync begins with (R 3.3, 4.1)."""
    release, work = opened.release, opened.work
    urls = []
    for index, f in enumerate(work.functions):
        if index % SIGNED == SIGNED - 1:
            await asyncio.sleep(0)
        urls.append(await artifacts.location(services, f.sha256, f.artifact_id))
    return wire.Plan(
        sync_id=opened.sync_id,
        lease=services.settings.sync_lease,
        generation=opened.generation,
        release_id=release.id,
        release_number=release.number,
        schema_floor=release.schema_floor,
        schema_changes=[
            wire.PlannedChange(c.number, c.revision, c.name, c.checksum, opened.texts[c.number, c.revision])
            for c in work.schema_changes
        ],
        functions=[
            wire.PlannedFunction(
                name=f.name,
                version=f.version,
                sha256=f.sha256,
                size=f.size,
                url=url,
                manifest=f.manifest,
                manifest_digest=f.manifest_digest,
            )
            for f, url in zip(work.functions, urls, strict=True)
        ],
        remove=list(work.remove),
    )
