"""Schemas on a real node: changes that fail on the rows that nodes have, and projects of several functions with one
schema, brought by one push."""

import time
from pathlib import Path

import orjson
import pytest

from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.up import LIMIT, ROOT, Shell


def project(folder: Path, name: str, *functions: str, probed: bool = False) -> Path:
    """A project whose functions run the SQL that they are sent; `name` is its table, too.

    Those that are `probed` are tried at each schema change that comes later, of other tests too.
    """
    probe = f"probe = {{ method = 'POST', body = '''{{\"sql\":\"SELECT text FROM {name}\"}}''', status = 200 }}\n"
    (folder / "schema").mkdir(parents=True)
    (folder / "skerry.toml").write_text(f'name = "{name}"\nschema = "schema"\n')
    # Each file is a text of its own: this one ends without a semicolon, and with a comment.
    text = f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, text TEXT) -- {name}"
    (folder / "schema" / f"0001_{name}.sql").write_text(text)
    for function in functions:
        (folder / function).mkdir()
        (folder / function / "function.wasm").write_bytes(guest("sql"))
        (folder / function / "function.toml").write_text(
            f'name = "{function}"\nmodule = "function.wasm"\n[manifest]\nsql = "write"\n{probe if probed else ""}'
        )
    return folder


def count(skerry: Shell, function: str, table: str) -> int:
    body = orjson.dumps({"sql": f"SELECT count(*) FROM {table}"}).decode()
    [[number]] = orjson.loads(skerry("invoke", function, "-d", body))["rows"]
    return int(number)


def newest(skerry: Shell) -> dict[str, object]:
    found: dict[str, object] = skerry.json("release", "list", "--limit", "1")[0]
    return found


