"""Which part of a schema change runs when: the lines that divide its text, and what can't be."""

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.sql.schema_change import ChangeStep, SchemaChangeRefused, bind, split, steps_of
from edge_runtime.sql.tokenizer import TokenKind, tokenize

WHOLE = """
-- Totals, for the reports.
-- skerry: before
ALTER TABLE items ADD COLUMN total REAL;
CREATE TRIGGER ai AFTER INSERT ON items BEGIN UPDATE items SET total = 1 WHERE id = new.id; END;
-- skerry: batch items by id
UPDATE items SET total = amount WHERE id > :after AND id <= :upto;
-- skerry: flip
DROP TRIGGER ai;
  -- skerry: batch "old items" by [row id]
DELETE FROM "old items" WHERE "row id" > :after AND "row id" <= :upto
-- skerry: after
DROP TABLE "old items";
-- skerry: undo
DROP TRIGGER ai;
"""
BATCH = "-- skerry: batch t by k\nDELETE FROM t WHERE k > :after AND k <= :upto;\n"


def test_the_steps_of_a_change() -> None:
    found = steps_of(WHOLE)
    assert found is not None
    first, batch, emptied, last = found.steps
    assert (first.stage, first.table, "CREATE TRIGGER ai" in first.sql) == ("before", "", True)
    assert batch == ChangeStep(
        "before", "\nUPDATE items SET total = amount WHERE id > :after AND id <= :upto;\n", "items", "id"
    )
    assert (emptied.stage, emptied.table, emptied.key) == ("after", "old items", "row id")
    assert last == ChangeStep("after", '\nDROP TABLE "old items";\n')
    assert found.flip.strip() == "DROP TRIGGER ai;"
    assert found.undo.strip() == "DROP TRIGGER ai;"
    assert [number for number, _ in found.of("after")] == [3, 4]
    assert found.title(2) == "step 2 of 4 (batches of items)"
    assert found.title(4) == "step 4 of 4 (after)"


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (x)",
        "-- skerry is the name\nCREATE TABLE t (x); -- before",
        "SELECT '\n-- skerry: before\n'",
        'SELECT "\n-- skerry: before\n"',
        "/*\n-- skerry: before\n*/ SELECT 1",
    ],
)
def test_a_change_without_such_lines_has_none(sql: str) -> None:
    assert steps_of(sql) is None


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT 1;\n" + BATCH, "statements before the first line"),
        ("-- skerry: befor\nSELECT 1", "none of the steps"),
        ("--skerry: before\nSELECT 1", "begins with a line"),
        ("-- Skerry: before\nSELECT 1", "begins with a line"),
        ("SELECT 1; -- skerry: flip\n" + BATCH, "of its own"),
        ("-- skerry: before\nSELECT 1;\n" + BATCH, "needs a last step `-- skerry: undo`"),
        ("-- skerry: before\n\n" + BATCH, "no statement under `-- skerry: before`"),
        ("-- skerry: batch t by k\n", "no statement under"),
        ("-- skerry: flip\nSELECT 1", "needs a step `-- skerry: batch TABLE by KEY`"),
        ("-- skerry: flip\n" + BATCH + "-- skerry: flip\n", "once"),
        ("-- skerry: flip\n-- skerry: before\nSELECT 1;\n" + BATCH, "can't follow"),
        (BATCH + "-- skerry: undo\n-- skerry: flip\n", "must be the last"),
        ("-- skerry: batch t\nDELETE FROM t", "must be `-- skerry: batch TABLE by KEY`"),
        ("-- skerry: batch t by 5\nDELETE FROM t", "must be `-- skerry: batch TABLE by KEY`"),
        ("-- skerry: batch t by k\nDELETE FROM t WHERE k > :after", "must say which rows"),
        (BATCH + "DELETE FROM t WHERE k > :after AND k <= :upto AND x = ?", "must say which rows"),
        ("-- skerry: batch t by k\nCREATE TABLE u (x)", "and not CREATE"),
    ],
)
def test_what_cannot_be_is_said(sql: str, says: str) -> None:
    with pytest.raises(SchemaChangeRefused, match=says.replace("(", r"\(")):
        steps_of(sql)


def test_the_keys_of_a_batch_are_put_into_its_text() -> None:
    sql = "DELETE FROM t WHERE k > :after AND k <= :upto AND x <> ':upto' -- :after"
    assert bind(sql, -(2**63), 7) == (
        "DELETE FROM t WHERE k > (-9223372036854775808) AND k <= (7) AND x <> ':upto' -- :after"
    )


@given(st.lists(st.sampled_from(["-- skerry: ", "before", "batch t by k", "flip", "undo", "\n", "'", "/*", ";", " 1"])))
def test_any_text_is_read_or_refused(pieces: list[str]) -> None:
    try:
        found = steps_of("".join(pieces))
    except SchemaChangeRefused:
        return
    assert found is None or any(step.table for step in found.steps)


BODY = [" ", ";", "; ", "x", "end", "END;", "'a;b'", '"q;"', "[z;]", "`y;`", "/*c;*/", "-- d;\n", "end1", "1end", "'"]


@given(st.lists(st.sampled_from(BODY), max_size=14))
def test_a_trigger_ends_where_sqlite_says_that_it_is_complete(pieces: list[str]) -> None:
    sql = "CREATE TRIGGER t " + "".join(pieces) + ";"
    ends = [sql[: token.end] for token in tokenize(sql) if token.kind is TokenKind.SEMICOLON]
    whole = next((text for text in ends if apsw.complete(text)), None)
    try:
        found = split(sql)[0].sql
    except SchemaChangeRefused:
        assert whole is None
        return
    assert found == whole or (whole is None and apsw.complete(f"{found}\n;"))


def test_a_mark_of_byte_order_in_a_trigger_is_a_space() -> None:
    """As it is to SQLite's tokenizer."""
    assert len(split("CREATE TRIGGER t BEGIN SELECT 1; \ufeffEND; SELECT 2")) == 2
