"""Seals over the audit log on real servers: made by the monitor, cut by retention, checked by `skerry audit verify`."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from control.cli.main import run as cli
from control.clock import SystemClock
from control.storage import audit_log
from control.storage.audit_log import Actor
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site

Verify = Callable[..., Any]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Runs `skerry audit verify --json` against a replica; returns the JSON that it prints, of an error too."""

    async def run(replica: Replica, head: str = "") -> Any:
        monkeypatch.setenv("SKERRY_URL", replica.url)
        monkeypatch.setenv("SKERRY_CA", str(replica.ca))
        monkeypatch.setenv("SKERRY_TOKEN", replica.admin)
        capsys.readouterr()
        code = await asyncio.to_thread(cli, ["audit", "verify", "--json", "--head", head])
        out, err = capsys.readouterr()
        assert (code == 0) == bool(out), (code, out, err)
        return orjson.loads(out or err)

    return run


async def execute(replica: Replica, sql: str, *arguments: object) -> str:
    return await replica.services.db.transaction(lambda conn: conn.execute(sql, *arguments))


async def groups(replica: Replica, *names: str) -> None:
    for name in names:
        assert (await replica.call("POST", "/v1/groups", {"name": name})).status == 201


async def seals(replica: Replica) -> list[Any]:
    found: list[Any] = (await replica.call("GET", "/v1/audit/seals?limit=1000")).json()["items"]
    return found


async def test_the_monitor_seals_what_has_no_seal(control_site: Site, verify: Verify) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await groups(replica, "one", "two")
        assert (await verify(replica))["seals"] == 0
        passes = replica.services.monitor()
        assert await passes.tick()
        first = await verify(replica)
        assert first["seals"] == 1
        total = first["rows"]
        assert total >= 3
        await groups(replica, "three")
        # A row whose transaction took long has an earlier time than rows that are sealed.
        late = clock.now() - timedelta(minutes=5)
        await replica.services.db.transaction(
            lambda conn: audit_log.record(conn, late, Actor("control", "test"), "late", "row", {"half": 0.5})
        )
        clock.advance(31)
        assert await passes.seal(clock.now())
        second = await verify(replica, first["head"])
        assert (second["seals"], second["rows"]) == (2, total + 2)
        # Nothing new, no seal.
        assert await passes.seal(clock.now())
        assert (await verify(replica, second["head"])) == second


FAULTS = [
    ("DELETE FROM audit WHERE subject = 'two'", "removed"),
    ("UPDATE audit SET operator = 'eve' WHERE subject = 'two'", "changed or replaced"),
    ("UPDATE audit SET at = at + interval '1 microsecond' WHERE subject = 'two'", "changed or replaced"),
    ("UPDATE audit SET values_after = '{\"group\": \"three\"}' WHERE subject = 'two'", "changed or replaced"),
    ("UPDATE audit SET seal = 0 WHERE subject = 'two'", "removed"),
    ("UPDATE audit SET seal = 7 WHERE subject = 'two'", "removed"),
    (
        "INSERT INTO audit (id, at, operator, action, subject, seal) "
        "SELECT gen_random_uuid(), at, 'eve', 'group.create', 'three', seal FROM audit WHERE subject = 'two'",
        "added",
    ),
    (
        "INSERT INTO audit (id, at, operator, action, subject, seal) "
        "SELECT gen_random_uuid(), at, 'eve', 'group.create', 'three', -1 FROM audit WHERE subject = 'two'",
        "names seal -1, which isn't there",
    ),
    ("UPDATE audit_seals SET count = 1", "its hash is another one"),
    ("DELETE FROM audit_seals", "which isn't there"),
]
"""What somebody does to rows that have a seal, and what the check says to that."""


