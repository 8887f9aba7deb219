"""A node tells control how many rows its tables have: counted in a process of their own, told where that changes."""

import asyncio
from pathlib import Path

import pytest

from control.protocol import wire
from edge_runtime.ipc import frames
from edge_runtime.release import applier_process
from edge_runtime.sync.row_count_reports import RowCountReports, differ
from tests.support.agents import Control, Edge
from tests.support.deadlines import deadline
from tests.support.releases import answers, first_release, push

TABLES = (
    "CREATE TABLE none (x); CREATE TABLE Three (x); INSERT INTO Three VALUES (1), (2), (3);"
    "CREATE TABLE many (x); CREATE VIRTUAL TABLE found USING fts5 (text); INSERT INTO found VALUES ('a');"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO many SELECT i FROM n"
)


async def test_a_real_node_tells_its_rows_and_control_shows_them(control: Control, node: Edge, tmp_path: Path) -> None:
    await first_release(control)
    await answers(node, 1)
    change = await control.call("POST", "schema-changes", {"name": "tables", "sql": TABLES})
    await push(control, 2)
    await answers(node, 2)
    before = wire.digest(node.front.manager.inventory)
    counted = await applier_process.count_rows(node.front.processes)
    assert counted is not None
    wanted = {"none": 0, "three": 3, "many": 10_001, "found": 1}
    assert wanted.items() <= counted.counts.items()
    assert counted.estimates == {"many": 20_000}
    assert wire.digest(node.front.manager.inventory) == before

    async def count() -> frames.Counted | None:
        return counted

    reports = RowCountReports(tmp_path, count, lambda: change["number"], soon=0.01)
    task = asyncio.create_task(reports.run())
    try:
        for column in ("none", "three", "many"):
            await control.call("POST", "schema-changes", {"name": column, "sql": f"DELETE FROM {column}"})
        async with deadline(60):
            while True:
                planned = await control.call("POST", "releases?plan=true", {"group": "default"})
                rows = {loss["table"]: loss["rows"] for loss in planned["losses"]}
                if rows.get("many") is not None:
                    break
                await asyncio.sleep(0.02)
        assert rows == {"none": 0, "three": 3, "many": 10_001}
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("told", "counted", "worth"),
    [
        ({}, {"a": 0}, True),
        ({"a": 1}, {}, True),
        ({"a": 0}, {"a": 0}, False),
        ({"a": 0}, {"a": 1}, True),
        ({"a": 1}, {"a": 0}, True),
        ({"a": 10}, {"a": 19}, False),
        ({"a": 10}, {"a": 20}, True),
        ({"a": 10}, {"a": 5}, True),
        ({"a": 10}, {"a": 6}, False),
    ],
)
def test_what_is_worth_telling_again(told: dict[str, int], counted: dict[str, int], worth: bool) -> None:
    assert differ(told, counted) == worth
