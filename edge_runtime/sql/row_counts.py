"""How many rows the tables of the database have, as far as it costs little to know."""

from typing import Final

from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import load
from edge_runtime.sql.rows import NumberRow, TableRow
from edge_runtime.sql.tokenizer import quoted

MOST_ROWS: Final = 10_001
"""Rows of a table that are counted: this number means that there are more than 10,000."""
MOST_TABLES: Final = 200
"""Tables that are counted: the first so many that were made."""

_TABLES: Final = load("tables_with_rows")


def tables(opened: LibsqlDatabase) -> list[str]:
    """Return the names of the tables that hold rows, as they are written, in the order of their making."""
    return [table.name for table in opened.read(TableRow, _TABLES)]


def count(opened: LibsqlDatabase) -> dict[str, int]:
    """Return the number of rows by table, in lower case: of the first `MOST_TABLES` tables, `MOST_ROWS` at most of
    each. A table that can't be read, as a virtual one whose own tables are damaged, is left out."""
    counts: dict[str, int] = {}
    for name in tables(opened)[:MOST_TABLES]:
        try:
            query = f"SELECT count(*) FROM (SELECT 1 FROM {quoted(name)} LIMIT {MOST_ROWS})"  # noqa: S608
            counts[name.lower()[:200]] = opened.read(NumberRow, query)[0].value
        except ValueError:
            continue
    return counts
