"""Requirement 7.4: who isn't let in is refused and recorded, and no secret with it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import orjson

from control import tokens
from control.protocol import wire
from tests.guests.version import version
from tests.support import deploy, repeating
from tests.support.clock import SetClock
from tests.support.deploy import code, ok
from tests.support.programs import control_program, until
from tests.support.replica import Replica, Site, TestNode
from tests.support.tokens import ask, failures, other_secret, secret_of


async def test_r7_4_a_refusal_is_recorded_and_a_flood_is_a_number(
    replica: Replica, clock: SetClock, metadata: asyncpg.Connection
) -> None:
    node = await replica.join("one")
    wrong = other_secret(node.credential)
    started = clock.time = clock.time.replace(second=1, microsecond=0)
    answer = await ask(replica, wrong)
    assert (answer.status, answer.headers["connection"]) == (401, "close")

    async def rows() -> list[dict[str, Any]]:
        await repeating.saved(replica.services.failures.flush)
        found = await metadata.fetch(
            "SELECT minute, address, reason, count, first_at, last_at FROM auth_failures ORDER BY reason, minute"
        )
        shown = await deploy.items(replica, "/v1/auth-failures")
        assert len(shown) == len(found)
        return [dict(row) for row in found]

    minute = started.replace(second=0, microsecond=0)
    one = {"minute": minute, "address": "127.0.0.1", "first_at": started, "last_at": started, "count": 1}
    assert await rows() == [one | {"reason": "wrong_secret"}]
    # In the same minute, a hundred more are one row.
    clock.time = minute + timedelta(seconds=59)
    limit = asyncio.Semaphore(20)

    async def flood() -> int:
        async with limit:
            return (await ask(replica, wrong)).status

    assert set(await asyncio.gather(*(flood() for _ in range(100)))) == {401}
    many = one | {"count": 101, "last_at": clock.time}
    assert await rows() == [many | {"reason": "wrong_secret"}]
    # Another minute, another reason: rows of their own.
    clock.advance(60)
    await ask(replica, wrong)
    await replica.call("GET", "/v1/nodes", token="")
    found = await rows()
    assert [(row["reason"], row["count"], row["minute"]) for row in found] == [
        ("missing", 1, minute + timedelta(minutes=1)),
        ("wrong_secret", 101, minute),
        ("wrong_secret", 1, minute + timedelta(minutes=1)),
    ]
    # Through all of it, who has the right one gets an answer.
    assert (await node.poll()).status == 204


async def test_r7_4_an_operator_is_refused_what_the_role_does_not_allow(
    live: Replica, metadata: asyncpg.Connection
) -> None:
    tokens = {
        role: (await ok(live, "POST", "/v1/operators", {"name": role, "role": role}))["token"]
        for role in ("read", "deploy")
    } | {"admin": live.admin}
    await live.join("one")
    await deploy.push(live, "show", version(1), sql="read")
    calls: tuple[tuple[str, str, str, Any], ...] = (
        ("read", "GET", "/v1/nodes", None),
        ("read", "GET", "/v1/releases", None),
        ("read", "GET", "/v1/syncs", None),
        ("deploy", "POST", "/v1/groups", {"name": "group"}),
        ("deploy", "POST", "/v1/schema-changes", {"name": "a", "sql": "CREATE TABLE a (x)"}),
        ("deploy", "POST", "/v1/releases", {"functions": {"show": 1}, "now": True}),
        ("deploy", "POST", "/v1/nodes/one/move", {"group": "group"}),
        ("deploy", "POST", "/v1/nodes/one/retry", None),
        ("deploy", "DELETE", "/v1/functions/show?release=true", None),
        ("admin", "GET", "/v1/audit", None),
        ("admin", "GET", "/v1/auth-failures", None),
        ("admin", "GET", "/v1/operators", None),
        ("admin", "POST", "/v1/join-tokens", {}),
        ("admin", "POST", "/v1/operators", {"name": "new", "role": "read"}),
        ("admin", "DELETE", "/v1/operators/read", None),
        ("admin", "POST", "/v1/nodes/one/revoke", None),
        ("admin", "DELETE", "/v1/nodes/one", None),
    )
    roles = ("read", "deploy", "admin")
    refusals = 0
    for needed, method, path, body in calls:
        for role in roles[: roles.index(needed)]:
            answer = await live.call(method, path, body, token=tokens[role])
            assert (answer.status, code(answer)) == (403, "role_insufficient"), (role, method, path)
            refusals += 1
    assert await metadata.fetchval("SELECT count(*) FROM releases") == 0
    assert await metadata.fetchval("SELECT count(*) FROM nodes WHERE removed_at IS NULL") == 1
    assert (await failures(live))["role_insufficient"] == refusals
    # Each with no more than the role that it needs.
    for needed, method, path, body in calls:
        answer = await live.call(method, path, body, token=tokens[needed])
        assert 200 <= answer.status < 300, (needed, method, path, answer)
    # A revoked operator is refused everything.
    assert (await live.call("GET", "/v1/nodes", token=tokens["read"])).status == 401
    audit = await deploy.items(live, "/v1/audit")
    operators = {entry["actor"] for entry in audit if entry["actor_kind"] == "operator"}
    assert operators == {"admin", "deploy"}


async def test_r7_4_no_secret_is_in_a_log_a_row_or_an_error(
    control_site: Site, metadata: asyncpg.Connection, tmp_path: Path
) -> None:
    secrets: dict[str, str] = {"of the admin": secret_of(control_site.admin)}
    answers: list[bytes] = []
    async with control_program(control_site, tmp_path / "control") as (program, control):

        async def refused(method: str, path: str, token: str, body: Any = None) -> None:
            answer = await control.call(method, path, body, token=token)
            assert answer.status == 401, answer
            answers.append(answer.body + orjson.dumps(answer.headers))

        operator = (await ok(control, "POST", "/v1/operators", {"name": "watcher", "role": "read"}))["token"]
        joins = (await ok(control, "POST", "/v1/join-tokens", {}))["token"]
        unused = (await ok(control, "POST", "/v1/join-tokens", {}))["token"]
        joined = await ok(control, "POST", "/v1/nodes", wire.Join("one", str(uuid4())), token=joins)
        node = TestNode(control, joined["node_id"], joined["credential"])
        await node.poll()
        rotated = (await ok(control, "POST", "/v1/nodes/self/credential", token=node.credential))["credential"]
        secrets |= {
            "of an operator": secret_of(operator),
            "of a join token": secret_of(joins),
            "of an unused join token": secret_of(unused),
            "of a node": secret_of(node.credential),
            "of a rotated node": secret_of(rotated),
            "of the database": str(urlsplit(control_site.settings.metadata_url).password),
            "of the store": control_site.settings.store_address().secret,
        }
        for number, token in enumerate((control_site.admin, operator, joins, node.credential)):
            wrong = other_secret(token)
            secrets[f"wrong {number}"] = secret_of(wrong)
            await refused("POST", "/v1/poll", wrong, wire.Poll(generation=0, digest=wire.digest(wire.Inventory())))
            await refused("GET", "/v1/nodes", wrong)
            await refused("POST", "/v1/nodes", wrong, wire.Join("two", str(uuid4())))
        # A used one, one that is for something else, one in the wrong place, and a body that is wrong.
        await refused("POST", "/v1/nodes", joins, wire.Join("thief", str(uuid4())))
        await refused("GET", "/v1/nodes", node.credential)
        for path in (f"/v1/nodes/{operator}", f"/v1/functions?cursor={unused}"):
            assert (await control.call("GET", path)).status == 422
        answers.append((await control.call("POST", "/v1/join-tokens", {"group": 7}, token=control.admin)).body)
        began = datetime.now(UTC)
        # As kept, with what is refused: flushed each second.

        async def recorded() -> bool:
            return await metadata.fetchval("SELECT count(DISTINCT reason) FROM auth_failures") >= 3

        await until(recorded, "the refusals are recorded")
        assert abs((await metadata.fetchval("SELECT max(last_at) FROM auth_failures") - began).total_seconds()) < 60
        assert {row["address"] for row in await metadata.fetch("SELECT address FROM auth_failures")} == {"127.0.0.1"}
        await program.stop()
    log = program.text()
    assert "control serves on" in log
    rows = {name: text async for name, text in _dump(metadata)}
    # The search finds what is there.
    assert joined["node_id"] in rows["nodes"]
    assert tokens.hash_secret(secrets["of a node"]) in rows["credentials"]
    for whose, secret in secrets.items():
        for name, text in _haystacks(log, rows, answers):
            assert secret not in text, f"the secret {whose} is in {name}"


def _haystacks(log: str, rows: dict[str, str], answers: list[bytes]) -> Iterator[tuple[str, str]]:
    yield "the log", log
    for table, text in rows.items():
        yield f"the table {table}", text
    for answer in answers:
        yield "an answer", answer.decode()


async def _dump(metadata: asyncpg.Connection) -> AsyncIterator[tuple[str, str]]:
    """All tables of the metadata database, as text."""
    tables = await metadata.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        rows = await metadata.fetch(f'SELECT t::text FROM "{table}" AS t')
        yield table, "\n".join(row[0] for row in rows)
