"""`skerry schema`: changes that fail on the rows that nodes have, and what becomes of them."""

import time
from pathlib import Path

from tests.support.deadlines import scaled
from tests.support.up import LIMIT, ROOT, Shell


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
    skerry("schema", "add", str(index), "--wait", ends=5)
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
