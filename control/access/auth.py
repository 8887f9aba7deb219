"""Authentication: which operator or node a request's token belongs to (R 7.1).

A refused client learns a code that says no more than that; the reason goes only to the record of refusals (R 7.4).
"""

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn
from uuid import UUID

from starlette.types import Scope

from control import tokens
from control.access import rights
from control.access.rights import Grant, Rights, Role
from control.clock import Clock
from control.problems import ProblemError
from control.settings import ControlSettings
from control.storage import audit_log, flush_loop, queries
from control.storage.announcements import Changed
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import CachedNode, CachedOperator, Credential, FleetCache


class OperatorRights(NamedTuple):
    """What an operator may do, as stored, and until when."""

    role: str
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None
    rotated_at: datetime | None


SQL = queries.load("auth")
OPERATORS_SQL = queries.load("operators")
FIRST_USE = SQL.optional("first_use", UUID)
REVOKE = SQL.value("revoke", str)
OPERATOR_RIGHTS = SQL.rows("operator_rights", OperatorRights)
CREDENTIAL_IS_VALID = SQL.value("credential_is_valid", bool)

USES_EVERY = 60.0
"""Seconds between two writes of the times of operators' last requests."""
NOTED_AGAIN = timedelta(seconds=60)
"""How old a recorded use gets before another one is recorded."""

log = logging.getLogger("skerry.sessions")


class AuthError(ProblemError):
    """Refused credentials. `reason` goes to the record; the client learns only the code."""

    def __init__(self, code: str, detail: str, reason: str) -> None:
        super().__init__(code, detail)
        self.reason = reason


@dataclass(frozen=True)
class Since:
    """Since when somebody has been signed in, and whether they chose to stay so: sessions made from it are as old."""

    made_at: datetime
    stays: bool


@dataclass(frozen=True)
class Principal:
    """The operator, a person or a script, who sent a request."""

    id: str
    name: str
    rights: Rights
    expires_at: datetime | None = None
    session_id: str = ""
    """The session of the request; '' if it came with a token."""
    signed_in: Mapping[str, str] = field(default_factory=dict)
    """The session's details for the audit log; empty if the request came with a token."""
    since: Since | None = None
    """How old that session is; None if the request came with a token."""
    rotated_at: datetime | None = None
    """When its token was last exchanged for another one, as far as this replica knew."""
    exchanged: bool = False
    """Whether the request came with the previous token, which is still valid for a while."""
    secret_hash: str = field(default="", repr=False, compare=False)
    """The hash of the request's token; '' in a session."""

    def need(self, role: Role, group: str | None, functions: Collection[str] | None = None) -> None:
        """Require `role` for this group and these functions; None: for all. Raises: AuthError, without that."""
        if not self.rights.allows(role, group, functions):
            self.refuse(f"the role {Grant(role, group, None if functions is None else frozenset(functions))}")

    def need_somewhere(self, role: Role, functions: Collection[str] = ()) -> None:
        """Require `role` for at least one group, and for these functions. Raises: AuthError, without that."""
        if not self.rights.allows_somewhere(role, functions):
            of = f" for {', '.join(sorted(functions))}" if functions else ""
            self.refuse(f"the role {role}{of} in a group at least")

    def refuse(self, what: str) -> NoReturn:
        """Refuse the request because it needs `what`. Raises: AuthError."""
        raise AuthError("role_insufficient", f"this needs {what}; {self.name} has {self.rights}", "role_insufficient")


class OperatorUses:
    """The last uses that this replica knows about."""

    def __init__(self, background: Database, clock: Clock) -> None:
        self._clock = clock
        self._background = background
        self._noted: dict[str, datetime] = {}
        self._unwritten: dict[str, datetime] = {}

    def note(self, operator_id: str, now: datetime) -> None:
        """Note that an operator asks for something, by its token or in a session."""
        noted = self._noted.get(operator_id)
        if noted is None or now - noted >= NOTED_AGAIN:
            self._noted[operator_id] = self._unwritten[operator_id] = now

    async def flush(self) -> None:
        """Write the uses that aren't stored yet. Raises: ProblemError, when the database doesn't answer."""
        if self._unwritten:
            written = dict(sorted(self._unwritten.items()))
            columns = list(written), [at.isoformat() for at in written.values()]
            await self._background.transaction(partial(_record_uses, *columns))
            self._unwritten = {id: at for id, at in self._unwritten.items() if written.get(id) != at}

    async def run(self) -> None:
        """Flush every `USES_EVERY` seconds, and once more when cancelled."""
        await flush_loop.run(
            log, "last uses of operators", self._clock, USES_EVERY, self.flush, lambda: len(self._unwritten)
        )


