"""Which row a failed statement of a schema change is told to have failed at."""

import random
from collections.abc import Iterator

import pytest

from edge_runtime.oneshot import offending_row
from edge_runtime.sql import database
from edge_runtime.sql.database import LibsqlDatabase

TABLES = [
    "CREATE TABLE items (id INTEGER PRIMARY KEY, code TEXT, amount INTEGER)",
    "CREATE TABLE plain (code TEXT, amount INTEGER)",
    "CREATE TABLE pairs (a TEXT, b INTEGER, amount INTEGER, PRIMARY KEY (b, a))",
    "CREATE TABLE ridden (rowid TEXT, oid INTEGER, amount INTEGER)",
    "CREATE TABLE lone (code TEXT PRIMARY KEY, amount INTEGER) WITHOUT ROWID",
    "CREATE TABLE bare (a TEXT, b INTEGER, amount INTEGER, PRIMARY KEY (b, a)) WITHOUT ROWID",
    "CREATE VIEW shown AS SELECT id, amount FROM items",
    "CREATE TABLE new (n INTEGER NOT NULL)",
    "CREATE TABLE checked (id INTEGER PRIMARY KEY, n INTEGER CHECK (n < 90))",
    "CREATE TABLE strict (n INTEGER) STRICT",
]
FILL = [
    "INSERT INTO items SELECT value * 10, 'c' || value, value FROM generate_series(1, 100)",
    "INSERT INTO plain SELECT 'c' || value, nullif(value, 60) FROM generate_series(1, 100)",
    "INSERT INTO pairs SELECT 'p' || value, value, nullif(value, 70) FROM generate_series(1, 100)",
    "INSERT INTO ridden SELECT 'r', 1, nullif(value, 33) FROM generate_series(1, 100)",
    "INSERT INTO bare SELECT 'p' || value, value, nullif(value, 7) FROM generate_series(1, 100)",
    "INSERT INTO lone SELECT 'l' || value, nullif(value, 5) FROM generate_series(1, 100)",
]


@pytest.fixture
def opened() -> Iterator[LibsqlDatabase]:
    with database.in_memory() as made:
        for sql in (*TABLES, *FILL, "BEGIN IMMEDIATE"):
            made.rows(sql)
        yield made


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("UPDATE items SET amount = abs(-9223372036854775807 - (amount = 55))", "items id=550"),
        ("UPDATE items AS i SET amount = abs(-9223372036854775807 - (i.amount = 55)) WHERE 1 OR 0;", "items id=550"),
        ("UPDATE main.items SET amount = abs(-9223372036854775807 - (amount = 100))", "items id=1000"),
        ("UPDATE items SET amount = abs(-9223372036854775807 - (amount = 1)) RETURNING id", "items id=10"),
        ("UPDATE items SET id = id + 10", "items id=10"),
        ("UPDATE items SET id = 'x' FROM plain AS p WHERE p.code = items.code AND p.amount = 44", "items id=440"),
        ("DELETE FROM items WHERE abs(-9223372036854775807 - (amount = 21)) > 0", "items id=210"),
        ("INSERT INTO new SELECT amount FROM plain", "plain rowid=60"),
        ("INSERT INTO new (n) SELECT p.amount FROM main.plain p ORDER BY p.code DESC", "plain rowid=60"),
        ("WITH x AS (SELECT 1) INSERT INTO new SELECT amount FROM plain WHERE amount IS NULL OR 1", "plain rowid=60"),
        ("INSERT INTO new SELECT amount FROM pairs", "pairs b=70 a=p70"),
        ("INSERT INTO new SELECT amount FROM ridden", "ridden _rowid_=33"),
        (
            "INSERT INTO checked SELECT id, amount FROM items WHERE amount > 3 ON CONFLICT (id) DO NOTHING",
            "items id=900",
        ),
        ("INSERT INTO checked SELECT 1, amount FROM items", "items id=20"),
        ("INSERT INTO strict SELECT CASE amount WHEN 12 THEN code ELSE amount END FROM items", "items id=120"),
        ("INSERT INTO new SELECT p.amount FROM items JOIN plain AS p ON p.code = items.code", "items id=600"),
        ("CREATE UNIQUE INDEX by_part ON items (amount / 99)", "items id=980"),
        ("CREATE UNIQUE INDEX by_part ON items (amount % 98 DESC) WHERE amount > 1", "items id=1000"),
        ("INSERT INTO new SELECT amount FROM lone", "lone code=l5"),
        ("INSERT INTO new SELECT l.amount FROM Lone AS l WHERE l.amount IS NULL OR l.code > 'a'", "lone code=l5"),
        ("INSERT INTO new SELECT amount FROM bare", "bare b=7 a=p7"),
        # No row is to blame, or none is found.
        ("INSERT INTO lone SELECT * FROM lone", ""),
        ("INSERT INTO new SELECT nullif(amount, 3) FROM shown", ""),
        ("INSERT INTO new SELECT max(amount) FROM plain WHERE amount > 1000", ""),
        ("INSERT INTO new VALUES (1), (NULL)", ""),
        ("UPDATE items SET nothing = 1", ""),
        ("INSERT INTO new SELECT amount FROM plain UNION ALL SELECT NULL", ""),
        ("CREATE TABLE items (a)", ""),
    ],
)
def test_the_first_row_that_fails_is_named(opened: LibsqlDatabase, sql: str, row: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        opened.rows(sql)
    assert offending_row.find(opened, sql) == row
    assert opened.in_transaction


def test_it_is_the_first_of_many_wherever_it_is(opened: LibsqlDatabase) -> None:
    chance = random.Random(7)
    for _ in range(50):
        bad = sorted(chance.sample(range(1, 101), chance.randint(1, 5)))
        opened.rows("SAVEPOINT here")
        opened.rows(f"UPDATE items SET amount = NULL WHERE amount IN ({', '.join(map(str, bad))})")
        assert offending_row.find(opened, "INSERT INTO new SELECT amount FROM items") == f"items id={bad[0] * 10}"
        opened.rows("ROLLBACK TO here")
        opened.rows("RELEASE here")


def test_a_key_is_shown_shortly_and_on_one_line(opened: LibsqlDatabase) -> None:
    opened.rows("INSERT INTO pairs VALUES (?, 7, NULL)", ("a\nb" * 1000,))
    (row,) = opened.rows("SELECT max(rowid) FROM pairs")[0]
    assert isinstance(row, int)
    shown = offending_row.shown(opened, "pairs", row)
    assert shown.startswith("pairs b=7 a=a\\nba\\nb")
    assert len(shown) < 300
    assert shown.endswith("…")
    opened.rows('CREATE TABLE "the \x1b[31m" (key BLOB PRIMARY KEY, a)')
    opened.rows('INSERT INTO "the \x1b[31m" VALUES (zeroblob(10000000), 1)')
    assert offending_row.shown(opened, "the \x1b[31m", 1) == f"the \\x1b[31m key=x'{'0' * 100}'…"
    assert offending_row.shown(opened, "items", 11) == ""


def test_what_an_error_quotes_is_left_out_unless_the_change_says_it() -> None:
    sql = "SELECT json_extract(a, '$.known') FROM [the table]"
    left = offending_row.without_values("bad JSON path: 'secret value'", sql)
    assert left == "bad JSON path: …"
    assert offending_row.without_values("bad JSON path: '$.known'", sql) == "bad JSON path: '$.known'"
    assert offending_row.without_values('near "[the table]": "x"', sql) == 'near "[the table]": …'
