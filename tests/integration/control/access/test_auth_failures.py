"""Refused authentications on their way to the database: none is lost while it is away, and a flood stays small."""

from typing import Any

import pytest

from control.access import auth_failures
from control.access.auth_failures import AuthFailures
from control.clock import SystemClock
from control.problems import ProblemError
from control.storage import database, migrations
from control.storage.database import Database
from tests.support.clock import SetClock
from tests.support.cutting import cutting


async def rows(db: Database) -> list[Any]:
    found: list[Any] = await db.read(
        lambda conn: conn.fetch("SELECT minute, address, reason, count, first_at, last_at FROM auth_failures")
    )
    return found


async def test_counts_add_up_by_minute_address_and_reason(database_url: str) -> None:
    db = await database.connect(database_url)
    try:
        await migrations.migrate(db, SystemClock())
        clock = SetClock(time="run")
        failures = AuthFailures(db, clock)
        for _ in range(3):
            failures.record("192.0.2.1", "unknown")
        failures.record("192.0.2.2", "unknown")
        failures.record("192.0.2.1", "revoked")
        await failures.flush()
        failures.record("192.0.2.1", "unknown")
        await failures.flush()
        await failures.flush()
        found = await rows(db)
        by_key: dict[tuple[str, str], int] = {}
        for row in found:
            key = row["address"], row["reason"]
            by_key[key] = by_key.get(key, 0) + row["count"]
            assert row["first_at"] <= row["last_at"]
            assert row["minute"] <= row["first_at"]
        assert by_key == {("192.0.2.1", "unknown"): 4, ("192.0.2.2", "unknown"): 1, ("192.0.2.1", "revoked"): 1}
        clock.advance(minutes=2)
        failures.record("192.0.2.2", "unknown")
        await failures.flush()
        assert len(await rows(db)) == len(found) + 1
    finally:
        await db.close()


async def test_nothing_is_lost_while_the_database_is_away(database_url: str) -> None:
    async with cutting(database_url) as cutter:
        db = await database.connect(cutter.url)
        try:
            await migrations.migrate(db, SystemClock())
            failures = AuthFailures(db, SetClock(time="run"))
            failures.record("192.0.2.1", "unknown")
            cutter.refusing = True
            cutter.cut_all()
            with pytest.raises(ProblemError, match="database_unavailable"):
                await failures.flush()
            failures.record("192.0.2.1", "unknown")
            cutter.refusing = False
            await failures.flush()
            assert sum(row["count"] for row in await rows(db)) == 2
        finally:
            await db.close()


async def test_a_flood_from_everywhere_is_counted_together(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_failures, "MOST_ADDRESSES", 10)
    db = await database.connect(database_url)
    try:
        await migrations.migrate(db, SystemClock())
        clock = SetClock(timers="stand")
        failures = AuthFailures(db, clock)
        # Each minute again, and written each second: whoever does so for hours fills no disk.
        for number in range(1000):
            failures.record(f"2001:db8:{number:x}::1", "unknown")
            if number % 100 == 99:
                await failures.flush()
                clock.advance(60 if number == 499 else 1)
        found = await rows(db)
        assert len(found) <= 10 + 2
        assert sum(row["count"] for row in found) == 1000
        assert "others" in {row["address"] for row in found}
        clock.advance(hours=1)
        failures.record("192.0.2.1", "unknown")
        # Within an IPv6 network of somebody's, addresses are free.
        for number in range(100):
            failures.record(f"2001:db8::{number:x}", "unknown")
        await failures.flush()
        newest = [row for row in await rows(db) if row["minute"] > max(row["minute"] for row in found)]
        assert sorted((row["address"], row["count"]) for row in newest) == [("192.0.2.1", 1), ("2001:db8::/64", 100)]
    finally:
        await db.close()


@pytest.mark.parametrize("saved", [False, True])
async def test_counts_whose_commit_is_unknown_are_added_once(database_url: str, saved: bool) -> None:
    async with cutting(database_url) as cutter:
        db = await database.connect(cutter.url)
        try:
            await migrations.migrate(db, SystemClock())
            failures = AuthFailures(db, SetClock(time="run"))
            for _ in range(3):
                failures.record("192.0.2.1", "unknown")
            cutter.before, cutter.after = (0, 1) if saved else (1, 0)
            with pytest.raises(ProblemError, match="commit_unknown"):
                await failures.flush()
            # Counted meanwhile: it comes with the batch after.
            failures.record("192.0.2.1", "unknown")
            await failures.flush()
            await failures.flush()
            assert sum(row["count"] for row in await rows(db)) == 4
        finally:
            await db.close()
