"""`skerry-edge check-database`, and the sizes in the node's status."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from edge_runtime import wal
from edge_runtime.cli import status as status_command
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import damage, rows
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.edge import node

pytestmark = pytest.mark.never_retry

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"})}
NOTES = [
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); CREATE INDEX by_text ON notes (text);"
    "CREATE INDEX by_length ON notes (length(text))"
]
FILL = (
    "INSERT INTO notes (text) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
    "SELECT printf('%0100d', i) FROM n"
)


async def test_a_database_is_looked_through_while_the_node_serves_and_after(tmp_path: Path) -> None:
    state = tmp_path / "state"
    where = ("--state", str(state))
    check = ("check-database", *where)
    write = ("--write", "--reason", "a test")
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        assert (await command("sql", FILL, *where, *write))[0] == 0
        assert (await command("sql", "DELETE FROM notes WHERE id > 100", *where, *write))[0] == 0
        code, out, err = await command(*check, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert (found["ok"], found["findings"], found["notes"]) == (True, [], [])
        assert (found["release"]["number"], found["schema_version"]) == (1, 1)
        assert {"notes", "by_text"} <= {table["name"] for table in found["tables"]}
        assert found["bytes"] > found["free_bytes"] > 3 << 20
        code, out, err = await command(*check)
        assert (code, err) == (0, "")
        assert "release    release 1 (generation 1), schema version 1" in out
        assert out.endswith("whole      yes\n")
        # Calls go on, and a backup can be without the free pages.
        code, out, err = await command("backup", str(tmp_path / "small.db"), *where, "--compact", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["bytes"] < found["bytes"] - found["free_bytes"] + (1 << 20)
        assert rows(tmp_path / "small.db", "SELECT count(*) FROM notes") == [100]
        assert rows(tmp_path / "small.db", "PRAGMA freelist_count") == [0]
        edge.front.checkpoints.look()
        shown = await asyncio.to_thread(status_command.read_status, f"127.0.0.1:{edge.front.port}", "")
        sizes = shown["database"]
        assert min(sizes["bytes"], sizes["wal_file"], sizes["disk_free"]) > 0
        assert "MiB of them free" not in status_command.render(shown)
        assert "; its disk has " in status_command.render(shown)
        async with edge.http.get("/_skerry/metrics") as answer:
            values = dict(
                line.split(" ") for line in (await answer.text()).splitlines() if line[0] != "#" and "{" not in line
            )
            assert float(values["skerry_edge_database_bytes"]) == sizes["bytes"]
    with contextlib.closing(sqlite3.connect(state / wal.FILE)) as opened:
        opened.execute("PRAGMA wal_autocheckpoint = 0")
        opened.execute("CREATE TABLE by_hand (x REFERENCES notes)")
        opened.execute("INSERT INTO by_hand VALUES (777)")
        opened.execute("DROP INDEX by_text")
        opened.execute("DROP INDEX by_length")
        opened.execute("CREATE INDEX by_text ON notes (text DESC)")
        opened.commit()
    code, out, err = await command(*check, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert [finding[:40] for finding in found["findings"]] == [
        "Foreign keys are violated: 1 row has no ",
        "The index by_text isn't as the last rele",
        "The index by_length is missing.",
    ]
    assert found["notes"] == ["The table by_hand is no release's."]
    damage(state / wal.FILE)
    code, out, err = await command(*check)
    assert (code, "Its pages are damaged" in out or "database_damaged" in err) == (1, True), out + err
