"""The SQL of `skerry-edge call`: on a file that it is given, with the grants and limits that hold on a node."""

import sqlite3
from pathlib import Path

import orjson
import pytest

from tests.guests.build import example, guest, wat


def rows(database: Path, sql: str) -> list[tuple[object, ...]]:
    opened = sqlite3.connect(database)
    try:
        return opened.execute(sql).fetchall()
    finally:
        opened.close()


async def test_sql_goes_to_the_file(call, database):
    for count in (1, 2):
        done = await call(example("visits"), "--method", "POST", "--path", "/ada", "--sql", database, "--json")
        assert orjson.loads(done.json()["body"]) == {"name": "ada", "count": count}
    assert rows(database, "SELECT name, count FROM visits") == [("ada", 2)]
    # Nothing of the runtime's is put in.
    assert rows(database, "SELECT name FROM sqlite_schema WHERE name LIKE '%skerry%'") == []


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_a_file_in_any_mode_is_left_as_it_was(call, database, mode):
    """With nothing beside it, and in its mode: although the fenced process can make and remove no file."""
    assert rows(database, f"PRAGMA journal_mode = {mode}") == [(mode,)]
    with_others = sqlite3.connect(database)
    for count in (1, 2):
        done = await call(example("visits"), "--method", "POST", "--path", "/ada", "--sql", database)
        assert done.out.startswith(b"200 OK"), done
        # Its files stay where another has it open, who sees what was committed.
        assert with_others.execute("SELECT count FROM visits").fetchall() == [(count,)]
    with_others.close()
    await call(example("visits"), "--method", "POST", "--path", "/ada", "--sql", database)
    assert [path.name for path in database.parent.glob("own.db*")] == ["own.db"]
    assert rows(database, "SELECT count FROM visits") == [(3,)]
    assert rows(database, "PRAGMA journal_mode") == [(mode,)]


async def test_a_file_that_is_not_there_is_refused(call, tmp_path):
    """A mistyped name would be an empty database, which has no tables."""
    for name in ("new.db", "no/such/folder/new.db"):
        done = await call(example("visits"), "--path", "/ada", "--sql", tmp_path / name)
        assert done.status == 2
        assert f"there is no file {tmp_path / name}" in done.err
    assert list(tmp_path.glob("new*")) == []
    done = await call(example("visits"), "--path", "/ada", "--sql", ":memory:")
    assert b"no such table" in done.out


