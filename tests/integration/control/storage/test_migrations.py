"""`skerry migrate`: repeatable, refuses what it doesn't know, and makes the first admin once."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from control import tokens
from control.cli import migrate
from control.cli.support.client import Failure
from control.clock import SystemClock
from control.storage import database, migrations
from control.storage.database import Database
from control.storage.migrations import SchemaError
from tests.support.services import ServerUrls, is_cockroachdb

ROOT = Path(__file__).parents[4]
CLOCK = SystemClock()


@pytest.fixture
async def db(empty_database_url: str) -> AsyncIterator[Database]:
    found = await database.connect(empty_database_url)
    yield found
    await found.close()


async def execute(db: Database, sql: str, *values: Any) -> Any:
    return await db.transaction(lambda conn: conn.fetch(sql, *values))


async def test_it_applies_everything_once(db: Database) -> None:
    with pytest.raises(SchemaError, match="run `skerry migrate`"):
        await migrations.check(db)
    wanted = migrations.migrations(cockroachdb=await db.read(is_cockroachdb))
    assert await migrations.migrate(db, CLOCK) == [m.name for m in wanted]
    await migrations.check(db)
    assert await migrations.migrate(db, CLOCK) == []
    assert [row["name"] for row in await execute(db, "SELECT name FROM groups")] == ["default"]
    [row] = await execute(db, "SELECT epoch, generation FROM epochs CROSS JOIN generations")
    assert (row["epoch"], row["generation"]) == (0, 0)


@pytest.mark.never_retry
async def test_it_goes_on_after_a_kill_between_any_two_statements(db: Database) -> None:
    [first, *_] = migrations.migrations(cockroachdb=False)
    for statement in first.statements[: len(first.statements) // 2]:
        await execute(db, statement)
    assert first.name in await migrations.migrate(db, CLOCK)
    await migrations.check(db)


async def test_another_text_of_a_file_is_refused(db: Database) -> None:
    await migrations.migrate(db, CLOCK)
    await execute(db, "UPDATE migrations SET checksum = 'x'")
    for refuse in (migrations.check(db), migrations.migrate(db, CLOCK)):
        with pytest.raises(SchemaError, match="another text"):
            await refuse


FUTURE = "INSERT INTO migrations VALUES ($1, 'x', $2)"


async def test_a_newer_schema_that_only_adds_is_served_on(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    await migrations.migrate(db, CLOCK)
    for name in ("schema/9998_future.sql", "cockroachdb/9999_future.sql"):
        await execute(db, FUTURE, name, CLOCK.now())
    with caplog.at_level("INFO"):
        await migrations.check(db)
    assert "newer version of skerry: cockroachdb/9999_future.sql, schema/9998_future.sql" in caplog.text
    assert await migrations.migrate(db, CLOCK) == []


@pytest.mark.parametrize("folder", ["schema", "cockroachdb"])
async def test_a_newer_schema_that_needs_a_newer_version_is_refused(db: Database, folder: str) -> None:
    await migrations.migrate(db, CLOCK)
    own = sum(migration.name.startswith("schema/") for migration in migrations.migrations(cockroachdb=False))
    await execute(db, FUTURE, f"{folder}/9998_future.needs-{own:04}.sql", CLOCK.now())
    await migrations.check(db)
    await execute(db, FUTURE, f"{folder}/9999_future.needs-{own + 1:04}.sql", CLOCK.now())
    for refuse in (migrations.check(db), migrations.migrate(db, CLOCK)):
        with pytest.raises(SchemaError, match=r"9999_future.*can't serve.*use the newer version"):
            await refuse


async def test_the_first_admin_is_made_once_and_can_be_made_again(db: Database) -> None:
    await migrations.migrate(db, CLOCK)
    token = await migrations.make_admin(db, CLOCK)
    assert token is not None
    parsed = tokens.parse("operator", token)
    [row] = await execute(db, "SELECT id::text AS id, name, role, secret_hash FROM operators")
    assert parsed == (row["id"], row["secret_hash"])
    assert (row["name"], row["role"]) == ("admin", "admin")
    assert await migrations.make_admin(db, CLOCK) is None
    await execute(db, "UPDATE operators SET role = 'read', grants = '[]', expires_at = $1", CLOCK.now())
    again = await migrations.make_admin(db, CLOCK, again=True)
    assert again is not None
    assert again != token
    [row] = await execute(db, "SELECT id::text AS id, secret_hash FROM operators")
    assert tokens.parse("operator", again) == (row["id"], row["secret_hash"])
    [row] = await execute(db, "SELECT values_before, values_after FROM audit WHERE action = 'operator.renew'")
    assert (row["values_before"]["role"], row["values_before"]["grants"]) == ("read", [])
    assert row["values_after"] == {"role": "admin", "grants": None, "expires_at": None}


async def test_what_cockroachdb_alone_knows_is_for_it_alone(db: Database) -> None:
    both = [m.name for m in migrations.migrations(cockroachdb=False)]
    names = [m.name for m in migrations.migrations(cockroachdb=True)]
    assert names[: len(both)] == both
    assert names[len(both) :]
    assert all(name.startswith("cockroachdb/") for name in names[len(both) :])
    assert await migrations.migrate(db, CLOCK) == (names if await db.read(is_cockroachdb) else both)


async def test_unused_rejoin_tokens_get_their_node_or_end(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may be another node's by now; a token from before its node joined, or was revoked, ends."""
    every = migrations.migrations

    def earlier(*, cockroachdb: bool) -> list[migrations.Migration]:
        known = every(cockroachdb=cockroachdb)
        return [m for m in known if m.name < "cockroachdb/0004" or "schema/" <= m.name < "schema/0010"]

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "migrations", earlier)
        await migrations.migrate(db, CLOCK)
    await execute(
        db,
        "INSERT INTO operators (name, role, secret_hash, created_at, revoked_at) VALUES ('gone', 'admin', '', $1, $1)",
        CLOCK.now(),
    )
    early, joined, late = (CLOCK.now() + timedelta(minutes=minutes) for minutes in (-9, -6, -3))
    node = (
        "INSERT INTO nodes (name, group_id, state, state_since, joined_at) SELECT $1, id, 'online', $2, $2 FROM groups"
    )
    token = """
        INSERT INTO join_tokens (secret_hash, group_id, created_by, created_at, expires_at, rejoin)
        SELECT $1, id, $2, $3, $3::timestamptz + INTERVAL '1 day', $4 FROM groups
    """
    credential = """
        INSERT INTO credentials (node_id, secret_hash, created_at, revoked_at) SELECT id, '', $2, $3 FROM nodes
        WHERE name = $1
    """
    use = """
        UPDATE join_tokens SET attempt = 'a', used_at = $3, node_id = (SELECT id FROM nodes WHERE name = $2)
        WHERE secret_hash = $1
    """
    for name in ("n1", "revoked", "rotated", "removed"):
        await execute(db, node, name, joined)
    await execute(db, "UPDATE nodes SET removed_at = $1 WHERE name = 'removed'", late)
    await execute(db, credential, "revoked", joined, CLOCK.now())
    # A credential that ended before the token was made is nothing that has happened since.
    await execute(db, credential, "rotated", joined, joined)
    for name in ("n1", "rotated"):
        await execute(db, credential, name, joined, None)
    for case, operator, at, rejoin in (
        ("bound", "admin", late, "n1"),
        ("bound after a rotation", "admin", late, "rotated"),
        ("before the node", "admin", early, "n1"),
        ("node revoked", "admin", late, "revoked"),
        ("node removed", "admin", late, "removed"),
        ("no such node", "admin", late, "n2"),
        ("no rejoin", "admin", late, None),
        ("operator revoked", "gone", late, None),
        ("used", "admin", late, "n1"),
        ("used by one that was revoked", "admin", late, None),
    ):
        await execute(db, token, case, operator, at, rejoin)
    for case, name in (("used", "n1"), ("used by one that was revoked", "revoked")):
        await execute(db, use, case, name, late)
    await migrations.migrate(db, CLOCK)
    rows = await execute(
        db,
        """SELECT t.secret_hash, n.name, t.revoked_at IS NOT NULL AS revoked FROM join_tokens t
        LEFT JOIN nodes n ON n.id = t.rejoin_node""",
    )
    assert {row["secret_hash"]: (row["name"], row["revoked"]) for row in rows} == {
        "bound": ("n1", False),
        "bound after a rotation": ("rotated", False),
        "before the node": (None, False),
        "node revoked": (None, False),
        "node removed": (None, False),
        "no such node": (None, False),
        "no rejoin": (None, False),
        "operator revoked": (None, True),
        "used": (None, False),
        "used by one that was revoked": (None, True),
    }


