"""`skerry test`: a project's cases, as its author runs them."""

import xml.etree.ElementTree as xml
from pathlib import Path

import orjson

from tests.guests.build import example, guest, wat
from tests.support.cases_project import Folder, sent
from tests.support.programs import command
from tests.support.snapshots import ANSWERS, snapshot


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
        "rows of SELECT author FROM notes (- is expected, + came):",
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
    for name in ("divide", "loop", "overflow", "echo", "raw"):
        project.function(name, guest(name), "time_limit_ms = 200" if name == "loop" else "", folder=name)
    project.function("broken", b"\0asm", "", folder="broken")
    project.function("keyed", guest("env"), 'secrets = ["KEY"]', folder="keyed")
    project.cases(
        "".join(
            f'[[case]]\nname = "{name}"\nfunction = "{name}"\nbody = "x"\n'
            for name in ("divide", "loop", "overflow", "broken", "keyed")
        )
        + '[[case]]\nname = "a trap is a 502"\nfunction = "divide"\nstatus = 502\n'
        + '[[case]]\nname = "no space"\nfunction = "raw"\nheaders = { Content-Type = "t/p" }\n'
        + 'request = { body = "Content-Type:t/p\\nX:\\n\\nx" }\nbody = "x"\n'
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
        'the secret KEY, which the case hasn\'t: put secrets = { KEY = "…" } above all cases of its file',
        "_invalid)",
    ):
        assert line in told
    assert "3 passed, 5 failed" in told
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


