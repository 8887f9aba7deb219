"""Who asks: tokens of operators, joining nodes and nodes, and the record of those that were refused (R 7.1, 7.4).

A token is ``KIND_ID_SECRET``: the id finds the row, the secret is 256 random bits of which only the sha256 is kept.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

from starlette.types import Scope

from control.api.services import Services
from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.batched_lookups import Lookups
from control.storage.database import Database

if TYPE_CHECKING:
    from control.sync.fleet_cache import Credential

SQL = queries.load("auth")
Kind = Literal["node", "join", "operator"]
Role = Literal["read", "deploy", "admin"]
PREFIXES: dict[Kind, str] = {"node": "skn", "join": "skj", "operator": "sko"}
ROLES: dict[str, int] = {"read": 1, "deploy": 2, "admin": 3}
"""What a role may do is all that the ones below it may."""

_TOKEN = re.compile(r"(sk[njo])_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_([A-Za-z0-9_-]{43})(?:\.[0-9a-f]{64})?")
FLUSH_EVERY = 1.0
MOST_ADDRESSES = 5_000
"""Of which refusals are counted apart between two flushes; what comes from more of them is counted together."""

log = logging.getLogger("skerry.auth")


@dataclass(frozen=True)
class Token:
    """A new token: `text` goes to its owner and nowhere else."""

    id: UUID
    text: str
    secret_hash: str


@dataclass(frozen=True)
class Operator:
    """A person or a script that operates control."""

    id: str
    name: str
    role: str


class AuthError(ProblemError):
    """Refused credentials. `reason` goes to the record alone; whoever asks learns no more than `code`."""

    def __init__(self, code: str, detail: str, reason: str) -> None:
        super().__init__(code, detail)
        self.reason = reason


def new_token(kind: Kind, id: UUID | None = None) -> Token:
    """A token with a new secret."""
    id = id or uuid4()
    secret = secrets.token_urlsafe(32)
    return Token(id, f"{PREFIXES[kind]}_{id}_{secret}", hash_secret(secret))


def hash_secret(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so a plain sha256 can't be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(kind: Kind, text: str) -> tuple[str, str] | None:
    """Id and secret's hash of a token of that kind, or None if it isn't one."""
    match = _TOKEN.fullmatch(text)
    if match is None or match[1] != PREFIXES[kind]:
        return None
    return match[2], hash_secret(match[3])


def same(known: str, given: str) -> bool:
    """Compare two hashes in constant time."""
    return hmac.compare_digest(known.encode(), given.encode())


def bearer(scope: Scope, kind: Kind) -> tuple[str, str]:
    """Id and secret's hash of the token in the Authorization header; raises `AuthError`."""
    scheme, _, text = _authorization(scope).decode("latin-1").partition(" ")
    parsed = parse(kind, text.strip()) if scheme.lower() == "bearer" else None
    if parsed is None:
        raise _invalid("malformed")
    return parsed


