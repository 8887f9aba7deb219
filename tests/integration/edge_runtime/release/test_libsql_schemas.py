"""A schema that libsql alone can parse: whatever else opens the node's file does so without the schema (ADR 71)."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import orjson
import pytest

from edge_runtime import wal
from edge_runtime.oneshot.check_schema import SchemaCheckRequest, check
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import free
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.edge import node, until
from tests.support.edge_process import front_process

pytestmark = pytest.mark.never_retry

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"})}
SCHEMA = "CREATE TABLE notes (data BLOB) RANDOM ROWID"
COUNT = b'{"sql": "SELECT count(*) FROM notes"}'


def insert(mib: int) -> bytes:
    return orjson.dumps({"sql": "INSERT INTO notes VALUES (zeroblob(?))", "params": [mib << 20]})


async def test_a_node_moves_recovers_and_copies_the_log_of_such_a_database(tmp_path: Path) -> None:
    state, file = tmp_path / "state", str(tmp_path / "backup.db")
    where = ("--state", str(state), "--json")
    async with node(state) as edge:
        await edge.release(FUNCTIONS, [SCHEMA])
        assert (await edge.call("sql", insert(5)))[0] == 200
        await until(lambda: edge.front.checkpoints.made or edge.front.checkpoints.error)
        assert not edge.front.checkpoints.error
        for name, *arguments in (("backup", file), ("check-database",), ("sql", "SELECT count(*) FROM notes")):
            code, out, err = await command(name, *arguments, *where)
            assert (code, err) == (0, ""), (name, out)
    assert not wal.has_log(state / wal.FILE)
    # Else this would show nothing.
    with (
        contextlib.closing(sqlite3.connect(state / wal.FILE)) as opened,
        pytest.raises(sqlite3.DatabaseError, match="malformed database schema"),
    ):
        opened.execute("SELECT count(*) FROM notes")
    async with front_process(state) as front:
        assert (await front.call("sql", insert(1)))[0] == 200
        os.kill(front.pid, 9)
    await free(state)
    async with node(state) as edge:
        assert orjson.loads((await edge.call("sql", COUNT))[2])["rows"] == [[2]]
    code, out, err = await command("restore", file, *where)
    assert (code, err, json.loads(out)["warnings"]) == (0, "", [])
    code, out, _ = await command("sql", "SELECT count(*) FROM notes", *where)
    assert (code, json.loads(out)["rows"]) == (0, [[1]])


@pytest.mark.parametrize("name", ["libsql_vector_idx", '"libsql_vector_idx"', "'libsql_vector_idx'"])
def test_an_index_of_vectors_is_refused_at_registration(name: str) -> None:
    """Its code isn't memory-safe."""
    sql = f"CREATE TABLE v (e F32_BLOB(3)); CREATE INDEX i ON v ({name}(e))"
    found = check(SchemaCheckRequest(sql))
    assert (found["ok"], found["code"]) == (False, "schema_closed"), found
    assert "libsql_vector_idx" in str(found["message"])
