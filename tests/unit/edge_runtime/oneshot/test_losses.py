"""What a schema change can lose: by a rule over its statements and the columns around it."""

import pytest

from edge_runtime.oneshot.change_effects import find_losses
from edge_runtime.sql.schema_change import split

BEFORE = {"books": {"id": "INTEGER", "title": "TEXT", "year": "INTEGER"}, "log": {"x": ""}}
NEW = "CREATE TABLE b2 (id INTEGER, title TEXT, year INTEGER);"
SWAP = "DROP TABLE books; ALTER TABLE b2 RENAME TO books"


BATCH = "WHERE id > :after AND id <= :upto"


def found(sql, after=None):
    return [(loss.table, loss.message) for loss in find_losses(split(sql), BEFORE, after or BEFORE, {"books": "id"})]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (x); INSERT INTO t VALUES (1); DELETE FROM t; REPLACE INTO t VALUES (2); DROP TABLE t",
        "DROP INDEX i; DROP VIEW v; DROP TRIGGER r; DROP TABLE IF EXISTS nothing",
        "ALTER TABLE books ADD COLUMN isbn TEXT; UPDATE books SET isbn = ''; ALTER TABLE books DROP COLUMN isbn",
        "ALTER TABLE books RENAME TO tomes; ALTER TABLE tomes RENAME COLUMN year TO y",
        "UPDATE books SET title = trim(title), year = 0; UPDATE OR IGNORE books SET id = 1 WHERE id = 2",
        "INSERT INTO books (id) VALUES (1); INSERT OR IGNORE INTO books VALUES (1, 'a', 2)",
        f"{NEW} INSERT INTO b2 SELECT * FROM books; {SWAP}",
        f"{NEW} INSERT INTO b2 (id, title, year) SELECT b.id, coalesce(title, ''), year FROM main.books; {SWAP}",
        f"{NEW} INSERT INTO b2 SELECT id, title, ifnull(year, 0) FROM books ORDER BY id DESC; {SWAP}",
        "ALTER TABLE books RENAME TO old; CREATE TABLE books (id, title, year);"
        "INSERT INTO books SELECT * FROM old; DROP TABLE old",
        "CREATE TRIGGER t AFTER INSERT ON books BEGIN INSERT INTO log VALUES (new.id); UPDATE log SET x = 1; END",
        "CREATE TABLE seen (x); CREATE TRIGGER t AFTER DELETE ON books BEGIN DELETE FROM seen WHERE x = old.id; END",
        f"{NEW} INSERT INTO b2 SELECT * FROM books {BATCH} ON CONFLICT (id) DO NOTHING;"
        "ALTER TABLE books RENAME TO old; ALTER TABLE b2 RENAME TO books; DELETE FROM old WHERE id > 7; DROP TABLE old",
        f"CREATE TABLE b2 (no INTEGER, title, year); INSERT INTO b2 (year, title, no) SELECT year, title, id FROM books"
        f" WHERE rowid > :after AND rowid <= :upto ON CONFLICT (no) DO NOTHING; {SWAP}",
        f"{NEW} INSERT OR ABORT INTO b2 SELECT * FROM books; DELETE FROM t; UPDATE b2 SET title = ''; {SWAP}",
        "SELECT 1; ANALYZE; WITH a AS (SELECT 1) SELECT * FROM a",
    ],
)
def test_what_keeps_all_rows(sql):
    assert found(sql) == []


