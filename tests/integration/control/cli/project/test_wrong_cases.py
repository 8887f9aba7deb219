"""What `skerry test` says of cases that can't be run, before any is."""

from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.support.cases_project import Folder

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
    ('[[case]]\nname = "a"\nstatus = "200"', "case 1 (a): status: Expected `int | null`, got `str`"),
    ('[[case]]\nname = "a"\nstatus = 99', ">= 200"),
    ('[[case]]\nname = "a"\nbody = ""\njson = 1', "body and json are one or the other"),
    ('[[case]]\nname = "a"\njson = "{"', "json is no JSON"),
    ('[[case]]\nname = "a"\nsql_after = { sql = "x", rows = "[1]" }', "a list for each row"),
    ('[[case]]\nname = "a"\nrequest = { path = "orders" }', "must begin with / or ?"),
    ('[[case]]\nname = "a"\nrequest = { path = "/a", route = "/b" }', "request.path and request.route are one or"),
    ('[[case]]\nname = "a"\nhttp = [{ url = "https://x", jsn = 1 }]', "unknown key jsn in http: is it json?"),
    ('[[case]]\nname = "a"\nhttp = [{ url = "https://x", json = 1, body = "" }]', "answer to https://x are one or the"),
    ('[[case]]\nname = "a"\n[[case]]\nname = "a"', "case 2 (a): a case before it"),
    ('[[case]]\nname = "a"\nfunction = "other"', "no function other; it has notes"),
    ('[[case]]\nname = "a"\nevent = "tick"', "case 1 (a): event: Invalid enum value 'tick'"),
    ('[[case]]\nname = "a"\nevent = "schedule"', "case 1 (a): notes has no schedule in its manifest"),
    ('[[case]]\nname = "a"\nevent = "release"', "its manifest has no on_release = true"),
    ('[[case]]\nname = "a"\nat = 2026-01-01T00:00:00Z', 'at is of a tick: say event = "schedule", too'),
    ('[[case]]\nname = "a"\nevent = "schedule"\nat = 2026-01-01T00:00:00', "at: Expected `datetime` with a timezone"),
    ('[[case]]\nname = "a"\nevent = "schedule"\nrequest = { path = "/a" }', "leave request out"),
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
