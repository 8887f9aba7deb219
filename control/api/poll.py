"""`POST /v1/poll`, the hot path: for a node at its target it needs no query.

A poll with nothing to do is held until there is something to do, its time is up, its credential is revoked, or its
client disconnects. A held poll costs a timer, and the ASGI receive that notices the disconnect.
"""

import asyncio
import random
from enum import Enum

import msgspec
from starlette.types import Message, Receive, Scope

from control.access.auth import ended_credential
from control.api import operations, request_input
from control.api.operations import Reply
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.storage.connection_quotas import ASKS
from control.sync import plan, requirements
from control.sync.fleet_cache import RESTORED, STALE, CachedGroup, CachedNode, Credential, Waiter
from control.sync.reconciler import NodeRequest

PATH = "/v1/poll"
COUNTED = Reply(204, b"", ((b"connection", b"close"),))
"""The answer of a replica that stops, which has counted the calls that the poll told of."""
KEPT_ANSWERS = 1000
"""How many answers to nodes at their targets are kept, for as many groups and generations."""
RELEASE_HEADER = b"x-skerry-release"
HELD_HEADER = b"x-skerry-held"
"""In the answer to a node at its target: the release's group, number and generation, separated by spaces."""
TRUST_HEADER = b"x-skerry-trust"
"""In each answer to a node with nothing to do: which CAs control distributes (`Trust.digest`)."""
KEPT_BYTES = 1024
"""Bytes of the largest poll that is cached parsed; the poll of a node at its target has about 200."""
SPREAD = 0.25
"""Each hold is shortened by a random fraction up to this, so that nodes that polled together don't return together."""
SHUTDOWN_RETRY = 1
"""Seconds after which a node polls again when the replica stops: then it reaches another replica or a new process."""

_decode = msgspec.json.Decoder(wire.Poll).decode


class _Capabilities(msgspec.Struct):
    """A poll of which only the unparsed capabilities matter."""

    capabilities: msgspec.Raw = msgspec.Raw(b"")


_decode_capabilities = msgspec.json.Decoder(_Capabilities).decode


class HoldEnd(Enum):
    """Why a poll is no longer held."""

    LOOK = "something may have changed, or its time is up"
    END = "the node has polled again: there is nothing to do for this poll"
    GONE = "its client has gone"