@pytest.mark.parametrize(
    ("sql", "table", "says"),
    [
        ("DROP TABLE books", "books", "dropped with all its rows"),
        ('drop table if exists "main"."Books"', "books", "dropped with all its rows"),
        ("ALTER TABLE books RENAME TO old; DROP TABLE old", "books", "dropped with all its rows"),
        ("DELETE FROM books WHERE id > 7", "books", "rows of books are deleted"),
        ("WITH a AS (SELECT 1 FROM log) DELETE FROM log WHERE x IN a", "log", "rows of log are deleted"),
        ("REPLACE INTO books VALUES (1, '', 1)", "books", "in the way"),
        ("INSERT OR REPLACE INTO books SELECT * FROM log", "books", "in the way"),
        ("UPDATE OR REPLACE books SET id = 1 WHERE id = 2", "books", "in the way"),
        ("ALTER TABLE books DROP year", "books", "the column year of books is dropped"),
        (
            "CREATE TRIGGER tidy AFTER INSERT ON books BEGIN SELECT 1; DELETE FROM log WHERE x < new.id; END",
            "log",
            "the trigger tidy deletes rows of log",
        ),
        (f"{NEW} {SWAP}", "books", "dropped with all its rows"),
        (f"{NEW} INSERT INTO b2 SELECT * FROM log; {SWAP}", "books", "dropped with all its rows"),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books WHERE year > 2000; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books ORDER BY id LIMIT 5; {SWAP}", "books", "a part of its rows"),
        (
            f"{NEW} INSERT INTO b2 SELECT * FROM books WHERE id > :after AND id <= :upto AND year > 1; {SWAP}",
            "books",
            "a part of its rows",
        ),
        (f"{NEW} ALTER TABLE books RENAME TO old; DELETE FROM old", "books", "rows of books are deleted"),
        (f"{NEW} INSERT INTO b2 SELECT DISTINCT * FROM books; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} INSERT OR IGNORE INTO b2 SELECT * FROM books; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} REPLACE INTO b2 SELECT * FROM books; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} INSERT OR IGNORE INTO b2 SELECT * FROM books {BATCH}; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} INSERT OR REPLACE INTO b2 SELECT * FROM books {BATCH}; {SWAP}", "books", "a part of its rows"),
        (
            f"{NEW} INSERT INTO b2 SELECT * FROM books {BATCH} ON CONFLICT (title) DO NOTHING; {SWAP}",
            "books",
            "a part of its rows",
        ),
        (
            f"{NEW} INSERT INTO b2 SELECT * FROM books {BATCH} ON CONFLICT DO NOTHING; {SWAP}",
            "books",
            "a part of its rows",
        ),
        (
            f"{NEW} INSERT INTO b2 SELECT * FROM books WHERE year > :after AND year <= :upto; {SWAP}",
            "books",
            "a part of its rows",
        ),
        (
            f"CREATE TABLE b2 (id, title UNIQUE ON CONFLICT IGNORE, year); INSERT INTO b2 SELECT * FROM books; {SWAP}",
            "books",
            "a part of its rows",
        ),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books; DELETE FROM b2 WHERE id > 7; {SWAP}", "books", "a part of its"),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books; {SWAP}; DELETE FROM books WHERE id > 7", "books", "a part of its"),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books; REPLACE INTO b2 VALUES (1, 2, 3); {SWAP}", "books", "a part of"),
        (
            f"{NEW} INSERT INTO b2 SELECT * FROM books; ALTER TABLE b2 RENAME year TO y; ALTER TABLE b2 DROP y; {SWAP}",
            "books",
            "column year",
        ),
        (f"{NEW} INSERT INTO b2 SELECT * FROM books, log; {SWAP}", "books", "a part of its rows"),
        (f"{NEW} INSERT INTO b2 (id, title) SELECT id, title FROM books; {SWAP}", "books", "column year"),
        (f"{NEW} INSERT INTO b2 SELECT id, substr(title, 1, 10), year FROM books; {SWAP}", "books", "column title"),
    ],
)
def test_what_can_lose(sql, table, says):
    [(of, message)] = found(sql)
    assert of == table
    assert says in message


def test_text_that_becomes_numbers():
    after = {**BEFORE, "books": {"id": "INTEGER", "title": "INTEGER", "year": "INTEGER"}}
    [(_, message)] = found(f"{NEW} INSERT INTO b2 SELECT * FROM books; {SWAP}", after)
    assert "numbers in its column title" in message
