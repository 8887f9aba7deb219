"""`skerry-edge backup` and `skerry-edge restore`: whole copies of a node's database, and their way back."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from edge_runtime import files, wal
from edge_runtime.cli import support
from edge_runtime.cli.restore import restore as restore_command
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.agents import Control, edge, joined
from tests.support.edge import Node, node
from tests.support.edge_process import front_process
from tests.support.programs import Faults

pytestmark = pytest.mark.never_retry

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"}), "reader": (guest("sql"), {"sql": "read"})}
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX by_text ON notes (text)"]
HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
for sql in sys.argv[2:]:
    held.execute(sql).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


async def write(edge: Node, text: str) -> None:
    statement = {"sql": "INSERT INTO notes (text) VALUES (?)", "params": [text]}
    assert (await edge.call("sql", orjson.dumps(statement)))[0] == 200


async def texts(edge: Node) -> list[str]:
    _, _, body = await edge.call("reader", b'{"sql": "SELECT text FROM notes ORDER BY id"}')
    return [row[0] for row in orjson.loads(body)["rows"]]


def rows(path: Path, sql: str = "SELECT text FROM notes ORDER BY id") -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as opened:
        return [row[0] for row in opened.execute(sql)]


@contextlib.asynccontextmanager
async def holder(path: Path, *sql: str) -> AsyncIterator[int]:
    """Another program that has the file open; its pid."""
    statements = sql or ("SELECT count(*) FROM sqlite_schema",)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(path), *statements, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.stdin.close()
        await process.wait()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `stopped` is a copy of."""
    folder = tmp_path_factory.mktemp("made")
    state = folder / "state"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        await write(edge, "old")
        code, _, err = await command("backup", str(folder / "backup.db"), "--state", str(state))
        assert (code, err) == (0, "")
        await write(edge, "new")
        await edge.release(FUNCTIONS, ["CREATE TABLE more (x)"])
    return folder


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    """The state directory of a node at release 2, with a backup of it at release 1 beside (`backup.db`)."""
    # A compilation's folder may be there for a moment after the node's end.
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".compile-*"))
    return tmp_path / "state"


async def restore(state: Path, *more: str, **environment: str) -> tuple[int, Any]:
    code, out, err = await command(
        "restore", str(state.parent / "backup.db"), "--state", str(state), "--json", *more, **environment
    )
    assert not err
    return code, json.loads(out) if out else None


