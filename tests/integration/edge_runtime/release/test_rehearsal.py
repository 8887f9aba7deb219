"""A release that is tried on a copy of a node's data: what it says, and that nothing is left, whatever ends it."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from control.protocol import wire
from edge_runtime import files, wal
from edge_runtime.children import apply_changes
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.oneshot import rehearse
from edge_runtime.state import REHEARSAL, State
from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node, node
from tests.support.programs import Faults

pytestmark = pytest.mark.never_retry

ROWS = 2000
FIRST = [
    "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT, amount INTEGER); "
    f"INSERT INTO items SELECT value, 'code-' || value, value FROM generate_series(1, {ROWS})",
    "CREATE TABLE shops (code TEXT PRIMARY KEY, city TEXT); "
    "INSERT INTO shops VALUES ('LX-1', 'Lisbon'), ('PO-7', NULL)",
]
FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"})}
SECONDS = 120.0
IN_STEPS = """
-- skerry: before
ALTER TABLE items ADD COLUMN total INTEGER;
-- skerry: batch items by id
UPDATE items SET total = :upto WHERE id > :after AND id <= :upto;
-- skerry: flip
CREATE TABLE batches (count INTEGER CHECK (count > 1));
INSERT INTO batches SELECT count(DISTINCT total) FROM items;
-- skerry: undo
ALTER TABLE items DROP COLUMN total;
"""
"""Its flip fails unless there was more than one batch."""


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with rows."""
    async with node(tmp_path / "state") as made:
        await made.release(FUNCTIONS, FIRST)
        yield made


async def rehearsed(edge: Node, *changes: str, functions: Any = None, seconds: float = SECONDS) -> wire.RehearsalResult:
    """What comes of a release of these changes, which isn't given to the node."""
    plan, local = edge.plan(functions or FUNCTIONS, changes)
    edge.generation -= 1
    async with deadline(SECONDS):
        made = await edge.front.compiler.in_background(local)
        try:
            return await edge.front.manager.rehearse(plan, made, seconds)
        finally:
            assert not (edge.state.path / REHEARSAL).exists()


async def rows(edge: Node, sql: str) -> Any:
    status, _, body = await edge.call("sql", orjson.dumps({"sql": sql}))
    assert status == 200, body
    return orjson.loads(body).get("rows")


async def test_a_release_that_works_passes_with_what_each_change_did(edge: Node) -> None:
    before = await rows(edge, "SELECT * FROM items ORDER BY id")
    result = await rehearsed(
        edge,
        "ALTER TABLE items ADD COLUMN total INTEGER; UPDATE items SET total = amount * 2;",
        "CREATE TABLE more (a)",
    )
    assert (result.outcome, result.code, result.message, result.row) == ("passed", "", "", "")
    assert [(c.number, c.name, c.rows) for c in result.changes] == [(3, "change 3", ROWS), (4, "change 4", 0)]
    for change in result.changes:
        assert 0 <= change.seconds <= change.stall < 30
    assert result.changes[0].seconds > 0
    assert len(result.schema_digest) == 64
    assert result.database >= edge.state.path.joinpath(wal.FILE).stat().st_size
    assert await rows(edge, "SELECT * FROM items ORDER BY id") == before


async def test_the_digest_is_that_of_the_schema_whatever_led_to_it(edge: Node) -> None:
    added = await rehearsed(edge, "ALTER TABLE shops ADD COLUMN area TEXT")
    anew = await rehearsed(
        edge,
        "CREATE TABLE shops_new (code TEXT PRIMARY KEY, city TEXT, area TEXT); "
        "INSERT INTO shops_new SELECT code, city, NULL FROM shops; DROP TABLE shops; "
        "ALTER TABLE shops_new RENAME TO shops",
    )
    other = await rehearsed(edge, "ALTER TABLE shops ADD COLUMN area INTEGER")
    assert added.schema_digest == anew.schema_digest != other.schema_digest


@pytest.mark.parametrize(
    ("sql", "row", "says"),
    [
        (
            "CREATE TABLE new (id INTEGER PRIMARY KEY, city TEXT NOT NULL); "
            "INSERT INTO new SELECT rowid, city FROM shops",
            "shops code=PO-7",
            "NOT NULL constraint failed: new.city",
        ),
        (
            "CREATE TABLE new (id INTEGER PRIMARY KEY, n INTEGER CHECK (n <> 1500)); "
            "INSERT INTO new (id, n) SELECT i.id, i.amount FROM items AS i WHERE i.amount > 10",
            "items id=1500",
            "CHECK constraint failed: n <> 1500",
        ),
        ("UPDATE items SET id = 'x' WHERE amount = 77", "items id=77", "datatype mismatch"),
        ("UPDATE items SET id = 5 WHERE id = 9", "items id=9", "UNIQUE constraint failed: items.id"),
        (
            "UPDATE items SET code = 'code-1' WHERE id = 42; CREATE UNIQUE INDEX by_code ON items (code)",
            "items id=42",
            "UNIQUE constraint failed: items.code",
        ),
        (
            "CREATE TABLE lines (id INTEGER PRIMARY KEY, item INTEGER REFERENCES items); "
            "INSERT INTO lines VALUES (1, 7), (2, 99999)",
            "lines id=2",
            "1 row has no parent",
        ),
        (
            "CREATE TABLE new (a); INSERT INTO new SELECT json_extract('{}', code) FROM items WHERE id > 1990",
            "items id=1991",
            "bad JSON path: …",
        ),
        ("UPDATE absent SET a = 1", "", "no such table: absent"),
    ],
)
async def test_a_change_that_fails_on_a_row_names_it_by_its_key(edge: Node, sql: str, row: str, says: str) -> None:
    result = await rehearsed(edge, sql)
    assert (result.outcome, result.row) == ("failed", row), result
    assert says in result.message
    assert result.code in ("schema_change_failed", "foreign_key_violation")
    assert result.schema_digest == ""
    assert "code-1991" not in result.message