async def test_a_case_by_a_route_for_a_host(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    project.function("till", guest("fetch"), 'route = { path = "/page", hosts = ["shop.example"] }')
    project.cases(
        '[[case]]\nname = "URL"\nrequest = { route = "http://shop.example/page?env=HTTP_HOST" }\n'
        'body = "shop.example"\n'
        '[[case]]\nname = "header"\n'
        'request = { route = "/page?env=HTTP_HOST", headers = { host = "shop.example:81" } }\n'
        'body = "shop.example:81"\n'
        '[[case]]\nname = "none"\nrequest = { route = "/page" }\n'
    )
    done = await project.test()
    assert (done.status, b"2 passed, 1 failed" in done.out) == (1, True), done
    assert "the route is for shop.example, and the request for localhost" in done.out.decode()


async def test_a_case_that_is_a_tick(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    manifest = 'sql = "write"\nschedule = ["0 3 * * *", "*/5 * * * *"]\non_release = true\nconfig = { SQL = "1" }'
    project.function("nightly", guest("tick"), manifest, top='schema = "schema"')
    project.schema("CREATE TABLE ran (event TEXT, at TEXT, cron TEXT);")
    ran = "sql_after = { sql = 'SELECT * FROM ran', rows"
    project.cases(
        f"""
[[case]]
name = "a tick of a line"
event = "schedule"
cron = "0 3 * * *"
at = 2026-03-29T05:00:00.5+02:00
{ran} = [["schedule", "2026-03-29T03:00:00Z", "0 3 * * *"]] }}

[[case]]
name = "a call after a release"
event = "release"
body = "release|2026-01-01T00:00:00Z|"

[[case]]
name = "what a client says of itself isn't passed on"
request = {{ method = "POST", headers = {{ Skerry-Event = "schedule", skerry_cron = "0 3 * * *" }} }}
{ran} = [["", "", ""]] }}
"""
    )
    done = await project.test()
    assert (done.status, done.err) == (0, ""), done
    assert b"3 passed" in done.out
    for line, told in (
        ("", "nightly's schedule has several lines: say which (there are 0 3 * * *; */5 * * * *)"),
        ('cron = "5 3 * * *"', "nightly's schedule has no line 5 3 * * * (there are "),
    ):
        project.cases(f'[[case]]\nname = "a"\nevent = "schedule"\n{line}')
        done = await project.test()
        assert done.status == 2
        assert told in done.err


async def test_a_case_that_answers_http(tmp_path: Path, cache: Path) -> None:
    """The answers in their order, each for its method and URL; no request leaves the machine."""
    project = Folder(tmp_path, cache)
    project.function("prices", guest("fetch"), 'http = { hosts = ["shop.example"], methods = ["GET", "POST"] }')
    get, post = "GET https://shop.example/milk?x=1", "POST https://shop.example/"
    one = 'http = [{ url = "https://shop.example/milk?x=1", method = "GET" }]\n'

    def asks(*requests: str) -> str:
        pairs = [request.split() for request in requests]
        lines = "\n".join(orjson.dumps({"method": method, "url": url}).decode() for method, url in pairs)
        return f"request = {{ body = {orjson.dumps(lines).decode()} }}\n"

    answers = (
        '{"status":200,"headers":[["content-type","application/json"]],"body":"{\\"price\\":3}"}\n'
        '{"status":503,"headers":[["age","9"]],"body":"later"}\n'
        '{"status":200,"headers":[],"body":""}\n'
    )
    project.cases(
        f"""
[[case]]
name = "answered"
{asks(get, post, get)}
http = [
  {{ url = "https://shop.example/milk?x=1", json = {{ price = 3 }} }},
  {{ url = "HTTPS://Shop.example:443", method = "post", status = 503, headers = {{ Age = "9" }}, body = "later" }},
  {{ url = "https://shop.example/milk?x=1", body = "" }},
]
body = {orjson.dumps(answers).decode()}
"""
    )
    done = await project.test()
    assert (done.status, b"1 passed" in done.out) == (0, True), done
    for more, told in (
        (asks(post) + one, "http: it didn't request GET https://shop.example/milk?x=1"),
        (asks(get, get) + one, f"the case's `http` has no answer left for {get}. (http_failed)"),
        (asks(get), "No request was made: `skerry dev` makes them. (http_failed)"),
        (asks("GET http://shop.example/") + one, "doesn't name `http://shop.example`. (not_granted)"),
        (asks("GET https://other.example/") + one, "doesn't name `other.example`. (not_granted)"),
        (asks("PUT https://shop.example/") + one, "`http.methods` doesn't name PUT"),
        ('http = [{ url = "shop.example" }]', "The URL must begin with https:// or http://. (request_unfit)"),
    ):
        project.cases(f'[[case]]\nname = "a"\nstatus = 201\n{more}')
        done = await project.test()
        assert (done.status, told in " ".join(done.out.decode().split())) == (1, True), (told, done)
    project.function("prices", guest("fetch"), 'sql = "none"')
    project.cases(f'[[case]]\nname = "a"\n{one}')
    assert b"the manifest doesn't grant any: `http`. (request_unfit)" in (await project.test()).out


async def test_many_cases(project: Folder) -> None:
    """One process makes them all."""
    text = sent("INSERT INTO notes (author) VALUES (1)")
    rows = 'sql_after = { sql = "SELECT count(*) FROM notes", rows = [[2]] }'
    project.cases("\n".join(f'[[case]]\nname = "case {n}"\n{text}\n{rows}' for n in range(12)))
    done = await project.test()
    assert b"12 passed" in done.out, done
    assert len(done.out.splitlines()) == 13
    done = await project.test("-k", "CASE 1")
    assert b"3 passed" in done.out


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


async def test_a_report_that_can_not_be_written_is_told(project: Folder, tmp_path: Path) -> None:
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
    (tmp_path / "file").touch()
    done = await project.test("--junit", tmp_path / "file" / "run.xml")
    assert done.status == 1
    assert "run.xml can't be written: " in done.err
    assert b"1 passed in " in done.out
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


async def test_snapshots_of_an_engine_have_it_compiled_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for number, name in enumerate(("one", "two"), 1):
        project = Folder(tmp_path / name, cache)
        project.function(name, snapshot(wat(ANSWERS), 9, [(70_000, bytes([number]) * 300_000)]), "")
        project.cases('[[case]]\nname = "it answers"\nstatus = 200\n')
        done = await project.test()
        assert (done.status, b"\n1 passed in " in done.out) == (0, True), done
    assert len(list((cache / "skerry" / "aot").glob("*.so"))) == 1
