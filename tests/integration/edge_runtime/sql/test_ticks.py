"""What the libsql file knows of the ticks of schedules."""

from collections.abc import Iterator
from typing import Any

import pytest

from control.protocol.manifest import Manifest
from edge_runtime.ipc.frames import LocalFunction, TickNote
from edge_runtime.sql import database, ticks
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.ticks import Tick

HOUR, LATER = "0 * * * *", 4_000_000_000
"""The time is beyond 31 bits."""


@pytest.fixture
def opened() -> Iterator[LibsqlDatabase]:
    with database.in_memory() as made:
        yield made


def function(name: str, version: int = 1, **manifest: Any) -> LocalFunction:
    return LocalFunction(name, version, "", Manifest(**manifest), "")


def known(opened: LibsqlDatabase) -> list[tuple[str, str, int, str]]:
    return [(row.function, row.cron, row.tick, row.state) for row in ticks.read(opened)]


def test_rows_follow_the_release(opened: LibsqlDatabase) -> None:
    # What has no schedules has no table.
    ticks.follow(opened, [function("f")], {}, 10)
    assert opened.rows("SELECT count(*) FROM sqlite_schema WHERE name = '_skerry_ticks'") == [(0,)]
    assert known(opened) == []
    f = function("f", schedule=[HOUR, "1 * * * *"], on_release=True)
    ticks.follow(opened, [f, function("g", schedule=[HOUR])], {}, LATER + 0.7)
    assert known(opened) == [
        ("f", "", LATER, "due"),
        ("f", HOUR, LATER, "since"),
        ("f", "1 * * * *", LATER, "since"),
        ("g", HOUR, LATER, "since"),
    ]
    assert ticks.end(opened, Tick("f", HOUR, LATER + 5), done=True)
    # Lines that stay keep what is known of them; the same version is brought again, and isn't called again.
    ticks.follow(opened, [function("f", schedule=[HOUR], on_release=True)], {"f": 1, "g": 1}, LATER + 9)
    assert known(opened) == [
        ("f", "", LATER, "due"),
        ("f", HOUR, LATER, "since"),
        ("f", HOUR, LATER + 5, "done"),
    ]
    # Another version is, once, and what was due before isn't any more.
    ticks.follow(opened, [function("f", 2, schedule=[HOUR], on_release=True)], {"f": 1}, LATER + 20)
    assert [row for row in known(opened) if not row[1]] == [("f", "", LATER + 20, "due")]
    ticks.follow(opened, [function("f", 3)], {"f": 2}, LATER + 30)
    assert known(opened) == []


def test_a_tick_ends_once_whether_it_was_known_to_be_due_or_not(opened: LibsqlDatabase) -> None:
    ticks.follow(opened, [function("f", schedule=[HOUR], on_release=True)], {}, 7)
    for tick in (Tick("f", HOUR, LATER), Tick("f", "", 7)):
        assert ticks.end(opened, tick, done=tick.cron == "")
        assert not ticks.end(opened, tick, done=True)
        assert not ticks.end(opened, tick, done=False)
    assert known(opened) == [("f", "", 7, "done"), ("f", HOUR, 7, "since"), ("f", HOUR, LATER, "failed")]


def test_notes_are_one_transaction_that_changes_nothing_that_has_ended(opened: LibsqlDatabase) -> None:
    ticks.follow(opened, [function("f", schedule=[HOUR])], {}, 7)
    assert ticks.end(opened, Tick("f", HOUR, 60), done=True)
    assert ticks.note(opened, [TickNote("f", HOUR, 60, done=False), TickNote("f", HOUR, 120, done=False)])
    assert known(opened)[1:] == [("f", HOUR, 60, "done"), ("f", HOUR, 120, "failed")]
    assert not opened.in_transaction
    # While another process writes, it is to be tried again.
    opened.rows("DROP TABLE _skerry_ticks")
    assert not ticks.note(opened, [TickNote("f", HOUR, 180, done=True)])
    assert not opened.in_transaction


def test_of_each_line_few_rows_stay_before_the_newest_and_after_it(opened: LibsqlDatabase) -> None:
    ticks.follow(opened, [function("f", schedule=[HOUR]), function("g", schedule=[HOUR])], {}, 0)
    for tick in (*range(LATER, LATER + 100), *range(1_000, 1_100)):
        assert ticks.end(opened, Tick("f", HOUR, tick), done=True)
    assert [row[2] for row in known(opened) if row[0] == "f"] == [
        *range(1_067, 1_100),
        *range(LATER + 67, LATER + 99),
    ]
    assert [row[2] for row in known(opened) if row[0] == "g"] == [0]