class Authenticator:
    """Checks the tokens of requests. A known token needs no query."""

    def __init__(
        self,
        fleet: FleetCache,
        clock: Clock,
        first_polls: Database,
        settings: ControlSettings,
        uses: OperatorUses,
    ) -> None:
        """Use the connections `first_polls` for recording the first use of a credential."""
        self.uses = uses
        self._fleet = fleet
        self._clock = clock
        self._first_polls = first_polls
        self._life = timedelta(seconds=settings.credential_life)
        self._return = timedelta(seconds=settings.credential_return)

    async def operator(self, scope: Scope) -> Principal:
        """Return the operator that asks. Raises: AuthError, when refused."""
        return await self._operator(*bearer(scope, "operator"))

    async def operator_of(self, text: str) -> Principal:
        """Return the operator whose token somebody typed. Raises: AuthError, when it isn't good."""
        parsed = tokens.parse("operator", text)
        if parsed is None:
            raise _invalid("malformed")
        return await self._operator(*parsed)

    async def _operator(self, id: str, secret_hash: str) -> Principal:
        known = await self._fleet.operator(id)
        if known is None:
            raise _invalid("unknown")
        now = self._clock.now()
        found = by_token(known, secret_hash, now)
        self.uses.note(id, now)
        return found

    async def node(
        self, scope: Scope, now: datetime, ended: str = "credential_expired"
    ) -> tuple[Credential, CachedNode]:
        """Return the credential and the node that ask, both valid at `now`. Raises: AuthError, when refused.

        `ended`: the code for an expired credential; '' if it may be used for the call until its return limit.
        """
        fleet = self._fleet
        authorization = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
                break
        header = hashlib.sha256(authorization).digest()
        credential = fleet.credentials.get(fleet.verified.get(header, ""))
        if credential is None:
            credential = await self._verify(scope, header)
        node = fleet.nodes.get(credential.node_id)
        if credential.revoked_at is not None or node is None or node.removed:
            raise ended_credential(node)
        if now - credential.created_at >= self._life:
            self._refuse_ended(credential, node, now, ended)
        if credential.first_used_at is None:
            credential.first_used_at = await self._first_use(credential, node.name, scope)
        return credential, node

    def _refuse_ended(self, credential: Credential, node: CachedNode, now: datetime, code: str) -> None:
        """Refuse an expired credential that isn't good for this call. Raises: AuthError."""
        made = credential.created_at
        if now - made >= self._return:
            raise AuthError(
                "credentials_invalid",
                f"the credential ended at {made + self._life:%Y-%m-%d %H:%M} UTC, and a return was accepted until "
                f"{made + self._return:%Y-%m-%d %H:%M} UTC: make a token with `skerry node token --rejoin "
                f"{node.name}`, and run `skerry-edge join --again` with it on the node",
                "return_expired",
            )
        if code:
            raise AuthError(
                code,
                f"the credential ended at {made + self._life:%Y-%m-%d %H:%M} UTC: it is good only to get its successor "
                f"(POST /v1/nodes/self/credential), until {made + self._return:%Y-%m-%d %H:%M} UTC",
                "expired",
            )

    async def _verify(self, scope: Scope, header: bytes) -> Credential:
        """Check a node's token that isn't known yet, and cache the sha256 of its header."""
        fleet = self._fleet
        id, secret_hash = bearer(scope, "node")
        credential = await fleet.credential(id)
        if credential is None:
            raise _invalid("unknown")
        if not tokens.same(credential.secret_hash, secret_hash):
            raise _invalid("wrong_secret")
        if len(fleet.verified) > 2 * len(fleet.credentials):
            # Most belong to credentials that no longer exist, or are other spellings of the same header.
            fleet.verified.clear()
        fleet.verified[header] = id
        return credential

    async def _first_use(self, credential: Credential, name: str, scope: Scope) -> datetime:
        """Record the first use of a node's credential, which ends the one that it replaces; return its time.

        Raises: AuthError, when it was revoked and this replica's cache doesn't show that yet.
        """
        now = self._clock.now()

        async def record(conn: Connection) -> None:
            if await conn.fetchval(FIRST_USE, credential.id, now) is None:
                # Used before, or ended meanwhile by another request for a successor: then it ends no other one.
                await refuse_revoked(conn, credential.id)
            elif credential.replaces is not None:
                revoked = await conn.column(REVOKE, credential.replaces, now)
                before, after = {"credentials": [*revoked, credential.id]}, {"credentials": [credential.id]}
                node = actor(scope, name, "node")
                await audit_log.record(conn, now, node, "node.rotate-end", name, before=before, after=after)
                await Changed(credentials=set(revoked)).announce(conn)

        await self._first_polls.transaction(record)
        if credential.replaces is not None:
            await self._fleet.announced()
        return now


