"""`skerry-edge call`: one call of a module without a server, as the command."""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from edge_runtime.cli.main import main
from tests.guests.build import EXAMPLES, example, guest, wat
from tests.support.edge import until
from tests.support.programs import Done, command


@pytest.fixture
def call(tmp_path: Path):
    """Runs the command on a module's bytes, with a cache of its own."""

    async def called(wasm: bytes, *arguments: str | Path) -> Done:
        file = tmp_path / "module.wasm"
        file.write_bytes(wasm)
        return await command("edge_runtime.cli.main", "call", file, *arguments, XDG_CACHE_HOME=str(tmp_path / "cache"))

    return called


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "own.db"
    with sqlite3.connect(file) as opened:
        opened.executescript((EXAMPLES / "visits" / "schema.sql").read_text())
    opened.close()
    return file


def rows(database: Path, sql: str) -> list[tuple[object, ...]]:
    opened = sqlite3.connect(database)
    try:
        return opened.execute(sql).fetchall()
    finally:
        opened.close()


@pytest.mark.parametrize("how", [(), ("--interpret",)])
async def test_a_call_is_answered(call, tmp_path, how):
    done = await call(guest("echo"), "--body", "hé\n", *how)
    assert done.status == 0, done.err
    head, _, body = done.out.partition(b"\n\n")
    assert body == "hé\n".encode()
    assert head.startswith(b"200 OK\n")
    # Compiled once, for its user alone; nothing where it is interpreted.
    compiled = list(tmp_path.glob("cache/skerry/aot/*.so"))
    assert len(compiled) == (0 if how else 1)
    assert all(file.stat().st_mode & 0o077 == 0 for file in (*compiled, *tmp_path.glob("cache/skerry/aot")))


async def test_the_request_is_what_the_options_say(call, tmp_path):
    (tmp_path / "body").write_bytes(b"\0\xff")
    given = ["--method", "put", "--path", "/a%20b?x=1&y", "--header", "X-One: 1", "--header", "X-Two:é"]
    done = await call(guest("env"), *given, "--body-file", tmp_path / "body", "--config", "MODE=test=1", "--json")
    told = done.json()
    assert told["status"] == 200
    assert set(told["body"].splitlines()) >= {
        "REQUEST_METHOD=PUT", "PATH_INFO=/a b", "QUERY_STRING=x=1&y", "HTTP_X_ONE=1", "HTTP_X_TWO=é", "MODE=test=1",
        "CONTENT_LENGTH=2",
    }  # fmt: skip
    assert told["seconds"] > 0
    echoed = await call(guest("echo"), "--body-file", tmp_path / "body", "--json")
    assert echoed.json()["body"] == {"$blob": "AP8="}


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
    assert "(database_held)" in done.err
    assert str(database) in done.err


async def test_a_call_by_its_route_is_as_on_a_node(call, tmp_path):
    manifest = tmp_path / "function.toml"
    manifest.write_text(
        'name = "till"\nmodule = "f.wasm"\n[manifest]\nroute = { path = "/orders/{id}/{rest...}", methods = ["GET"] }\n'
    )
    done = await call(guest("env"), "--manifest", manifest, "--route", "/orders/a%20b/lines/1?x=1")
    assert set(done.out.decode().splitlines()) >= {
        "SCRIPT_NAME=/orders", "PATH_INFO=/a b/lines/1", "X_MATCHED_ROUTE=/orders/{id}/{rest...}", "PATH_PARAM_ID=a b",
        "PATH_PARAM_REST=lines/1", "QUERY_STRING=x=1",
    }  # fmt: skip
    for given, told in (
        (("--route", "/order/7"), "GET /orders/{id}/{rest...}, doesn't take GET /order/7"),
        (("--route", "/orders/7/", "--method", "PUT"), "doesn't take PUT"),
        (("--route", "/orders/7/", "--path", "/x"), "one or the other"),
    ):
        done = await call(guest("env"), "--manifest", manifest, *given)
        assert (done.status, told in done.err) == (2, True), done
    done = await call(guest("env"), "--route", "/orders/7/")
    assert "the manifest has no route" in done.err


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


async def test_requests_that_are_not_made_are_told_so(call, tmp_path):
    wanted = ("--body", '{"url":"https://api.example/"}')
    done = await call(guest("fetch"), *wanted)
    assert "Note: HTTP: No request was made" in done.err
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    done = await call(guest("fetch"), *wanted, "--manifest", manifest)
    assert "Note: HTTP: This function's manifest grants it no HTTP" in done.err


