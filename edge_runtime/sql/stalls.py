"""Which statements of a schema change hold writers up for long on a large table, and how long for each row. Pure.

It goes by the tokens, as `losses` does. Of a change with steps only what isn't in batches counts. The times are what
was measured with rows of 150 bytes on a machine with two cores, twice over: a node's disk may be slower.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from edge_runtime.sql.schema_change import SchemaStatement
from edge_runtime.sql.statement_parts import StatementParts, parts, top_level
from edge_runtime.sql.tokenizer import SqlToken, name, word

INDEX_US: Final = 2.2
CHANGE_US: Final = 2.8
READ_US: Final = 0.4
DROP_US: Final = 0.5
KEY_US: Final = 1.7
"""Microseconds for each row: to build an index, to change or copy the row, to read it, to drop it with its table, to
look for its parent by one foreign key: that is the time with a million parents in no order, and not twice; with a
thousand, or in their order, it is a tenth."""


class FoundStall(NamedTuple):
    """A statement that takes a time for each row of a table that nodes have before the change."""

    statement: str
    """Empty for the check of foreign keys."""
    table: str
    """In lower case."""
    message: str
    us: float
    """Microseconds for each row."""


def find(
    statements: list[SchemaStatement], before: Mapping[str, object], references: Mapping[str, int]
) -> list[FoundStall]:
    """Return such statements, in their order, and behind them the check of foreign keys.

    `before`: the tables that are there before the change, in lower case. `references`: the number of foreign keys of
    each table that is checked after it.
    """
    origin = {table: table for table in before}
    found: list[FoundStall] = []
    for statement in statements:
        part = parts(statement.tokens)
        found += [
            FoundStall(statement.sql, origin[table], message.format(origin[table]), us)
            for table, message, us in _look(statement.tokens, part, origin)
            if table in origin
        ]
        if part.action == "rename table" and part.table in origin:
            origin[part.renamed] = origin.pop(part.table)
        elif part.action == "drop" and part.kind == "table":
            origin.pop(part.table, None)
    for name_after, keys in references.items():
        # A table that was made anew has the rows of the one whose name it has.
        table = origin.get(name_after.lower(), name_after.lower())
        if table in before:
            found.append(FoundStall("", table, f"the foreign keys of each row of {table} are checked", keys * KEY_US))
    return found


def _look(tokens: list[SqlToken], part: StatementParts, tables: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield tables that the statement goes through, what it does to each, and the microseconds for each row; `tables`:
    those that there are."""
    words = [(at, word(token)) for at, token in top_level(tokens)]
    has = {text for _, text in words}
    match part.action:
        case "create" if part.kind == "index":
            on = next((at for at, text in words if text == "on"), len(tokens))
            if on + 1 < len(tokens):
                yield name(tokens[on + 1]), "an index on {} is built", INDEX_US
        case "other" if word(tokens[0]) == "reindex":
            if len(tokens) > 1 and name(tokens[-1]) in tables:
                yield name(tokens[-1]), "the indexes of {} are built anew", INDEX_US
            else:
                # All there are, those of a collation, or an index whose table isn't known here.
                for table in tables:
                    yield table, "the indexes of {} are built anew, perhaps", INDEX_US
        case "drop" if part.kind == "table":
            yield part.table, "the table {} is dropped", DROP_US
        case "drop column":
            yield part.table, "a column of {} is dropped, which writes each row anew", CHANGE_US
        case "add column" if has & {"check", "references", "generated"}:
            yield part.table, "each row of {} is read for the new column's constraint", READ_US
        case "update" | "delete" if _all(tokens, words):
            yield part.table, "each row of {} is changed" + (", perhaps" if "where" in has else ""), CHANGE_US
        case "insert" | "create" if part.kind == "table":
            # Also CREATE TABLE … AS SELECT.
            start = next((at for at, text in words if text == "from"), len(tokens))
            if start + 1 < len(tokens) and _all(tokens, words):
                message = "each row of {} is copied" + (", perhaps" if "where" in has else "")
                yield name(tokens[start + 1]), message, CHANGE_US


def _all(tokens: list[SqlToken], words: list[tuple[int, str]]) -> bool:
    """Return whether a statement may be about most rows of its table: without a WHERE, or with one that asks for no
    value, as `IS NULL` and `<>` do."""
    where = next((at for at, text in words if text == "where"), len(tokens))
    return not any(
        word(token) == "in" or (token.text == "=" and tokens[at - 1].text not in ("<", ">", "!"))
        for at, token in top_level(tokens)
        if at > where
    )
