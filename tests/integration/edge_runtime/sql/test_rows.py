"""The classes of rows have the names and the types of what their queries return."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pytest

from edge_runtime.sql import database, queries, schema
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import load
from edge_runtime.sql.values import Value

TABLES = """
CREATE TABLE parent (a INTEGER PRIMARY KEY, b TEXT NOT NULL UNIQUE);
CREATE TABLE child (p INTEGER REFERENCES parent, q TEXT REFERENCES parent (b));
CREATE VIRTUAL TABLE words USING fts5(word)
"""
QUERIES: list[tuple[type[NamedTuple], str, tuple[Value, ...]]] = [
    (queries.MetaRow, load("read_meta"), ()),
    (queries.ReleaseRow, load("read_release"), ()),
    (queries.GenerationRow, load("read_generation"), ()),
    (queries.ChangeRow, load("read_changes"), ()),
    (queries.FunctionRow, load("read_functions"), ()),
    (queries.RootPageRow, load("own_pages"), ()),
    (queries.TableRow, load("tables_to_fill"), ()),
    (queries.ColumnRow, load("columns"), ("parent",)),
    (queries.ForeignKeyRow, load("parents"), ("child",)),
    (queries.ReferenceRow, load("foreign_keys"), ()),
    (queries.DefinitionRow, load("schema"), ()),
    (queries.StepRow, load("read_steps"), ()),
    (queries.TickRow, load("read_ticks"), ()),
    (queries.SizeRow, load("sizes"), ()),
    (queries.SchemaRecordRow, load("read_schema_record"), ()),
    (queries.ViolationRow, "PRAGMA foreign_key_check", ()),
]
UNNAMED: list[tuple[type[NamedTuple], str]] = [
    (queries.NumberRow, load("shadow_pages")),
    (queries.NumberRow, "PRAGMA page_count"),
    (queries.NumberRow, "PRAGMA page_size"),
    (queries.NumberRow, load("table_bytes").replace("?", "'parent'")),
    (queries.NameRow, load("table_names")),
    (queries.NameRow, load("functions")),
    (queries.NameRow, load("modules")),
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibsqlDatabase]:
    path: Path = tmp_path_factory.mktemp("rows") / "skerry.db"
    with database.connect(path, foreign_keys=False) as opened:
        for statement in TABLES.split(";"):
            opened.rows(statement)
        opened.rows("INSERT INTO child VALUES (1, 'x')")
        opened.rows(load("write_release"), ("release-1", 1, "1", "2026-01-01"))
        opened.rows(load("insert_change"), (1, 1, "0" * 64, "first", "2026-01-01"))
        opened.rows(load("insert_function"), ("f", 1, "0" * 64, "{}", "0" * 64))
        schema.record(opened)
        opened.rows(load("make_ticks"))
        opened.rows(load("insert_tick"), ("f", "0 3 * * *", "4000000000", "since"))
        opened.rows(load("make_steps"))
        opened.rows(load("insert_step"), (1, 1, "first", "0" * 64, "before", "parent", "a", "SELECT 1"))
        yield opened


def check_types(row: type[NamedTuple], found: list[tuple[Value, ...]]) -> None:
    hints = get_type_hints(row)
    assert found
    for each in found:
        assert len(each) == len(row._fields)
        for name, value in zip(row._fields, each, strict=True):
            assert isinstance(value, hints[name]), (row, name, value)


@pytest.mark.parametrize(("row", "sql", "params"), QUERIES, ids=[row.__name__ for row, *_ in QUERIES])
def test_a_row_has_the_names_and_types_of_its_query(
    opened: LibsqlDatabase, row: type[NamedTuple], sql: str, params: tuple[Value, ...]
) -> None:
    cursor = opened.connection.execute(sql, params)
    check_types(row, cursor.fetchall())
    assert [column[0] for column in cursor.description or ()] == list(row._fields)


@pytest.mark.parametrize(
    ("row", "sql"), UNNAMED, ids=["shadow", "count", "size", "bytes", "tables", "functions", "modules"]
)
def test_a_row_of_one_column_has_its_type(opened: LibsqlDatabase, row: type[NamedTuple], sql: str) -> None:
    check_types(row, opened.rows(sql))


def test_every_class_of_rows_is_tested() -> None:
    classes = {value for value in vars(queries).values() if isinstance(value, type) and hasattr(value, "_fields")}
    assert classes == {row for row, *_ in [*QUERIES, *UNNAMED]}
