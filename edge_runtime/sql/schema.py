"""The current schema of the file: its definitions, its foreign keys, roughly how many rows its tables have, and whether
it is still as the last release left it.

A release records a digest of each table, index, view and trigger in the file, in its own transaction. So a definition
that other programs have changed, added or removed is noticed later, and so are a wrong restore and a damaged schema.
"""

import hashlib
from collections.abc import Iterable, Mapping, Set
from typing import Final, NamedTuple

import orjson

from control.protocol.counts import counted
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import (
    DefinitionRow,
    NameRow,
    NumberRow,
    ReferenceRow,
    SchemaRecordRow,
    TableRow,
    ViolationRow,
    load,
)
from edge_runtime.sql.tokenizer import TokenKind, name, quoted, tokenize
from edge_runtime.sql.values import Row

MOST_ROWS: Final = 10_001
"""Rows of a table up to which they are counted: this number means more than 10,000."""
MOST_ESTIMATED: Final = 10**12
MOST_TABLES: Final = 200
"""Tables whose rows are counted: the first ones created."""

_SCHEMA: Final = load("schema")
_FOREIGN_KEYS: Final = load("foreign_keys")
_TABLES: Final = load("tables_with_rows")
_SHADOWS: Final = load("shadow_tables")
_CONSTRAINTS: Final = frozenset({"constraint", "primary", "unique", "check", "foreign"})
"""First words of a table's constraints."""
_OWN_QUERIES: Final = ("own_schema", "all_meta", "all_changes", "all_release", "all_functions", "all_steps")
_OWN: Final = tuple(load(name) for name in _OWN_QUERIES)
_MAKE_RECORD: Final = load("make_schema_record")
_HAS_RECORD: Final = load("has_schema_record")
_DELETE_RECORD: Final = load("delete_schema_record")
_INSERT_RECORD: Final = load("insert_schema_record")
_READ_RECORD: Final = load("read_schema_record")

SchemaDigests = dict[tuple[str, str], str]
"""Digest of each definition, by its type and name."""


class SchemaDifferences(NamedTuple):
    """How the schema differs from the recorded one, each entry as in `table orders`."""

    changed: list[str]
    missing: list[str]
    added: list[str]


def definitions(opened: LibsqlDatabase) -> list[DefinitionRow]:
    """Return all definitions except those of SQLite's, libsql's and the runtime's own tables."""
    return opened.read(DefinitionRow, _SCHEMA)


def normal(sql: str | None) -> tuple[str, ...]:
    """Return the tokens of a definition from sqlite_schema, without what doesn't matter: spaces, comments, case, and
    quotes around names."""
    if sql is None:
        return ()
    return tuple(
        token.text if token.kind is TokenKind.STRING else name(token) or token.text.lower() for token in tokenize(sql)
    )


def own(opened: LibsqlDatabase) -> list[list[Row] | None]:
    """Return all of the runtime's own rows and definitions, to compare them before and after a change; None for a table
    that is gone."""
    content: list[list[Row] | None] = []
    for query in _OWN:
        try:
            content.append(opened.rows(query))
        except ValueError:
            # The table is gone.
            content.append(None)
    return content


def touched(texts: Iterable[str], schema: Iterable[DefinitionRow]) -> set[str]:
    """Return a superset of the names, in lower case, of all tables whose rows or definitions the texts can change.

    A statement names what it changes, or fires a trigger that does. `schema`: the definitions before and after them.
    """
    names = {name(token) for text in texts for token in tokenize(text)}
    fired = [(row.name.lower(), row.tbl_name.lower(), row.sql if row.type == "trigger" else "") for row in schema]
    while True:
        # An index counts as its table.
        reached = [item for item in fired if names & {item[0], item[1]}]
        if not reached:
            return names
        fired = [item for item in fired if item not in reached]
        names |= {table for _, table, _ in reached}
        names |= {name(token) for _, _, sql in reached for token in tokenize(sql or "")}


def references(opened: LibsqlDatabase, names: Set[str]) -> dict[str, int]:
    """Return the tables whose rows can violate a foreign key after the tables with these names were changed (these
    tables, and those that refer to them), each with the number of its foreign keys."""
    keys = opened.read(ReferenceRow, _FOREIGN_KEYS)
    children = {key.child for key in keys if names & {key.child.lower(), key.parent.lower()}}
    return {child: sum(key.child == child for key in keys) for child in sorted(children)}


def orphans(opened: LibsqlDatabase, tables: Iterable[str] | None = None) -> str:
    """Return how the rows of these tables, or of all, violate foreign keys, as a sentence; empty if they don't."""
    first: ViolationRow | None = None
    count = 0
    checks = [""] if tables is None else [f"({quoted(table)})" for table in tables]
    try:
        for of in checks:
            cursor = opened.connection.execute(f"PRAGMA foreign_key_check{of}")
            # A few at a time: there may be as many as there are rows.
            while rows := cursor.fetchmany(64):
                first = first or ViolationRow._make(rows[0])
                count += len(rows)
    except ValueError as error:
        return f"the foreign keys can't be checked: {error}."
    if first is None:
        return ""
    lack = counted(count, "row has no parent", "rows have no parent")
    return f"{lack}; the first is row {first.rowid} of {first.table}, which refers to {first.parent}."


