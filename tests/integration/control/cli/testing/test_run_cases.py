"""`skerry test`: a project's cases, as its author runs them."""

import asyncio
import os
import signal
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import orjson
import psutil
import pytest

from tests.guests.build import example, guest, wat
from tests.support.programs import Done, command, until

SCHEMA = (
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, author TEXT, text TEXT);\nINSERT INTO notes VALUES (1, 'x', NULL);"
)


class Folder:
    """A project of modules that are built already."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self._cache = cache

    def function(
        self, name: str, wasm: bytes, manifest: str = 'sql = "write"', folder: str = ".", top: str = ""
    ) -> None:
        at = self.path / folder
        at.mkdir(parents=True, exist_ok=True)
        (at / "function.wasm").write_bytes(wasm)
        (at / "function.toml").write_text(f'name = "{name}"\nmodule = "function.wasm"\n{top}\n[manifest]\n{manifest}\n')

    def schema(self, sql: str = SCHEMA) -> None:
        (self.path / "schema").mkdir(exist_ok=True)
        (self.path / "schema" / "0001_notes.sql").write_text(sql)

    def cases(self, text: str, name: str = "notes", folder: str = ".") -> None:
        at = self.path / folder / "tests"
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{name}.toml").write_text(text)

    async def test(self, *arguments: str | Path) -> Done:
        return await command("control.cli", "test", self.path, *arguments, XDG_CACHE_HOME=str(self._cache))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled modules are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Folder:
    """A project of one function, which runs the SQL that it is sent."""
    made = Folder(tmp_path / "notes", cache)
    made.function("notes", guest("sql"), top='schema = "schema"')
    made.schema()
    return made


def sent(sql: str) -> str:
    """A request with a statement for the function, as a line of TOML."""
    body = orjson.dumps({"sql": sql}).decode()
    return f"request = {{ body = {orjson.dumps(body).decode()} }}"


async def test_each_case_has_a_database_of_its_own(project: Folder) -> None:
    insert = sent("INSERT INTO notes (author) VALUES ('ada') RETURNING id")
    project.cases(
        f"""
[[case]]
name = "the first"
{insert}
json = {{ columns = ["id"], rows = [[2]], changes = 1, last_id = 2 }}
headers = {{ Content-Type = "application/json" }}
sql_after = {{ sql = "SELECT id, author, text FROM notes ORDER BY id", rows = '[[1, "x", null], [2, "ada", null]]' }}

[[case]]
name = "the second"
sql_before = '''
INSERT INTO notes VALUES (7, 'bob', 'it''s; -- tea'); -- two statements
DELETE FROM notes WHERE id = 1;
'''
{insert}
body = '''{{"columns":["id"],"rows":[[8]],"changes":1,"last_id":8}}
'''

[[case.sql_after]]
sql = "SELECT text FROM notes WHERE id = 7"
rows = [["it's; -- tea"]]

[[case.sql_after]]
sql = "SELECT x'00ff', 1.5, count(*) FROM notes"
rows = [[{{ "$blob" = "AP8=" }}, 1.5, 2]]

[[case]]
name = "a status of 500 undoes it"
request = {{ path = "?status=500", body = '{{"sql":"DELETE FROM notes"}}' }}
status = 500
sql_after = {{ sql = "SELECT count(*) FROM notes", rows = [[1]] }}

[[case]]
name = "GET only reads"
request = {{ method = "GET", body = '{{"sql":"DELETE FROM notes"}}' }}
sql_after = {{ sql = "SELECT count(*) FROM notes", rows = [[1]] }}
"""
    )
    done = await project.test()
    assert (done.status, done.err) == (0, ""), done
    assert b"\n4 passed in " in done.out
    assert [line.split("  ")[0] for line in done.out.decode().splitlines()[:4]] == ["ok"] * 4


async def test_what_is_different_is_shown(project: Folder) -> None:
    project.cases(
        f"""
[[case]]
name = "all is wrong"
{sent("SELECT 'ada' AS author, 2 AS id")}
status = 201
headers = {{ x-none = "1", content-type = "text/html" }}
json = {{ columns = ["author", "id"], rows = [["ada", true]], changes = 0, last_id = 1.0 }}
sql_after = {{ sql = "SELECT author FROM notes", rows = [["x"], ["ada"]] }}

