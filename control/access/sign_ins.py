"""Signing in with a typed code: in a browser with one from `skerry console`, and `skerry login` with one in a browser.

A code has 8 of 20 letters. It is valid for minutes and only once, and wrong ones are counted, so that nobody finds one
by trying: ten replicas accept 20,000 tries in the five minutes of a code, half of them from addresses where somebody
has signed in before, of 25,600,000,000 codes. Neither way makes a session that is younger than the one in which it was
requested, so nobody stays signed in by requesting codes.
"""

import asyncio
import hashlib
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from starlette.types import Scope

from control import tokens
from control.access import auth, sessions
from control.access.auth import AuthError, Principal, Since
from control.access.rate_limits import Guesses, SignedInPlaces
from control.access.sessions import ConsoleSession, Sessions
from control.clock import Clock
from control.problems import ProblemError
from control.storage import audit_log, queries
from control.storage.batched_lookups import Lookups
from control.storage.connection import Connection
from control.storage.database import Database

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""The letters of codes: no vowels, so that codes aren't words, and no letters that look like others."""
LENGTH = 8
CODE_LIFE = timedelta(minutes=5)
"""How long a code of `skerry console` is valid."""
LOGIN_LIFE = timedelta(minutes=10)
"""How long a code of `skerry login` is valid."""
INTERVAL = 2
"""Seconds between two polls of `skerry login` for its answer."""
TRIES = (20, 1000, 300.0)
"""Wrong codes that are checked: per address, and in total, in these seconds. The total is for strangers, and as many
again are for addresses where somebody has signed in."""
MADE = (20, 1000, 300.0)
"""Codes that are made: per operator, and in total, in these seconds."""
HASHED_AT_ONCE = 2
"""Codes that are hashed at once; only other codes wait, since other threads parse bodies."""
ANSWERS = (60, 2000, 300.0)
"""Answers of a provider that are checked: per address, and in total, in these seconds."""
BEGINS = (30, 600, 300.0)
"""Logins that may be started: per address, and in total, in these seconds."""


class UsedCode(NamedTuple):
    """Whose code it was, and the age of the session that asked for it, and whether that stays."""

    operator_id: str
    signed_in_at: datetime | None
    stays: bool


class LoginRow(NamedTuple):
    """A login, as stored."""

    id: str
    secret_hash: str
    made_at: datetime
    answered_at: datetime | None
    operator_id: str | None
    given_at: datetime | None


class WaitingLogin(NamedTuple):
    """A login that waits for its answer, as shown to whoever types its code."""

    id: str
    machine: str
    """What it says about the machine that it runs on."""
    address: str
    """The address that started it."""
    made_at: datetime


class LoginRights(NamedTuple):
    """Who allowed a login, and how they signed in."""

    operator_id: str
    signed_in_by: str
    signed_in_at: datetime | None
    stays: bool


SQL = queries.load("sign_ins")
USE_CODE = SQL.rows("use_code", UsedCode)
LOGINS = SQL.rows("logins", LoginRow)
WAITING = SQL.rows("waiting", WaitingLogin)
ANSWER = SQL.optional("answer", UUID)
TAKE = SQL.rows("take", LoginRights)


@dataclass(frozen=True)
class NewLoginSecret:
    """What `skerry login` gets: its secret, the code to type, and when both expire."""

    secret: str
    code: str
    ends_at: datetime


