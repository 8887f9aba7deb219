"""People whom an OpenID provider knows. Each is an operator without a token, identified by issuer and subject.

At each sign-in it gets the rights of the groups that the provider names, and it expires no later than its newest
session. Somebody whose groups have no grants loses all rights.
"""

import hashlib
import re
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from starlette.types import Scope

from control.access import auth, join_tokens, rights
from control.access.auth import AuthError, Principal
from control.access.openid_provider import Person
from control.access.sessions import Sessions
from control.clock import Clock
from control.protocol.counts import counted
from control.settings import ControlSettings
from control.storage import access_changes, audit_log, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.fleet_cache import FleetCache


class PersonRow(NamedTuple):
    """An operator that a provider knows, as stored."""

    id: UUID
    name: str
    role: str
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    shown_name: str


SQL = queries.load("people")
FOUND = SQL.rows("found", PersonRow)


class People:
    """Signs in people whom the provider vouches for."""

    def __init__(
        self, held: Sessions, fleet: FleetCache, clock: Clock, writes: Database, settings: ControlSettings
    ) -> None:
        self._sessions = held
        self._fleet = fleet
        self._clock = clock
        self._writes = writes
        self._life = timedelta(seconds=settings.session_life)

    async def sign_in(self, scope: Scope, person: Person) -> str:
        """Begin a session of the console for somebody, and return its secret.

        Raises: AuthError, when the operator was revoked, or none of the person's groups has grants here.
        """
        secret = await self._writes.transaction(lambda conn: self._write(conn, scope, person))
        await self._fleet.announced()
        if secret is None:
            raise AuthError(
                "role_insufficient",
                f"{person.name} is in no group that may anything here (told: {counted(person.groups, 'group')}): the "
                "file SKERRY_OIDC_GRANTS says which groups may what",
                "provider_groups",
            )
        return secret

    async def _write(self, conn: Connection, scope: Scope, person: Person) -> str | None:
        now, may = self._clock.now(), bool(person.rights.grants)
        row = await conn.fetchrow(FOUND, person.issuer, person.subject)
        if row is None and not may:
            return None
        if row is not None and row.revoked_at is not None:
            raise AuthError("credentials_invalid", f"{row.name} was revoked here, by an admin", "revoked")
        id, name = (uuid4(), name_of(person)) if row is None else (row.id, row.name)
        actor = auth.actor(scope, name)
        # Expires with the newest session, or immediately if nothing is allowed any more.
        ends_at = now + self._life if may else now
        if may and row is not None and row.expires_at is not None:
            ends_at = max(ends_at, row.expires_at)
        column, role = rights.to_rows(person.rights), rights.old_role(person.rights)
        who = {"issuer": person.issuer, "subject": person.subject, "name": person.name}
        after = {"grants": [str(grant) for grant in person.rights.grants]}
        if row is None:
            await conn.execute(
                SQL["add"], id, name, role, column, ends_at, now, person.issuer, person.subject, person.name
            )
            await audit_log.record(conn, now, actor, "operator.create", name, {"id": str(id), **who}, after=after)
        else:
            await conn.execute(SQL["change"], id, role, column, ends_at, person.name)
            held = rights.of_row(row.role, row.grants)
            if held != person.rights:
                await join_tokens.end_of_operator(conn, name, now)
                told = {"role": role, "grants": column, "expires_at": ends_at}
                await access_changes.record(conn, now, "operator-changed", id, told)
                before = {"grants": [str(grant) for grant in held.grants]}
                await audit_log.record(conn, now, actor, "operator.change", name, who, before=before, after=after)
        secret = None
        if may:
            principal = Principal(str(id), name, person.rights, ends_at)
            secret = await self._sessions.add(conn, scope, principal, "console", "provider", details=who)
        changed = Changed()
        changed.operators.add(str(id))
        await changed.announce(conn)
        return secret


def name_of(person: Person) -> str:
    """Make the operator's name from the person's name at their first sign-in, and from their identity, which decides.

    So nobody gets another operator's name by choosing that name at the provider.
    """
    called = re.sub(r"[^a-z0-9]+", "-", person.name.partition("@")[0].lower())[:40].strip("-") or "person"
    digest = hashlib.sha256(f"{person.issuer}\0{person.subject}".encode()).hexdigest()
    return f"{called}-{digest[:12]}"