[[case]]
name = "text"
{sent("SELECT 1")}
body = "other"

[[case]]
name = "SQL that fails"
{sent("SELECT * FROM nots")}
status = 404

[[case]]
name = "what comes before"
sql_before = "INSERT INTO nots VALUES (1)"

[[case]]
name = "what comes after"
{sent("SELECT 1")}
sql_after = {{ sql = "SELECT * FROM nots", rows = [] }}
"""
    )
    done = await project.test()
    assert done.status == 1
    told = done.out.decode()
    for line in (
        "FAIL  {file}: all is wrong",
        "status: 201 Created is expected, 200 OK came",
        "header x-none: '1' is expected, none came",
        "header content-type: 'text/html' is expected, 'application/json' came",
        "- true",
        "+ 2",
        '- ["ada"]',
        "rows of SELECT author FROM notes:",
        '- "other"',
        "status: 404 Not Found is expected, 200 OK came",
        "note: SQL: no such table: nots (sql_invalid)",
        "sql_before: no such table: nots. (sql_invalid)",
        "sql_after: SELECT * FROM nots: no such table: nots. (sql_invalid)",
        "5 failed in ",
    ):
        expected = line.format(file=project.path / "tests" / "notes.toml")
        assert " ".join(expected.split()) in " ".join(told.split()), (expected, told)


async def test_how_a_call_failed_is_shown(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path / "several", cache)
    (project.path).mkdir()
    (project.path / "skerry.toml").write_text('name = "several"\n')
    for name, manifest in (("divide", ""), ("loop", "time_limit_ms = 200"), ("overflow", ""), ("echo", "")):
        project.function(name, guest(name), manifest, folder=name)
    project.function("broken", b"\0asm", "", folder="broken")
    project.function("keyed", guest("env"), 'secrets = ["KEY"]', folder="keyed")
    project.cases(
        "".join(
            f'[[case]]\nname = "{name}"\nfunction = "{name}"\nbody = "x"\n'
            for name in ("divide", "loop", "overflow", "broken", "keyed")
        )
        + '[[case]]\nname = "a trap is a 502"\nfunction = "divide"\nstatus = 502\n'
    )
    project.cases('[[case]]\nname = "its own"\nrequest = { body = "x" }\nbody = "x"\n', folder="echo")
    done = await project.test()
    assert done.status == 1, done
    told = done.out.decode()
    for line in (
        "(guest_trap)",
        "It was in function",
        "(time_limit)",
        "(worker_crashed)",
        "the secret KEY",
        "_invalid)",
    ):
        assert line in told
    assert "2 passed, 5 failed" in told
    assert "ok    " in told
    assert "a trap is a 502" in told
    # The value of a secret is in the file, for all of its cases.
    project.cases('function = "keyed"\nsecrets = { KEY = "opens" }\n[[case]]\nname = "given"\n', "keyed")
    done = await project.test("-k", "given")
    assert (done.status, b"1 passed" in done.out) == (0, True), done
    # One function of the project by itself.
    done = await command("control.cli", "test", project.path / "echo", XDG_CACHE_HOME=str(cache))
    assert (done.status, b"1 passed" in done.out) == (0, True), done


async def test_rows_are_not_taken_as_right_where_the_call_ended_its_process(tmp_path: Path, cache: Path) -> None:
    """Its database is gone with it."""
    project = Folder(tmp_path, cache)
    project.function("overflow", guest("overflow"), 'sql = "write"', top='schema = "schema"')
    project.schema()
    project.cases(
        '[[case]]\nname = "no rows"\nstatus = 502\n'
        '[[case]]\nname = "rows"\nstatus = 502\nsql_after = { sql = "SELECT 1", rows = [[7]] }\n'
    )
    done = await project.test()
    assert (done.status, b"1 passed, 1 failed" in done.out) == (1, True), done
    assert "sql_after: it wasn't run: " in done.out.decode()


LARGE = r"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 0) "\10\00\00\00\1a\00\00\00" "\00\00\01\00\00\00\01\00")
  (data (i32.const 16) "Content-Type: text/plain\0a\0a")
  (func (export "_start") (local $left i32)
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (memory.fill (i32.const 0x10000) (i32.const 120) (i32.const 0x10000))
    (local.set $left (i32.const 1000))
    (loop $more
      (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 64)))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
"""
"""Answers 1000 times 64 KiB."""