async def test_what_is_done_to_sealed_rows_shows(control_site: Site, verify: Verify) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        await groups(replica, "one")
        # Apart, so that another time doesn't show by another order.
        clock.advance(1)
        await groups(replica, "two")
        await replica.services.monitor().seal(replica.services.clock.now())
        sealed = await verify(replica)
        for table in ("audit", "audit_seals"):
            await execute(replica, f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
        for fault, wrong in FAULTS:
            await execute(replica, fault)
            told = (await verify(replica))["error"]
            assert (told["code"], told["exit"]) == ("audit_broken", 1), fault
            assert wrong in told["message"], fault
            for table in ("audit", "audit_seals"):
                await execute(replica, f"DELETE FROM {table}")
                await execute(replica, f"INSERT INTO {table} SELECT * FROM kept_{table}")
        assert await verify(replica) == sealed


async def test_the_head_shows_that_the_newest_rows_are_gone(control_site: Site, verify: Verify) -> None:
    async with control_site.running(clock=SetClock()) as replica:
        for name in ("one", "two"):
            await groups(replica, name)
            await replica.services.monitor().seal(replica.services.clock.now())
        head = (await verify(replica))["head"]
        await execute(replica, "DELETE FROM audit WHERE seal = 2")
        await execute(replica, "DELETE FROM audit_seals WHERE number = 2")
        await verify(replica)
        assert "no seal has the hash" in (await verify(replica, head))["error"]["message"]


async def test_a_head_that_is_none_is_no_fault_of_the_log(control_site: Site, verify: Verify) -> None:
    async with control_site.running(clock=SetClock()) as replica:
        told = (await verify(replica, "c0ffee"))["error"]
        assert (told["code"], told["exit"]) == ("usage", 2)
        assert "'c0ffee' is no head: it is 64 hex digits" in told["message"]


async def test_a_row_that_is_added_with_an_earlier_time_is_told(control_site: Site, verify: Verify) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        # The rows of the migration are as old as the tests' first database: none may be younger than what is added.
        await execute(replica, "UPDATE audit SET at = $1", clock.now() - timedelta(days=1))
        await groups(replica, "one")
        assert await replica.services.monitor().seal(clock.now())
        found = await verify(replica)
        assert (found["late"], found["unsealed"]) == (0, False)
        added = uuid4()
        insert = "INSERT INTO audit (id, at, operator, action, subject) VALUES ($1, {}, 'eve', 'group.create', 'three')"
        await execute(replica, insert.format("$2"), added, clock.now() - timedelta(minutes=11))
        await execute(replica, insert.format("'infinity'"), uuid4())
        assert (await verify(replica))["unsealed"], "nothing has put them under a seal"
        for more in ("two", "four"):
            assert await replica.services.monitor().seal(clock.now())
            found = await verify(replica)
            assert (found["late"], found["first_late"], found["unsealed"]) == (1, str(added), False)
            await groups(replica, more)


async def test_retention_cuts_whole_seals_at_the_start(control_site: Site, verify: Verify) -> None:
    # One pass is enough, however long the database takes.
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock, log_retention=86400.0) as replica:
        passes = replica.services.monitor()
        heads = []
        for name in ("one", "two", "three", "four"):
            await groups(replica, name)
            await passes.seal(clock.now())
            heads.append((await verify(replica))["head"])
            clock.advance(36000)
            await replica.services.fleet.refresh()  # what was read so long ago isn't believed any more
        # The first two are older than a day. A row that has no seal stays, however old it is.
        await replica.services.db.transaction(
            lambda conn: audit_log.record(conn, clock.now() - timedelta(days=9), Actor("control", "test"), "old", "row")
        )
        assert await passes.retention(clock.now())
        left = await seals(replica)
        assert [one["number"] for one in left] == [2, 3, 4]
        assert [one["cut_at"] is None for one in left] == [False, True, True]
        for head in heads[1:]:
            found = await verify(replica, head)
            assert (found["seals"], found["rows"], found["cut_until"]) == (3, 2, left[0]["last_at"])
        assert "no seal has the hash" in (await verify(replica, heads[0]))["error"]["message"]
        kept = {row["action"] for row in (await replica.call("GET", "/v1/audit")).json()["items"]}
        assert "old" in kept
        # Rows that somebody else removes at the start are missed.
        await execute(replica, "DELETE FROM audit WHERE seal = 3")
        assert "removed" in (await verify(replica))["error"]["message"]
        await execute(replica, "DELETE FROM audit_seals WHERE number < 4")
        assert "weren't deleted by their age" in (await verify(replica))["error"]["message"]


async def test_a_backlog_is_sealed_in_bounded_steps(
    control_site: Site, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running(clock=SetClock()) as replica:
        await execute(
            replica,
            "INSERT INTO audit (id, at, operator, action, subject) SELECT gen_random_uuid(), "
            "timestamptz '2026-11-27 12:00:00Z' + n * interval '1 second', 'ada', 'group.create', 'group-' || n::text "
            "FROM generate_series(1, 3000) AS s (n)",
        )
        db, now = replica.services.db, replica.services.clock.now()
        assert not await audit_log.seal(db, SystemClock(), now, 0.0)
        assert [one["count"] for one in await seals(replica)] == [audit_log.ROWS_OF_SEAL]
        while not await replica.services.monitor().seal(now):
            pass
        found = await verify(replica)
        assert found["seals"] == 7
        assert found["rows"] >= 3000
        assert await audit_log.cut(db, SystemClock(), now, now + timedelta(days=1), 60.0)
        assert (await verify(replica))["rows"] == 0


async def test_two_monitors_make_one_chain(control_site: Site, verify: Verify) -> None:
    async with control_site.running(clock=SetClock()) as one, control_site.running(clock=SetClock()) as other:
        for number in range(5):
            await groups(one, f"group-{number}")
            now = one.services.clock.now()
            await asyncio.gather(one.services.monitor().seal(now), other.services.monitor().seal(now))
        found = await verify(one)
        assert found["seals"] == 5


async def test_each_filter_reads_by_an_index(control_site: Site) -> None:
    async with control_site.running() as replica:
        await execute(
            replica,
            "INSERT INTO audit (id, at, operator, action, subject) SELECT gen_random_uuid(), "
            "timestamptz '2026-11-27 12:00:00Z' + n * interval '1 second', 'ada-' || (n % 10)::text, "
            "'verb-' || (n % 10)::text, 'group-' || (n % 10)::text FROM generate_series(1, 5000) AS s (n)",
        )
        await execute(replica, "ANALYZE audit")
        at, id = replica.services.clock.now() + timedelta(days=1), uuid4()
        for name, filters, index in (
            ("newest", (None, None, None), "audit_by_time"),
            ("newest_of_target", ("group-7", None, None), "audit_by_subject"),
            ("newest_of_actor", (None, "ada-7", None), "audit_by_operator"),
            ("newest_with_action", (None, None, "verb-7"), "audit_by_action"),
        ):
            sql, arguments = "EXPLAIN " + audit_log.SQL[name], (*filters, at, id, at - timedelta(days=9999), 20)
            plan = str(await replica.services.db.read(lambda conn, q=sql, a=arguments: conn.fetch(q, *a)))  # type: ignore[misc]
            assert f"using {index}" in plan, (name, plan)
            assert "Sort" not in plan, (name, plan)
