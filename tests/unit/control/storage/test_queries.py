import pytest

from control.storage import queries
from edge_runtime.sql import queries as statements

GOOD = """-- Queries of a test.

-- Saves a thing.
-- name: save
INSERT INTO things (id) VALUES ($1);

-- Finds a thing
-- by its id.
-- name: find
SELECT *  -- all of it
FROM things
WHERE id = $1;
"""


def test_queries_are_found_by_name_without_the_comments_of_their_neighbours():
    found = queries.parse("things", GOOD)
    assert dict(found) == {
        "save": "INSERT INTO things (id) VALUES ($1)",
        "find": "SELECT *  -- all of it\nFROM things\nWHERE id = $1",
    }


def test_unknown_query_names_the_file_and_what_it_has():
    with pytest.raises(queries.QueryError, match=r"things.sql has no query 'sav'; it has: find, save"):
        queries.parse("things", GOOD)["sav"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD.partition("\n\n")[2], "'save' is used twice"),
        ("-- name: bare\nSELECT 1;\n", "no comment above 'bare'"),
        ("-- One.\n-- name: one\nSELECT 1;\n-- name: two\nSELECT 2;", "no comment above 'two'"),
        ("-- One.\n-- name: one\n\n-- Two.\n-- name: two\nSELECT 2;", "'one' is empty"),
        ("SELECT 1;\n-- One.\n-- name: one\nSELECT 1;", "SQL above the first"),
    ],
)
def test_a_wrong_file_is_refused(text, message):
    with pytest.raises(queries.QueryError, match=message):
        queries.parse("things", text)


def test_a_missing_file_is_an_error():
    with pytest.raises(queries.QueryError, match=r"no file of queries .*nowhere.sql"):
        queries.load("nowhere")


def test_every_file_of_queries_loads():
    for path in (queries.folder() / "queries").glob("*.sql"):
        assert queries.load(path.stem), path


def test_the_edge_finds_its_own_sql():
    for path in (queries.folder() / "edge").glob("*.sql"):
        assert statements.load(path.stem) == path.read_text()
