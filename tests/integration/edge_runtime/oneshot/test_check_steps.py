"""The check of a schema change with steps: as nodes run it, and that it can be undone."""

from typing import Any

import pytest

from edge_runtime.oneshot.check_schema import RegisteredChange, SchemaCheckRequest, check
from tests.integration.edge_runtime.children.test_apply_changes import ADDED, ANEW, ITEMS, TOTALS


def checked(sql: str, *earlier: str, amends: str | None = None) -> dict[str, Any]:
    registered = [RegisteredChange(number, text) for number, text in enumerate((ITEMS, *earlier), 1)]
    amended = None
    if amends is not None:
        amended = RegisteredChange(len(registered) + 1, amends)
    return check(SchemaCheckRequest(sql, registered, amended))


@pytest.mark.parametrize("sql", [TOTALS, ANEW, ADDED])
def test_a_change_with_steps_is_accepted(sql: str) -> None:
    answer = checked(sql)
    assert answer["ok"], answer
    assert answer["warnings"] == []


def test_later_changes_find_what_the_steps_lead_to() -> None:
    assert "no such trigger" in checked("DROP TRIGGER items_total_ai", TOTALS)["message"]
    assert checked("SELECT state FROM items", ANEW)["ok"]
    assert "no such table: items_old" in checked("SELECT * FROM items_old", ANEW)["message"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            TOTALS.replace("-- skerry: undo\nDROP TRIGGER items_total_ai;", "-- skerry: undo\n"),
            "the trigger items_total_ai",
        ),
        (TOTALS.replace("; ALTER TABLE items DROP COLUMN total", ""), "the table items"),
        (TOTALS.replace("-- skerry: undo", "-- skerry: undone"), "none of the steps"),
        (TOTALS.replace("amount * 2 WHERE id > :after", "missing * 2 WHERE id > :after"), "no such column: missing"),
        (ADDED.replace("amount + 1000000", "NULL"), "NOT NULL"),
        (ADDED.replace("by id", "by rowids"), "must go by its INTEGER PRIMARY KEY id"),
        (ADDED.replace("amount + 1000000", "load_extension('x')"), "closed"),
    ],
)
def test_what_a_node_would_refuse_is_refused(sql: str, says: str) -> None:
    answer = checked(sql)
    assert not answer["ok"]
    assert says in answer["message"]


def test_an_amendment_leads_to_the_same_schema_with_other_steps() -> None:
    whole = "ALTER TABLE items ADD COLUMN total INTEGER; UPDATE items SET total = amount * 2;"
    whole += "CREATE VIEW totals AS SELECT sum(total) AS total FROM items"
    assert checked(TOTALS, amends=whole)["ok"]
    assert checked(whole, amends=TOTALS)["ok"]
    assert checked(ADDED, amends=TOTALS)["code"] == "schema_amendment_differs"


@pytest.mark.parametrize(
    ("table", "key", "right"),
    [
        ('t ("rowid" TEXT, x)', "rowid", "oid, as it has no INTEGER PRIMARY KEY"),
        ("t (id INTEGER PRIMARY KEY, OID TEXT, x)", "oid", "its INTEGER PRIMARY KEY id"),
        ("t (id INTEGER PRIMARY KEY DESC, x)", "id", "rowid, as it has no INTEGER PRIMARY KEY"),
        ("t (id INT PRIMARY KEY, x)", "id", "rowid, as it has no INTEGER PRIMARY KEY"),
        ("t (a INTEGER, b INTEGER, x, PRIMARY KEY (a, b))", "a", "rowid, as it has no INTEGER PRIMARY KEY"),
    ],
)
def test_batches_go_by_a_key_that_each_row_has(table: str, key: str, right: str) -> None:
    change = "-- skerry: batch t by {0}\nUPDATE t SET x = 1 WHERE {0} > :after AND {0} <= :upto"
    assert checked(change.format(key), f"CREATE TABLE {table}")["message"].endswith(
        f"must go by {right}, and not by {key}."
    )
    assert checked(change.format(right.split()[-1 if "its" in right else 0].rstrip(",")), f"CREATE TABLE {table}")["ok"]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('"order" ("Größe" INTEGER PRIMARY KEY, x)', '"Größe"'),
        ("[a b] (`by` INTEGER, x, PRIMARY KEY (`by` DESC))", "`by`"),
        ('"say ""-- skerry: flip"" now" (x, y AS (x + 1) STORED)', "_rowid_"),
        ("データ (表 INTEGER PRIMARY KEY AUTOINCREMENT, x INTEGER) STRICT", "表"),
    ],
)
def test_batches_of_tables_and_keys_with_odd_names(table: str, key: str) -> None:
    name = table[: table.index("(")].strip()
    change = f"-- skerry: batch {name} by {key}\nUPDATE {name} SET x = x + 1 WHERE {key} > :after AND {key} <= :upto"
    answer = checked(change, f"CREATE TABLE {table}")
    assert (answer["ok"], answer.get("warnings"), answer.get("empty")) == (True, [], []), answer


UNIQUE = ANEW.replace("state TEXT NOT NULL)", "state TEXT NOT NULL, UNIQUE (amount))")


@pytest.mark.parametrize(
    "sql",
    [
        UNIQUE.replace("INSERT INTO items_new SELECT", "INSERT OR IGNORE INTO items_new SELECT").replace(
            "ON CONFLICT (id) DO NOTHING", ""
        ),
        UNIQUE.replace("ON CONFLICT (id) DO NOTHING", "ON CONFLICT DO NOTHING"),
        UNIQUE.replace("id > :after AND id <= :upto\n", "amount > :after AND amount <= :upto\n"),
    ],
)
def test_a_table_made_anew_that_leaves_rows_out_without_an_error_can_lose_them(sql: str) -> None:
    assert checked(UNIQUE)["losses"] == []
    assert sql != UNIQUE
    [loss] = checked(sql)["losses"]
    assert (loss["table"], "a part of its rows" in loss["message"]) == ("items", True)


def test_rows_that_are_lost_where_steps_are_undone_are_told() -> None:
    assert checked(TOTALS)["losses"] == []
    [loss] = checked(TOTALS.replace("-- skerry: undo\n", "-- skerry: undo\nDELETE FROM items WHERE amount < 0;"))[
        "losses"
    ]
    assert loss["message"] == "where it is undone, rows of items are deleted"


def test_indexes_and_triggers_that_a_table_made_anew_lacks_are_told() -> None:
    made = "CREATE UNIQUE INDEX Per_Amount ON items (amount);"
    made += "CREATE TRIGGER kept AFTER INSERT ON items BEGIN SELECT 1; END"
    told = [warning["message"] for warning in checked(ANEW, made)["warnings"]]
    assert told == [
        "after it the index per_amount of items is gone with the table that had it: make it on the new one",
        "after it the trigger kept of items is gone with the table that had it: make it on the new one",
    ]
    dropped = ANEW.replace("-- skerry: flip\n", "-- skerry: flip\nDROP INDEX per_amount; DROP TRIGGER Kept;")
    assert checked(dropped, made)["warnings"] == []
    again = ANEW.replace("DROP TABLE items_old;", f"DROP TABLE items_old; {made};", 1)
    assert checked(again, made)["warnings"] == []
    assert checked("DROP TABLE items", made)["warnings"] == []
