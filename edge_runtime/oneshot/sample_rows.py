"""Tries a schema on generated rows: `fill` inserts a few into each table, as far as its constraints allow, and
`try_views_and_triggers` then selects each view and fires each trigger.

So a schema change is tried on non-empty tables, and a view or a trigger that names a missing table or column is found
before a node's calls hit it.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ColumnRow, DefinitionRow, ForeignKeyRow, TableRow, load
from edge_runtime.sql.tokenizer import TokenKind, quoted, tokenize, word
from edge_runtime.sql.values import Row, Value

ROWS: Final = 3
ATTEMPTS: Final = 100
"""The most rows that are tried for one table. The first `ROWS` attempts use values that differ in every row, later ones
also literals from the table's definition."""

_VIEW_ROWS: Final = 3
"""Rows that are read from a view, which may be endless."""

_DEFINITIONS: Final = load("schema")
_TABLES: Final = load("tables_to_fill")
_COLUMNS: Final = load("columns")
_PARENTS: Final = load("parents")
_TEXTS: Final = ("{}", "[]", "a", "0", "2026-01-02", "2026-01-02T03:04:05Z", "a@example.org")
_FIRST: Final = 1_000_001
"""The first generated key, unlike the keys that schema changes themselves are likely to insert."""


Failures = dict[str, str]
"""By action, as SQL without the values: the error."""


class _Literals(NamedTuple):
    """The constants in a table's definition, by the type of columns that they may suit."""

    texts: list[Value]
    integers: list[Value]


def fill(opened: LibsqlDatabase) -> list[str]:
    """Insert rows, with foreign_keys ON, and return the names of the tables into which none could be inserted."""
    tables = {table.name: table.sql for table in opened.read(TableRow, _TABLES)}
    parents = {table: _parents(opened, table) for table in tables}
    counts = dict.fromkeys(tables, 0)
    opened.rows("BEGIN")
    for table in _in_order({table: {key[0] for key in keys} for table, keys in parents.items()}):
        counts[table] = _fill(opened, table, tables[table], parents[table])
        if not opened.in_transaction:
            # A trigger rolled back the transaction: earlier inserts are gone.
            counts = dict.fromkeys(tables, 0)
            opened.rows("BEGIN")
    try:
        opened.rows("COMMIT")
    except ValueError:
        opened.rollback()
        counts = dict.fromkeys(tables, 0)
    return sorted(table for table, count in counts.items() if not count)


ForeignKey = tuple[str, list[tuple[str, str]]]
"""The parent table, and pairs of columns: the child's, the parent's."""


def _parents(opened: LibsqlDatabase, table: str) -> list[ForeignKey]:
    keys: dict[int, ForeignKey] = {}
    for number, column, parent, to in opened.read(ForeignKeyRow, _PARENTS, (table,)):
        keys.setdefault(number, (parent, []))[1].append((column, to))
    for parent, pairs in keys.values():
        if any(not to for _, to in pairs):
            primary = sorted((pk, name) for name, _, _, pk in opened.read(ColumnRow, _COLUMNS, (parent,)) if pk)
            pairs[:] = [(column, name) for (column, _), (_, name) in zip(pairs, primary, strict=False)]
    return list(keys.values())


def _in_order(parents: dict[str, set[str]]) -> list[str]:
    """Return the tables with parents before children, as far as the foreign keys allow. As in SQLite, parents' names
    are compared case-insensitively."""
    known = {table.lower(): table for table in parents}
    done: dict[str, None] = {}

    def visit(table: str, above: frozenset[str]) -> None:
        if table in done or table in above:
            return
        for parent in sorted(parents[table]):
            if parent.lower() in known:
                visit(known[parent.lower()], above | {table})
        done[table] = None

    for table in parents:
        visit(table, frozenset())
    return list(done)


def _fill(opened: LibsqlDatabase, table: str, sql: str, parents: list[ForeignKey]) -> int:
    columns = opened.read(ColumnRow, _COLUMNS, (table,))
    if not columns:
        return 0
    # Quoted into the text, because the names of tables and columns can't be parameters.
    names = ", ".join(quoted(column.name) for column in columns)
    marks = ", ".join("?" for _ in columns)
    insert = f"INSERT INTO {quoted(table)} ({names}) VALUES ({marks})"  # noqa: S608
    literals = _literals(sql)
    choose = random.Random(table)  # noqa: S311
    references = [(pairs, _rows_of(opened, parent, [to for _, to in pairs])) for parent, pairs in parents]
    count = 0
    for attempt in range(ATTEMPTS):
        row: dict[str, Value] = {
            column.name: _value(column.type, count, attempt, literals, choose) for column in columns
        }
        for pairs, rows in references:
            parent_key: Sequence[Value] = choose.choice(rows) if rows else [None] * len(pairs)
            row.update({column: value for (column, _), value in zip(pairs, parent_key, strict=True)})
        try:
            opened.rows(insert, tuple(row.get(column.name) for column in columns))
            count += 1
        except ValueError:
            if not opened.in_transaction:
                return 0
        if count == ROWS:
            break
    return count