async def test_a_backup_has_what_was_committed_while_calls_write_on(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "kept" / "backup.db"
    file.parent.mkdir()
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        written: list[str] = []
        stopping = False

        async def writer(number: int) -> None:
            while not stopping:
                text = f"{number}:{len(written)}"
                await write(edge, text)
                written.append(text)

        writing = [asyncio.ensure_future(writer(number)) for number in range(3)]
        for turn in range(3):
            while len(written) < 20 * (turn + 1):
                await asyncio.sleep(0.01)
            before = set(written)
            code, out, err = await command("backup", str(file), "--state", str(state), "--json")
            assert (code, err) == (0, "")
            found = json.loads(out)
            assert before <= set(rows(file))
            assert rows(file, "PRAGMA integrity_check") == ["ok"]
            # The index has what the table has.
            assert rows(file, "SELECT count(*) FROM notes INDEXED BY by_text WHERE text > ''") == [len(rows(file))]
            assert (found["release"]["number"], found["schema_version"], found["warnings"]) == (1, 1, [])
            assert found["bytes"] == file.stat().st_size
            assert file.stat().st_mode & 0o777 == 0o600
        stopping = True
        await asyncio.gather(*writing)
        await edge.release(FUNCTIONS, ["CREATE TABLE more (x)"])
    assert [path.name for path in file.parent.iterdir()] == ["backup.db"]


async def test_a_backup_of_a_node_that_was_killed_has_what_its_log_has(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
    async with front_process(state) as front:
        status, _ = await front.call("sql", b'{"sql": "INSERT INTO notes (text) VALUES (\'last\')"}')
        assert status == 200
        os.kill(front.pid, 9)
    await free(state)
    assert wal.has_log(state / wal.FILE)
    code, out, err = await command("backup", str(tmp_path / "backup.db"), "--state", str(state))
    assert (code, err) == (0, "")
    assert "release 1 (generation 1), schema version 1" in out
    assert rows(tmp_path / "backup.db") == ["last"]


@pytest.mark.parametrize("verb", ["backup", "check-database"])
async def test_a_release_that_is_committed_meanwhile_is_no_sign_of_tampering(tmp_path: Path, verb: str) -> None:
    """What was read is of the moment before, and the witness says so."""
    state, faults = tmp_path / "state", Faults(tmp_path / "faults")
    point = "edge.backup.begun" if verb == "backup" else "edge.check.begun"
    file = [str(tmp_path / "backup.db")] if verb == "backup" else []
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        faults.arm(point, "hold")
        running = asyncio.ensure_future(
            command(verb, *file, "--state", str(state), "--json", SKERRY_FAULTS=str(faults.folder))
        )
        await faults.reached(point)
        for change in ("CREATE TABLE more (x)", "CREATE TABLE most (x)"):
            await edge.release(FUNCTIONS, [change])
        faults.let_go(point)
        code, out, err = await running
        assert (code, err) == (0, ""), out
        found = json.loads(out)
        assert (found["release"]["number"], found.get("warnings", found.get("findings"))) == (1, [])


async def free(state: Path) -> None:
    """Wait until the processes of a node that was killed have let its state directory go."""
    with (state / "lock").open() as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)


@pytest.mark.parametrize("name", ["a folder", "notes.txt", "with a log"])
async def test_a_backup_replaces_nothing_but_a_backup(stopped: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "a folder":
        file = stopped / "db" / "skerry.db"
    elif name == "notes.txt":
        file.write_text("something else")
    else:
        (tmp_path / f"{name}-wal").write_text("an old log")
    before = file.read_bytes() if file.exists() else b""
    code, _, err = await command("backup", str(file), "--state", str(stopped))
    assert (code, "backup_target_unfit" in err) == (1, True), err
    assert (file.read_bytes() if file.exists() else b"") == before


async def test_a_damaged_database_leaves_the_earlier_backup(stopped: Path, tmp_path: Path) -> None:
    before = (tmp_path / "backup.db").read_bytes()
    damage(stopped / wal.FILE)
    code, _, err = await command("backup", str(tmp_path / "backup.db"), "--state", str(stopped))
    assert (code, "database_damaged" in err) == (1, True), err
    assert (tmp_path / "backup.db").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def damage(path: Path) -> None:
    """Overwrite the first page of a table of a database."""
    with contextlib.closing(sqlite3.connect(path)) as opened:
        (page,) = opened.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'by_text'").fetchone()
        (size,) = opened.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


async def test_a_restored_node_serves_what_the_backup_has_whatever_was_in_the_log(stopped: Path) -> None:
    """The log of a node that was killed has newer rows: beside the restored file they would be taken for its own."""
    async with front_process(stopped) as front:
        assert (await front.call("sql", b'{"sql": "INSERT INTO notes (text) VALUES (\'in the log\')"}'))[0] == 200
        os.kill(front.pid, 9)
    await free(stopped)
    assert wal.has_log(stopped / wal.FILE)
    code, found = await restore(stopped)
    assert code == 0
    assert (found["release"]["number"], found["schema_version"], found["warnings"]) == (1, 1, [])
    async with node(stopped) as edge:
        assert edge.front.manager.release is not None
        assert edge.front.manager.release.number == 1
        assert await texts(edge) == ["old"]
        await write(edge, "after")
    # What was there is whole, too, and can be put back, by a link to it as well: its log is beside the file itself.
    kept = stopped.parent / "kept.db"
    kept.symlink_to(found["kept"])
    code, out, err = await command("restore", str(kept), "--state", str(stopped))
    assert (code, err) == (0, "")
    assert "release 2 (generation 2), schema version 2" in out
    async with node(stopped) as edge:
        assert await texts(edge) == ["old", "new", "in the log"]


async def test_what_another_program_did_not_commit_in_the_backup_is_not_restored(stopped: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
    change = f"INSERT INTO notes (text) {many} SELECT 'not kept ' || i FROM n"
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 5'); "
    script += "c.execute(sys.argv[2]); import os; os.kill(os.getpid(), 9)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(file), change)
    assert await process.wait() == -9
    assert wal.journal_of(file).stat().st_size
    code, found = await restore(stopped)
    assert (code, found.get("warnings")) == (0, []), found
    assert rows(stopped / wal.FILE) == ["old"]


async def test_nothing_is_restored_while_the_node_runs(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "backup.db"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        assert (await command("backup", str(file), "--state", str(state)))[0] == 0
        await write(edge, "later")
        code, found = await restore(state)
        assert (code, found["error"]["code"]) == (1, "node_running")
        assert await texts(edge) == ["later"]


async def test_nothing_is_restored_while_another_program_has_the_file(stopped: Path) -> None:
    before = (stopped / wal.FILE).read_bytes()
    async with holder(stopped / wal.FILE) as pid:
        code, found = await restore(stopped)
    assert (code, found["error"]["code"]) == (1, "database_in_use")
    assert f"process {pid} (python" in found["error"]["message"]
    assert (stopped / wal.FILE).read_bytes() == before


def _no_database(file: Path) -> None:
    file.write_bytes(b"no database")


def _another_program(file: Path) -> None:
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as opened:
        opened.execute("CREATE TABLE notes (id)")


def _orphan(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as opened:
        opened.execute("CREATE TABLE child (note REFERENCES notes)")
        opened.execute("INSERT INTO child VALUES (77)")
        opened.commit()


def _no_index(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as opened:
        opened.execute("DROP INDEX by_text")


@pytest.mark.parametrize(
    ("harm", "code", "says", "forced"),
    [
        (_no_database, "database_unknown", "no database", False),
        (_another_program, "database_unknown", "no node's database", False),
        (damage, "database_damaged", "malformed", False),
        (_orphan, "database_damaged", "1 row has no parent", True),
        (_no_index, "database_damaged", "index by_text is missing", True),
    ],
)
async def test_what_is_not_whole_is_not_restored(
    stopped: Path, tmp_path: Path, harm: Any, code: str, says: str, forced: bool
) -> None:
    harm(tmp_path / "backup.db")
    before = sorted((path.name, path.read_bytes()) for path in (stopped / "db").iterdir())
    witness = (stopped / "witness.json").read_bytes()
    status, found = await restore(stopped)
    assert (status, found["error"]["code"]) == (1, code)
    assert says in found["error"]["message"]
    assert sorted((path.name, path.read_bytes()) for path in (stopped / "db").iterdir()) == before
    assert (stopped / "witness.json").read_bytes() == witness
    assert not list(stopped.glob("db.*"))
    assert (await restore(stopped, "--force"))[0] == (0 if forced else 1)


@pytest.mark.parametrize("point", ["prepared", "announced", "exchanged"])
@pytest.mark.parametrize("witness", ["there", "gone"])
async def test_a_restore_that_is_killed_leaves_the_one_or_the_other(
    stopped: Path, tmp_path: Path, point: str, witness: str
) -> None:
    if witness == "gone":
        (stopped / "witness.json").unlink()
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / f"edge.restore.{point}").write_text("kill")
    assert (await restore(stopped, SKERRY_FAULTS=str(faults)))[0] == -9
    async with node(stopped) as edge:
        assert edge.front.manager.error() is None
        assert await texts(edge) == (["old"] if point == "exchanged" else ["old", "new"])
    assert (await restore(stopped))[0] == 0
    async with node(stopped) as edge:
        assert await texts(edge) == ["old"]


@pytest.mark.parametrize("planted", ["link", "open"])
async def test_nobody_can_have_a_backup_made_where_others_read_it(stopped: Path, tmp_path: Path, planted: str) -> None:
    folder, elsewhere = tmp_path / ".new.db.partial", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "kept").touch()
    if planted == "link":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    code, _, err = await command("backup", str(tmp_path / "new.db"), "--state", str(stopped))
    assert (code, "can't be written" in err) == (1, True)
    assert (elsewhere / "kept").exists()
    assert not (tmp_path / "new.db").exists()


async def test_a_restore_that_may_not_be_on_disk_is_not_said_to_have_changed_nothing(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = files.sync_folder

    def fail(folder: Path) -> None:
        if list(stopped.glob("db.before-*")):
            raise OSError(5, "Input/output error")
        real(folder)

    monkeypatch.setattr(files, "sync_folder", fail)
    assert restore_command.callback is not None
    with pytest.raises(support.click.exceptions.Exit):
        restore_command.callback(tmp_path / "backup.db", stopped, force=False, as_json=False)
    told = capsys.readouterr()
    assert "Input/output error" in told.err + told.out
    assert "nothing was changed" not in told.err + told.out
    monkeypatch.undo()
    async with node(stopped) as edge:
        assert edge.front.manager.error() is None
        assert await texts(edge) == ["old"]


async def test_the_state_directory_must_be_this_users(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    for as_json in (False, True):
        with pytest.raises(support.click.exceptions.Exit):
            support.check_owner(stopped, as_json)


def test_what_is_copied_has_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime.oneshot import database_copy

    (tmp_path / "skerry.db").write_bytes(b"x" * 5_000_000)
    monkeypatch.setattr(database_copy, "DISK_RESERVE", 1 << 60)
    monkeypatch.setattr(database_copy, "fits", lambda needed, free: needed + (1 << 60) <= free)
    with pytest.raises(database_copy.CopyFailed, match="free some space") as failed:
        database_copy.copy_unused(tmp_path / "skerry.db", tmp_path / "copy.db")
    assert failed.value.code == "disk_full"


async def test_control_brings_a_restored_node_back_to_its_target(control: Control, tmp_path: Path) -> None:
    """Of another node's file, too: its inventory says what it has, as after any poll."""
    for name in ("a", "b"):
        await joined(control, tmp_path / name, name=name)
    await control.call("POST", "schema-changes", {"name": "notes", "sql": NOTES[0]})
    await control.release(functions={"sql": await control.push("sql", *FUNCTIONS["sql"])})
    for name in ("a", "b"):
        async with edge(tmp_path / name) as running:
            await running.until(lambda s: s["at_target"] is True)
            code, _, err = await command("backup", str(tmp_path / f"{name}.db"), "--state", str(tmp_path / name))
            assert (code, err) == (0, "")
    await control.call("POST", "schema-changes", {"name": "more", "sql": "CREATE TABLE more (x)"})
    await control.release()
    async with edge(tmp_path / "a") as running:
        await running.until(lambda s: s["at_target"] is True and s["schema_version"] == 2)
    for backup in ("a", "b"):
        code, out, err = await command("restore", str(tmp_path / f"{backup}.db"), "--state", str(tmp_path / "a"))
        assert (code, err) == (0, ""), out
        async with edge(tmp_path / "a") as running:
            found = await running.until(lambda s: s["at_target"] is True and s["schema_version"] == 2)
            assert found["release"]["generation"] == 2
            seen = await control.until(lambda n: n["at_target"] and n["schema_version"] == 2, "a")
            assert (seen["failures"], seen["error"]) == (0, None)