class SignIns:
    """Makes and accepts codes."""

    def __init__(self, held: Sessions, clock: Clock, lookups: Database, writes: Database) -> None:
        self._sessions = held
        self._clock = clock
        self._writes = writes
        known = SignedInPlaces(lookups, clock).has
        self._tries = Guesses("codes", *TRIES, clock.monotonic, known)
        self.answers = Guesses("answers of the provider", *ANSWERS, clock.monotonic, known)
        """Counts the answers that browsers bring from the OpenID provider."""
        self._begins = Guesses("logins", *BEGINS, clock.monotonic, known)
        self._made = Guesses("codes of `skerry console`", *MADE, clock.monotonic, known)
        self._hashing = ThreadPoolExecutor(HASHED_AT_ONCE, "skerry-codes")

        async def find(ids: list[str]) -> dict[str, LoginRow]:
            return {row.id: row for row in await lookups.read(lambda conn: conn.fetch(LOGINS, ids))}

        self._logins = Lookups("logins", find)

    # A browser, with a code of `skerry console`

    async def make_code(self, scope: Scope, operator: Principal) -> tuple[str, datetime]:
        """Make a code by which a browser is signed in as the operator that asks; return it and its end.

        Raises: AuthError; ProblemError too_many_tries.
        """
        auth.refuse_exchanged(operator)
        await self._made.take(operator.id, known=True)
        code = new_code()
        code_hash = await self._hashed(code)
        now = self._clock.now()
        made_at, stays = (None, False) if operator.since is None else (operator.since.made_at, operator.since.stays)

        async def work(conn: Connection) -> None:
            await auth.refuse_changed(conn, operator)
            await sessions.refuse_signed_out(conn, operator)
            await conn.execute(SQL["add_code"], code_hash, operator.id, now, made_at, stays)
            await self._record(conn, scope, operator, "code.create", operator.name)

        await self._writes.transaction(work)
        return shown(code), now + CODE_LIFE

    async def use_code(self, scope: Scope, typed: str, *, stays: bool) -> str:
        """Begin a session of the console with a code, and return its secret.

        Raises: AuthError, when the code isn't valid; ProblemError too_many_tries.
        """
        code = read_code(typed)
        tried = await self._tries.take(auth.address(scope))
        if code is None:
            raise _wrong_code("malformed")
        code_hash = await self._hashed(code)

        async def work(conn: Connection) -> str:
            now = self._clock.now()
            used = await conn.fetchrow(USE_CODE, code_hash, now, now - CODE_LIFE)
            if used is None:
                raise _wrong_code("code_unknown")
            operator = await self._sessions.principal(used.operator_id)
            since = None if used.signed_in_at is None else Since(used.signed_in_at, used.stays)
            return await self._sessions.add(conn, scope, operator, "console", "code", stays=stays, since=since)

        secret = await self._writes.transaction(work)
        self._tries.give_back(tried)
        return secret

    # `skerry login`, with a code that is typed in a browser

    async def begin_login(self, scope: Scope, machine: str) -> NewLoginSecret:
        """Begin a login; anybody may. Raises: ProblemError too_many_tries."""
        await self._begins.take(auth.address(scope))
        token, code, now = tokens.new_token("login"), new_code(), self._clock.now()
        row = token.id, token.secret_hash, code, machine, auth.address(scope), now
        await self._writes.transaction(lambda conn: conn.execute(SQL["begin_login"], *row))
        return NewLoginSecret(token.text, shown(code), now + LOGIN_LIFE)

    async def find_login(self, scope: Scope, typed: str) -> WaitingLogin:
        """Find the login with a code, for whoever is signed in. Raises: ProblemError unknown_login, too_many_tries."""
        tried = await self._tries.take(auth.address(scope), known=True)
        code, since = read_code(typed), self._clock.now() - LOGIN_LIFE
        found = [] if code is None else await self._writes.read(lambda conn: conn.fetch(WAITING, code, since))
        if len(found) != 1:
            raise ProblemError(
                "unknown_login",
                f"no login waits with this code: it is good for {LOGIN_LIFE.total_seconds() / 60:.0f} minutes and for "
                "once. Run `skerry login` again",
                field="code",
            )
        self._tries.give_back(tried)
        return found[0]

    async def answer_login(self, scope: Scope, id: str, session: ConsoleSession, *, allow: bool) -> None:
        """Allow a login as the signed-in operator, or refuse it. Raises: ProblemError unknown_login."""
        operator, now = session.operator, self._clock.now()
        if not tokens.ID.fullmatch(id) or operator.since is None:
            raise ProblemError("unknown_login", "this form isn't of a login")
        since = operator.since

        async def work(conn: Connection) -> None:
            await auth.refuse_changed(conn, operator)
            await sessions.refuse_signed_out(conn, operator)
            given = (operator.id, operator.signed_in["by"], since.made_at, since.stays) if allow else (None,) * 4
            if await conn.fetchval(ANSWER, id, now, *given) is None:
                raise ProblemError("unknown_login", "this login was answered before: run `skerry login` again")
            action = "login.allow" if allow else "login.refuse"
            await self._record(conn, scope, operator, action, operator.name)

        await self._writes.transaction(work)

    async def take_login(self, scope: Scope, secret: str) -> tuple[str, Principal, datetime]:
        """Return what an allowed `skerry login` gets: its session's secret, whose it is, and when it ends.

        Raises: ProblemError login_pending, login_refused or login_ended; AuthError, when there is no such login.
        """
        parsed = tokens.parse("login", secret)
        row = None if parsed is None else await self._logins.find(parsed[0])
        if parsed is None or row is None or not tokens.same(row.secret_hash, parsed[1]):
            raise AuthError("credentials_invalid", "there is no such login: run `skerry login` again", "login_unknown")
        if row.given_at is not None or self._clock.now() >= row.made_at + LOGIN_LIFE:
            raise ProblemError(
                "login_ended", "nobody allowed it in time, or it was given before; run `skerry login` again"
            )
        if row.answered_at is None:
            raise ProblemError("login_pending", f"nobody has allowed it yet; ask again in {INTERVAL} s")
        if row.operator_id is None:
            raise ProblemError("login_refused", "whoever typed its code refused it")
        id = row.id

        async def work(conn: Connection) -> tuple[str, Principal]:
            taken = await conn.fetchrow(TAKE, id, self._clock.now())
            if taken is None:
                raise ProblemError("login_ended", "it was given before; run `skerry login` again")
            operator = await self._sessions.principal(taken.operator_id)
            since = None if taken.signed_in_at is None else Since(taken.signed_in_at, taken.stays)
            by = sessions.signed_in_by(taken.signed_in_by)
            return await self._sessions.add(conn, scope, operator, "cli", by, since=since), operator

        text, operator = await self._writes.transaction(work)
        return text, operator, await self._sessions.end_of(text)

    async def stop(self) -> None:
        """Cancel the running look-up."""
        await self._logins.stop()
        self._hashing.shutdown(wait=False, cancel_futures=True)

    async def _hashed(self, code: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._hashing, hash_code, code)

    async def _record(self, conn: Connection, scope: Scope, operator: Principal, action: str, target: str) -> None:
        actor = auth.actor(scope, operator.name)
        details = {"session": dict(operator.signed_in)} if operator.signed_in else {}
        await audit_log.record(conn, self._clock.now(), actor, action, target, details)


def new_code() -> str:
    """Make a code, without the hyphen that it is shown with."""
    return "".join(secrets.choice(LETTERS) for _ in range(LENGTH))


def shown(code: str) -> str:
    """Return a code as people read it."""
    return f"{code[:4]}-{code[4:]}"


def read_code(typed: str) -> str | None:
    """Read a code as somebody typed it, in any case and with any hyphens and spaces; None if it can't be one."""
    code = re.sub(r"[\s-]", "", typed[:100]).upper()
    return code if len(code) == LENGTH and all(letter in LETTERS for letter in code) else None


def hash_code(code: str) -> str:
    """Return what is stored of a code, in 50 ms: too slow to try all codes while one is good."""
    return hashlib.scrypt(code.encode(), salt=b"skerry sign-in code", n=2**14, r=8, p=1, dklen=32).hex()


def _wrong_code(reason: str) -> AuthError:
    return AuthError(
        "credentials_invalid",
        f"no such code is good: one is for {CODE_LIFE.total_seconds() / 60:.0f} minutes and for once. "
        "`skerry console` makes another",
        reason,
    )
