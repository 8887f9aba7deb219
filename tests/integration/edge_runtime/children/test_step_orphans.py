"""Rows that the steps after a flip leave without a parent are told until they are mended."""

from pathlib import Path

import pytest

from edge_runtime.children import apply_changes, release_transaction
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.sql import database
from edge_runtime.sql.database import LibsqlDatabase
from tests.support.plans import changes, plan

pytestmark = pytest.mark.never_retry

FAMILY = """
CREATE TABLE items (id INTEGER PRIMARY KEY); INSERT INTO items VALUES (1), (2), (3);
CREATE TABLE parts (item INTEGER REFERENCES items (id)); INSERT INTO parts VALUES (1), (2);
CREATE TABLE alone (n)
"""
BATCHES = """
-- skerry: flip
CREATE VIEW v AS SELECT 1;
-- skerry: batch items by id
{} AND id > :after AND id <= :upto
"""
AFTER = """
-- skerry: batch items by id
UPDATE items SET id = id WHERE id > :after AND id <= :upto;
-- skerry: flip
CREATE VIEW v AS SELECT 1;
-- skerry: after
{}
"""
LOST = "After the steps of schema change 2 .*1 row has no parent"


def flip(opened: LibsqlDatabase, texts: list[str], version: int) -> None:
    made = plan(version, changes(texts, version))
    apply_changes.advance(opened, frames.Advance(made, 1, []), lambda _: None)
    release_transaction.prepare(opened, made, [])
    release_transaction.commit(opened)


@pytest.mark.parametrize(
    ("steps", "lost"),
    [
        (BATCHES.format("DELETE FROM items WHERE id <> 1"), True),
        (BATCHES.format("DELETE FROM items WHERE id = 3"), False),
        (AFTER.format("DELETE FROM items WHERE id = 2"), True),
        (AFTER.format("UPDATE parts SET item = 7 WHERE item = 1"), True),
        (AFTER.format("DELETE FROM items WHERE id = 2;\n-- skerry: after\nDELETE FROM parts WHERE item = 2"), False),
        (AFTER.format("INSERT INTO alone VALUES (1)"), False),
    ],
)
def test_steps_after_a_flip_that_leave_rows_without_a_parent(tmp_path: Path, steps: str, lost: bool) -> None:
    (tmp_path / "db").mkdir()
    with database.connect(tmp_path / "db" / "skerry.db", "FULL", foreign_keys=False) as opened:
        flip(opened, [FAMILY], 1)
        flip(opened, [steps], 2)
        if lost:
            for _ in range(2):
                with pytest.raises(
                    SyncFailed, match=r"After the steps of schema change 2 .*1 row has no parent"
                ) as told:
                    apply_changes.finish(opened, lambda _: None)
                assert told.value.code == "foreign_key_violation"
            assert apply_changes.stored_steps(opened)
            opened.rows("DELETE FROM parts")
        apply_changes.finish(opened, lambda _: None)
        assert apply_changes.stored_steps(opened) == []
