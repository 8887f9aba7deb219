"""`skerry-edge sql`: rows of a node are looked at, exported and mended, and somebody is told."""

import asyncio
import csv
import io
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edge_runtime import wal
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock
from edge_runtime.sync.sql_runs import FOLDER
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import texts, write
from tests.integration.edge_runtime.cli.test_node import DEADLINE, command, start
from tests.support.deadlines import deadline
from tests.support.edge import Node
from tests.support.lent_node import NodeLender

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"}), "reader": (guest("sql"), {"sql": "read"})}
NOTES = [
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, number INTEGER, data BLOB, CHECK (text <> ''));"
    "CREATE TABLE child (note INTEGER REFERENCES notes DEFERRABLE INITIALLY DEFERRED)"
]
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    """Has a node with a table of notes."""
    made = NodeLender(tmp_path_factory.mktemp("served"), FUNCTIONS, NOTES, written={"notes", "child"})
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def served(lender: NodeLender) -> AsyncIterator[Node]:
    """A node that serves, with a table of notes."""
    async with lender.lent() as lent:
        yield lent


async def sql(edge: Node, *arguments: str) -> tuple[int, str, str]:
    return await command("sql", "--state", str(edge.state.path), *arguments)


async def change(edge: Node, statement: str, *arguments: str) -> None:
    code, out, err = await sql(edge, statement, "--write", "--reason", "a test", *arguments)
    assert code == 0, out + err


async def shown(edge: Node, statement: str, *arguments: str) -> Any:
    code, out, err = await sql(edge, statement, "--json", *arguments)
    assert (code, err) == (0, ""), out
    return json.loads(out)


async def test_rows_are_shown_exported_and_mended_while_the_node_serves(served: Node) -> None:
    large, text = 2**62 + 1, "a\x1b[2Jb"
    values = ("--param", json.dumps(text), "--param", str(large), "--param", '{"$blob": "AP8="}')
    await change(served, "INSERT INTO notes (text, number, data) VALUES (?, ?, ?)", *values)
    await change(served, "INSERT INTO notes (text) VALUES ('x'), ('y')")
    assert (await texts(served))[-2:] == ["x", "y"]
    every = "SELECT text, number, data FROM notes ORDER BY id LIMIT 2"
    found = await shown(served, every)
    assert found["rows"] == [[text, large, {"$blob": "AP8="}], ["x", None, None]]
    assert (found["columns"], found["changed"]) == (["text", "number", "data"], 0)
    code, out, err = await sql(served, every, "--csv")
    assert (code, err) == (0, "")
    assert list(csv.reader(io.StringIO(out)))[:2] == [["text", "number", "data"], [text, str(large), "00ff"]]
    code, out, err = await sql(served, every)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "text    number               data",
        "------  -------------------  -------",
        f"a\ufffd[2Jb  {large}  x'00ff'",
        "x       NULL                 NULL",
        "2 rows",
    ]
    infinite = "SELECT 9e999 AS a, -9e999 AS b"
    assert (await shown(served, infinite))["rows"] == [[{"$real": "Inf"}, {"$real": "-Inf"}]]
    assert (await sql(served, infinite, "--csv"))[1].split() == ["a,b", "Inf,-Inf"]
    assert (await sql(served, infinite))[1].splitlines()[2] == "Inf  -Inf"
    code, out, err = await sql(served, "UPDATE notes SET text = 'z' WHERE text = 'x'", "--write", "--reason", "a test")
    assert (code, out, err) == (0, "1 row changed\n", "")
    found = await shown(served, "DELETE FROM notes RETURNING text", "--write", "--reason", "a test")
    assert (len(found["rows"]), found["changed"]) == (3, 3)


async def test_a_result_of_any_size_is_exported(served: Node) -> None:
    await change(
        served,
        "INSERT INTO notes (text) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) "
        "SELECT 'note ' || i FROM n",
    )
    code, out, err = await sql(served, "SELECT text FROM notes ORDER BY id", "--csv")
    assert (code, err) == (0, "")
    assert [row[0] for row in csv.reader(io.StringIO(out))][1:] == [f"note {i}" for i in range(1, 50_001)]
    code, out, _ = await sql(served, "SELECT text FROM notes")
    assert out.splitlines()[-1] == "50,000 rows, 49,000 of them not shown: use --csv or --json"
    await change(served, "DELETE FROM notes")


@pytest.mark.parametrize("how", ["its output isn't read on", "it is interrupted"])
@pytest.mark.parametrize("form", ["--csv", "--json"])
async def test_a_command_that_is_broken_off_ends(served: Node, how: str, form: str) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, 'some text' FROM n"
    before = set((served.state.path / FOLDER).glob("*"))
    process = await start("sql", "--state", str(served.state.path), rows, form)
    assert process.stdout is not None
    assert await process.stdout.readexactly(1000)
    if how == "it is interrupted":
        # It alone, and not its children, as a supervisor does.
        process.send_signal(signal.SIGINT)
    else:
        process.stdout._transport.close()  # type: ignore[attr-defined]
    async with deadline(DEADLINE):
        await process.communicate()
    assert process.returncode == 1
    # What was shown is recorded.
    [record] = set((served.state.path / FOLDER).glob("*")) - before
    assert json.loads(record.read_bytes())["rows"] > 0


