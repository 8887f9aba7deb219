"""Which statements of a schema change hold writers up on a large table."""

import pytest

from edge_runtime.oneshot.change_effects import at_once, find_stalls
from edge_runtime.sql import schema_change

BEFORE = {"items": {}, "parts": {}}


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("CREATE UNIQUE INDEX IF NOT EXISTS i ON Items (n)", [("items", "an index on items is built")]),
        ("CREATE INDEX i ON main.items (n)", []),
        ("CREATE TABLE new (n); CREATE INDEX i ON new (n); UPDATE new SET n = 1; DROP TABLE new", []),
        (
            "DROP TABLE items; CREATE TABLE items (n); CREATE INDEX i ON items (n)",
            [("items", "the table items is dropped")],
        ),
        ("ALTER TABLE items DROP COLUMN n", [("items", "a column of items is dropped, which writes each row anew")]),
        (
            "ALTER TABLE items ADD COLUMN n CHECK (n > 0)",
            [("items", "each row of items is read for the new column's constraint")],
        ),
        ("ALTER TABLE items ADD COLUMN n DEFAULT 0", []),
        (
            "UPDATE items SET n = 1; DELETE FROM parts",
            [("items", "each row of items is changed"), ("parts", "each row of parts is changed")],
        ),
        ("UPDATE items SET n = 1 WHERE id = 4; DELETE FROM items WHERE id IN (1, 2) AND n <> 0", []),
        ("UPDATE items SET n = 1 WHERE n IS NULL", [("items", "each row of items is changed, perhaps")]),
        ("DELETE FROM items WHERE n >= (SELECT 1 WHERE 1 = 1)", [("items", "each row of items is changed, perhaps")]),
        (
            "INSERT INTO new SELECT * FROM items WHERE n != 3",
            [("items", "each row of items is copied, perhaps")],
        ),
        (
            "INSERT INTO new SELECT * FROM items; INSERT INTO items VALUES (1)",
            [("items", "each row of items is copied")],
        ),
        ("CREATE TABLE new AS SELECT n FROM items; DROP TABLE new", [("items", "each row of items is copied")]),
        ("CREATE TABLE new (n, id REFERENCES items)", []),
        ("REINDEX main.items", [("items", "the indexes of items are built anew")]),
        *(
            (
                sql,
                [
                    ("items", "the indexes of items are built anew, perhaps"),
                    ("parts", "the indexes of parts are built anew, perhaps"),
                ],
            )
            for sql in ("REINDEX", "REINDEX nocase", "REINDEX items_by_name")
        ),
        ("ALTER TABLE items RENAME TO old; CREATE INDEX i ON old (n)", [("items", "an index on items is built")]),
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN UPDATE parts SET n = 1; END", []),
    ],
)
def test_statements_with_a_time_for_each_row(sql: str, found: list[tuple[str, str]]) -> None:
    stalls = find_stalls(schema_change.split(sql), BEFORE, {})
    assert [(stall.table, stall.message) for stall in stalls] == found
    assert all(0.1 < stall.us < 10 for stall in stalls)


def test_what_is_in_batches_or_undoes_does_not_count() -> None:
    sql = (
        "-- skerry: before\nALTER TABLE items ADD COLUMN total;\n"
        "-- skerry: batch items by id\nUPDATE items SET total = 1 WHERE id > :after AND id <= :upto;\n"
        "-- skerry: flip\nCREATE INDEX totals ON items (total);\n"
        "-- skerry: undo\nALTER TABLE items DROP COLUMN total;"
    )
    assert [stall.message for stall in find_stalls(at_once(sql), BEFORE, {})] == ["an index on items is built"]


@pytest.mark.parametrize(("emptied", "found"), [("Old", []), ("parts", ["the table items is dropped"])])
def test_an_emptied_table_is_dropped_at_once(emptied: str, found: list[str]) -> None:
    sql = (
        "-- skerry: flip\nALTER TABLE items RENAME TO old;\n"
        f"-- skerry: batch {emptied} by id\nDELETE FROM {emptied} WHERE id > :after AND id <= :upto;\n"
        "-- skerry: after\nDROP TABLE old;"
    )
    assert [stall.message for stall in find_stalls(at_once(sql), BEFORE, {})] == found


@pytest.mark.parametrize(
    ("sql", "references", "found"),
    [
        ("ALTER TABLE Items RENAME TO things", {"Things": 2}, [("items", 3.4)]),
        # Made anew.
        ("CREATE TABLE n (x); DROP TABLE parts; ALTER TABLE n RENAME TO parts", {"parts": 1}, [("parts", 1.7)]),
        ("CREATE TABLE fresh (item REFERENCES items)", {"fresh": 1}, []),
    ],
)
def test_the_check_of_foreign_keys(sql: str, references: dict[str, int], found: list[tuple[str, float]]) -> None:
    stalls = find_stalls(schema_change.split(sql), BEFORE, references)
    assert [(stall.table, stall.us) for stall in stalls if "foreign keys" in stall.message] == found