@pytest.mark.parametrize("owns", [True, False])
async def test_the_user_of_the_guide_may_do_what_is_needed(services: ServerUrls, owns: bool) -> None:
    """The statements of docs/how-to/set-up-control.md, to the letter; and what is said where all rights were granted to
    the database in the place of the last one."""
    server = services.past_proxy(services.metadata_url, "users and databases stay where the server is somebody's")
    page = (ROOT / "docs" / "how-to" / "set-up-control.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n( *CREATE DATABASE.*?)```", page, re.DOTALL)
    name = f"guide_{uuid4().hex[:12]}"
    *made, given = [line.strip().replace("skerry", name) for line in block.splitlines() if line.strip()]
    admin = await asyncpg.connect(server)
    try:
        for statement in (*made, given if owns else f"GRANT ALL ON DATABASE {name} TO {name}"):
            await admin.execute(statement)
        parts = urlsplit(server)
        url = parts._replace(netloc=f"{name}:…@{parts.netloc.rpartition('@')[2]}", path=f"/{name}").geturl()
        if owns:
            applied, token = await migrate.run(url, None)
            assert applied
            assert token
        else:
            with pytest.raises(Failure, match="permission denied for schema public") as failed:
                await migrate.run(url, None)
            assert "OWNER TO" in failed.value.cure
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name}")
        await admin.execute(f"DROP USER IF EXISTS {name}")
        await admin.close()
