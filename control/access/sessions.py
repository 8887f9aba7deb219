"""Sessions: who has signed in, in a browser at the console or by `skerry login`, and until when.

A session is identified by a secret that the browser has as a cookie and `skerry` sends as a token; only its sha256 is
stored. It ends by age, when idle, by signing out, and with its operator. A replica caches the sessions that use it,
each with the operator as the fleet cache had it when the session was read. Changes to a session are announced as
changes of its operator: the fleet cache then has a new object, and the session is read again. So a request needs no
query, and every replica knows about a session's end as soon as about an operator's.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

from starlette.types import Scope

from control import tokens
from control.access import auth, rights
from control.access.auth import Authenticator, AuthError, Principal, Since
from control.access.csrf import form_token
from control.clock import Clock
from control.settings import ControlSettings
from control.storage import access_changes, audit_log, flush_loop, queries
from control.storage.announcements import Changed
from control.storage.batched_lookups import Lookups
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import CachedOperator, FleetCache

UsedIn = Literal["console", "cli"]
SignedInBy = Literal["token", "code", "provider"]

COOKIE = "__Host-skerry"
"""A browser accepts a cookie with this prefix only from its own host by https, for all paths and no other host."""
TOUCH_AFTER = timedelta(seconds=60)
"""How old the recorded time of a session's last use gets before it is updated."""
FLUSH_EVERY = 5.0
"""Seconds between two writes of these times."""
MOST_KNOWN = 10_000
"""Sessions that a replica keeps in memory; with more, all are read again."""
READINGS = 3
"""How many times a session is read until nothing is announced meanwhile."""

log = logging.getLogger("skerry.sessions")


class SessionRow(NamedTuple):
    """A session, as stored."""

    id: str
    secret_hash: str
    operator_id: str
    used_in: str
    signed_in_by: str
    stays: bool
    made_at: datetime
    last_used_at: datetime
    ended_at: datetime | None


SQL = queries.load("sessions")
SESSIONS = SQL.rows("sessions", SessionRow)
END = SQL.optional("end", UUID)
IS_OPEN = SQL.value("is_open", bool)


@dataclass(slots=True)
class _Known:
    """A session in memory. It is current while the fleet cache still has this object of its operator."""

    row: SessionRow
    operator: CachedOperator


@dataclass(frozen=True)
class ConsoleSession:
    """A valid session."""

    id: str
    """The session's id, for the audit log. It doesn't contain the secret."""
    operator: Principal
    form_token: str
    """What each form of a page shown to this session must send back."""
    ends_at: datetime
    """When it ends at the latest."""
    known: _Known = field(repr=False, compare=False)
    """What this replica had in memory about it when it was requested."""