def _authorization(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            header: bytes = value
            return header
    raise AuthError("credentials_missing", "send the header 'Authorization: Bearer TOKEN'", "missing")


async def operator(services: Services, scope: Scope, role: Role) -> Operator:
    """The operator that asks, who must have `role` or more; raises `AuthError`."""
    id, secret_hash = bearer(scope, "operator")
    known = await services.fleet.operator(id)
    if known is None:
        raise _invalid("unknown")
    if not same(known.secret_hash, secret_hash):
        raise _invalid("wrong_secret")
    if known.revoked_at is not None:
        raise _invalid("revoked")
    if ROLES[known.role] < ROLES[role]:
        raise AuthError(
            "role_insufficient", f"this needs the role {role}; {known.name} has {known.role}", "role_insufficient"
        )
    return Operator(id, known.name, known.role)


async def node(services: Services, scope: Scope) -> "Credential":
    """The credential of the node that asks; for a known one without a look at the database. Raises `AuthError`."""
    fleet = services.fleet
    header = hashlib.sha256(_authorization(scope)).digest()
    credential = fleet.credentials.get(fleet.verified.get(header, ""))
    if credential is None:
        id, secret_hash = bearer(scope, "node")
        credential = await fleet.credential(id)
        if credential is None:
            raise _invalid("unknown")
        if not same(credential.secret_hash, secret_hash):
            raise _invalid("wrong_secret")
        if len(fleet.verified) > 2 * len(fleet.credentials):
            # Of credentials that are gone, or other ways to write the same one.
            fleet.verified.clear()
        fleet.verified[header] = id
    if credential.revoked_at is not None:
        raise _invalid("revoked")
    if credential.expires_at is not None and credential.expires_at <= services.clock.now():
        raise _invalid("expired")
    known = fleet.nodes.get(credential.node_id)
    if known is None or known.removed:
        raise _invalid("removed")
    if credential.first_used_at is None:
        credential.first_used_at = await _first_use(services, credential)
    return credential


async def joining(services: Services, scope: Scope) -> None:
    """Refuse who has no join token that is good now; nothing of the body was read yet. Raises `AuthError`.

    Whether the token was used is known later, since the same attempt may come again.
    """
    id, secret_hash = bearer(scope, "join")
    token = await services.join_tokens.find(id)
    if token is None or not same(token["secret_hash"], secret_hash):
        raise AuthError("credentials_invalid", "the join token isn't known", "join_token_unknown")
    refuse_expired(token["expires_at"], services.clock.now())


def refuse_expired(expires_at: datetime, now: datetime) -> None:
    """Refuse a join token that has expired; raises `AuthError`."""
    if expires_at <= now:
        raise AuthError("token_expired", f"the join token expired at {expires_at}; make another one", "expired")


def join_tokens(db: Database) -> Lookups[Any]:
    """Return what looks up the join tokens that joins come with."""

    async def find(ids: list[str]) -> dict[str, Any]:
        return {row["id"]: row for row in await db.read(lambda conn: conn.fetch(SQL["join_tokens"], ids))}

    return Lookups("join tokens", find)


async def _first_use(services: Services, credential: "Credential") -> datetime:
    """Record that a credential is used for the first time: the one that it replaces ends now."""
    now = services.clock.now()

    async def record(conn: Any) -> None:
        used = await conn.fetchval(SQL["first_use"], credential.id, now)
        if used is not None and credential.replaces is not None:
            revoked = await conn.fetch(SQL["revoke"], credential.replaces, now)
            await Changed(credentials={row["id"] for row in revoked}).announce(conn)

    await services.first_polls.transaction(record)
    if credential.replaces is not None:
        await services.fleet.announced()
    return now


def address(scope: Scope) -> str:
    """Where a request came from."""
    client = scope.get("client")
    return client[0] if client else "unknown"


class AuthFailures:
    """Counts refusals by minute, address and reason, and writes them each second: a flood is a number (R 7.4)."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._waiting: dict[tuple[datetime, str, str], list[Any]] = {}
        self._batch: tuple[UUID, list[list[str]]] | None = None
        """What is being written, by columns, and its id, until it is known to be written."""
        self._replica = uuid4()
        self._writing = asyncio.Lock()
        self.total = 0
        self._outage = Outage(log, "refused authentications can't be recorded yet")

    def record(self, address: str, reason: str) -> None:
        """Count one refusal."""
        now = self._clock.now()
        minute = now.replace(second=0, microsecond=0)
        if len(self._waiting) >= MOST_ADDRESSES and (minute, address, reason) not in self._waiting:
            address = "others"
        counted = self._waiting.setdefault((minute, address[:100], reason), [0, now, now])
        counted[0] += 1
        counted[2] = now
        self.total += 1

    async def flush(self) -> None:
        """Write what was counted. What couldn't be written, or may not have been, is kept for the next time."""
        async with self._writing:
            while self._batch is not None or self._waiting:
                if self._batch is None:
                    self._batch = uuid4(), _columns(self._waiting)
                    self._waiting = {}
                await self._db.transaction(partial(self._write, *self._batch))
                self._batch = None

    async def _write(self, id: UUID, columns: list[list[str]], conn: Any) -> None:
        """Write a batch, unless it was written when a COMMIT's answer was lost."""
        if await conn.fetchval(SQL["begin_batch"], self._replica, id, self._clock.now()) is not None:
            await conn.execute(SQL["record_failures"], *columns)

    async def run(self) -> None:
        """Flush each second until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(FLUSH_EVERY)
                try:
                    await self.flush()
                    self._outage.worked()
                except ProblemError as error:
                    self._outage.failed(error.detail)
        finally:
            try:
                async with asyncio.timeout(2):
                    await self.flush()
            except (ProblemError, TimeoutError):
                waiting = len(self._waiting) + (0 if self._batch is None else len(self._batch[1][0]))
                log.warning("%d groups of refused authentications were not recorded", waiting)


def _columns(waiting: dict[tuple[datetime, str, str], list[Any]]) -> list[list[str]]:
    """Minutes, addresses, reasons, counts, first and last times, as texts."""
    rows = [(minute, address, reason, *value) for (minute, address, reason), value in sorted(waiting.items())]
    return [
        [item.isoformat() if isinstance(item, datetime) else str(item) for item in column]
        for column in zip(*rows, strict=True)
    ]


def _invalid(reason: str) -> AuthError:
    return AuthError("credentials_invalid", "the token isn't known, isn't for this call, or was revoked", reason)