class PollEndpoint:
    """Answers polls."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._auth = services.auth
        self._fleet = services.fleet
        self._heartbeats = services.heartbeats
        self._decisions = services.decisions
        self._numbers = services.numbers
        self._metrics = services.metrics
        self._clock = services.clock
        self._told: dict[tuple[str, int, int], Reply] = {}
        """The answers to nodes at their targets, by group, release and generation."""
        self.reload()

    def reload(self) -> None:
        """Take the settings and the CAs that nodes are told of from `services`, where files were read again."""
        settings, digest = self._services.settings, self._services.certificates.trust.digest
        self._hold_limit = settings.hold
        self._body_limit = min(request_input.INVENTORY_BODY, settings.body_limit)
        self._trust = ((TRUST_HEADER, digest.encode()),) if digest else ()
        # The answer if there is nothing to do, or nothing yet.
        self._nothing = Reply(204, b"", self._trust)
        self._held = Reply(204, b"", ((HELD_HEADER, b"1"), *self._trust))
        self._told.clear()

    async def answer(self, scope: Scope, receive: Receive) -> Reply | None:
        """Answer one poll; return None if its client has gone. Raises: ProblemError, when it is refused."""
        if scope["method"] != "POST":
            raise ProblemError("method_not_allowed", f"{PATH} takes POST", allow="POST")
        now = self._clock.now()
        credential, _node = await self._auth.node(scope, now)
        message = await receive()
        if message["type"] == "http.request" and not message["more_body"]:
            raw = message["body"]
        else:
            ASKS.set(credential.node_id)
            with request_input.coming():
                raw = await self._rest(scope, message, receive)
        if credential.last is not None and credential.last[0] == raw:
            poll = credential.last[1]
        else:
            poll = _parse(raw) if len(raw) <= request_input.BIG_BODY else await asyncio.to_thread(_parse, raw)
            credential.last = (raw, poll) if len(raw) <= KEPT_BYTES else None
        fleet, inventory, capabilities = self._fleet, poll.inventory, poll.capabilities
        clock, until = self._clock, 0.0
        if poll.wait:
            until = clock.monotonic() + min(poll.wait, self._hold_limit) * (1 - random.random() * SPREAD)  # noqa: S311
        if poll.numbers:
            node = self._look(credential)
            self._numbers.take(node, fleet.groups[node.group_id], poll, now)
        while True:
            if fleet.closing and poll.numbers:
                # Unlike a refusal, this tells the node that its numbers were counted, so it doesn't send them again.
                return COUNTED
            node = self._look(credential)
            group = fleet.groups[node.group_id]
            if poll.name and poll.name != node.name:
                self._heartbeats.seen(node.id, now, poll.boot_id)
                self._metrics.poll("renamed")
                return operations.json_reply(200, msgspec.json.encode(wire.Renamed(node.name)))
            if node.restore_id not in ("", poll.restore) and poll.protocol >= wire.BACKUP_PROTOCOL:
                self._heartbeats.seen(node.id, now, poll.boot_id)
                self._metrics.poll("restore")
                return operations.json_reply(200, msgspec.json.encode(wire.Restore(node.restore_id)))
            kind, limit = "held" if node.restore_id else "at_target", until
            if not (fleet.nothing_new(node, poll) if node.restore_id else fleet.at_target(node, poll)):
                self._heartbeats.seen(node.id, now, poll.boot_id)
                decision = await self._decisions.ask(
                    NodeRequest(
                        node.id,
                        poll.digest,
                        inventory,
                        poll.failed,
                        poll.capabilities_digest,
                        capabilities,
                        poll.protocol,
                        poll.generation,
                    )
                )
                inventory = capabilities = None  # both are stored now
                kind, now = decision.kind, self._clock.now()
                if decision.message is not None:
                    self._metrics.poll(kind)
                    return operations.json_reply(200, msgspec.json.encode(decision.message))
                if decision.until is not None:
                    limit = min(until, clock.monotonic() + (decision.until - now).total_seconds())
                if self._look(credential) is not node or fleet.groups[node.group_id] is not group:
                    # A change was announced while the database decided. This poll wasn't held yet, so it wasn't woken,
                    # and the decision may be older than the announcement.
                    continue
            if kind == "at_target":
                self._heartbeats.confirmed(node.id, now, poll.boot_id)
            elif kind == "held":
                self._heartbeats.seen(node.id, now, poll.boot_id)
            if (poll.watching or fleet.watches.alive) and poll.protocol >= wire.WATCH_PROTOCOL:
                told = fleet.watches.answer(node, poll.watching)
                if told is not None:
                    self._metrics.poll("watch")
                    return operations.json_reply(200, told)
            if group.rehearsal != poll.rehearsal and not node.restore_id and poll.protocol >= wire.REHEARSAL_PROTOCOL:
                self._metrics.poll("rehearse")
                return operations.json_reply(200, msgspec.json.encode(wire.Rehearse(group.rehearsal)))
            if group.backup != poll.backup and poll.protocol >= wire.BACKUP_PROTOCOL:
                self._metrics.poll("back_up")
                return operations.json_reply(200, msgspec.json.encode(wire.BackUp(group.backup)))
            ended = HoldEnd.END
            if until and until > (time := clock.monotonic()):
                ended = await self._hold(credential, max(limit - time, 0.01), receive)
            if ended is HoldEnd.GONE:
                return None
            if ended is HoldEnd.END:
                self._metrics.poll(kind)
                if kind == "held":
                    return self._held
                _id, number, generation = fleet.target(node)
                if kind != "at_target" or number is None:
                    return self._nothing
                return self._at_target(group, number, generation)
            now = self._clock.now()

    def _at_target(self, group: CachedGroup, number: int, generation: int) -> Reply:
        """Return the answer to a node of a group that is at its target, with the release's number."""
        # Metadata that were restored may give a generation to another release.
        key = (group.id, number, generation)
        reply = self._told.get(key)
        if reply is None:
            if len(self._told) >= KEPT_ANSWERS:
                self._told.clear()
            told = f"{group.name} {number} {generation}".encode()
            reply = self._told[key] = Reply(204, b"", ((RELEASE_HEADER, told), *self._trust))
        return reply

    async def _rest(self, scope: Scope, message: Message, receive: Receive) -> bytes:
        """Read a body that comes in parts.

        The connection's limits bound its time: a timer for each would cost a tenth of a poll.
        """
        request_input.check_length(scope, self._body_limit)
        parts: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            parts.append(message["body"])
            size += len(parts[-1])
            if size > self._body_limit:
                raise ProblemError("body_too_large", f"the body has more than {self._body_limit} bytes")
            if not message["more_body"]:
                return b"".join(parts)
            message = await receive()
        raise ProblemError("body_incomplete", "the connection was closed within the body")

    async def _hold(self, credential: Credential, seconds: float, receive: Receive) -> HoldEnd:
        """Hold the poll for at most `seconds`, replacing an earlier held poll of the node."""
        waiters, node_id = self._fleet.waiters, credential.node_id
        earlier = waiters.get(node_id)
        if earlier is not None:
            earlier.replaced = True
            earlier.wake()
        waiter: Waiter | None = None
        try:
            async with self._clock.timeout(seconds) as timeout:
                waiter = waiters[node_id] = Waiter(timeout, credential.id)
                await receive()  # the body was read, so this returns when the client disconnects
            return HoldEnd.GONE
        except TimeoutError:
            return HoldEnd.END if waiter is not None and waiter.replaced else HoldEnd.LOOK
        finally:
            if waiter is not None:
                waiter.done()
                if waiters.get(node_id) is waiter:
                    del waiters[node_id]

    def _look(self, credential: Credential) -> CachedNode:
        """Return the node as it is cached now.

        Raises: ProblemError, when it must not be answered, or not by this replica.
        """
        fleet = self._fleet
        if fleet.closing:
            raise ProblemError("shutting_down", "this replica stops; poll again", retry_after=SHUTDOWN_RETRY)
        if not fleet.fresh:
            raise ProblemError("database_unavailable", STALE)
        known = fleet.credentials.get(credential.id)
        if known is None:
            raise ProblemError("database_unavailable", RESTORED)
        node = fleet.nodes.get(credential.node_id)
        if known.revoked_at is not None or node is None or node.removed:
            raise ended_credential(node)
        return node


