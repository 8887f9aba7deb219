"""Somebody is told of SQL that was run by `skerry-edge sql`: the node's log, and control's audit log."""

import asyncio
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from control.local.pki import Pki
from control.protocol import wire
from edge_runtime.sync import sql_runs
from edge_runtime.sync.control_client import ControlRefused
from edge_runtime.sync.sql_runs import FOLDER, SqlRunRecord, SqlRunReports
from tests.integration.edge_runtime.cli.test_backup import free, texts
from tests.integration.edge_runtime.cli.test_node import command, start
from tests.integration.edge_runtime.cli.test_sql import ENDLESS, FUNCTIONS, NOTES
from tests.support.agents import Control, edge, joined, running_control
from tests.support.control import until as settled
from tests.support.deadlines import deadline
from tests.support.edge import node
from tests.support.edge_process import front_process


async def test_rows_are_mended_while_the_node_does_not_run(tmp_path: Path) -> None:
    """Also after a kill, when its log has to be recovered first."""
    state = tmp_path / "state"
    async with node(state) as made:
        await made.release(FUNCTIONS, NOTES)
    async with front_process(state) as front:
        assert (await front.call("sql", b'{"sql": "INSERT INTO notes (text) VALUES (\'old\')"}'))[0] == 200
        os.kill(front.pid, signal.SIGKILL)
    await free(state)
    update = ("UPDATE notes SET text = 'mended'", "--write", "--reason", "a test")
    code, out, err = await command("sql", "--state", str(state), *update)
    assert (code, out, err) == (0, "1 row changed\n", "")
    async with node(state) as made:
        assert await texts(made) == ["mended"]


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    """One that holds no poll for long: a node tells of SQL between two polls."""
    async with running_control(database_url, bucket_url, pki, hold=1.0) as running:
        yield running


