"""Drafts of changes that reverse others: they lead back to the schema before, or say what they can't reverse."""

import pytest

from edge_runtime.oneshot.check_schema import RegisteredChange, SchemaCheckRequest, check

BASE = (
    "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT); CREATE TABLE log (x);"
    "CREATE INDEX by_email ON users (email); CREATE VIEW mails AS SELECT email FROM users;"
    "CREATE TRIGGER logs AFTER INSERT ON users BEGIN INSERT INTO log VALUES (new.id); END"
)


def draft(sql, *later):
    changes = [RegisteredChange(number, text) for number, text in enumerate((BASE, sql, *later), 1)]
    answer = check(SchemaCheckRequest(earlier=changes, reverse=2))
    assert answer["ok"], answer
    return answer


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE a (x); CREATE INDEX i ON a (x); INSERT INTO a VALUES (1); UPDATE a SET x = 2; DELETE FROM a",
        "CREATE TABLE IF NOT EXISTS users (id); CREATE INDEX IF NOT EXISTS by_email ON users (id)",
        'CREATE TABLE "odd ""name" (x); CREATE VIEW v AS SELECT 1; CREATE UNIQUE INDEX u ON users (email)',
        "CREATE VIRTUAL TABLE found USING fts5 (text)",
        "CREATE TABLE copy AS SELECT * FROM users",
        "ALTER TABLE users ADD COLUMN age INTEGER; UPDATE users SET age = 1",
        "ALTER TABLE main.users ADD age; WITH one AS (SELECT 1) UPDATE users SET (age) = (SELECT 1) WHERE id > 1",
        "ALTER TABLE users RENAME TO people; ALTER TABLE people RENAME COLUMN email TO mail",
        "DROP INDEX by_email; DROP VIEW mails; DROP TRIGGER IF EXISTS logs; DROP VIEW IF EXISTS gone",
        "CREATE TABLE a (x); ALTER TABLE a RENAME TO b; INSERT INTO b VALUES (1)",
        "CREATE TRIGGER t AFTER DELETE ON users BEGIN DELETE FROM log WHERE x = old.id; SELECT 1; END",
        "SELECT 1; ANALYZE; REINDEX by_email; WITH a AS (SELECT 1) SELECT * FROM a",
    ],
)
def test_what_is_reversed_leads_back(sql):
    """A revision that does this and then its reversal has the schema that was there before, says the check."""
    found = draft(sql)
    assert found["kept"] == []
    both = f"{sql};\n{found['reversal']}"
    assert check(SchemaCheckRequest(both, [RegisteredChange(1, BASE)]))["ok"]
    amended = RegisteredChange(2, "SELECT 'nothing'")
    answer = check(SchemaCheckRequest(both, [RegisteredChange(1, BASE), amended], amended))
    assert answer["ok"], answer


@pytest.mark.parametrize(
    ("sql", "statement", "says"),
    [
        ("DROP TABLE users", "DROP TABLE users", "the rows of users are gone"),
        ("UPDATE users SET email = ''; ", "UPDATE users", "rows of users"),
        ("WITH a AS (SELECT 1) DELETE FROM main.users WHERE id IN a", "WITH a", "rows of users"),
        ("INSERT OR REPLACE INTO users VALUES (1, 'a')", "INSERT OR REPLACE", "rows of users"),
        ("ALTER TABLE users ADD c; UPDATE users SET c = 1, email = 2", "UPDATE users", "rows of users"),
        ("DROP VIEW mails; DROP INDEX by_email; ALTER TABLE users DROP COLUMN email", "ALTER TABLE", "column email"),
    ],
)
def test_what_cant_be_reversed_is_said(sql, statement, says):
    kept = draft(sql)["kept"][0]
    assert kept["statement"].startswith(statement)
    assert says in kept["message"]


def test_later_changes_may_be_in_the_way():
    found = draft("CREATE TABLE a (x)", "DROP TABLE a")
    assert found["reversal"] == 'DROP TABLE "a";\n'
    [kept] = found["kept"]
    assert "no such table" in kept["message"]
