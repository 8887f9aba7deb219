"""The edge's own SQL statements, in the folder `sql/edge`, and the rows that they return: one class per query, with
fields named and ordered like the query's columns."""

from pathlib import Path
from typing import NamedTuple


def load(name: str) -> str:
    """Return the text of ``sql/edge/<name>.sql``, from the installed package or from the checkout."""
    packaged = Path(__file__).parents[1] / "_sql"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / "edge"
    return (folder / f"{name}.sql").read_text(encoding="utf-8")


class MetaRow(NamedTuple):
    """`read_meta`."""

    database_id: str
    format: int


class ReleaseRow(NamedTuple):
    """`read_release`."""

    release_id: str
    number: int
    generation: int


class GenerationRow(NamedTuple):
    """`read_generation`."""

    generation: int
    applied: int
    """How many releases were ever applied to the file."""


class ChangeRow(NamedTuple):
    """`read_changes`: a schema change that was applied."""

    number: int
    revision: int
    checksum: str


class FunctionRow(NamedTuple):
    """`read_functions`."""

    name: str
    version: int
    sha256: str
    manifest: str
    """JSON."""
    manifest_digest: str


class RootPageRow(NamedTuple):
    """`own_pages`: the root page of a table or an index."""

    rootpage: int
    is_runtimes: int
    """1 for the runtime's own, 0 for SQLite's or libsql's."""


class TableRow(NamedTuple):
    """`tables_to_fill`, `tables_with_rows`."""

    name: str
    sql: str


class ColumnRow(NamedTuple):
    """`columns`."""

    name: str
    type: str
    notnull: int
    pk: int
    """Position in the primary key, from 1; 0 for a column outside it."""


class ForeignKeyRow(NamedTuple):
    """`parents`: one pair of columns of a foreign key."""

    id: int
    child_column: str
    parent: str
    parent_column: str
    """Empty for the parent's primary key."""


class ReferenceRow(NamedTuple):
    """`foreign_keys`: a foreign key by its two tables."""

    child: str
    parent: str


class DefinitionRow(NamedTuple):
    """`schema`."""

    type: str
    name: str
    tbl_name: str
    sql: str | None
    """None for an index that SQLite made for a constraint."""


class SchemaRecordRow(NamedTuple):
    """`read_schema_record`: a definition as the last release left it."""

    type: str
    name: str
    digest: str


class StepRow(NamedTuple):
    """`read_steps`: a step of a schema change."""

    number: int
    """The schema change."""
    step: int
    """From 1; 0 for what undoes the steps."""
    name: str
    """The schema change's name."""
    checksum: str
    """The schema change's."""
    stage: str
    """`before` or `after` the release's transaction, or `undo`."""
    target: str
    """The table whose rows are changed in batches; empty for a step in one transaction."""
    key: str
    sql: str
    after: int | None
    """The key up to which the rows are done; None before the first batch."""
    start: int | None
    """`after` as it was at first."""
    bound: int | None
    """The key of the last row to do."""
    done: int


class TickRow(NamedTuple):
    """`read_ticks`: a tick of a schedule, as in `frames.StoredTick`."""

    function: str
    cron: str
    tick: int
    state: str
    at: int


class SizeRow(NamedTuple):
    """`sizes`: a table or an index."""

    name: str
    bytes: int


class NumberRow(NamedTuple):
    """One number, such as a PRAGMA or `table_bytes` returns."""

    value: int


class NameRow(NamedTuple):
    """`functions`, `modules`, `shadow_tables`: a name in lower case; `table_names`: a table's; `integer_keys`: a
    column's, or empty."""

    name: str


class ViolationRow(NamedTuple):
    """PRAGMA foreign_key_check."""

    table: str
    rowid: int | None
    parent: str
    fkid: int