async def test_a_change_in_steps_runs_as_on_the_node_in_batches(edge: Node) -> None:
    result = await rehearsed(edge, IN_STEPS)
    assert result.outcome == "passed", result
    assert [(c.number, c.rows) for c in result.changes] == [(3, ROWS + 1)]
    failed = await rehearsed(
        edge, IN_STEPS.replace("SET total", "SET id = CASE id WHEN 1234 THEN 'x' ELSE id END, total")
    )
    assert (failed.outcome, failed.code, failed.row) == ("failed", "schema_change_failed", "items id=1234")


async def test_a_probe_that_fails_is_told_without_what_the_function_answered(edge: Node) -> None:
    probe = {
        "path": "/?status=500",
        "method": "POST",
        "body": '{"sql": "SELECT code FROM items LIMIT 1"}',
        "status": 200,
    }
    result = await rehearsed(edge, functions={"sql": (guest("sql"), {"sql": "write", "probe": probe})})
    assert (result.outcome, result.code) == ("failed", "probe_failed")
    assert "POST /?status=500 answered 500 and should have answered 200." in result.message
    assert "code-1" not in result.message
    trap = {"sql": (guest("trap"), {"probe": {"path": "/"}})}
    result = await rehearsed(edge, functions=trap)
    assert (result.outcome, result.code) == ("failed", "probe_failed")
    assert "guest_trap" in result.message


async def test_a_secret_that_the_node_lacks_is_a_failure(edge: Node) -> None:
    with pytest.raises(SyncFailed) as failed:
        await rehearsed(edge, functions={"sql": (guest("sql"), {"sql": "write", "secrets": ["key"]})})
    assert failed.value.code == "secret_missing"


async def test_rows_are_written_meanwhile_and_none_is_lost(edge: Node) -> None:
    written, done = 0, asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not done.is_set():
            await rows(edge, f"INSERT INTO items VALUES ({10_000 + written}, 'w', 0)")
            written += 1

    writing = asyncio.create_task(write())
    result = await rehearsed(edge, "UPDATE items SET amount = amount + 1")
    done.set()
    await writing
    assert result.outcome == "passed", result
    assert written > 5
    assert await rows(edge, "SELECT count(*) FROM items WHERE code = 'w' AND amount = 0") == [[written]]


