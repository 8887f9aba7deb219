"""Finds the row at which a statement of a schema change failed, and names it by its key.

The statement's transaction is still open, and the statement itself is undone. So parts of it can be run again, by
ranges of keys: the part that fails is halved until one row is left. All in all that takes about twice as long as the
statement. Other statements than those that change rows by a table's keys have no such row, or it isn't found.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from edge_runtime.oneshot.change_effects import StatementParts, parts, top_level
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ColumnRow, NameRow, load
from edge_runtime.sql.schema_change import ROWIDS
from edge_runtime.sql.session import code_of
from edge_runtime.sql.tokenizer import SqlToken, at_semicolons, name, quoted, tokenize, word
from edge_runtime.sql.values import Row, Value

SHOWN: Final = 100
"""Characters of a key's value that are shown."""
ROW: Final = 300
"""Characters of a row's name."""
_SHORTAGES: Final = frozenset({"disk_full", "disk_failed", "sql_out_of_memory", "database_held"})
_AGGREGATES: Final = frozenset(
    {
        "avg",
        "count",
        "group_concat",
        "json_group_array",
        "json_group_object",
        "max",
        "min",
        "string_agg",
        "sum",
        "total",
    }
)
_SEVERAL: Final = frozenset({"union", "intersect", "except", "group", "having", "limit", "distinct", "window"})
"""Words of a SELECT whose rows aren't each made of one row."""
_JOINS: Final = frozenset({"join", "left", "right", "full", "inner", "outer", "cross", "natural"})
_ENDS: Final = frozenset({"returning", "order", "limit"})
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\[[^\]]*\]")

_KEYS: Final = load("integer_keys")
_COLUMNS: Final = load("columns")
_TABLE_NAMES: Final = load("table_names")


class _ConditionPlace(NamedTuple):
    """Where in a statement a condition on a table's keys goes."""

    table: str
    alias: str
    """What the statement calls the table."""
    where: int | None
    """The end of its WHERE; None if it has none."""
    end: int
    """Where the condition ends."""


class _IntegerKey(NamedTuple):
    """An integer key of a table's rows."""

    table: str
    """The table, as written in its definition."""
    column: str
    is_declared: bool
    """Whether it is a column, rather than the rowid of a table without such a column."""


def is_shortage(error: str) -> bool:
    """Return whether an error of SQLite means that something ran out, or is used by others: no row is to blame."""
    return code_of(error, "") in _SHORTAGES


def find(opened: LibsqlDatabase, sql: str) -> str:
    """Return the row at which a statement failed, as `table key=value`; empty if it isn't found. What this does in the
    open transaction is to be undone.

    Raises: ValueError, when SQLite refuses.
    """
    tokens = next(at_semicolons(tokenize(sql)), [])
    if not tokens:
        return ""
    sql = sql[: tokens[-1].end]
    part = parts(tokens)
    if part.action == "create" and part.kind == "index" and "unique" in [word(token) for token in tokens[:2]]:
        return _duplicate(opened, sql, tokens)
    place = _place(tokens, part)
    if place is None:
        return ""
    key = _key(opened, place.table)
    if key is None:
        # Rows are counted in the order of their keys, so the statement mustn't change them.
        copies = part.action == "insert" and part.table != place.table.lower()
        return _by_order(opened, sql, place) if copies else ""
    column = f"{quoted(place.alias)}.{quoted(key.column) if key.is_declared else key.column}"

    def restricted(after: int, upto: int) -> str:
        return _restricted(sql, place, f"{column} > ({after}) AND {column} <= ({upto})")

    found = _bisect(opened, restricted, *_bounds(opened, key))
    return "" if found is None else shown(opened, key.table, found)


def _restricted(sql: str, place: _ConditionPlace, condition: str) -> str:
    """Return the statement for those of its rows for which the condition is true."""
    if place.where is None:
        return f"{sql[: place.end]} WHERE {condition} {sql[place.end :]}"
    return f"{sql[: place.where]} ({sql[place.where : place.end]}) AND {condition} {sql[place.end :]}"