def bearer(scope: Scope, kind: tokens.Kind) -> tuple[str, str]:
    """Return the id and the secret's hash of the token in the Authorization header.

    Raises: AuthError, when there is none.
    """
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, text = value.decode("latin-1").partition(" ")
            parsed = tokens.parse(kind, text.strip()) if scheme.lower() == "bearer" else None
            if parsed is None:
                raise _invalid("malformed")
            return parsed
    raise AuthError("credentials_missing", "send the header 'Authorization: Bearer TOKEN'", "missing")


def principal(known: CachedOperator, now: datetime) -> Principal:
    """Return an operator that was recognized. Raises: AuthError, when it was revoked or has ended."""
    if known.revoked_at is not None:
        raise _invalid("revoked")
    if known.expires_at is not None and known.expires_at <= now:
        raise AuthError("token_expired", f"the token of {known.name} ended at {known.expires_at}", "expired")
    held = rights.of_row(known.role, known.grants)
    return Principal(known.id, known.name, held, known.expires_at, rotated_at=known.rotated_at)


def by_token(known: CachedOperator, secret_hash: str, now: datetime) -> Principal:
    """Return the operator that asks by the token with this secret. Raises: AuthError, when the token isn't good."""
    exchanged = not tokens.same(known.secret_hash, secret_hash)
    if exchanged:
        if not (known.old_secret_hash and tokens.same(known.old_secret_hash, secret_hash)):
            raise _invalid("wrong_secret")
        if known.old_ends_at is None or known.old_ends_at <= now:
            raise _invalid("exchanged")
    return replace(principal(known, now), exchanged=exchanged, secret_hash=secret_hash)


async def refuse_changed(conn: Connection, operator: Principal) -> None:
    """Check in the database that an operator is unchanged since the request's head arrived.

    It may have been changed since then, or before if this replica's cache doesn't show it yet.
    Raises: AuthError, when it was revoked; ProblemError not_ready, when it has other rights, another end or another
    token.
    """
    row = await conn.fetchrow(OPERATOR_RIGHTS, operator.id)
    if row is None:
        raise _invalid("revoked")
    held = rights.of_row(row.role, row.grants), row.expires_at, row.rotated_at
    if held != (operator.rights, operator.expires_at, operator.rotated_at):
        raise ProblemError(
            "not_ready", f"what {operator.name} may, or its token, was changed just now: nothing was done; ask again"
        )


def refuse_exchanged(operator: Principal) -> None:
    """Refuse to sign in with an exchanged token, which a session would outlive. Raises: AuthError."""
    if operator.exchanged:
        raise AuthError(
            "token_expired", f"this token of {operator.name} was exchanged for another: sign in by that", "exchanged"
        )


async def refuse_revoked(conn: Connection, credential_id: str) -> None:
    """Check in the database that a node's credential isn't revoked: the cache may be behind. Raises: AuthError."""
    if not await conn.fetchval(CREDENTIAL_IS_VALID, credential_id):
        raise _invalid("revoked")


def ended_credential(node: CachedNode | None) -> AuthError:
    """Make the refusal of a credential that was good once. Whoever has its secret may know why it ended."""
    if node is None:
        return _invalid("removed")
    name = node.name.partition("~")[0]  # A removed node's name is followed by its id.
    again = "and run `skerry-edge join --again` with it on the node"
    if node.removed:
        return AuthError(
            "node_removed", f"node {name} was removed: make a token with `skerry node token`, {again}", "removed"
        )
    if node.revoked:
        return AuthError(
            "node_revoked",
            f"node {name} was revoked: make a token with `skerry node token --rejoin {name}`, {again}",
            "revoked",
        )
    return AuthError(
        "credentials_invalid",
        f"node {name} has asked with a newer credential since, which ended this one: a copy of the node's state "
        "directory must not be run beside it",
        "revoked",
    )


def actor(scope: Scope, name: str, kind: Literal["operator", "node"] = "operator") -> Actor:
    """Return who makes a change by a request, for the audit log."""
    return Actor(kind, name, address(scope), scope["request_id"].decode())


def address(scope: Scope) -> str:
    """Return the IP address of the client."""
    client: tuple[Any, ...] | None = scope.get("client")
    return str(client[0]) if client else "unknown"


def _invalid(reason: str) -> AuthError:
    return AuthError("credentials_invalid", "the token isn't known, isn't for this call, or was revoked", reason)


async def _record_uses(ids: list[str], times: list[str], conn: Connection) -> None:
    await conn.execute(OPERATORS_SQL["used"], ids, times)