def _rows_of(opened: LibsqlDatabase, table: str, columns: list[str]) -> list[Row]:
    try:
        return opened.rows(f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(table)} LIMIT {ROWS}")  # noqa: S608
    except ValueError:
        # The parent table doesn't exist.
        return []


def _literals(sql: str) -> _Literals:
    """Return the strings and numbers in a table's definition, by type: a CHECK often contains the values that it
    accepts."""
    texts: list[Value] = []
    integers: list[Value] = []
    for token in tokenize(sql):
        if token.kind is TokenKind.STRING:
            texts.append(token.text[1:-1].replace("''", "'"))
        elif token.kind is TokenKind.NUMBER and token.text.isdigit() and len(token.text) < 10:
            number = int(token.text)
            integers += [number, number + 1, max(0, number - 1)]
            texts.append("x" * min(number, 1000))
    return _Literals(texts, integers)


def _value(kind: str, row: int, attempt: int, literals: _Literals, choose: random.Random) -> Value:
    """Return a value for a column of the declared type `kind`, by SQLite's rules of type affinity."""
    kind = kind.upper()
    distinct = attempt < ROWS
    if "INT" in kind:
        return _FIRST + row if distinct else choose.choice([_FIRST + row, row, 1, 0, 50, *literals.integers])
    if any(part in kind for part in ("CHAR", "CLOB", "TEXT")):
        return f"text {row}" if distinct else choose.choice([f"text {row}", *_TEXTS, *literals.texts])
    if "BLOB" in kind:
        return f"blob {row}".encode()
    if any(part in kind for part in ("REAL", "FLOA", "DOUB")):
        return _FIRST + row + 0.5 if distinct else choose.choice([row + 0.5, 0.5, 0.0, *literals.integers])
    if distinct:
        return _FIRST + row
    return choose.choice([row, 0, 1, f"text {row}", *_TEXTS, *literals.integers, *literals.texts])


def try_views_and_triggers(opened: LibsqlDatabase) -> Failures:
    """Select all views and fire each trigger, each separately in the open transaction, and undo it; return what failed.

    A trigger that refuses with RAISE works as intended, and so does a constraint: they aren't returned.
    """
    definitions = opened.read(DefinitionRow, _DEFINITIONS)
    raised = " ".join(row.sql or "" for row in definitions if row.type == "trigger")
    failures: Failures = {}
    for view in (row.name for row in definitions if row.type == "view"):
        _once(opened, f"SELECT * FROM {quoted(view)} LIMIT {_VIEW_ROWS}", failures, raised)  # noqa: S608
    events = {(row.tbl_name, _event(row.sql or "")) for row in definitions if row.type == "trigger"}
    for table in sorted({table for table, _ in events}):
        for event, statement, rows in _statements(opened, table):
            if (table, event) in events:
                _once(opened, statement, failures, raised, rows)
    return failures


def _event(trigger: str) -> str:
    """Return a trigger's event: `insert`, `update` or `delete`."""
    return next((text for text in map(word, tokenize(trigger)[3:]) if text in ("insert", "update", "delete")), "")


def _statements(opened: LibsqlDatabase, table: str) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield each event, a statement on a table or a view that causes it, and the rows of values to run it with."""
    try:
        columns = [quoted(column.name) for column in opened.read(ColumnRow, _COLUMNS, (table,))]
        listed, name = ", ".join(columns), quoted(table)
        rows = opened.rows(f"SELECT {listed} FROM {name} LIMIT {_VIEW_ROWS}")  # noqa: S608
    except ValueError:
        # A view that can't be selected: that was reported.
        return
    yield "update", f"UPDATE {name} SET {', '.join(f'{column} = {column}' for column in columns)}", [()]  # noqa: S608
    insert = f"INSERT INTO {name} ({listed}) VALUES ({', '.join('?' for _ in columns)})"  # noqa: S608
    # The values of existing rows, without the keys that are taken: REPLACE fires the triggers of INSERT.
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
        # An OR ROLLBACK has ended it, and the generated rows are gone.
        opened.rows("BEGIN")