async def test_an_answer_of_nearly_the_largest_size(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    project.function("large", wat(LARGE), f"response_limit = {64 << 20}\ntime_limit_ms = 60000")
    project.cases('[[case]]\nname = "a"\n')
    done = await project.test()
    assert (done.status, b"1 passed" in done.out) == (0, True), done


async def test_ctrl_c_ends_all_without_a_word(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    project.function("loop", guest("loop"), "time_limit_ms = 60000")
    project.cases('[[case]]\nname = "a"\n[[case]]\nname = "b"\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "test", str(project.path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )

    started = psutil.Process(process.pid)

    async def both_run() -> list[psutil.Process]:
        made = started.children(recursive=True)
        return made if len(made) == 3 else []

    made = await until(both_run, "both calls run")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.read(), 30)).strip() == b"interrupted"
    assert await process.wait() == 130
    assert psutil.wait_procs(made, timeout=30)[1] == []


async def test_a_case_by_its_route(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    project.function("till", guest("fetch"), 'route = { path = "/orders/{id}", methods = ["GET"] }')
    project.cases(
        '[[case]]\nname = "by it"\nrequest = { route = "/orders/a%20b?env=PATH_PARAM_ID" }\nbody = "a b"\n'
        '[[case]]\nname = "below its name"\nrequest = { path = "/7?env=PATH_PARAM_ID" }\nbody = "(none)"\n'
        '[[case]]\nname = "none"\nrequest = { route = "/orders/" }\n'
    )
    done = await project.test()
    assert (done.status, b"2 passed, 1 failed" in done.out) == (1, True), done
    assert "doesn't take GET /orders/. (request_unfit)" in done.out.decode()


async def test_a_hundred_cases(project: Folder) -> None:
    """In seconds: one process makes them all."""
    text = sent("INSERT INTO notes (author) VALUES (1)")
    rows = 'sql_after = { sql = "SELECT count(*) FROM notes", rows = [[2]] }'
    project.cases("\n".join(f'[[case]]\nname = "case {n}"\n{text}\n{rows}' for n in range(100)))
    done = await project.test()
    assert b"100 passed" in done.out, done
    assert len(done.out.splitlines()) == 101
    done = await project.test("-k", "CASE 7")
    assert b"11 passed" in done.out


async def test_a_run_is_written_as_junit(project: Folder, tmp_path: Path) -> None:
    project.cases(f'[[case]]\nname = "well"\n{sent("SELECT 1")}\n[[case]]\nname = "\\u0001 <bad>"\nstatus = 404\n')
    file = tmp_path / "reports" / "run.xml"
    assert (await project.test("--junit", file)).status == 1
    root = xml.parse(file).getroot()
    [suite] = root
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    well, bad = suite
    assert (well.get("classname"), well.get("name"), list(well)) == ("notes", "well", [])
    assert bad.get("name") == "\ufffd <bad>"
    [failure] = bad
    assert failure.text is not None
    assert failure.text.startswith("status: 404 Not Found is expected, 200 OK came")


WRONG = [
    (
        '[[case]]\nname = "a"\nstatuss = 1',
        "notes.toml:1: case 1 (a): unknown key statuss: is it status? (there are name,",
    ),
    (
        '\n[[case]]\nname = "a"\nrequest = { metod = "GET" }',
        "notes.toml:2: case 1 (a): unknown key metod in request: is",
    ),
    ('[[case]]\nname = "a"\nsql_after = { sq = "" }', "unknown key sq in sql_after: is it sql?"),
    (
        '[[case]]\nname = "a"\nsql_after = [{ sql = "x", rows = [], row = 1 }]',
        "unknown key row in sql_after: is it rows?",
    ),
    ('[[case]]\nname = "a"\n[[case]]\nstatus = 200', "notes.toml:3: case 2: it has no `name`"),
    ('[[case]]\nname = "a"\nstatus = "200"', "case 1 (a): status: Expected `int`, got `str`"),
    ('[[case]]\nname = "a"\nstatus = 99', ">= 200"),
    ('[[case]]\nname = "a"\nbody = ""\njson = 1', "body and json are one or the other"),
    ('[[case]]\nname = "a"\njson = "{"', "json is no JSON"),
    ('[[case]]\nname = "a"\nsql_after = { sql = "x", rows = "[1]" }', "a list for each row"),
    ('[[case]]\nname = "a"\nrequest = { path = "orders" }', "must begin with / or ?"),
    ('[[case]]\nname = "a"\nrequest = { path = "/a", route = "/b" }', "request.path and request.route are one or"),
    ('[[case]]\nname = "a"\n[[case]]\nname = "a"', "case 2 (a): a case before it"),
    ('[[case]]\nname = "a"\nfunction = "other"', "no function other; it has notes"),
    ('[[cases]]\nname = "a"', "notes.toml: unknown key cases: is it case?"),
    ("[[case]]\nname =", "notes.toml can't be read: "),
    ("", "has no test cases"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
async def test_what_is_wrong_in_a_case_is_named(project: Folder, text: str, told: str) -> None:
    project.cases(text)
    done = await project.test()
    assert (done.status, done.out) == (2, b""), done
    assert told in done.err


async def test_what_is_wrong_with_the_whole_is_told_once(project: Folder) -> None:
    project.cases("".join(f'[[case]]\nname = "{n}"\n' for n in range(5)))
    assert (await project.test("-k", "nothing")).status == 2
    project.schema("CREATE TABLE notes (id INTEGER PRIMARY KEY);\nINSERT INTO nots VALUES (1);")
    done = await project.test()
    assert done.status == 1
    assert done.err.count("0001_notes.sql: no such table: nots") == 1


async def test_a_function_of_several_must_be_named(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    (tmp_path / "skerry.toml").write_text('name = "several"\n')
    for name in ("one", "two"):
        project.function(name, guest("echo"), "", folder=name)
    project.cases('[[case]]\nname = "a"')
    done = await project.test()
    assert done.status == 2
    assert "say which function it is for, by `function` in the case or above all cases: one, two" in done.err


async def test_cases_run_again_when_a_file_changes(project: Folder, cache: Path) -> None:
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\nstatus = 201\n')
    arguments = ("-m", "control.cli", "test", str(project.path), "--watch", "--junit", str(project.path / "run.xml"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = ""

    async def read() -> None:
        nonlocal told
        assert process.stdout is not None
        while piece := await process.stdout.read(65_536):
            told += piece.decode()

    reading = asyncio.ensure_future(read())

    async def said(text: str, times: int) -> None:
        async def there() -> bool:
            return told.count(text) >= times

        await until(there, f"{text!r} is said in {told!r}")

    try:
        await said("waiting for a change", 1)
        assert "1 failed" in told
        project.cases("[[case]]\nname =")
        await said("can't be read", 1)
        project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
        await said("1 passed", 1)
        await said("waiting for a change", 3)
        # A change of the schema is one, too.
        project.schema("CREATE TABLE other (x);")
        await said("1 passed", 2)
        assert told.count("waiting for a change") <= 4
    finally:
        process.send_signal(2)
        await asyncio.wait_for(process.wait(), 60)
        await reading
    assert process.returncode == 130


@pytest.mark.parametrize("words", [("test", "--watch"), ("dev",)], ids=" ".join)
async def test_what_can_not_be_watched_ends_it(project: Folder, words: tuple[str, ...]) -> None:
    """Also where the system has no more watches: otherwise it would wait for ever."""
    project.function("notes", guest("sql"), top='schema = "../none"')
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
    done = await command("control.cli", *words, project.path)
    assert done.status == 1, done
    assert "none can't be noticed: " in done.err
    assert "Traceback" not in done.err


async def test_an_example_of_a_function_that_counts(tmp_path: Path, cache: Path) -> None:
    """A function by its path, not by SQL that it is sent."""
    project = Folder(tmp_path, cache)
    project.function("visits", example("visits"), top='schema = "schema"')
    project.schema("CREATE TABLE visits (name TEXT PRIMARY KEY, count INTEGER NOT NULL);")
    project.cases(
        '[[case]]\nname = "a"\nsql_before = "INSERT INTO visits VALUES (\'ada\', 7)"\n'
        'request = { method = "POST", path = "/ada" }\njson = { name = "ada", count = 8 }\n'
    )
    done = await project.test()
    assert (done.status, b"1 passed" in done.out) == (0, True), done
