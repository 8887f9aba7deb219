"""Statements that need more than memory has: their temporary data is on disk, behind the fence, and bounded."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from edge_runtime.sql import database
from tests.guests.build import guest
from tests.support.edge import Node, node, until

LIMITS = {"time_limit_ms": 60_000, "memory_pages": 256}
FUNCTIONS = {
    "reader": (guest("sql"), {"sql": "read", **LIMITS}),
    "writer": (guest("sql"), {"sql": "write", **LIMITS}),
}
ROWS = 14_000
WIDTH = 10_000
WIDE = f"printf('%0{WIDTH}d', id)"
"""A value of a row. Those of all rows, in an index or a sorter, need more memory than SQLite may have."""
assert ROWS * WIDTH > database.HEAP_BYTES
TABLE = "CREATE TABLE facts (id INTEGER PRIMARY KEY, number INTEGER NOT NULL CHECK (number >= 0))"
FILL = (
    f"INSERT INTO facts (number) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
    "SELECT i FROM n"
)
TEMP_LIMIT = 400 << 20
WAL_LIMIT = 64 << 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    path = tmp_path_factory.mktemp("node") / "state"
    async with node(path, lock_hold=60.0, apply_limit=120.0, temp_limit=TEMP_LIMIT, wal_limit=WAL_LIMIT) as made:
        await made.release(FUNCTIONS, [TABLE, FILL])
        yield made


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(edge: Node, function: str, *statements: str) -> tuple[int, list[Any] | str]:
    """Status, and each statement's answer, or the code of the call's failure."""
    body = b"\n".join(orjson.dumps({"sql": sql}) for sql in statements)
    status, _, answered = await edge.call(function, body)
    if status != 200:
        return status, str(orjson.loads(answered)["code"])
    return status, [orjson.loads(line) for line in answered.splitlines()]


def written(edge: Node) -> int:
    """Bytes that the workers have written so far."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0]) for pid in edge.workers())


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        (f"SELECT count(DISTINCT {WIDE}) FROM facts", ROWS),
        (f"SELECT count(*) FROM (SELECT 1 FROM facts GROUP BY {WIDE})", ROWS),
        (f"SELECT count(*) FROM (SELECT {WIDE} FROM facts UNION SELECT {WIDE} || 'y' FROM facts)", 2 * ROWS),
        (f"SELECT number FROM facts ORDER BY {WIDE} DESC LIMIT 1 OFFSET {ROWS - 1}", 1),
    ],
)
async def test_what_memory_does_not_hold_is_sorted_and_grouped(edge: Node, sql: str, value: int) -> None:
    before = written(edge)
    status, answers = await ask(edge, "reader", sql, "SELECT 1")
    assert status == 200, answers
    # Into files without a name.
    assert written(edge) - before > ROWS * WIDTH / 2
    assert not isinstance(answers, str)
    assert [answer.get("error") for answer in answers] == [None, None]
    assert answers[0]["rows"] == [[value]]
    assert list((edge.state.path / "temp").iterdir()) == []


async def test_a_statement_of_many_rows_can_be_undone_alone(edge: Node) -> None:
    """What it needs for that is temporary data too."""
    status, answers = await ask(
        edge,
        "writer",
        "INSERT INTO facts (id, number) VALUES (-1, -0)",
        f"UPDATE facts SET number = CASE WHEN id < {ROWS} THEN number + 1 ELSE -1 END",
        "SELECT sum(number), count(*) FROM facts",
        "DELETE FROM facts WHERE id = -1",
    )
    assert status == 200, answers
    assert not isinstance(answers, str)
    assert answers[1]["error"]["code"] == "constraint_check"
    assert answers[2]["rows"] == [[ROWS * (ROWS + 1) // 2, ROWS + 1]]


async def test_the_files_of_a_call_are_bounded_together(edge: Node) -> None:
    """Each of these groups has one of 150 MB or so, and its result another."""
    groups = [f"(SELECT printf('%0{WIDTH}d', id + {n}) AS wide, count(*) FROM facts GROUP BY wide)" for n in range(6)]
    sql = f"SELECT count(*) FROM {' CROSS JOIN '.join(groups)}"
    assert await ask(edge, "reader", "SELECT 1", sql) == (507, "sql_disk_limit")
    await until(lambda: len(edge.workers()) == 2)
    status, answers = await ask(edge, "reader", f"SELECT count(*) FROM {groups[0]}")
    assert status == 200, answers


@pytest.mark.parametrize("function", ["reader", "writer"])
@pytest.mark.parametrize(
    ("how", "sql", "code"),
    [
        ("", "SELECT count(*) FROM (SELECT 1 FROM facts GROUP BY printf('%044000d', id))", "sql_disk_limit"),
        ("?trap=1", "SELECT hex(randomblob(200000000))", "sql_out_of_memory"),
    ],
)
async def test_who_needs_more_is_told(edge: Node, function: str, how: str, sql: str, code: str) -> None:
    """The function by an answer, its caller by the call's code; and the worker goes on."""
    before = edge.workers()
    assert await ask(edge, function + how, "SELECT 1", sql) == (507, code)
    status, answers = await ask(edge, function, f"SELECT count(DISTINCT {WIDE}) FROM facts WHERE id < 1000")
    assert status == 200
    assert not isinstance(answers, str)
    assert answers[0]["rows"] == [[999]]
    assert edge.workers() == before


async def test_a_release_may_build_a_large_index(edge: Node) -> None:
    await edge.release(FUNCTIONS, [f"CREATE INDEX wide ON facts ({WIDE})"])
    status, answers = await ask(edge, "reader", f"SELECT number FROM facts WHERE {WIDE} = printf('%0{WIDTH}d', 77)")
    assert status == 200
    assert not isinstance(answers, str)
    assert answers[0]["rows"] == [[77]]
