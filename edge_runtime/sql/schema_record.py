"""What the schema is, definition by definition, and whether it still is what the last release left.

A release records a digest of each table, index, view and trigger in the file, in its own transaction. So a definition
that was changed, added or removed by other programs shows later, as do a wrong restore and a damaged schema.
"""

import hashlib
from typing import Final, NamedTuple

import orjson

from edge_runtime.sql import schema_change
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import DefinitionRow, NumberRow, SchemaRecordRow, load

_SCHEMA: Final = load("schema")
_MAKE: Final = load("make_schema_record")
_HAS: Final = load("has_schema_record")
_DELETE: Final = load("delete_schema_record")
_INSERT: Final = load("insert_schema_record")
_READ: Final = load("read_schema_record")

Definitions = dict[tuple[str, str], str]
"""Digest of each definition, by its type and its name."""


class SchemaDifferences(NamedTuple):
    """How the schema differs from the recorded one, each entry as in `table orders`."""

    changed: list[str]
    missing: list[str]
    added: list[str]


def definitions(opened: LibsqlDatabase) -> Definitions:
    """Return the schema as it is, without the tables of SQLite, libsql and the runtime."""
    return {
        (row.type, row.name): _sha256([row.tbl_name, *schema_change.normal(row.sql)])
        for row in opened.read(DefinitionRow, _SCHEMA)
    }


def digest(schema: Definitions) -> str:
    """Return the sha256 of a whole schema."""
    return _sha256([[*key, value] for key, value in sorted(schema.items())])


def record(opened: LibsqlDatabase) -> None:
    """Record the schema as it is, in the transaction that is open."""
    opened.rows(_MAKE)
    opened.rows(_DELETE)
    for (kind, name), value in definitions(opened).items():
        opened.rows(_INSERT, (kind, name, value))


def is_recorded(opened: LibsqlDatabase) -> bool:
    """Tell whether a schema is recorded; a file of an earlier version has none until its next release."""
    return opened.read(NumberRow, _HAS)[0].value > 0


def differences(opened: LibsqlDatabase) -> SchemaDifferences:
    """Compare the schema with the recorded one; there are no differences where none is recorded."""
    if not is_recorded(opened):
        return SchemaDifferences([], [], [])
    recorded = {(row.type, row.name): row.digest for row in opened.read(SchemaRecordRow, _READ)}
    found = definitions(opened)
    return SchemaDifferences(
        changed=sorted(" ".join(key) for key in found.keys() & recorded.keys() if found[key] != recorded[key]),
        missing=sorted(" ".join(key) for key in recorded.keys() - found.keys()),
        added=sorted(" ".join(key) for key in found.keys() - recorded.keys()),
    )


def _sha256(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()