async def test_what_sql_refused_is_told_whatever_the_function_makes_of_it(call, database):
    done = await call(writer(200), "--method", "POST", "--sql", ":memory:")
    assert (done.status, done.out) == (0, b"200 OK\n\n")
    assert done.err == "Note: SQL: no such table: visits (sql_invalid)\n"


async def test_a_secret_that_is_missing_is_named(call, tmp_path):
    manifest, secrets = tmp_path / "function.toml", tmp_path / "secrets.toml"
    manifest.write_text('name = "till"\nmodule = "f.wasm"\n[manifest]\nsecrets = ["KEY", "OTHER"]\n')
    done = await call(guest("env"), "--manifest", manifest, "--secret", "OTHER=x")
    assert done.status == 1
    assert "the secret KEY, which" in done.err
    assert "--secret KEY=VALUE" in done.err
    assert "(secret_missing)" in done.err
    secrets.write_text('[tll]\nKEY = "opens"\n')
    given = ("--manifest", manifest, "--secret", "OTHER=x", "--secrets", secrets)
    assert "(secrets_unfit)" in (await call(guest("env"), *given)).err
    secrets.chmod(0o600)
    done = await call(guest("env"), *given)
    assert f"put it into {secrets}, in the table [till]" in done.err
    secrets.write_text('[till]\nKEY = "opens"\n')
    done = await call(guest("env"), *given)
    assert {b"KEY=opens", b"OTHER=x"} <= set(done.out.splitlines())
    # Of its project's file it has its name, too.
    assert b"SCRIPT_NAME=/functions/till" in done.out.splitlines()
    assert (await call(guest("env"), "--manifest", manifest, "--secrets", tmp_path / "scerets.toml")).status == 2
    assert not (tmp_path / "scerets.toml").exists()


async def test_an_answer_that_is_an_error_is_the_exit_status_where_that_is_wished(call, database):
    """As curl has it: 0 for any answer, 22 with --fail, which prints no answer."""
    given = ("--method", "POST", "--sql", database)
    for status, phrase in ((404, "Not Found"), (500, "Internal Server Error")):
        done = await call(writer(status), *given)
        assert (done.status, done.out) == (0, f"{status} {phrase}\n\n".encode())
        done = await call(writer(status), *given, "--fail")
        assert (done.status, done.out) == (22, b"")
        assert f"Error: the function answered {status} {phrase}\n" in done.err
    done = await call(writer(500), *given, "--fail", "--json")
    assert (done.status, orjson.loads(done.out)["status"]) == (22, 500)
    assert (await call(writer(200), *given, "--fail")).status == 0
    assert (await call(guest("divide"), "--fail")).status == 1


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
    done = await call(writer(200, "(loop $on (br $on))"), "--method", "POST", "--sql", database, "--time-limit", "3000")
    assert "time_limit" in done.err
    journal = database.with_name("own.db-journal")
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


@pytest.mark.parametrize(("name", "code"), [("divide", "guest_trap"), ("overflow", "worker_crashed")])
async def test_a_fault_is_told_and_the_status_is_1(call, name, code):
    done = await call(guest(name))
    assert (done.status, done.out) == (1, b"")
    assert code in done.err


async def test_a_call_has_its_time_limit(call):
    done = await call(guest("loop"), "--time-limit", "300", "--json")
    assert done.status == 1
    told = orjson.loads(done.out)
    assert (told["status"], told["error"]["code"]) == (504, "time_limit")


async def test_what_no_node_would_run_is_refused(call, tmp_path):
    done = await call(b"\0asm\1\0\0\0")
    assert done.status == 1
    assert "memory_missing" in done.err or "abi_unknown" in done.err
    assert (await call(b"")).status == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--path", "orders"], "slash"),
        (["--header", "novalue"], "NAME:VALUE"),
        (["--config", "1=1"], "config"),
        (["--body", "x", "--body-file", "-"], "one or the other"),
        (["--query", "é"], "percent-encoded"),
        (["--time-limit", "1"], "time_limit_ms"),
        (["--query", "?x=1"], "question mark"),
        (["--path", "/a?x=1", "--query", "y=2"], "in the path already"),
        (["--query", "x=a b"], "percent-encoded"),
        (["--header", "a b: c"], "no header"),
        (["--method", "G-T"], "no method"),
        (["--manifest", "LIST"], "no table"),
        (["--manifest", "WORD"], "WORD.toml isn't valid"),
    ],
)
def test_a_wrong_call_is_told(arguments, told, tmp_path):
    files = {"LIST": tmp_path / "LIST.json", "WORD": tmp_path / "WORD.toml"}
    files["LIST"].write_text("[1]")
    files["WORD"].write_text("config = 'word'")
    arguments = [str(files.get(argument, argument)) for argument in arguments]
    done = CliRunner().invoke(main, ["call", __file__, *arguments])
    assert done.exit_code == 2
    assert told in done.output