async def test_a_child_that_has_not_ended_keeps_no_guard_from_ending(served: Node) -> None:
    """As where Ctrl-C comes while the output is closed."""
    script = "import os, sys, urllib.parse; from pathlib import Path\n"
    script += "from edge_runtime.oneshot.database_guard import guarded\n"
    script += "with guarded(Path(sys.argv[1]), reading=True) as guard:\n"
    script += "    guard.check(); child = os.fork()\n    if not child: sys.stdin.read(); os._exit(0)\n"
    script += "print('ended')"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(served.state.path / wal.FILE), stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    async with deadline(DEADLINE):
        assert await process.stdout.readline() == b"ended\n"
        await process.communicate()


@pytest.mark.parametrize(
    ("statement", "more", "code"),
    [
        ("DELETE FROM notes", (), "not_granted"),
        ("CREATE TABLE more (x)", ("--write",), "sql_not_allowed"),
        ("DROP TABLE notes", ("--write",), "sql_not_allowed"),
        ("PRAGMA user_version = 1", ("--write",), "sql_not_allowed"),
        ("COMMIT", ("--write",), "sql_not_allowed"),
        ("ATTACH 'x.db' AS x", ("--write",), "sql_not_allowed"),
        ("SELECT * FROM _skerry_release", (), "sql_closed"),
        ("UPDATE _skerry_release SET number = 9", ("--write",), "sql_closed"),
        ("UPDATE sqlite_schema SET sql = ''", ("--write",), "sql_failed"),
        ("SELECT readfile('/etc/passwd')", (), "sql_closed"),
        ("SELECT ?", (), "sql_parameters"),
        ("INSERT INTO notes (text) VALUES ('kept?'); INSERT INTO notes (text) VALUES ('')", ("--write",), "constraint"),
        ("INSERT INTO child VALUES (77)", ("--write",), "constraint_foreign_key"),
        (f"INSERT INTO notes (text) VALUES ('kept?'); {ENDLESS}", ("--write", "--time-limit", "1s"), "time_limit"),
    ],
)
async def test_what_is_refused_changes_nothing(served: Node, statement: str, more: tuple[str, ...], code: str) -> None:
    before = sorted((served.state.path / FOLDER).glob("*"))
    reason = ("--reason", "a test") if "--write" in more else ()
    status, out, _ = await sql(served, statement, "--json", *more, *reason)
    assert status == 1
    found = json.loads(out)["error"]["code"]
    assert found.startswith(code) or (code == "sql_failed" and found == "sql_invalid"), found
    assert await texts(served) == []
    assert sorted((served.state.path / FOLDER).glob("*")) == before
    # Calls may write.
    await write(served, "after")
    await change(served, "DELETE FROM notes")


async def test_nobody_who_reads_slowly_keeps_the_transaction_open(served: Node) -> None:
    """The write-ahead log couldn't begin anew, and calls that write would be refused after a while."""
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT i FROM n"
    process = await start("sql", "--state", str(served.state.path), rows, "--csv", "--time-limit", "4s")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def runs(child: str) -> bool:
        # One that has ended stays in the list until it is waited for, which may be this moment.
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def running() -> int:
        return sum(runs(child) for child in children.read_text().split())

    assert process.stdout is not None
    async with deadline(60):
        assert await process.stdout.readline() == b"i\r\n"
        # What is left keeps the file open alone.
        while running() > 1:
            await asyncio.sleep(0.02)
        assert process.returncode is None
        _, err = await process.communicate()
    assert (process.returncode, b"longer than 4 s" in err) == (1, True)


async def test_a_write_needs_a_reason(served: Node) -> None:
    code, _, err = await sql(served, "DELETE FROM notes", "--write")
    assert (code, "--reason" in err) == (2, True)


async def test_a_write_waits_for_the_writer_lock(served: Node) -> None:
    """As long as another writer has it, though SQLite itself would let it write."""
    insert = ("INSERT INTO notes (text) VALUES ('late')", "--write", "--reason", "a test")
    lock = WriterLock.open(served.state.path / wal.FILE.parent / LOCK_NAME)
    try:
        lock.acquire()
        status, out, _ = await sql(served, *insert, "--json", "--time-limit", "1s")
        assert (status, json.loads(out)["error"]["code"]) == (1, "time_limit")
        # Whoever only reads waits for nobody.
        assert (await shown(served, "SELECT text FROM notes"))["rows"] == []
    finally:
        lock.close()
    assert (await sql(served, *insert))[0] == 0
    await change(served, "DELETE FROM notes")
