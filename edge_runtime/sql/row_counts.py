"""How many rows the tables of the database have, as far as it costs little to know."""

from collections.abc import Mapping
from typing import Final

from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import NumberRow, TableRow, load
from edge_runtime.sql.tokenizer import quoted

MOST_ROWS: Final = 10_001
"""Rows of a table that are counted: this number means that there are more than 10,000."""
MOST_ESTIMATED: Final = 10**12
MOST_TABLES: Final = 200
"""Tables that are counted: the first so many that were made."""

_TABLES: Final = load("tables_with_rows")


def estimates(opened: LibsqlDatabase, counts: Mapping[str, int]) -> dict[str, int]:
    """Return about how many rows the tables have that have more than were counted, by their keys: too many, where keys
    are missing between the first and the last. Tables without rowids are left out."""
    found: dict[str, int] = {}
    for name in tables(opened)[:MOST_TABLES]:
        if counts.get(name.lower()[:200], 0) < MOST_ROWS:
            continue
        try:
            # Two queries: the least and the largest in one would be a scan of the table.
            least, most = (opened.rows(f"SELECT {end}(rowid) FROM {quoted(name)}")[0][0] for end in ("min", "max"))  # noqa: S608
        except ValueError:
            continue
        if isinstance(least, int) and isinstance(most, int):
            found[name.lower()[:200]] = min(MOST_ESTIMATED, most - least + 1)
    return found


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