def tables(opened: LibsqlDatabase) -> list[str]:
    """Return the names of the tables that hold rows, as written, in the order in which they were created."""
    return [table.name for table in opened.read(TableRow, _TABLES)]


def row_counts(opened: LibsqlDatabase, most: int | None = MOST_ROWS) -> dict[str, int]:
    """Return the number of rows by table name, in lower case, for the first `MOST_TABLES` tables, counting at most
    `most` each; None: all. A table that can't be read, such as a virtual table whose shadow tables are damaged, is left
    out."""
    counts: dict[str, int] = {}
    limit = "" if most is None else f" LIMIT {most}"
    for table in tables(opened)[:MOST_TABLES]:
        try:
            query = f"SELECT count(*) FROM (SELECT 1 FROM {quoted(table)}{limit})"  # noqa: S608
            counts[table.lower()[:200]] = opened.read(NumberRow, query)[0].value
        except ValueError:
            continue
    return counts


def row_estimates(opened: LibsqlDatabase, counts: Mapping[str, int]) -> dict[str, int]:
    """Estimate the rows of tables that have more than were counted, from their first and last keys: too many if keys
    are missing in between. Tables without rowids are left out."""
    found: dict[str, int] = {}
    for table in tables(opened)[:MOST_TABLES]:
        if counts.get(table.lower()[:200], 0) < MOST_ROWS:
            continue
        try:
            # Two queries: the least and the largest in one would be a scan of the table.
            least, most = (opened.rows(f"SELECT {end}(rowid) FROM {quoted(table)}")[0][0] for end in ("min", "max"))  # noqa: S608
        except ValueError:
            continue
        if isinstance(least, int) and isinstance(most, int):
            found[table.lower()[:200]] = min(MOST_ESTIMATED, most - least + 1)
    return found


def digests(opened: LibsqlDatabase) -> SchemaDigests:
    """Return the digests of all `definitions`."""
    return {(row.type, row.name): _sha256([row.tbl_name, *normal(row.sql)]) for row in definitions(opened)}


def digest(schema: SchemaDigests) -> str:
    """Return the sha256 of a whole schema."""
    return _sha256([[*key, value] for key, value in sorted(schema.items())])


def shape_digest(opened: LibsqlDatabase) -> str:
    """Return a sha256 that two files share if their schemas mean the same, whatever led to them."""
    return _sha256([[*key, *shape] for key, shape in sorted(shapes(opened).items())])


def shapes(opened: LibsqlDatabase) -> dict[tuple[str, str], list[object]]:
    """Return the table and the meaning of each definition, by its type and name, in lower case.

    Tables of virtual tables' own (shadow tables) are left out: other versions of a module may make others.
    """
    shadows = {row.name for row in opened.read(NameRow, _SHADOWS)}
    return {
        (row.type, row.name.lower()): [row.tbl_name.lower(), _shape(row)]
        for row in definitions(opened)
        if row.tbl_name.lower() not in shadows
    }


def _shape(row: DefinitionRow) -> list[object]:
    """Return a definition's tokens in an order that doesn't depend on how it came to be: ALTER TABLE ADD COLUMN puts a
    column after the table's constraints, CREATE TABLE before them."""
    tokens = list(normal(row.sql))
    if tokens[2:5] == ["if", "not", "exists"]:
        del tokens[2:5]
    if row.type != "table" or tokens[:2] != ["create", "table"] or "(" not in tokens:
        return list(tokens)
    start, depth = tokens.index("("), 0
    parts: list[list[str]] = [[]]
    end = len(tokens)
    for at, text in enumerate(tokens[start:], start):
        depth += (text == "(") - (text == ")")
        if depth == 0:
            end = at
            break
        if depth == 1 and text == ",":
            parts.append([])
        elif at > start:
            parts[-1].append(text)
    columns = [part for part in parts if part and part[0] not in _CONSTRAINTS]
    constraints = sorted(part for part in parts if part and part[0] in _CONSTRAINTS)
    return [tokens[:start], columns, constraints, sorted(tokens[end + 1 :])]


def record(opened: LibsqlDatabase) -> None:
    """Record the schema as it is, in the transaction that is open."""
    opened.rows(_MAKE_RECORD)
    opened.rows(_DELETE_RECORD)
    for (kind, named), value in digests(opened).items():
        opened.rows(_INSERT_RECORD, (kind, named, value))


def is_recorded(opened: LibsqlDatabase) -> bool:
    """Return whether a schema is recorded; a file from an earlier version has no record until its next release."""
    return opened.read(NumberRow, _HAS_RECORD)[0].value > 0


def differences(opened: LibsqlDatabase) -> SchemaDifferences:
    """Compare the schema with the recorded one; there are no differences if none is recorded."""
    if not is_recorded(opened):
        return SchemaDifferences([], [], [])
    recorded = {(row.type, row.name): row.digest for row in opened.read(SchemaRecordRow, _READ_RECORD)}
    found = digests(opened)
    return SchemaDifferences(
        changed=sorted(" ".join(key) for key in found.keys() & recorded.keys() if found[key] != recorded[key]),
        missing=sorted(" ".join(key) for key in recorded.keys() - found.keys()),
        added=sorted(" ".join(key) for key in found.keys() - recorded.keys()),
    )


def _sha256(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()