def runs_fenced(children: Path, found: list[str]) -> bool:
    """Tell whether a child runs the guest: it has entered its fence. Its id is put into `found`."""
    found[:] = children.read_text().split()
    return bool(found) and "Seccomp:\t2" in Path(f"/proc/{found[0]}/status").read_text()


async def test_nothing_runs_on_when_the_command_is_killed(tmp_path):
    file = tmp_path / "module.wasm"
    file.write_bytes(guest("loop"))
    arguments = ("-m", "edge_runtime.cli.main", "call", str(file), "--interpret", "--time-limit", "60000")
    command = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    found: list[str] = []
    await until(lambda: runs_fenced(children, found))
    command.kill()
    await command.wait()
    await until(lambda: not Path(f"/proc/{found[0]}").exists())


async def test_nothing_runs_on_when_the_command_is_interrupted(tmp_path):
    """By Ctrl-C, or by a program that knows the command alone; and nothing but its end is told."""
    file = tmp_path / "module.wasm"
    file.write_bytes(guest("loop"))
    arguments = ("-m", "edge_runtime.cli.main", "call", str(file), "--interpret", "--time-limit", "60000")
    for interrupt in (os.killpg, os.kill):
        command = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
        found: list[str] = []
        await until(lambda children=children, found=found: runs_fenced(children, found))
        interrupt(command.pid, signal.SIGINT)
        assert command.stderr is not None
        assert (await asyncio.wait_for(command.stderr.read(), 30)).strip() == b"Aborted!"
        assert await command.wait() == 1
        assert not Path(f"/proc/{found[0]}").exists()


def trapping(names: bool, trap: str = "unreachable") -> bytes:
    """A guest whose function 2 traps, called by another."""
    inner = "$take_order" if names else ""
    call = "(call $take_order)" if names else "(call 2)"
    return wat(f"""
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
  (memory (export "memory") 1)
  (func {inner} (drop (i32.const 7)) {trap})
  (func (export "_start") {call}))
""")


@pytest.mark.parametrize("how", [(), ("--interpret",)])
@pytest.mark.parametrize(
    ("trap", "why"),
    [
        ("unreachable", "unreachable (0x40a)"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide by zero (0x404)"),
    ],
)
async def test_a_trap_says_in_which_function_it_was(call, how, trap, why):
    done = await call(trapping(names=True, trap=trap), "--json", *how)
    told = orjson.loads(done.out)["error"]
    assert told["code"] == "guest_trap"
    assert why in told["message"]
    assert told["message"].endswith(" It was in function 2 (take_order) of the module.")
    done = await call(trapping(names=False, trap=trap), *how)
    assert b"It was in function 2 of the module. (guest_trap)" in done.err.encode()


async def test_a_trap_of_a_plugin_says_in_which_function_it_was(call):
    done = await call(guest("plugin"), "--path", "/trap", "--json")
    told = orjson.loads(done.out)["error"]
    assert told["code"] == "guest_trap"
    assert " It was in function " in told["message"]
    assert "(trap)" in told["message"]


@pytest.mark.parametrize("how", [(), ("--interpret",)])
async def test_a_call_that_is_ended_shows_its_log(call, how):
    log = "before it hangs"
    text = "".join(f"\\{byte:02x}" for byte in f"<4>{log}\n".encode())
    looping = wat(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 1000) "{text}")
  (func (export "_start")
    (i32.store (i32.const 100) (i32.const 1000)) (i32.store (i32.const 104) (i32.const {len(log) + 4}))
    (drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))
    (loop $again (br $again))))
""")
    done = await call(looping, "--time-limit", "300", *how)
    assert done.status == 1
    assert done.err.splitlines()[0] == f"warning: {log}"
    assert "(time_limit)" in done.err
    done = await call(looping, "--time-limit", "300", "--secret", "KEY=before", "--json", *how)
    assert orjson.loads(done.out)["log"] == "warning: [secret KEY] it hangs\n"