def test_all_of_a_project_comes_in_one_release(skerry: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = project(tmp_path / "shop", "shop", "orders", "stock", probed=True)
    (shop / "schema" / "0002_more.sql").write_text(
        "CREATE INDEX shop_texts ON shop (text) -- no semicolon, and a comment"
    )
    before = newest(skerry)["number"]
    told = skerry("function", "push", str(shop), "--plan")
    for line in (
        "(shop/0001_shop) would be",
        "(shop/0002_more)",
        "orders@1 would be made",
        "stock@1 would",
    ):
        assert line in told
    assert "+ orders@1" in told
    assert "shop/0002_more" in told.partition("would be made (generation")[2]
    assert told.count("would be made (generation") == 1
    assert newest(skerry)["number"] == before
    skerry("function", "show", "orders", ends=3)

    pushed = skerry.json("function", "push", str(shop), "--wait", "--reason", "first")
    assert newest(skerry)["number"] == before + 1
    assert [version["name"] for version in pushed["versions"]] == ["orders", "stock"]
    assert [change["name"] for change in pushed["schema_changes"]] == ["shop/0001_shop", "shop/0002_more"]
    assert [item["name"] for item in pushed["release"]["changes"]["add"]] == ["orders", "stock"]
    assert len(pushed["release"]["changes"]["schema"]) == 2
    for function in ("orders", "stock"):
        assert count(skerry, function, "shop") == 0

    # Again: a new version of each, and no schema change. A function by itself has the project's schema.
    (shop / "schema" / "0003_later.sql").write_text("INSERT INTO shop (text) VALUES ('milk');")
    told = skerry("function", "push", str(shop / "stock"), "--wait")
    assert "(shop/0003_later) is registered" in told
    assert "stock@2 is uploaded" in told
    assert "orders" not in told.partition("is made")[0]
    assert count(skerry, "stock", "shop") == 1
    # Without a folder it is the current one.
    monkeypatch.chdir(shop)
    pushed = skerry.json("function", "push", "--no-release")
    assert ([v["version"] for v in pushed["versions"]], pushed["schema_changes"]) == ([2, 3], [])
    # A floor that was lowered stays for what doesn't say what it needs, and the project says it.
    needed = newest(skerry)["schema_floor"]
    assert isinstance(needed, int)
    later = tmp_path / "later.sql"
    later.write_text("CREATE TABLE later (id INTEGER);")
    skerry("schema", "add", str(later), "--wait")
    assert f"~ schema floor {needed + 1} -> 1 (nodes keep" in skerry("release", "create", "--schema", "1", "--wait")
    assert f"= the schema floor stays at 1, to which it was lowered; --schema {needed + 1} raises it" in skerry(
        "release", "create", "--plan"
    )
    assert f"+ schema change {needed} shop/0003_later\n" in skerry("function", "push", str(shop / "stock"), "--plan")
    skerry("function", "push", str(shop / "stock"), "--wait")
    assert newest(skerry)["schema_floor"] == needed


def test_projects_share_the_database(skerry: Shell, tmp_path: Path) -> None:
    """Each has numbers of its own, and a table that is there already is refused before anything is made."""
    project(tmp_path / "bakery", "bakery", "bread")
    project(tmp_path / "dairy", "dairy", "milk")
    skerry("function", "push", str(tmp_path / "bakery"))
    skerry("function", "push", str(tmp_path / "dairy"), "--wait")
    assert (count(skerry, "bread", "dairy"), count(skerry, "milk", "bakery")) == (0, 0)
    second = project(tmp_path / "second", "dairy", "butter", "cream")
    (second / "skerry.toml").write_text('name = "second"\nschema = "schema"\n')
    # Its text isn't that of the other project's, by which it would be known.
    (second / "schema" / "0001_dairy.sql").write_text("CREATE TABLE dairy (other TEXT);")
    changes = len(skerry.json("schema", "list"))
    skerry("function", "push", str(second), ends=3)
    assert "table dairy already exists" in skerry.err
    assert "one database" in skerry.err
    assert "`skerry schema list`" in skerry.err
    assert "0001_dairy.sql" in skerry.err
    assert len(skerry.json("schema", "list")) == changes
    skerry("function", "show", "butter", ends=3)


def test_what_is_refused_of_one_makes_nothing_of_the_others(skerry: Shell, tmp_path: Path) -> None:
    cellar = project(tmp_path / "cellar", "cellar", "red", "white")
    changes, release = len(skerry.json("schema", "list")), newest(skerry)["number"]
    skerry("function", "push", str(cellar), "--group", "nope", ends=3)
    (cellar / "schema" / "0002_bad.sql").write_text("INSERT INTO celar VALUES (1);")
    skerry("function", "push", str(cellar), ends=3)
    assert "0002_bad.sql: " in skerry.err
    assert "no such table: celar" in skerry.err
    (cellar / "schema" / "0002_bad.sql").unlink()
    (cellar / "white" / "function.toml").write_text(
        'name = "white"\nmodule = "function.wasm"\n[manifest]\nabi = "direct"\n'
    )
    skerry("function", "push", str(cellar), ends=3)
    assert "the manifest says direct" in skerry.err
    assert (len(skerry.json("schema", "list")), newest(skerry)["number"]) == (changes, release)
    for name in ("red", "white"):
        skerry("function", "show", name, ends=3)
    skerry("function", "push", str(cellar), "--sql", "read", ends=2)
    assert "function.toml" in skerry.err


def test_what_was_registered_by_hand_is_known_and_a_change_of_it_refused(skerry: Shell, tmp_path: Path) -> None:
    """As projects of one function had it, whose schema files were each added."""
    folder = project(tmp_path / "attic", "attic", "attic")
    file = folder / "schema" / "0001_attic.sql"
    skerry("schema", "add", str(file), "--name", "attic", "--no-release")
    told = skerry("function", "push", str(folder), "--no-release")
    assert "is registered" not in told
    second = folder / "schema" / "0002_more.sql"
    second.write_text("CREATE TABLE attic_more (x);")
    assert "(attic/0002_more) is registered" in skerry("function", "push", str(folder), "--no-release")
    number = skerry.json("schema", "list")[-1]["number"]
    second.write_text("CREATE TABLE attic_more (x, y);")
    versions = len(skerry.json("function", "show", "attic"))
    skerry("function", "push", str(folder), ends=2)
    assert f"0002_more.sql is schema change {number} (attic/0002_more) at control" in skerry.err
    assert len(skerry.json("function", "show", "attic")) == versions
    # The text that it was amended to, and the one before, are both known.
    second.write_text("CREATE TABLE attic_more (x); -- the same")
    skerry("schema", "amend", str(number), str(second), "--no-release")
    for text in (second.read_text(), "CREATE TABLE attic_more (x);"):
        second.write_text(text)
        assert "is registered" not in skerry("function", "push", str(folder), "--no-release")
    # With a floor of one's own, nothing is registered.
    second.write_text("CREATE TABLE attic_more (x, y);")
    skerry("function", "push", str(folder), "--schema", "1", "--plan")


@pytest.mark.parametrize("arguments", [["--no-release", "--wait"], ["--plan", "--wait"], ["--manifest", "skerry.toml"]])
def test_what_goes_with_no_project_is_a_wrong_call(skerry: Shell, tmp_path: Path, arguments: list[str]) -> None:
    folder = project(tmp_path / "p", "p", "p")
    given = [str(folder / word) if word.endswith(".toml") else word for word in arguments]
    skerry("function", "push", str(folder), *given, ends=2)


def test_a_schema_change_that_fails_on_the_data(skerry: Shell, tmp_path: Path) -> None:
    visits, index, amended = ROOT / "examples" / "visits", tmp_path / "index.sql", tmp_path / "amended.sql"
    index.write_text("CREATE UNIQUE INDEX one_count ON visits (count);")
    amended.write_text(
        "DELETE FROM visits WHERE name NOT IN (SELECT min(name) FROM visits GROUP BY count);\n" + index.read_text()
    )
    skerry("schema", "add", str(visits / "schema.sql"), "--name", "visits")
    manifest = str(visits / "manifest.json")
    skerry("function", "push", "counter", str(visits / "visits.wasm"), "--manifest", manifest, "--wait")
    for name in ("bob", "eve"):
        assert skerry("invoke", "counter", name, "-X", "POST").startswith('{"name":')

    # Control's check passes: its own rows are distinct, and this node's aren't.
    skerry("schema", "add", str(index), "--now", "--wait", ends=5)
    number = skerry.json("schema", "list")[-1]["number"]
    assert "UNIQUE constraint failed" in skerry("status")
    # While it tries again, as every few seconds, it is said to sync.
    deadline = time.monotonic() + scaled(LIMIT)
    while "failing" not in (failing := skerry("status")):
        assert time.monotonic() < deadline, failing
    assert "next attempt" in failing
    skerry("status", "--check", ends=5)
    assert skerry.json("syncs", "list", "--status", "failed")[0]["error"]["code"] == "schema_change_failed"
    # It serves its old release on.
    assert skerry("invoke", "counter", "bob") == '{"name":"bob","count":1}\n'

    skerry("schema", "amend", str(number), str(amended), "--wait", ends=3)
    skerry("schema", "amend", str(number), str(amended), "--allow-loss", "--wait")
    assert skerry.json("schema", "show", str(number))["revision"] == 2
    skerry("status", "--check")
    assert skerry("invoke", "counter", "eve") == '{"name":"eve","count":0}\n'


def test_a_schema_change_that_may_fail_somewhere_is_warned_of(skerry: Shell, tmp_path: Path) -> None:
    file = tmp_path / "teams.sql"
    file.write_text("CREATE TABLE teams (name TEXT);")
    skerry("schema", "add", str(file), "--no-release")
    file.write_text(
        "ALTER TABLE teams ADD COLUMN size INTEGER; UPDATE teams SET size = 1;"
        "CREATE UNIQUE INDEX by_size ON teams (size);"
    )
    assert "on some data it fails: UNIQUE constraint failed" in skerry("schema", "add", str(file), "--no-release")


def test_a_schema_change_is_withdrawn_or_reversed(skerry: Shell, tmp_path: Path) -> None:
    file, draft = tmp_path / "clubs.sql", tmp_path / "draft.sql"
    file.write_text("CREATE TABLE clubs (name TEXT);")
    skerry("schema", "add", str(file), "--no-release")
    number = str(skerry.json("schema", "list")[-1]["number"])
    assert "is withdrawn" in skerry("schema", "withdraw", number)
    assert "clubs (withdrawn)" in skerry("schema", "list")
    # A real node takes the change that is left, which does nothing, and the next one with the same name.
    skerry("schema", "add", str(file), "--wait")
    number = str(skerry.json("schema", "list")[-1]["number"])
    skerry("schema", "withdraw", number, "--output", str(draft), ends=3)
    assert draft.read_text() == 'DROP TABLE "clubs";\n'
    assert skerry("schema", "withdraw", number, ends=3) == draft.read_text()
    draft.unlink()
    added = skerry.json("schema", "withdraw", number, "--add", "--output", str(draft))
    assert (added["withdrawn"], added["added"]["sql"]) == (None, draft.read_text())
    assert "is withdrawn" in skerry("schema", "withdraw", str(added["added"]["number"]))
