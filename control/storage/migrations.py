"""Bringing the metadata database to this version's schema, and refusing to serve on another one."""

import hashlib
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from control.api import auth
from control.clock import Clock
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.database import Database

log = logging.getLogger("skerry.migrate")
SQL = queries.load("migrate")


class SchemaError(Exception):
    """The database has another schema than this version of control; the message says what to do."""


@dataclass(frozen=True)
class Migration:
    """One file of sql/schema or sql/cockroachdb."""

    name: str
    checksum: str
    statements: tuple[str, ...]


def statements(text: str) -> tuple[str, ...]:
    """The statements of a file of ours: each ends with a semicolon at a line's end, comments have their own lines."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return tuple(part.strip() for part in code.split(";\n") if part.strip(" \n;"))


def migrations(*, cockroachdb: bool) -> list[Migration]:
    """What this version of control needs, in order."""
    folders = ["schema", "cockroachdb"] if cockroachdb else ["schema"]
    return [
        Migration(f"{folder}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest(), statements(_text(path)))
        for folder in folders
        for path in sorted((queries.folder() / folder).glob("*.sql"))
    ]


async def migrate(db: Database, clock: Clock) -> list[str]:
    """Apply what is missing and return its names; safe to run again, also after a kill. Raises `SchemaError`.

    Each statement by itself, since CockroachDB commits DDL as it comes, and each such that it may be repeated.
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
    await db.transaction(lambda conn: conn.execute(SQL["default_group"], clock.now()))
    return done


async def check(db: Database) -> None:
    """Raises `SchemaError` unless the database has exactly this version's schema."""
    _compare(await _applied(db), migrations(cockroachdb=await _is_cockroachdb(db)), missing_is_wrong=True)


async def make_admin(db: Database, clock: Clock, *, name: str = "admin", again: bool = False) -> str | None:
    """Make the first operator, an admin, and return its token, which is kept nowhere; None where there is an admin.

    With `again`, an admin called `name` is made or gets a new token in any case: for who lost the last one.
    """

    async def work(conn: Any) -> str | None:
        if not again and await conn.fetchval(SQL["admins"]):
            return None
        token = auth.new_token("operator", await conn.fetchval(SQL["operator_id"], name))
        await conn.execute(SQL["put_admin"], token.id, name, token.secret_hash, clock.now())
        await conn.execute(SQL["audit_admin"], uuid.uuid4(), clock.now(), name)
        await Changed(operators={str(token.id)}).announce(conn)
        return token.text

    return await db.transaction(work)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") + "\n"


async def _is_cockroachdb(db: Database) -> bool:
    return "CockroachDB" in await db.read(lambda conn: conn.fetchval(SQL["server"]))


async def _applied(db: Database) -> dict[str, str]:
    try:
        rows = await db.read(lambda conn: conn.fetch(SQL["applied"]))
    except asyncpg.UndefinedTableError:
        return {}
    return {row["name"]: row["checksum"] for row in rows}


def _compare(applied: dict[str, str], wanted: list[Migration], *, missing_is_wrong: bool) -> None:
    unknown = sorted(applied.keys() - {migration.name for migration in wanted})
    if unknown:
        raise SchemaError(
            f"the metadata database has {', '.join(unknown)}, which this version of skerry doesn't know: "
            "it was migrated by a newer one; use that version"
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
