"""Which state of a node's database is found, in what a real store has of its histories."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control.backups import objects
from control.backups.builder import Builder
from control.backups.objects import BackupFile
from control.backups.targets import AtTime, AtTransaction, BeforeRelease, Latest, RestorableState, StateFinder, Target
from control.problems import ProblemError
from control.protocol import ltx
from tests.support.control import Control, module

OLD, NEW, EMPTY = "a" * 32, "b" * 32, "c" * 32
PAGE = 4096


@pytest.fixture
def states(control: Control, tmp_path: Path) -> StateFinder:
    builder = Builder(control.services.store, tmp_path, 1 << 20, 60.0)
    return StateFinder(control.services.databases.lists, builder, control.clock)


def seconds(count: float) -> datetime:
    """A time on the day of these tests."""
    return datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=count)


async def ship(
    control: Control, node: str, lineage: str, times: Iterable[float], level: int = 0, first: int = 2
) -> None:
    """Put a file for each transaction, made at these seconds; one before the second is a snapshot."""
    for number, at in enumerate(times, start=first):
        file = BackupFile(9 if number == 1 else level, number, number)
        out = io.BytesIO()
        header = ltx.Header(PAGE, number, number, number, int(seconds(at).timestamp() * 1000))
        ltx.write(out, header, [(page + 1, bytes(PAGE)) for page in range(number)])
        await control.services.store.put_new(objects.key(node, lineage, file), out)


async def begin(control: Control, node: str, *lineages: str) -> None:
    for lineage in lineages:
        await control.services.grants.check(node, lineage)
        control.clock.advance(60)


async def refused(states: StateFinder, node: str, target: Target) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await states.find(node, target)
    return caught.value


def place(state: RestorableState) -> tuple[str, int, datetime]:
    return state.lineage, state.transaction, state.at


async def test_a_time_is_looked_for_from_the_newest_history_on(control: Control, states: StateFinder) -> None:
    node = (await control.join("shop")).id
    await begin(control, node, OLD, NEW, EMPTY)
    await ship(control, node, OLD, [0, 10, 20, 30], first=1)
    await ship(control, node, NEW, [60, 70, 80], first=1)
    for at, expected in {
        0: (OLD, 1, 0),
        9.999: (OLD, 1, 0),
        20: (OLD, 3, 20),
        59: (OLD, 4, 30),  # of a disk that was replaced
        60: (NEW, 1, 60),
        75: (NEW, 2, 70),
        7000: (NEW, 3, 80),
    }.items():
        found = await states.find(node, AtTime(seconds(at)))
        assert place(found) == (*expected[:2], seconds(expected[2])), at
        assert [file.first for file in found.files] == list(range(1, found.transaction + 1))
        assert found.size == found.transaction * PAGE
        assert found.read == sum(file.size for file in found.files) > 0
    assert place(await states.find(node, Latest())) == (NEW, 3, seconds(80))
    assert place(await states.find(node, AtTransaction(OLD, 2))) == (OLD, 2, seconds(10))
    error = await refused(states, node, AtTime(seconds(-0.001)))
    assert (error.code, "no state of this node at 2019-12-31T23:59:59Z" in error.detail) == ("backup_incomplete", True)
    later = control.clock.now() + timedelta(seconds=30)
    assert (await refused(states, node, AtTime(later))).code == "invalid_parameter"


async def test_what_is_before_a_release_is_what_the_node_told(control: Control, states: StateFinder) -> None:
    node, other = (await control.join("shop")).id, (await control.join("other")).id
    await begin(control, node, OLD, NEW)
    await ship(control, node, OLD, [0, 10, 20], first=1)
    await ship(control, node, NEW, [60], first=1)
    await control.push("stock", module())
    release = await control.release(group="default", functions={"stock": 1})
    assert (await refused(states, node, BeforeRelease(7))).code == "unknown_release"
    error = await refused(states, node, BeforeRelease(release["number"]))
    assert (error.code, "hasn't gone to release 1" in error.detail) == ("backup_incomplete", True)
    id = await boundary(control, node, OLD, 2)
    found = await states.find(node, BeforeRelease(1))
    assert (place(found), found.before_release) == ((OLD, 2, seconds(10)), id)
    assert (await states.before(node, id, "1")) == found
    assert (await refused(states, other, BeforeRelease(1))).code == "backup_incomplete"


async def test_a_gap_is_said_with_what_there_is_instead(control: Control, states: StateFinder) -> None:
    node = (await control.join("shop")).id
    assert "no file of a backup" in (await refused(states, node, Latest())).detail
    await begin(control, node, NEW)
    await ship(control, node, NEW, [0, 10], first=1)
    await ship(control, node, NEW, [30], first=4)
    for target in (Latest(), AtTransaction(NEW, 4)):
        error = await refused(states, node, target)
        assert error.code == "backup_incomplete"
        text = f"of transactions 3 to 3 no file is at the store; {NEW}/2 can be brought back"
        assert error.detail == f"nothing leads there: {text}"
    # At a time it is the last state that can be made.
    assert (await states.find(node, AtTime(seconds(30)))).transaction == 2
    assert (await refused(states, node, AtTransaction(OLD, 1))).code == "backup_incomplete"


async def test_files_that_are_merged_meanwhile_are_no_failure(
    control: Control, states: StateFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, store = (await control.join("shop")).id, control.services.store
    await begin(control, node, NEW)
    await ship(control, node, NEW, [0, 10, 20], first=1)
    beginning = store.beginning

    async def merged_first(key: str, count: int) -> bytes | None:
        monkeypatch.undo()
        await ship(control, node, NEW, [20], level=1, first=3)
        await store.delete(objects.key(node, NEW, BackupFile(0, 3, 3)))
        return await beginning(key, count)

    monkeypatch.setattr(store, "beginning", merged_first)
    found = await states.find(node, Latest())
    assert (found.transaction, found.files[-1].level) == (3, 1)


async def test_a_file_that_is_none_is_damage(control: Control, states: StateFinder) -> None:
    node = (await control.join("shop")).id
    await begin(control, node, NEW)
    await control.services.store.put_new(objects.key(node, NEW, BackupFile(9, 1, 1)), io.BytesIO(b"nothing"))
    assert (await refused(states, node, Latest())).code == "backup_damaged"
    far = BackupFile(9, 1, 2)
    out = io.BytesIO()
    ltx.write(out, ltx.Header(PAGE, 1, 1, 2, 2**62), [(1, bytes(PAGE))])
    await control.services.store.put_new(objects.key(node, NEW, far), out)
    error = await refused(states, node, Latest())
    assert (error.code, "ms after 1970" in error.detail) == ("backup_damaged", True)


async def boundary(control: Control, node: str, lineage: str, transaction: int) -> UUID:
    """Have control know the last transaction before the node went to release 1; return the release's id."""

    async def tell(conn: Any) -> UUID:
        [release] = await conn.fetch("SELECT id FROM releases WHERE number = 1")
        told = "INSERT INTO boundaries VALUES ($1::text::uuid, $2, $3, $4, $5)"
        await conn.execute(told, node, release["id"], lineage, transaction, control.clock.now())
        return UUID(str(release["id"]))

    return await control.services.db.transaction(tell)