async def test_too_little_disk_is_said_before_anything_is_copied(edge: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    small = edge.state.path.parent / "sitecustomize"
    small.mkdir()
    (small / "sitecustomize.py").write_text(
        "from edge_runtime import wal\n"
        "_sizes = wal.sizes\n"
        "wal.sizes = lambda path: _sizes(path)._replace(disk_free=100 << 20)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path(rehearse.__file__).parents[2]}:{small}")
    result = await rehearsed(edge)
    assert (result.outcome, result.code) == ("unknown", "rehearsal_no_room"), result
    assert "100 MiB are free" in result.message


async def test_one_that_takes_too_long_is_ended(edge: Node) -> None:
    endless = "CREATE TABLE t (a); INSERT INTO t SELECT count(*) FROM generate_series(1, 1000000000000)"
    result = await rehearsed(edge, endless, seconds=6.0)
    assert (result.outcome, result.code) == ("unknown", "rehearsal_timeout"), result
    assert "generate_series" in result.message or "copied" in result.message or "loaded" in result.message


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def program() -> int:
    """The process id of the rehearsal's program; 0 if there is none."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"edge_runtime.oneshot.rehearse" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


@pytest.mark.parametrize("whom", ["program", "child"])
@pytest.mark.parametrize("point", ["edge.rehearsal.copying", "edge.apply.before", "edge.rehearsal.prepared"])
async def test_processes_that_are_killed_leave_nothing_and_the_node_serves(
    faults: Faults, edge: Node, point: str, whom: str
) -> None:
    faults.arm(point, "hold")
    work = asyncio.create_task(_rehearsed_or_failed(edge))
    await faults.reached(point)
    child = int((faults.folder / f"{point}.held").read_text())
    assert (edge.state.path / REHEARSAL).exists()
    os.kill(child if whom == "child" else program(), signal.SIGKILL)
    code = await work
    assert code == "rehearsal_died"
    assert not (edge.state.path / REHEARSAL).exists()
    assert await rows(edge, "SELECT count(*) FROM items") == [[ROWS]]
    result = await rehearsed(edge, "CREATE TABLE more (a)")
    assert result.outcome == "passed", result


async def _rehearsed_or_failed(edge: Node) -> str:
    try:
        return (await rehearsed(edge, "CREATE TABLE more (a)")).code
    except SyncFailed as failed:
        return failed.code


def at_lowest_priority(pid: int) -> bool:
    """Whether a process gets the processor and the disk only where nobody else wants them."""
    # ioprio_get: the class "idle".
    return os.sched_getscheduler(pid) == os.SCHED_IDLE and ctypes.CDLL(None).syscall(252, 1, pid) >> 13 == 3


async def test_the_copy_is_made_at_the_lowest_priority(faults: Faults, edge: Node) -> None:
    faults.arm("edge.rehearsal.copying", "hold")
    work = asyncio.create_task(_rehearsed_or_failed(edge))
    await faults.reached("edge.rehearsal.copying")
    assert at_lowest_priority(int((faults.folder / "edge.rehearsal.copying.held").read_text()))
    faults.let_go("edge.rehearsal.copying")
    assert await work == ""


async def test_one_that_needs_much_memory_fails_and_the_next_one_doesnt(edge: Node) -> None:
    """As it would on the node, which applies a release within the same bound."""
    value = apply_changes.HEAP_BYTES // ROWS
    much = f"CREATE TABLE t (a); INSERT INTO t SELECT group_concat(hex(zeroblob({value}))) FROM items"
    result = await rehearsed(edge, much)
    assert (result.outcome, result.code, result.row) == ("failed", "apply_out_of_memory", ""), result
    little = much.replace("FROM items", "FROM items WHERE id < 10")
    assert (await rehearsed(edge, little)).outcome == "passed"


async def test_it_runs_behind_the_fence_at_the_lowest_priority(faults: Faults, edge: Node) -> None:
    faults.arm("edge.apply.before", "hold")
    work = asyncio.create_task(_rehearsed_or_failed(edge))
    await faults.reached("edge.apply.before")
    child = int((faults.folder / "edge.apply.before.held").read_text())
    status = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    assert at_lowest_priority(child)
    open_files = {os.readlink(each) for each in Path(f"/proc/{child}/fd").iterdir()}
    assert str(edge.state.path / wal.FILE) not in open_files
    assert str(edge.state.path / REHEARSAL / wal.FILE) in open_files
    faults.let_go("edge.apply.before")
    assert await work == ""


async def test_the_copy_gives_way_before_the_log_is_too_long(faults: Faults, tmp_path: Path) -> None:
    async with node(tmp_path / "state", wal_limit=32 << 20) as edge:
        await edge.release(FUNCTIONS, FIRST)
        faults.arm("edge.rehearsal.copying", "hold")
        work = asyncio.create_task(_rehearsed_or_failed(edge))
        await faults.reached("edge.rehearsal.copying")
        # The log can't begin anew while the copy is made.
        async with deadline(60):
            while not work.done():
                await rows(edge, "INSERT INTO shops VALUES (hex(randomblob(16)), hex(randomblob(100000)))")
        assert await work == "rehearsal_log_long"
        async with deadline(60):
            while edge.front.checkpoints.size > 4 << 20:
                await rows(edge, "INSERT INTO shops VALUES (hex(randomblob(16)), '')")


async def test_a_node_that_ends_ends_it(faults: Faults, tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, FIRST)
        faults.arm("edge.apply.before", "hold")
        work = asyncio.create_task(_rehearsed_or_failed(edge))
        await faults.reached("edge.apply.before")
    work.cancel()
    await asyncio.wait([work])
    assert not program()


async def test_one_that_is_given_up_is_gone_at_once(faults: Faults, edge: Node) -> None:
    faults.arm("edge.apply.before", "hold")
    work = asyncio.create_task(_rehearsed_or_failed(edge))
    await faults.reached("edge.apply.before")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not program()
    assert not (edge.state.path / REHEARSAL).exists()


async def test_a_sync_doesnt_wait_for_what_is_compiled_for_one_that_it_has_ended(
    edge: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, begun = edge.front.processes, asyncio.Event()
    birth = processes.birth

    async def stopped(kind: Any, *, background: bool = False, **more: Any) -> Child:
        child = await birth(kind, background=background, **more)
        if kind == "compiler" and background:
            os.kill(child.pid, signal.SIGSTOP)
            begun.set()
        return child

    monkeypatch.setattr(processes, "birth", stopped)
    _, local = edge.plan({"other": guest("echo")})
    work = asyncio.create_task(edge.front.compiler.in_background(local))
    await begun.wait()
    work.cancel()
    await asyncio.wait([work])
    (made,) = await edge.front.compiler.functions(local)
    assert made.aot


async def test_what_a_killed_front_has_left_goes_at_the_next_start(tmp_path: Path) -> None:
    place = tmp_path / "state" / REHEARSAL
    with State(tmp_path / "state", 60.0):
        files.make_folder(place / "db")
        (place / "db" / "skerry.db").write_bytes(bytes(1000))
    with State(tmp_path / "state", 60.0):
        assert not place.exists()