def _by_order(opened: LibsqlDatabase, sql: str, place: _ConditionPlace) -> str:
    """Return the row of a table without rowids at which a statement failed that only reads that table."""
    keys = sorted((c for c in opened.read(ColumnRow, _COLUMNS, (place.table,)) if c.pk), key=lambda c: c.pk)
    table = _written(opened, place.table)
    if not keys or not table:
        return ""
    names = ", ".join(quoted(column.name) for column in keys)
    own = ", ".join(f"{quoted(place.alias)}.{quoted(column.name)}" for column in keys)
    ordered = f"SELECT {names} FROM {quoted(table)} ORDER BY {names}"  # noqa: S608

    def restricted(after: int, upto: int) -> str:
        return _restricted(sql, place, f"({own}) IN ({ordered} LIMIT {upto - after} OFFSET {after})")

    ((count,),) = opened.rows(f"SELECT count(*) FROM {quoted(table)}")  # noqa: S608
    found = _bisect(opened, restricted, 0, count if isinstance(count, int) else 0)
    if found is None:
        return ""
    return _named(table, [c.name for c in keys], opened.rows(f"{ordered} LIMIT 1 OFFSET {found - 1}")[0])


def shown(opened: LibsqlDatabase, table: str, rowid: int) -> str:
    """Return the row with this rowid as `table key=value`, by its primary key if it has one; empty if there is no such
    row."""
    key = _key(opened, table)
    if key is None:
        return ""
    columns = sorted((c for c in opened.read(ColumnRow, _COLUMNS, (key.table,)) if c.pk), key=lambda c: c.pk)
    names = [column.name for column in columns] or [key.column]
    wanted = ", ".join(quoted(column.name) for column in columns) or key.column
    column = quoted(key.column) if key.is_declared else key.column
    found = opened.rows(f"SELECT {wanted} FROM {quoted(key.table)} WHERE {column} = ({rowid})")  # noqa: S608
    if not found:
        return ""
    return _named(key.table, names, found[0])


def _named(table: str, names: list[str], values: Row) -> str:
    pairs = " ".join(f"{_text(name)}={_text(value)}" for name, value in zip(names, values, strict=True))
    return f"{_text(table)} {pairs}"[:ROW]


def without_values(error: str, known: str) -> str:
    """Return an error of SQLite; what it quotes is left out, unless it is a name or a value in the SQL `known` too."""
    words = {text for token in tokenize(known) for text in (token.text.lower(), name(token))}
    return _QUOTED.sub(lambda found: found[0] if found[0][1:-1].lower() in words else "…", error)


def _place(tokens: list[SqlToken], part: StatementParts) -> _ConditionPlace | None:
    """Return where a condition goes; None if the statement isn't one that changes rows by those of one table."""
    words = [(at, word(token)) for at, token in top_level(tokens) if at >= part.after]
    if part.action in ("update", "delete"):
        return _condition(tokens, words, part.table, part.after)
    select = next((at for at, text in words if text == "select"), None)
    if part.action != "insert" or select is None:
        return None
    words = [(at, text) for at, text in words if at > select]
    source = next((at for at, text in words if text == "from"), None)
    if source is None or {text for _, text in words} & _SEVERAL:
        return None
    if {name(token) for token in tokens[select:source]} & _AGGREGATES:
        return None
    at = source + 1
    if at + 2 < len(tokens) and tokens[at + 1].text == ".":
        at += 2
    if at >= len(tokens) or not name(tokens[at]):
        return None
    return _condition(tokens, [(n, text) for n, text in words if n > at], name(tokens[at]), at + 1)


def _condition(tokens: list[SqlToken], words: list[tuple[int, str]], table: str, at: int) -> _ConditionPlace:
    """Return the place, if the tokens after the table's name begin at `at`."""
    alias = table
    if at < len(tokens) and word(tokens[at]) == "as" and at + 1 < len(tokens):
        alias = name(tokens[at + 1])
    elif (
        at < len(tokens)
        and name(tokens[at])
        and word(tokens[at]) not in _JOINS | _ENDS | {*("where", "set", "on", "indexed", "not", "using", "from")}
    ):
        alias = name(tokens[at])
    where = next((n for n, text in words if text == "where"), None)
    ends = [n for n, text in words if text in _ENDS or (text == "on" and _is_conflict(tokens, n))]
    end = next((n for n in ends if where is None or n > where), None)
    return _ConditionPlace(
        table,
        alias,
        None if where is None else tokens[where].end,
        tokens[-1].end if end is None else tokens[end].start,
    )


def _is_conflict(tokens: list[SqlToken], at: int) -> bool:
    return at + 1 < len(tokens) and word(tokens[at + 1]) == "conflict"


def _written(opened: LibsqlDatabase, table: str) -> str:
    """Return a table's name as its definition has it; empty if there is no such table."""
    return next((row.name for row in opened.read(NameRow, _TABLE_NAMES) if row.name.lower() == table.lower()), "")