async def test_control_is_told_who_has_changed_what(
    control: Control, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the node's log."""
    await joined(control, tmp_path)
    await control.call("POST", "schema-changes", {"name": "notes", "sql": NOTES[0]})
    await control.release(functions={"sql": await control.push("sql", *FUNCTIONS["sql"])})
    where = ("sql", "--state", str(tmp_path))
    async with edge(tmp_path) as running:
        await running.until(lambda s: s["at_target"] is True)
        insert = "INSERT INTO notes (text) VALUES (?)"
        mended = ("--write", "--reason", "ticket 7", "--param", "a secret")
        assert (await command(*where, insert, *mended, SUDO_USER="ada"))[0] == 0
        assert (await command(*where, "SELECT count(*) FROM notes"))[0] == 0

    # The node need not run meanwhile.
    async def told() -> bool:
        rows = [e for e in (await control.call("GET", "audit"))["items"] if e["action"] == "node.sql"]
        if len(rows) < 2:
            return False
        assert len(rows) == 2
        read, changed = sorted((row["details"] for row in rows), key=lambda details: str(details["kind"]))
        assert (read["kind"], read["rows"], read["statement"]) == ("read", "1", "SELECT count(*) FROM notes")
        assert (changed["kind"], changed["rows"], changed["statement"]) == ("write", "1", insert)
        assert changed["reason"] == "ticket 7"
        assert changed["user"].endswith(f"(user id {os.getuid()}, by sudo from ada)")
        assert "a secret" not in str(rows)
        return True

    async def hidden() -> bool:
        return statements(await control.call("GET", "audit"))[:1] == ["DELETE FROM notes -- \ufffd?"]

    async with edge(tmp_path):
        await settled(told)
        # Control takes no NUL: whoever hides one in a comment is told of all the same.
        run = wire.SqlRun(str(uuid4()), datetime.now(UTC), "ada", "write", "DELETE FROM notes -- \0\udcff", "\0")
        SqlRunRecord(tmp_path, run).end(1)
        await settled(hidden)
        async with deadline(60):
            while list((tmp_path / FOLDER).iterdir()):
                await asyncio.sleep(0.02)
    assert f"by sudo from ada) (reason: ticket 7), 1 row: {insert}" in caplog.text
    assert "a secret" not in caplog.text


def statements(audit: Any) -> list[str]:
    return [row["details"]["statement"] for row in audit["items"] if row["action"] == "node.sql"]


def filtered(pid: int) -> list[bool]:
    """Of a process's children, whether each may make the system calls of a list alone."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return ["\nSeccomp:\t2\n" in Path(f"/proc/{child}/status").read_text() for child in children]


async def test_a_command_that_was_killed_is_told_of_with_an_unknown_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then its SQL ran behind the fence."""
    state = tmp_path / "state"
    async with node(state) as made:
        await made.release(FUNCTIONS, NOTES)
        process = await start("sql", "--state", str(state), ENDLESS, "--time-limit", "600s")
        reports = SqlRunReports(state)
        async with deadline(60):
            while not list((state / FOLDER).glob("*.json")):
                await asyncio.sleep(0.02)
        await reports.look()
        assert not reports.waiting
        # One keeps the file open, one runs the SQL.
        async with deadline(60):
            while filtered(process.pid) != [True, True]:
                await asyncio.sleep(0.02)
        process.kill()
        await process.communicate()
        async with deadline(60):
            while not reports.waiting:
                await reports.look()
                await asyncio.sleep(0.02)
        (file,) = reports.waiting
        run = msgspec.json.decode(file.read_bytes(), type=wire.SqlRun)
        assert (run.kind, run.rows, run.statement) == ("read", None, ENDLESS)
        assert f"read by {run.user}, nobody knows how many rows: {ENDLESS}" in caplog.text


class OldControl:
    """Control of a version that doesn't know the message."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked = 0

    async def sql_run(self, run: wire.SqlRun) -> None:
        self.asked += 1
        raise ControlRefused(self.status, "path_unknown", "there is nothing here")


async def test_a_record_waits_for_a_control_that_knows_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with node(state) as made:
        await made.release(FUNCTIONS, NOTES)
        assert (await command("sql", "--state", str(state), "SELECT 1"))[0] == 0
    reports, old = SqlRunReports(state), OldControl(404)
    for _ in range(2):
        await reports.look()
        await reports.deliver(old)  # type: ignore[arg-type]
    assert old.asked == 1
    assert len(list((state / FOLDER).glob("*.json"))) == 1
    # What it can't take now holds up no poll, either: the agent polls after it has told of SQL.
    reports, busy = SqlRunReports(state), OldControl(503)
    await reports.look()
    for _ in range(2):
        await reports.deliver(busy)  # type: ignore[arg-type]
    assert (busy.asked, len(list((state / FOLDER).glob("*.json")))) == (1, 1)
    # A credential that is refused is the agent's matter.
    reports = SqlRunReports(state)
    await reports.look()
    with pytest.raises(ControlRefused):
        await reports.deliver(OldControl(401))  # type: ignore[arg-type]


class KnowingControl:
    """Control that takes what it is told."""

    def __init__(self) -> None:
        self.told: list[wire.SqlRun] = []

    async def sql_run(self, run: wire.SqlRun) -> None:
        self.told.append(run)


async def test_records_without_control_are_bounded_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the disk nor the front's memory fills up, and control learns how many there were."""
    monkeypatch.setattr(sql_runs, "MOST", 50)
    for number in range(60):
        kind: Any = "write" if number % 6 == 0 else "read"
        run = wire.SqlRun(str(uuid4()), datetime.now(UTC), "ada", kind, f"SELECT {number} -- {'x' * 7900}")
        record = SqlRunRecord(tmp_path, run)
        record.end(1) if number != 55 else record.drop()
    assert len(list((tmp_path / FOLDER).iterdir())) == 51
    reports, control = SqlRunReports(tmp_path), KnowingControl()
    # What is logged is kept by the test, too.
    monkeypatch.setattr(sql_runs.log, "disabled", True)
    tracemalloc.start()
    await reports.look()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(reports.waiting) == 50
    assert held < 50 * 4000
    for _ in range(2):
        await reports.look()
        await reports.deliver(control)  # type: ignore[arg-type]
    assert [run.statement.split(" --")[0] for run in control.told[:50]] == [f"SELECT {number}" for number in range(50)]
    (more,) = control.told[50:]
    assert (more.kind, more.rows) == ("write", None)
    assert more.statement.startswith("-- 9 reads and 1 writes until ")
    assert list((tmp_path / FOLDER).iterdir()) == []
