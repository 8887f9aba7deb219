"""Fills the tables of a schema with a few rows, as well as it can, so that a schema change meets filled tables."""

import random
from collections import defaultdict
from typing import Any, Final

from edge_runtime.sql.database import Database
from edge_runtime.sql.queries import load
from edge_runtime.sql.tokenizer import TokenKind, tokenize

ROWS: Final = 3
ATTEMPTS: Final = 100
"""Per table: the first ones with values that differ in every row, later ones with literals of its definition."""

_TABLES: Final = load("tables_to_fill")
_COLUMNS: Final = load("columns")
_PARENTS: Final = load("parents")
_TEXTS: Final = ("{}", "[]", "a", "0", "2026-01-02", "2026-01-02T03:04:05Z", "a@example.org")
_FIRST: Final = 1_000_001
"""Unlike the keys that changes themselves are likely to insert."""

Row = dict[str, Any]


def fill(opened: Database) -> list[str]:
    """Insert rows, with foreign_keys ON; the names of the tables that none could be inserted into."""
    tables = dict(opened.rows(_TABLES))
    parents = {table: _parents(opened, table) for table in tables}
    counts = dict.fromkeys(tables, 0)
    opened.rows("BEGIN")
    for table in _in_order({table: {key[0] for key in keys} for table, keys in parents.items()}):
        counts[table] = _fill(opened, table, tables[table], parents[table])
        if not opened.in_transaction:
            # A trigger rolled back: what was inserted before is gone.
            counts = dict.fromkeys(tables, 0)
            opened.rows("BEGIN")
    try:
        opened.rows("COMMIT")
    except ValueError:
        opened.rollback()
        counts = dict.fromkeys(tables, 0)
    return sorted(table for table, count in counts.items() if not count)


ForeignKey = tuple[str, list[tuple[str, str]]]
"""The parent, and the pairs of columns: the child's, the parent's."""


def _parents(opened: Database, table: str) -> list[ForeignKey]:
    keys: dict[int, ForeignKey] = {}
    for number, column, parent, to in opened.rows(_PARENTS, (table,)):
        keys.setdefault(number, (parent, []))[1].append((column, to))
    for parent, pairs in keys.values():
        if any(not to for _, to in pairs):
            primary = sorted((pk, name) for name, _, _, pk in opened.rows(_COLUMNS, (parent,)) if pk)
            pairs[:] = [(column, name) for (column, _), (_, name) in zip(pairs, primary, strict=False)]
    return list(keys.values())


def _in_order(parents: dict[str, set[str]]) -> list[str]:
    """Parents before children where the foreign keys allow it. Names are compared as SQLite does: without case."""
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


def _fill(opened: Database, table: str, sql: str, parents: list[ForeignKey]) -> int:
    columns = [(name, kind, notnull) for name, kind, notnull, _ in opened.rows(_COLUMNS, (table,))]
    if not columns:
        return 0
    # Names of the schema can't be parameters.
    names = ", ".join(_quoted(name) for name, _, _ in columns)
    marks = ", ".join("?" for _ in columns)
    insert = f"INSERT INTO {_quoted(table)} ({names}) VALUES ({marks})"  # noqa: S608
    literals = _literals(sql)
    choose = random.Random(table)  # noqa: S311
    references = [(pairs, _rows_of(opened, parent, [to for _, to in pairs])) for parent, pairs in parents]
    count = 0
    for attempt in range(ATTEMPTS):
        row = {name: _value(kind, count, attempt, literals, choose) for name, kind, _ in columns}
        for pairs, rows in references:
            found = choose.choice(rows) if rows else [None] * len(pairs)
            row.update({column: value for (column, _), value in zip(pairs, found, strict=True)})
        try:
            opened.rows(insert, tuple(row.get(name) for name, _, _ in columns))
            count += 1
        except ValueError:
            if not opened.in_transaction:
                return 0
        if count == ROWS:
            break
    return count


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rows_of(opened: Database, table: str, columns: list[str]) -> list[tuple[Any, ...]]:
    try:
        return opened.rows(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)} LIMIT {ROWS}")  # noqa: S608
    except ValueError:
        # No such parent.
        return []


def _literals(sql: str) -> dict[str, list[Any]]:
    """Strings and numbers of a table's definition: a CHECK often names what it wants."""
    found: dict[str, list[Any]] = defaultdict(list)
    for token in tokenize(sql):
        if token.kind is TokenKind.STRING:
            found["text"].append(token.text[1:-1].replace("''", "'"))
        elif token.kind is TokenKind.NUMBER and token.text.isdigit() and len(token.text) < 10:
            number = int(token.text)
            found["integer"] += [number, number + 1, max(0, number - 1)]
            found["text"].append("x" * min(number, 1000))
    return found


def _value(kind: str, row: int, attempt: int, literals: dict[str, list[Any]], choose: random.Random) -> Any:
    """A value for a column of the declared type `kind` (SQLite's rules of affinity)."""
    kind = kind.upper()
    distinct = attempt < ROWS
    if "INT" in kind:
        return _FIRST + row if distinct else choose.choice([_FIRST + row, row, 1, 0, 50, *literals["integer"]])
    if any(part in kind for part in ("CHAR", "CLOB", "TEXT")):
        return f"text {row}" if distinct else choose.choice([f"text {row}", *_TEXTS, *literals["text"]])
    if "BLOB" in kind:
        return f"blob {row}".encode()
    if any(part in kind for part in ("REAL", "FLOA", "DOUB")):
        return _FIRST + row + 0.5 if distinct else choose.choice([row + 0.5, 0.5, 0.0, *literals["integer"]])
    if distinct:
        return _FIRST + row
    return choose.choice([row, 0, 1, f"text {row}", *_TEXTS, *literals["integer"], *literals["text"]])
