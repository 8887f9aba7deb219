"""Schema changes in steps on a node that serves: writers and readers go on, and whatever is killed, it goes on too."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime.errors import SyncFailed
from tests.guests.build import guest
from tests.integration.edge_runtime.children.test_apply_changes import ADDED, ANEW, FILL, ITEMS, ROWS, TOTALS
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"})}


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which children find fault points armed."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("SKERRY_FAULTS", str(folder))
    return folder


async def rows(edge: Node, sql: str) -> list[list[Any]]:
    status, _, body = await edge.call("sql", orjson.dumps({"sql": sql}))
    assert status == 200, body
    answer = orjson.loads(body)
    assert "error" not in answer, answer
    found: list[list[Any]] = answer["rows"]
    return found


async def test_a_column_is_filled_while_calls_write(tmp_path: Path, faults: Path) -> None:
    """The applier is killed at a batch before and after its COMMIT, each time: the next attempt goes on."""
    async with node(tmp_path / "state", lock_wait=60.0, queue_wait=60.0) as edge:
        await edge.release(FUNCTIONS, [ITEMS, FILL])
        stop = asyncio.Event()
        written = 0

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await rows(edge, "INSERT INTO items (amount) VALUES (11)")
                await rows(edge, "UPDATE items SET amount = amount + 1 WHERE id = 17")
                await rows(edge, "REPLACE INTO items (id, amount) VALUES (19, 5)")
                await rows(edge, "DELETE FROM items WHERE id = 23")
                written += 1

        plan, local = edge.plan(FUNCTIONS, [TOTALS])
        functions = await edge.front.compiler.functions(local)
        said: list[str] = []
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write()) for _ in range(2)]
            for point in ("edge.step.before", "edge.step.after", "edge.batch.before", "edge.batch.after") * 2:
                if point == "edge.step.before" and said:
                    continue
                (faults / point).write_text("kill")
                try:
                    await edge.front.manager.advance(plan, said.append)
                except SyncFailed as failed:
                    assert failed.code == "applier_died"  # noqa: PT017
                    assert not (faults / point).exists()
                (faults / point).unlink(missing_ok=True)
                (faults / f"{point}.held").unlink(missing_ok=True)
            await edge.front.manager.advance(plan, said.append)
            # Under the release that serves, guests can't see what the runtime keeps.
            _, _, body = await edge.call("sql", b'{"sql":"SELECT * FROM _skerry_steps"}')
            assert orjson.loads(body)["error"]["code"] == "sql_closed"
            stop.set()
            await asyncio.wait(writers)
            await edge.front.manager.apply(plan, functions)
        assert written
        assert any(text.startswith("items: ") for text in said)
        (counts,) = await rows(edge, "SELECT count(*), sum(total = amount * 2) FROM items")
        assert counts[0] == counts[1]
        assert await rows(edge, "SELECT name FROM sqlite_schema WHERE type = 'view'") == [["totals"]]


async def test_what_comes_after_a_flip_goes_on_at_the_next_start(tmp_path: Path, faults: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [ITEMS, FILL])
        plan, local = edge.plan(FUNCTIONS, [ANEW])
        await edge.front.manager.advance(plan, lambda _: None)
        (faults / "edge.batch.after").write_text("hold")
        await edge.front.manager.apply(plan, await edge.front.compiler.functions(local))
        await until((faults / "edge.batch.after.held").exists)
        assert await rows(edge, "SELECT count(*), min(state) FROM items") == [[ROWS, "open"]]
        assert 0 < (await rows(edge, "SELECT count(*) FROM items_old"))[0][0] < ROWS
        await until(lambda: edge.front.status()["database"]["steps"]["doing"] == "items_old: 0 %")
        changes = [*edge.changes, *plan.schema_changes]
    (faults / "edge.batch.after.held").unlink()
    async with node(tmp_path / "state") as edge:
        edge.changes = changes
        tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'items%'"
        async with deadline(60):
            while await rows(edge, tables) != [["items"]]:
                await asyncio.sleep(0.02)
        await until(
            lambda: edge.front.status()["database"]["steps"] == {"unfinished": False, "doing": None, "error": None}
        )
        # The next change finds nothing left to be done.
        await edge.release(FUNCTIONS, ["CREATE TABLE items_old (x)"])


async def test_a_batch_that_fails_is_told_and_nothing_is_done_twice(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, [ITEMS, FILL])
        checked = ADDED.replace("amount + 1000000", "CASE WHEN id < 2500 THEN amount + 1000000 END")
        with pytest.raises(SyncFailed) as failed:
            await edge.release(FUNCTIONS, [checked])
        assert failed.value.code == "schema_change_failed"
        assert "step 1 of 1 (batches of items): NOT NULL constraint failed" in failed.value.message
        assert failed.value.held == 0
        assert await rows(edge, "SELECT count(*) FROM items WHERE amount > 2000000") == [[0]]
