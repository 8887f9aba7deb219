"""Runs what a schema has besides its tables once, on generated rows: each view is selected, and each trigger's event
happens. So a body that names a table or a column that is gone is found before a node's calls find it.

A trigger that refuses by RAISE does what it is for, and so does a constraint; they aren't told.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ColumnRow, DefinitionRow, load
from edge_runtime.sql.tokenizer import quoted, tokenize, word
from edge_runtime.sql.values import Row

_SCHEMA: Final = load("schema")
_COLUMNS: Final = load("columns")
ROWS: Final = 3
"""Rows that are taken of a view, which may have no end."""

Failures = dict[str, str]
"""By what was done, as SQL without the values: the error."""


def run(opened: LibsqlDatabase) -> Failures:
    """Select all views and have the event of each trigger happen, each by itself in the transaction that is open, and
    undone; return what failed."""
    definitions = opened.read(DefinitionRow, _SCHEMA)
    raised = " ".join(row.sql or "" for row in definitions if row.type == "trigger")
    failures: Failures = {}
    for view in (row.name for row in definitions if row.type == "view"):
        _once(opened, f"SELECT * FROM {quoted(view)} LIMIT {ROWS}", failures, raised)  # noqa: S608
    events = {(row.tbl_name, _event(row.sql or "")) for row in definitions if row.type == "trigger"}
    for table in sorted({table for table, _ in events}):
        for event, statement, rows in _statements(opened, table):
            if (table, event) in events:
                _once(opened, statement, failures, raised, rows)
    return failures


def _event(trigger: str) -> str:
    """Return what a trigger waits for: `insert`, `update` or `delete`."""
    return next((text for text in map(word, tokenize(trigger)[3:]) if text in ("insert", "update", "delete")), "")


def _statements(opened: LibsqlDatabase, table: str) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield each event, a statement of a table or a view by which it happens, and the rows of values to run it with."""
    try:
        columns = [quoted(column.name) for column in opened.read(ColumnRow, _COLUMNS, (table,))]
        listed, name = ", ".join(columns), quoted(table)
        rows = opened.rows(f"SELECT {listed} FROM {name} LIMIT {ROWS}")  # noqa: S608
    except ValueError:
        # A view that can't be selected: that was told.
        return
    yield "update", f"UPDATE {name} SET {', '.join(f'{column} = {column}' for column in columns)}", [()]  # noqa: S608
    insert = f"INSERT INTO {name} ({listed}) VALUES ({', '.join('?' for _ in columns)})"  # noqa: S608
    # The values of rows that are there, without the keys that are taken: REPLACE has the triggers of INSERT run.
    yield "insert", insert.replace("INSERT", "INSERT OR REPLACE", 1), rows or [(None,) * len(columns)]
    yield "delete", f"DELETE FROM {name}", [()]  # noqa: S608


def _once(opened: LibsqlDatabase, statement: str, failures: Failures, raised: str, rows: Sequence[Row] = ((),)) -> None:
    opened.rows("SAVEPOINT rehearsal")
    try:
        for values in rows:
            opened.rows(statement, values)
    except ValueError as error:
        text = str(error)
        if "constraint failed" not in text and text not in raised:
            failures[statement] = text
    if opened.in_transaction:
        opened.rows("ROLLBACK TO rehearsal")
        opened.rows("RELEASE rehearsal")
    else:
        # An OR ROLLBACK has ended it, with all that was generated.
        opened.rows("BEGIN")