class Sessions:
    """Begins, checks and ends sessions. Checking a session that this replica knows needs no query."""

    def __init__(
        self,
        fleet: FleetCache,
        clock: Clock,
        operators: Authenticator,
        lookups: Database,
        writes: Database,
        background: Database,
        settings: ControlSettings,
    ) -> None:
        """Use the connections `lookups` for reading sessions, `writes` for sign-ins, `background` for last uses."""
        self._fleet = fleet
        self._clock = clock
        self._operators = operators
        self._writes = writes
        self._background = background
        self._life = timedelta(seconds=settings.session_life)
        self._stay = timedelta(seconds=settings.session_stay)
        self._idle = timedelta(seconds=settings.session_idle)
        self._known: dict[str, _Known] = {}
        self._used: dict[str, datetime] = {}
        """When sessions were last used, if that isn't stored yet."""

        async def find(ids: list[str]) -> dict[str, SessionRow]:
            return {row.id: row for row in await lookups.read(lambda conn: conn.fetch(SESSIONS, ids))}

        self._rows = Lookups("sessions", find)

    # The caller

    async def operator(self, scope: Scope) -> Principal:
        """Return the operator that asks by a token, or by what `skerry login` got. Raises: AuthError, when refused."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, text = value.decode("latin-1").partition(" ")
                if scheme.lower() == "bearer" and text.strip().startswith(tokens.PREFIXES["session"]):
                    return (await self._check("cli", text.strip())).operator
                break
        return await self._operators.operator(scope)

    async def signed_in(self, scope: Scope) -> ConsoleSession:
        """Return the session of the browser that asks.

        Raises: AuthError credentials_missing, when it has none (which isn't recorded as a refusal), credentials_invalid
        or session_ended, when its session isn't valid; ProblemError, when control can't know now.
        """
        await self._fleet.read_late()
        self._fleet.refuse_stale()
        text = cookie(scope, COOKIE)
        if text is None:
            raise AuthError("credentials_missing", "sign in first, at /sign-in", "")
        return await self._check("console", text)

    def holds(self, session: ConsoleSession) -> bool:
        """Return whether a session is still as it was when it was asked for: for answers that go on for long.

        If it isn't, its operator may have other rights, or this replica can't know: `signed_in` tells.
        """
        known = session.known
        if self._known.get(session.id) is not known or not self._is_current(known) or not self._fleet.fresh:
            return False
        return self._clock.now() < min(session.ends_at, self._idle_at(known.row))

    async def now(self, operator: Principal) -> Principal:
        """Return the current principal for an answer that takes long. This doesn't count as a use of the session.

        Raises: AuthError, when the operator, its token or the session isn't valid any more; ProblemError, when control
        can't know.
        """
        now = self._clock.now()
        if operator.session_id:
            self._refuse_ended(await self._find(operator.session_id, now), now)
        elif operator.secret_hash:
            known = await self._fleet.operator(operator.id)
            if known is None:
                raise _invalid("revoked")
            return auth.by_token(known, operator.secret_hash, now)
        return await self.principal(operator.id)

    async def _check(self, used_in: UsedIn, text: str) -> ConsoleSession:
        parsed = tokens.parse("session", text)
        if parsed is None:
            raise _invalid("malformed")
        id, secret_hash = parsed
        now = self._clock.now()
        known = await self._find(id, now)
        row, operator = known.row, known.operator
        if not tokens.same(row.secret_hash, secret_hash) or row.used_in != used_in:
            raise _invalid("wrong_secret")
        self._refuse_ended(known, now)
        if now - row.last_used_at >= TOUCH_AFTER:
            self._used[id] = now
            known.row = row._replace(last_used_at=now)
        said = {"in": row.used_in, "by": row.signed_in_by, "session": id}
        if operator.issuer is not None:
            said |= {"issuer": operator.issuer, "subject": operator.subject or "", "name": operator.shown_name}
        held = rights.of_row(operator.role, operator.grants)
        principal = Principal(
            operator.id,
            operator.name,
            held,
            operator.expires_at,
            id,
            said,
            Since(row.made_at, row.stays),
            operator.rotated_at,
        )
        self._operators.uses.note(operator.id, now)
        return ConsoleSession(id, principal, form_token(text), self._ends_at(known), known)

    async def _find(self, id: str, now: datetime) -> _Known:
        """Find a session. Raises: AuthError, when there is none with this id; ProblemError, when control can't know."""
        known = self._known.get(id)
        if known is None or not self._is_current(known) or now >= self._idle_at(known.row):
            # If it was idle here, it may have been used on another replica.
            known = await self._read(id)
        if known is None:
            raise _invalid("unknown")
        return known

    def _refuse_ended(self, known: _Known, now: datetime) -> None:
        """Refuse a session that isn't valid any more. Raises: AuthError."""
        row, ends_at = known.row, self._ends_at(known)
        if known.operator.revoked_at is not None:
            raise _invalid("revoked")
        if row.ended_at is not None:
            raise _ended("it was ended by signing out")
        if now >= ends_at:
            raise _ended(f"it was good until {ends_at:%Y-%m-%d %H:%M} UTC")
        if now >= self._idle_at(row):
            raise _ended(f"nothing was asked for in it for {self._idle.total_seconds() / 60:.0f} minutes")

    async def _read(self, id: str) -> _Known | None:
        """Read a session as it is stored, beside its operator; keep it in memory if both are of the same time."""
        for _ in range(READINGS):
            epoch = self._fleet.epoch
            row = await self._rows.find(id)
            if row is None:
                self._known.pop(id, None)
                return None
            operator = await self._fleet.operator(row.operator_id)
            if operator is None:
                return None
            if id in self._used:
                row = row._replace(last_used_at=max(row.last_used_at, self._used[id]))
            known = _Known(row, operator)
            if epoch == self._fleet.epoch:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[id] = known
                break
            # A change was announced meanwhile, which may have been this session's end.
        return known

    def _is_current(self, known: _Known) -> bool:
        return self._fleet.operators.get(known.operator.id) is known.operator

    def _ends_at(self, known: _Known) -> datetime:
        row, operator = known.row, known.operator
        ends = [row.made_at + (self._stay if row.stays else self._life)]
        if operator.expires_at is not None:
            ends.append(operator.expires_at)
        if operator.rotated_at is not None and operator.old_ends_at is not None and row.made_at < operator.rotated_at:
            # Whoever had the old token may have started it.
            ends.append(operator.old_ends_at)
        return min(ends)

    def _idle_at(self, row: SessionRow) -> datetime:
        """Return when a session has been idle for too long, if it isn't used before."""
        if row.stays or row.used_in == "cli":
            return row.made_at + self._stay + self._life
        return row.last_used_at + self._idle

    # Beginning and ending

    async def begin(self, scope: Scope, operator: Principal, used_in: UsedIn, by: SignedInBy, **more: Any) -> str:
        """Begin a session as `add` does, in a transaction of its own.

        Raises: AuthError, for a token that was exchanged.
        """
        auth.refuse_exchanged(operator)
        return await self._writes.transaction(lambda conn: self.add(conn, scope, operator, used_in, by, **more))

    async def add(
        self,
        conn: Connection,
        scope: Scope,
        operator: Principal,
        used_in: UsedIn,
        by: SignedInBy,
        *,
        stays: bool = False,
        since: Since | None = None,
        details: Mapping[str, object] | None = None,
    ) -> str:
        """Begin a session of an operator that was recognized, and return its secret, for its owner alone.

        `since` is from the session in which this one is begun. `details` go into the audit log.
        Raises: AuthError or ProblemError, when the operator was changed meanwhile.
        """
        await auth.refuse_changed(conn, operator)
        token, now = tokens.new_token("session"), self._clock.now()
        made_at, stays = (now, stays) if since is None else (since.made_at, since.stays)
        await conn.execute(SQL["begin"], token.id, token.secret_hash, operator.id, used_in, by, stays, made_at, now)
        said = {"in": used_in, "by": by, "session": str(token.id), **(details or {})}
        await audit_log.record(conn, now, auth.actor(scope, operator.name), "session.begin", operator.name, said)
        return token.text

    async def principal(self, operator_id: str) -> Principal:
        """Return the operator with an id. Raises: AuthError, when it isn't good any more."""
        found = await self._fleet.operator(operator_id)
        if found is None:
            raise _invalid("revoked")
        return auth.principal(found, self._clock.now())

    async def end_of(self, secret: str) -> datetime:
        """Return when what `skerry login` got ends at the latest."""
        return (await self._check("cli", secret)).ends_at

    async def end(self, scope: Scope, operator: Principal) -> None:
        """End the session of an operator's request, on every replica. One that has already ended stays as it is."""

        async def work(conn: Connection) -> None:
            now = self._clock.now()
            if await conn.fetchval(END, operator.session_id, now) is not None:
                said = dict(operator.signed_in)
                await audit_log.record(conn, now, auth.actor(scope, operator.name), "session.end", operator.name, said)
                await access_changes.record(conn, now, "session-ended", operator.session_id)
                changed = Changed()
                changed.operators.add(operator.id)
                await changed.announce(conn)

        await self._writes.transaction(work)
        await self._fleet.announced()

    # Background work

    async def flush(self) -> None:
        """Store when sessions were last used."""
        while self._used:
            written = dict(sorted(self._used.items()))
            columns = list(written), [at.isoformat() for at in written.values()]
            await self._background.transaction(partial(_record_uses, *columns))
            self._used = {id: at for id, at in self._used.items() if written.get(id) != at}

    async def run(self) -> None:
        """Flush every few seconds, and once more when cancelled."""
        await flush_loop.run(
            log, "last uses of sessions", self._clock, FLUSH_EVERY, self.flush, lambda: len(self._used)
        )

    async def stop(self) -> None:
        """Cancel the running look-up."""
        await self._rows.stop()


async def refuse_signed_out(conn: Connection, operator: Principal) -> None:
    """Check in the database that the operator's session hasn't ended: the cache may be behind. Raises: AuthError."""
    if operator.session_id and not await conn.fetchval(IS_OPEN, operator.session_id):
        raise _ended("it was ended by signing out")


def signed_in_by(text: str) -> SignedInBy:
    """Return how somebody signed in, as it is stored."""
    return next(by for by in get_args(SignedInBy) if by == text)


def cookie(scope: Scope, name: str) -> str | None:
    """Return the value of a cookie; None if there is none.

    Raises: AuthError, when the browser sends two of that name.
    """
    found = []
    for header, value in scope["headers"]:
        if header == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, text = pair.strip().partition("=")
                if key == name:
                    found.append(text)
    if len(found) > 1:
        raise _invalid("two_cookies")
    return found[0] if found else None


def set_cookie(name: str, value: str, *, seconds: float | None = None) -> tuple[bytes, bytes]:
    """Make the header that sets a cookie; the browser keeps it until it is closed, or for `seconds` (0: no longer)."""
    age = "" if seconds is None else f"; Max-Age={seconds:.0f}"
    text = f"{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax{age}"
    return b"set-cookie", text.encode("ascii")


async def _record_uses(ids: list[str], times: list[str], conn: Connection) -> None:
    await conn.execute(SQL["used"], ids, times)


def _invalid(reason: str) -> AuthError:
    return AuthError("credentials_invalid", "the session isn't known, or was revoked: sign in again", reason)


def _ended(why: str) -> AuthError:
    return AuthError("session_ended", f"the session has ended: {why}. Sign in again", "session_ended")