def _parse(raw: bytes) -> wire.Poll:
    """Parse a poll's body. Raises: ProblemError, when it is wrong."""
    if len(raw) > request_input.BIG_BODY:
        _check_capabilities(raw)
    try:
        poll = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        poll = request_input.decode(raw, wire.Poll)  # raises an error that says what is wrong
    if poll.inventory is not None:
        wrong = plan.inconsistency(poll.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")
        if wire.digest(poll.inventory) != poll.digest:
            raise ProblemError("invalid_body", "digest isn't the digest of inventory", field="digest")
    if poll.capabilities is not None:
        if not poll.capabilities_digest:
            raise ProblemError("invalid_body", "capabilities come with their digest", field="capabilities_digest")
        poll = request_input.decode(raw, wire.Poll)  # refuses NUL, which can't be stored
        requirements.check("capabilities", poll.capabilities)
    return poll


def _check_capabilities(raw: bytes) -> None:
    """Refuse capabilities that are too large before they are made into objects."""
    try:
        raw_capabilities = _decode_capabilities(raw).capabilities
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # the parsing of the whole body finds out what is wrong
    # Sent with spaces or escapes, they may be longer than when stored.
    if len(bytes(raw_capabilities)) > 6 * requirements.LIMIT:
        detail = f"it has {requirements.LIMIT} bytes at most, as JSON, and not {len(bytes(raw_capabilities))}"
        raise ProblemError("invalid_body", detail, field="capabilities")
