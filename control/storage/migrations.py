"""Migration of the metadata database to this version's schema, and refusal of incompatible ones (ADR 54)."""

import hashlib
import logging
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from control import tokens
from control.clock import Clock
from control.storage import access_changes, audit_log, queries
from control.storage.announcements import Changed
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database

log = logging.getLogger("skerry.migrate")

_NEEDS = re.compile(r"\.needs-(\d{4})\.sql$")


class AppliedFile(NamedTuple):
    """A file whose statements have been run, and the sha256 of its text."""

    name: str
    checksum: str


class KnownOperator(NamedTuple):
    """An operator that exists already."""

    id: UUID
    role: str
    grants: list[dict[str, Any]] | None
    expires_at: datetime | None


SQL = queries.load("migrate")
ACTOR = Actor("control", "migrate")
SERVER = SQL.value("server", str)
APPLIED = SQL.rows("applied", AppliedFile)
ADMINS = SQL.value("admins", int)
OPERATOR = SQL.rows("operator", KnownOperator)
OPERATORS = queries.load("operators")
FREE_NAME = OPERATORS.value("free_name", str)


class SchemaError(Exception):
    """This version of control can't serve on the database's schema; the message says what to do."""


@dataclass(frozen=True)
class Migration:
    """One file of sql/schema or sql/cockroachdb."""

    name: str
    checksum: str
    statements: tuple[str, ...]


def needed(name: str) -> int:
    """Return the number of the sql/schema file that control must have to serve once the file `name` is applied.

    A file name that ends in `.needs-NNNN.sql` says so. Return 0 for all others: they only add, so any control can keep
    serving.
    """
    found = _NEEDS.search(name)
    return int(found[1]) if found else 0


def statements(text: str) -> tuple[str, ...]:
    """Return the statements of a file: each ends with a semicolon at a line's end; comments have their own lines."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return tuple(part.strip() for part in code.split(";\n") if part.strip(" \n;"))


def migrations(*, cockroachdb: bool) -> list[Migration]:
    """Return the files that this version of control needs, in the order in which they are applied."""
    folders = ["schema", "cockroachdb"] if cockroachdb else ["schema"]
    return [
        Migration(f"{folder}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest(), statements(_text(path)))
        for folder in folders
        for path in sorted((queries.folder() / folder).glob("*.sql"))
    ]


async def migrate(db: Database, clock: Clock) -> list[str]:
    """Apply the missing files and return their names. It may be run again, even after it was killed.

    Each statement runs separately, since CockroachDB commits DDL at once, and is written to be repeatable. Files of a
    newer version stay as they are. Raises: SchemaError, when this version can't serve on the database.
    """
    applied = await _applied(db)
    wanted = migrations(cockroachdb=await _is_cockroachdb(db))
    _compare(applied, wanted, missing_is_wrong=False)
    done = []
    for migration in wanted:
        if migration.name in applied:
            continue
        for statement in migration.statements:
            await db.alone(statement)
        await db.transaction(
            lambda conn, m=migration: conn.execute(SQL["record"], m.name, m.checksum, clock.now())  # type: ignore[misc]
        )
        log.info("applied %s", migration.name)
        done.append(migration.name)

    async def finish(conn: Connection) -> None:
        now = clock.now()
        if done:
            await audit_log.record(conn, now, ACTOR, "metadata.migrate", "schema", after={"files": done})
        if await conn.execute(SQL["default_group"], now) == "INSERT 0 1":
            await audit_log.record(conn, now, ACTOR, "group.create", "default")

    await db.transaction(finish)
    return done


async def check(db: Database) -> None:
    """Check the database's schema. Raises: SchemaError, when this version can't serve on it: a file is missing, or it
    has a newer file that needs a newer version."""
    newer = _compare(await _applied(db), migrations(cockroachdb=await _is_cockroachdb(db)), missing_is_wrong=True)
    if newer:
        log.info("the metadata database has files of a newer version of skerry: %s", ", ".join(newer))


async def make_admin(db: Database, clock: Clock, *, name: str = "admin", again: bool = False) -> str | None:
    """Make the first operator, an admin, and return its token, which isn't stored; None if there is an admin.

    With `again`, the admin `name` is made or gets a new token in any case, for a token that was lost.
    """

    async def work(conn: Connection) -> str | None:
        changed = Changed()
        if not again and await conn.fetchval(ADMINS) > 0:
            return None
        known, now = await conn.fetchrow(OPERATOR, name), clock.now()
        token = tokens.new_token("operator", None if known is None else known.id)
        rights: dict[str, Any] = {"role": "admin", "grants": None, "expires_at": None}
        if known is None:
            # The name may be that of a revoked operator, who stays revoked.
            changed.operators.update(await conn.column(FREE_NAME, name))
            await conn.execute(OPERATORS["forget_answers"], name)
            told = {"name": name, "hash": token.secret_hash, **rights}
            await access_changes.record(conn, now, "operator-made", token.id, told)
        else:
            # The previous token ends, and so do sessions signed in with it.
            told = {"hash": token.secret_hash, "old_ends_at": now}
            await access_changes.record(conn, now, "operator-renewed", known.id, told)
            await access_changes.record(conn, now, "operator-changed", known.id, rights)
        await conn.execute(SQL["put_admin"], token.id, name, token.secret_hash, now)
        action = "operator.create" if known is None else "operator.renew"
        before = None if known is None else dict(zip(known._fields[1:], known[1:], strict=True))
        details = {"id": str(token.id)}
        await audit_log.record(conn, now, ACTOR, action, name, details, before=before, after=rights)
        changed.operators.add(str(token.id))
        await changed.announce(conn)
        return token.text

    return await db.transaction(work)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") + "\n"


async def _is_cockroachdb(db: Database) -> bool:
    return "CockroachDB" in await db.read(lambda conn: conn.fetchval(SERVER))


async def _applied(db: Database) -> dict[str, str]:
    try:
        rows = await db.read(lambda conn: conn.fetch(APPLIED))
    except asyncpg.UndefinedTableError:
        return {}
    return {row.name: row.checksum for row in rows}


def _compare(applied: dict[str, str], wanted: list[Migration], *, missing_is_wrong: bool) -> list[str]:
    """Return the applied files that this version doesn't have. Raises: SchemaError."""
    newer = sorted(applied.keys() - {migration.name for migration in wanted})
    own = max(int(migration.name[7:11]) for migration in wanted if migration.name.startswith("schema/"))
    for name in newer:
        if needed(name) > own:
            raise SchemaError(
                f"the metadata database has {name}, with which this version of skerry can't serve: its own schema ends "
                f"with number {own:04}; use the newer version that migrated the database"
            )
    for migration in wanted:
        if migration.name not in applied:
            if missing_is_wrong:
                raise SchemaError(f"the metadata database lacks {migration.name}: run `skerry migrate` first")
        elif applied[migration.name] != migration.checksum:
            raise SchemaError(
                f"the metadata database was made with another text of {migration.name} than this version of skerry "
                "has: use the version that made it, or an empty database"
            )
    return newer