async def test_a_file_that_is_no_database_is_named_and_not_the_module(call, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no database, " * 100)
    done = await call(guest("echo"), "--sql", text, "--json")
    error = orjson.loads(done.out)["error"]
    assert (done.status, error["code"]) == (1, "database_unfit")
    assert str(text) in error["message"]
    assert "not a database" in error["message"]


async def test_a_database_that_another_process_holds_is_told_so(call, database):
    holder = sqlite3.connect(database)
    holder.execute("BEGIN EXCLUSIVE")
    done = await call(guest("sql"), "--sql", database, "--body", '{"sql":"SELECT 1"}')
    holder.close()
    assert done.status == 1
    assert "[database_held]" in done.err
    assert str(database) in done.err


SELECT = '{"sql":"SELECT 1"}'


async def test_a_call_without_a_database_is_told_so_and_not_that_a_grant_is_missing(call, tmp_path):
    manifest = tmp_path / "function.toml"
    told = "SQL: The call has no database: name one with --sql FILE. (database_not_given)"
    for text in ('sql = "write"', ""):
        manifest.write_text(f'name = "f"\nmodule = "f.wasm"\n[manifest]\n{text}\n')
        done = await call(guest("sql"), "--body", SELECT, *(("--manifest", manifest) if text else ()))
        assert b"database_not_given" in done.out
        assert f"Note: {told}\n" in done.err
    done = await call(guest("sql"), "--body", SELECT, "--json")
    assert done.json()["notes"] == [told]
    # One that grants none is the cause, with a database too.
    done = await call(guest("sql"), "--body", SELECT, "--manifest", manifest, "--sql", ":memory:")
    assert b"not_granted" in done.out
    assert "grants it no SQL" in done.err


async def test_what_sql_refused_is_told_whatever_the_function_makes_of_it(call, database):
    done = await call(writer(200), "--method", "POST", "--sql", ":memory:")
    assert (done.status, done.out) == (0, b"200 OK\n\n")
    assert done.err == "Note: SQL: no such table: visits (sql_invalid)\n"


async def test_a_commit_that_fails_is_the_calls_end_as_on_a_node(call, tmp_path):
    database = tmp_path / "own.db"
    with sqlite3.connect(database) as opened:
        opened.execute("CREATE TABLE p (id INTEGER PRIMARY KEY)")
        opened.execute("CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
        opened.execute("CREATE TABLE u (x UNIQUE ON CONFLICT ROLLBACK)")
    opened.close()
    for sql, code in (
        ("INSERT INTO c VALUES (7)", "constraint_foreign_key"),
        ("INSERT INTO u VALUES (1), (1)", "transaction_ended"),
    ):
        done = await call(guest("sql"), "--sql", database, "--body", orjson.dumps({"sql": sql}).decode(), "--json")
        told = orjson.loads(done.out)
        assert (done.status, told["status"], told["error"]["code"]) == (1, 502, code), told
    assert rows(database, "SELECT (SELECT count(*) FROM c) + (SELECT count(*) FROM u)") == [(0,)]


async def test_limits_of_sql_are_the_manifests(call, tmp_path):
    manifest = tmp_path / "manifest.toml"
    manifest.write_text('sql = "read"\nsql_rows = 2\n')
    sql = orjson.dumps({"sql": f"VALUES {', '.join(['(1)'] * 40)}"}).decode()
    done = await call(guest("sql"), "--manifest", manifest, "--sql", ":memory:", "--body", sql)
    assert b"sql_too_many_rows" in done.out


async def test_what_a_call_wrote_that_was_ended_is_undone(call, database):
    """Its journal stays, and the next call's SQLite undoes it."""
    rows(database, "INSERT INTO visits VALUES ('before', 1) RETURNING 1")
    kept = sqlite3.connect(database)
    kept.execute("INSERT INTO visits VALUES ('kept', 1)")
    kept.commit()
    kept.close()
    journal = database.with_name("own.db-journal")
    # What had no processor until its end is given more time.
    for limit in ("2s", "20s"):
        wasm = writer(200, "(loop $on (br $on))")
        done = await call(wasm, "--method", "POST", "--sql", database, "--time-limit", limit)
        assert "time_limit" in done.err
        if journal.exists():
            break
    assert journal.stat().st_size
    done = await call(writer(200), "--method", "POST", "--sql", database)
    assert done.out == b"200 OK\n\n"
    assert rows(database, "SELECT name FROM visits ORDER BY name") == [("kept",), ("x",)]
    assert not journal.exists()


def writer(status: int, then: str = "") -> bytes:
    """A function that writes a row, goes on with `then`, and answers that status."""
    return wat(
        f"""(module (import "skerry" "sql" (func $sql (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\\10\\00\\00\\00\\0d\\00\\00\\00") (data (i32.const 16) "Status: {status}\\n\\n")
        (data (i32.const 64) "{{\\"sql\\":\\"INSERT INTO visits VALUES ('x', 1)\\"}}")
        (func (export "_start") (drop (call $sql (i32.const 64) (i32.const 44))) {then}
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))"""
    )


async def test_an_answer_of_500_and_a_grant_to_read_change_nothing(call, database, tmp_path):
    done = await call(writer(500), "--method", "POST", "--sql", database)
    assert (done.status, done.out) == (0, b"500 Internal Server Error\n\n"), done.err
    assert rows(database, "SELECT count(*) FROM visits") == [(0,)]
    assert (await call(writer(404), "--method", "POST", "--sql", database)).out == b"404 Not Found\n\n"
    assert rows(database, "SELECT count(*) FROM visits") == [(1,)]
    manifest = tmp_path / "function.toml"
    manifest.write_text('name = "f"\nmodule = "f.wasm"\n[manifest]\nsql = "read"\n')
    done = await call(example("visits"), "--method", "POST", "--path", "/a", "--sql", database, "--manifest", manifest)
    assert b"not_granted" in done.out
    assert rows(database, "SELECT count(*) FROM visits") == [(1,)]


async def test_get_only_reads_unless_the_manifest_says_otherwise(call, database, tmp_path):
    """As on a node; without a manifest too."""
    insert = '{"sql":"INSERT INTO visits VALUES (?, 1)","params":["x"]}'
    given = ("--method", "GET", "--body", insert, "--sql", database)
    done = await call(guest("sql"), *given)
    assert b"not_granted" in done.out
    assert b"read_only_methods" in done.out
    manifest = tmp_path / "function.toml"
    for methods, count in (('["GET", "PUT"]', 0), ("[]", 1)):
        text = f'name = "f"\nmodule = "f.wasm"\n[manifest]\nsql = "write"\nread_only_methods = {methods}\n'
        manifest.write_text(text)
        done = await call(guest("sql"), *given, "--manifest", manifest)
        assert (b"not_granted" in done.out) is (count == 0), done
        assert rows(database, "SELECT count(*) FROM visits") == [(count,)]


async def test_a_function_that_fails_over_a_limit_of_sql_is_told_by_the_limit(call, database):
    sql = '{"sql":"SELECT zeroblob(9000000)"}'
    done = await call(guest("sql"), "--sql", database, "--query", "exit=1", "--body", sql, "--json")
    assert done.status == 1
    told = orjson.loads(done.out)
    assert (told["status"], told["error"]["code"]) == (507, "sql_answer_too_large")