def _key(opened: LibsqlDatabase, table: str) -> _IntegerKey | None:
    """Return the key of a table; None for a view, or a table without rowids."""
    found = opened.read(NameRow, _KEYS, (table,))
    written = _written(opened, table)
    if not found or not written:
        return None
    if found[0].name:
        return _IntegerKey(written, found[0].name, True)
    taken = {column.name.lower() for column in opened.read(ColumnRow, _COLUMNS, (written,))}
    free = next((rowid for rowid in ROWIDS if rowid not in taken), None)
    return None if free is None else _IntegerKey(written, free, False)


def _bounds(opened: LibsqlDatabase, key: _IntegerKey) -> tuple[int, int]:
    """Return the key before the first row's, and the last row's."""
    column = quoted(key.column) if key.is_declared else key.column
    # Two queries: the least and the largest in one would be a scan of the table.
    least, most = (opened.rows(f"SELECT {end}({column}) FROM {quoted(key.table)}")[0][0] for end in ("min", "max"))  # noqa: S608
    if not isinstance(least, int) or not isinstance(most, int) or least == -(2**63):
        return 0, 0
    return least - 1, most


def _bisect(opened: LibsqlDatabase, restricted: Callable[[int, int], str], after: int, upto: int) -> int | None:
    """Return the first key at which the statement fails; None if it doesn't fail because of a row."""
    # A statement that fails for no rows at all fails for another reason.
    if after >= upto or _fails(opened, restricted(after, after)) is not False:
        return None
    whole = upto
    while after + 1 < upto:
        middle = (after + upto) // 2
        match _fails(opened, restricted(after, middle)):
            case True:
                upto = middle
            case False:
                after = middle
            case None:
                return None
    # The last row fails only if it is tried: up to here it was taken for granted.
    return upto if upto != whole or _fails(opened, restricted(after, upto)) else None


def _fails(opened: LibsqlDatabase, sql: str) -> bool | None:
    """Run a part of the statement; return whether it fails, and None if that can't be said. If it doesn't, what it did
    stays: the next part may fail because of that."""
    opened.rows("SAVEPOINT looked_for")
    try:
        opened.rows(sql)
    except ValueError as error:
        if not opened.in_transaction or is_shortage(str(error)):
            return None
        opened.rows("ROLLBACK TO looked_for")
        opened.rows("RELEASE looked_for")
        return True
    opened.rows("RELEASE looked_for")
    return False


def _duplicate(opened: LibsqlDatabase, sql: str, tokens: list[SqlToken]) -> str:
    """Return a row whose values of a unique index another row has too."""
    on = next((at for at, token in top_level(tokens) if word(token) == "on"), None)
    if on is None or on + 2 >= len(tokens) or tokens[on + 2].text != "(":
        return ""
    key = _key(opened, name(tokens[on + 1]))
    close = _closing(tokens, on + 2)
    if key is None or close is None:
        return ""
    where = next((at for at, token in top_level(tokens) if at > close and word(token) == "where"), None)
    expressions = list(_expressions(sql, tokens[on + 3 : close]))
    conditions = [f"({expression}) IS NOT NULL" for expression in expressions]
    if where is not None:
        conditions.append(f"({sql[tokens[where].end : tokens[-1].end]})")
    column = quoted(key.column) if key.is_declared else key.column
    query = (
        f"SELECT max({column}) FROM {quoted(key.table)} WHERE {' AND '.join(conditions)} "  # noqa: S608
        f"GROUP BY {', '.join(expressions)} HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    )
    found = opened.rows(query)
    return shown(opened, key.table, found[0][0]) if found and isinstance(found[0][0], int) else ""


def _expressions(sql: str, tokens: list[SqlToken]) -> Iterator[str]:
    """Yield the expressions of an index, without their directions."""
    commas = [at for at, token in top_level(tokens) if token.text == ","]
    for first, last in zip([-1, *commas], [*commas, len(tokens)], strict=True):
        item = tokens[first + 1 : last]
        if item and word(item[-1]) in ("asc", "desc"):
            item = item[:-1]
        if item:
            yield sql[item[0].start : item[-1].end]


def _closing(tokens: list[SqlToken], at: int) -> int | None:
    depth = 0
    for place in range(at, len(tokens)):
        depth += (tokens[place].text == "(") - (tokens[place].text == ")")
        if depth == 0:
            return place
    return None


def _text(value: Value) -> str:
    """Return a key's value, or a name, for people: short, and without what a terminal would act on."""
    if isinstance(value, bytes):
        return f"x'{value[: SHOWN // 2].hex()}'" + "…" * (len(value) > SHOWN // 2)
    text = str(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:SHOWN])
    return shown + "…" * (len(text) > SHOWN)
