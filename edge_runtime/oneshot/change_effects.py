"""What the statements of a schema change do to the rows that nodes have: which rows and values they can lose (losses),
and how long they block writers (stalls). Pure.

It uses the tokens of statements that libsql has run or will run, and the columns before and after the change.

Losses: rows of tables that the change itself creates don't count, and neither do values of columns that it adds. An
UPDATE keeps all rows, and sets what its author intends: it counts only if it is UPDATE OR REPLACE.

Stalls: in a change with steps, only what isn't in batches counts. The times are twice what was measured with rows of
150 bytes on a machine with two cores: a node's disk may be slower.
"""

import itertools
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from edge_runtime.sql import schema_change
from edge_runtime.sql.schema_change import PARAMETERS, ROWIDS, SchemaStatement
from edge_runtime.sql.tokenizer import SqlToken, at_semicolons, name, tokenize, word

Action = Literal[
    "create",
    "drop",
    "rename table",
    "rename column",
    "add column",
    "drop column",
    "insert",
    "update",
    "delete",
    "other",
]
_ROW_VERBS: Final = frozenset({"insert", "replace", "update", "delete"})
_KINDS: Final = frozenset({"table", "index", "view", "trigger"})

Columns = Mapping[str, Mapping[str, str]]
"""By table and column, in lower case: the declared type."""

NO_KEYS: Final[Mapping[str, str]] = {}

_KEEPING: Final = frozenset({"coalesce", "ifnull"})
"""Functions that leave every non-NULL value as it is."""
_NUMERIC: Final = ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "BOOL", "DATE")
_TEXTS: Final = ("CHAR", "CLOB", "TEXT")

INDEX_US: Final = 2.2
CHANGE_US: Final = 2.8
READ_US: Final = 0.4
DROP_US: Final = 0.5
KEY_US: Final = 1.7
"""Microseconds for each row: to build an index, to change or copy the row, to read it, to drop it with its table, to
look for its parent by one foreign key. The last is the measured time, not doubled, with a million parents in random
order; with a thousand, or in order, it is a tenth."""


class StatementParts(NamedTuple):
    """A statement's action, and the names in it, in lower case; empty if it has none."""

    action: Action
    kind: str = ""
    """The kind of object created or dropped: `table` (including virtual ones), `index`, `view` or `trigger`."""
    table: str = ""
    """The table whose rows or columns it changes; for `create` and `drop`, the object created or dropped."""
    column: str = ""
    renamed: str = ""
    """The new name."""
    replaces: bool = False
    """It deletes conflicting rows: REPLACE, INSERT OR REPLACE, UPDATE OR REPLACE."""
    ignores: bool = False
    """It skips rows that violate a constraint: INSERT OR IGNORE, UPDATE OR IGNORE."""
    after: int = 0
    """The position at which the tokens after the table's name begin."""


def parts(tokens: list[SqlToken]) -> StatementParts:
    """Return what the statement with these tokens does."""
    verb = word(tokens[0])
    if verb in ("create", "drop"):
        return _made(verb, tokens)
    if verb == "alter":
        return _altered(tokens)
    at = _main_verb(tokens) if verb == "with" else 0
    return _rows(tokens, at) if word(tokens[at]) in _ROW_VERBS else StatementParts("other")


def within_trigger(tokens: list[SqlToken]) -> Iterator[list[SqlToken]]:
    """Yield the statements in the body of a CREATE TRIGGER."""
    begin = next((at for at, token in enumerate(tokens) if word(token) == "begin"), len(tokens))
    # The last token is END.
    yield from list(at_semicolons(tokens[begin + 1 :]))[:-1]


def assigned(tokens: list[SqlToken], after: int) -> list[str]:
    """Return the columns that an UPDATE sets, in lower case. `after`: the position at which the tokens after its table
    begin."""
    columns: list[str] = []
    in_set, left = False, True
    depth = 0
    for token in tokens[after:]:
        depth += (token.text == "(") - (token.text == ")")
        outside = depth == 0 or (depth == 1 and left)
        if depth == 0 and word(token) == "set":
            in_set = True
        elif in_set and depth == 0 and word(token) in ("from", "where", "returning", "order", "limit"):
            break
        elif in_set and depth == 0 and token.text == "=" and left:
            left = False
        elif in_set and depth == 0 and token.text == ",":
            left = True
        elif in_set and left and outside and name(token):
            columns.append(name(token))
    return columns


def top_level(tokens: list[SqlToken]) -> Iterator[tuple[int, SqlToken]]:
    """Yield the tokens outside parentheses, each with its position."""
    depth = 0
    for at, token in enumerate(tokens):
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif depth == 0:
            yield at, token


def _made(verb: str, tokens: list[SqlToken]) -> StatementParts:
    kind, at = "", 1
    while at < len(tokens) and not kind:
        if word(tokens[at]) in _KINDS:
            kind = word(tokens[at])
        at += 1
    while at < len(tokens) and word(tokens[at]) in ("if", "not", "exists"):
        at += 1
    named, after = _table(tokens, at)
    return StatementParts("create" if verb == "create" else "drop", kind, named, after=after)


def _altered(tokens: list[SqlToken]) -> StatementParts:
    table, at = _table(tokens, 2)
    verb = _word(tokens, at)
    column = at + 2 if _word(tokens, at + 1) == "column" and at + 2 < len(tokens) else at + 1
    first = _name(tokens, column)
    if verb == "add":
        return StatementParts("add column", "table", table, first)
    if verb == "drop":
        return StatementParts("drop column", "table", table, first)
    if verb == "rename" and _word(tokens, at + 1) == "to":
        return StatementParts("rename table", "table", table, renamed=_name(tokens, at + 2))
    if verb == "rename":
        return StatementParts("rename column", "table", table, first, _name(tokens, column + 2))
    return StatementParts("other")


def _main_verb(tokens: list[SqlToken]) -> int:
    """Return the position of the verb after the common tables of a WITH."""
    return next((at for at, token in top_level(tokens) if word(token) in (*_ROW_VERBS, "select", "values")), 0)


def _rows(tokens: list[SqlToken], at: int) -> StatementParts:
    verb = word(tokens[at])
    replaces, ignores = verb == "replace", False
    at += 1
    if _word(tokens, at) == "or":
        replaces, ignores = _word(tokens, at + 1) == "replace", _word(tokens, at + 1) == "ignore"
        at += 2
    if _word(tokens, at) in ("into", "from"):
        at += 1
    table, after = _table(tokens, at)
    action: Action = "update" if verb == "update" else "delete" if verb == "delete" else "insert"
    return StatementParts(action, "table", table, replaces=replaces, ignores=ignores, after=after)


def _table(tokens: list[SqlToken], at: int) -> tuple[str, int]:
    """Return the name at this position, without its schema, and the position at which the tokens after it begin."""
    if at + 2 < len(tokens) and tokens[at + 1].text == ".":
        at += 2
    return _name(tokens, at), at + 1


def _word(tokens: list[SqlToken], at: int) -> str:
    return word(tokens[at]) if at < len(tokens) else ""


def _name(tokens: list[SqlToken], at: int) -> str:
    return name(tokens[at]) if at < len(tokens) else ""


class FoundLoss(NamedTuple):
    """What a statement can lose from a table that nodes have before the change."""

    statement: str
    table: str
    """In lower case."""
    message: str


@dataclass(slots=True)
class _Copy:
    """How a new table is filled from an existing one."""

    source: str
    statement: str
    partial: bool = False
    """Some rows may be left out."""
    kept: dict[str, str] = field(default_factory=dict)
    """Columns of the source whose values are copied unchanged, and their target columns."""


def find_losses(
    statements: list[SchemaStatement], before: Columns, after: Columns, keys: Mapping[str, str] = NO_KEYS
) -> list[FoundLoss]:
    """Return what the statements can lose, in their order; `before` and `after` are the schemas around them, and `keys`
    the batches' key columns by table, in lower case."""
    return _Losses(before, after, keys).find(statements)


class _Losses:
    def __init__(self, before: Columns, after: Columns, keys: Mapping[str, str]) -> None:
        self._before = before
        self._after = after
        self._keys = keys
        self._origin = {table: table for table in before}
        """The former name of each table that existed before the change, by its current name."""
        self._added: set[tuple[str, str]] = set()
        """Columns that the change has added so far, with their table's current name."""
        self._copies: dict[str, _Copy] = {}
        """By the current name of the new table."""
        self._lenient: set[str] = set()
        """New tables with a constraint that silently skips rows or deletes others."""
        self._dropped: dict[str, str] = {}
        """By the name that the table had before: the statement."""
        self._found: list[FoundLoss] = []

    def find(self, statements: list[SchemaStatement]) -> list[FoundLoss]:
        for statement in statements:
            for table, message in self._look(statement, parts(statement.tokens)):
                self._found.append(FoundLoss(statement.sql, table, message))
        for table, sql in self._dropped.items():
            if self._replaced(table):
                self._found += self._narrowed(table, self._copies[table])
            else:
                self._found.append(FoundLoss(sql, table, f"the table {table} is dropped with all its rows"))
        return self._found

    def _look(self, statement: SchemaStatement, found: StatementParts) -> Iterator[tuple[str, str]]:
        table, origin = found.table, self._origin.get(found.table)
        copy = self._copies.get(table)
        if copy is not None:
            _changed_copy(copy, found)
        match found.action:
            case "drop" if found.kind == "table":
                if self._origin.pop(table, None) is not None and origin is not None:
                    self._dropped[origin] = statement.sql
                self._copies.pop(table, None)
            case "create" if found.kind == "table" and _lenient(statement.tokens):
                self._lenient.add(table)
            case "create" if found.kind == "trigger":
                yield from self._triggered(statement.tokens, table)
            case "rename table":
                self._rename(table, found.renamed)
            case "add column":
                self._added.add((table, found.column))
            case "rename column" if (table, found.column) in self._added:
                self._added.add((table, found.renamed))
            case "drop column" if origin is not None and (table, found.column) not in self._added:
                yield origin, f"the column {found.column} of {origin} is dropped with its values"
            case "delete" if origin is not None and origin != table and self._replaced(origin):
                # The rest of a table that was recreated: it counts as dropped.
                self._dropped.setdefault(origin, statement.sql)
            case "delete" if origin is not None:
                yield origin, f"rows of {origin} are deleted"
            case "insert" | "update" if found.replaces and origin is not None:
                yield origin, f"rows of {origin} that are in the way are deleted"
            case "insert" if origin is None:
                self._copied(statement, found)

    def _replaced(self, origin: str) -> bool:
        """Return whether another table, which was filled from this one, now has its name."""
        copy = self._copies.get(origin)
        return copy is not None and copy.source == origin

    def _rename(self, table: str, renamed: str) -> None:
        for known in (self._origin, self._copies):
            if table in known:
                known[renamed] = known.pop(table)  # type: ignore[assignment]
        self._added |= {(renamed, column) for of, column in self._added if of == table}

    def _triggered(self, tokens: list[SqlToken], trigger: str) -> Iterator[tuple[str, str]]:
        for inner in within_trigger(tokens):
            found = parts(inner)
            origin = self._origin.get(found.table)
            if origin is not None and (found.action == "delete" or found.replaces):
                yield origin, f"from then on the trigger {trigger} deletes rows of {origin}"

    def _copied(self, statement: SchemaStatement, found: StatementParts) -> None:
        """Note how a new table is filled from an existing one."""
        tokens = statement.tokens
        words = [(place, word(token)) for place, token in top_level(tokens)]
        select = next((place for place, text in words if text == "select"), None)
        start = next((place for place, text in words if text == "from" and place > (select or 0)), None)
        if select is None or start is None:
            return
        at = start + 3 if start + 2 < len(tokens) and tokens[start + 2].text == "." else start + 1
        source = self._origin.get(name(tokens[at])) if at < len(tokens) else None
        if source is None:
            return
        copy = self._copies.setdefault(found.table, _Copy(source, statement.sql))
        items = list(_items(tokens[select + 1 + (word(tokens[select + 1]) in ("distinct", "all")) : start]))
        targets = [name(token) for token in tokens[found.after : select] if name(token)]
        if [len(item) == 1 and item[0].text == "*" for item in items] == [True]:
            columns = list(self._before[source])
            copy.kept.update(zip(columns, targets or columns, strict=False))
        else:
            targets = targets or list(self._after.get(found.table, {})) or [""] * len(items)
            for item, target in zip(items, targets, strict=False):
                column = _plain(item)
                if column in self._before[source]:
                    copy.kept[column] = target
        # After the table's name, only ORDER BY without LIMIT keeps all rows, and so do all batches together.
        rest = [word(token) for token in tokens[at + 1 :]]
        filtered = bool(rest) and (rest[0] != "order" or "limit" in rest or "union" in rest)
        copy.partial |= (
            word(tokens[select + 1]) == "distinct"
            or found.replaces
            or found.ignores
            or found.table in self._lenient
            or (filtered and not self._batch(source, copy, tokens[at + 1 :]))
        )

    def _batch(self, source: str, copy: _Copy, tokens: list[SqlToken]) -> bool:
        """Return whether what follows a table's name in a SELECT selects all rows of one batch, except those whose key
        is already in the new table."""
        texts = [token.text.lower() for token in tokens]
        if [*texts[:1], *texts[2:5], *texts[6:9]] != ["where", ">", PARAMETERS[0], "and", "<", "=", PARAMETERS[1]]:
            return False
        key = self._keys.get(source, "")
        keys = {key, *ROWIDS} if key else {name(tokens[1])}
        if not {name(tokens[1]), name(tokens[5])} <= keys:
            return False
        conflict = tokens[9:]
        if not conflict:
            return True
        words = [word(token) for token in conflict]
        # If the statement names no columns, the new table's column is unknown: it may have the same name.
        known = {copy.kept[column] or column for column in keys if column in copy.kept}
        return (
            [*words[:2], *words[5:]] == ["on", "conflict", "do", "nothing"]
            and [token.text for token in (conflict[2], conflict[4])] == ["(", ")"]
            and name(conflict[3]) in known
        )

    def _narrowed(self, table: str, copy: _Copy) -> Iterator[FoundLoss]:
        if copy.partial:
            yield FoundLoss(copy.statement, table, f"the table {table} is made anew with a part of its rows, perhaps")
        for column, kind in self._before[table].items():
            if column not in copy.kept:
                yield FoundLoss(
                    copy.statement, table, f"the table {table} is made anew without the values of its column {column}"
                )
                continue
            new = self._after.get(table, {}).get(copy.kept[column], self._after.get(table, {}).get(column, kind))
            if any(part in kind.upper() for part in _TEXTS) and any(part in new.upper() for part in _NUMERIC):
                yield FoundLoss(
                    copy.statement, table, f"the table {table} is made anew with numbers in its column {column} of text"
                )


def _changed_copy(copy: _Copy, found: StatementParts) -> None:
    """Note what a statement does to a table that was filled before."""
    match found.action:
        case "delete":
            copy.partial = True
        case "insert" | "update" if found.replaces:
            copy.partial = True
        case "drop column":
            copy.kept = {column: target for column, target in copy.kept.items() if target != found.column}
        case "rename column":
            renamed = {found.column: found.renamed}
            copy.kept = {column: renamed.get(target, target) for column, target in copy.kept.items()}
        case _:
            pass


def _lenient(tokens: list[SqlToken]) -> bool:
    """Return whether a CREATE TABLE has a constraint that silently skips rows or deletes others."""
    words = [word(token) for token in tokens]
    return any(pair in (("conflict", "ignore"), ("conflict", "replace")) for pair in itertools.pairwise(words))


def _items(tokens: list[SqlToken]) -> Iterator[list[SqlToken]]:
    """Split a SELECT's result columns at the commas."""
    commas = [place for place, token in top_level(tokens) if token.text == ","]
    for first, last in zip([-1, *commas], [*commas, len(tokens)], strict=True):
        yield tokens[first + 1 : last]


def _plain(item: list[SqlToken]) -> str:
    """Return the column whose values an item of a SELECT returns unchanged, or ''."""
    if len(item) == 3 and item[1].text == ".":
        return name(item[2])
    if len(item) == 1:
        return name(item[0])
    if len(item) > 3 and word(item[0]) in _KEEPING and item[1].text == "(":
        end = next((at for at, token in enumerate(item) if token.text == ","), len(item))
        return _plain(item[2:end])
    return ""


class FoundStall(NamedTuple):
    """A statement that takes time for each row of a table that nodes have before the change."""

    statement: str
    """Empty for the check of foreign keys."""
    table: str
    """In lower case."""
    message: str
    us: float
    """Microseconds for each row."""


def at_once(sql: str) -> list[SchemaStatement]:
    """Return the statements of a change that aren't in batches, without those that undo it: each runs all at once. The
    DROP of a table that batches have emptied is left out.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    steps = schema_change.steps_of(sql)
    if steps is None:
        return schema_change.split(sql)
    single = replace(steps, steps=tuple(step for step in steps.steps if not step.table))
    found = schema_change.split_all(single.texts)
    emptied = {step.table.lower() for step in steps.steps if step.table and word(tokenize(step.sql)[0]) == "delete"}
    return [statement for statement in found if not _drops(statement, emptied)]


def _drops(statement: SchemaStatement, tables: Set[str]) -> bool:
    part = parts(statement.tokens)
    return part.action == "drop" and part.kind == "table" and part.table in tables


def find_stalls(
    statements: list[SchemaStatement], before: Mapping[str, object], references: Mapping[str, int]
) -> list[FoundStall]:
    """Return such statements, in their order, and after them the check of foreign keys.

    `before`: the tables before the change, in lower case. `references`: for each table that is checked after it, the
    number of its foreign keys.
    """
    origin = {table: table for table in before}
    found: list[FoundStall] = []
    for statement in statements:
        part = parts(statement.tokens)
        found += [
            FoundStall(statement.sql, origin[table], message.format(origin[table]), us)
            for table, message, us in _stalled(statement.tokens, part, origin)
            if table in origin
        ]
        if part.action == "rename table" and part.table in origin:
            origin[part.renamed] = origin.pop(part.table)
        elif part.action == "drop" and part.kind == "table":
            origin.pop(part.table, None)
    for name_after, keys in references.items():
        # A table that was recreated has the rows of the one whose name it took.
        table = origin.get(name_after.lower(), name_after.lower())
        if table in before:
            found.append(FoundStall("", table, f"the foreign keys of each row of {table} are checked", keys * KEY_US))
    return found


def _stalled(
    tokens: list[SqlToken], part: StatementParts, tables: Mapping[str, str]
) -> Iterator[tuple[str, str, float]]:
    """Yield the tables that the statement scans, what it does to each, and the microseconds per row. `tables`: the
    tables at this point of the change."""
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
                # All indexes, those of a collation, or an index whose table isn't known here.
                for table in tables:
                    yield table, "the indexes of {} are built anew, perhaps", INDEX_US
        case "drop" if part.kind == "table":
            yield part.table, "the table {} is dropped", DROP_US
        case "drop column":
            yield part.table, "a column of {} is dropped, which writes each row anew", CHANGE_US
        case "add column" if has & {"check", "references", "generated"}:
            yield part.table, "each row of {} is read for the new column's constraint", READ_US
        case "update" | "delete" if _most_rows(tokens, words):
            yield part.table, "each row of {} is changed" + (", perhaps" if "where" in has else ""), CHANGE_US
        case "insert" | "create" if part.kind == "table":
            # Also CREATE TABLE … AS SELECT.
            start = next((at for at, text in words if text == "from"), len(tokens))
            if start + 1 < len(tokens) and _most_rows(tokens, words):
                message = "each row of {} is copied" + (", perhaps" if "where" in has else "")
                yield name(tokens[start + 1]), message, CHANGE_US


def _most_rows(tokens: list[SqlToken], words: list[tuple[int, str]]) -> bool:
    """Return whether a statement may affect most rows of its table: without a WHERE, or with one that doesn't ask for a
    specific value, such as `IS NULL` and `<>`."""
    where = next((at for at, text in words if text == "where"), len(tokens))
    return not any(
        word(token) == "in" or (token.text == "=" and tokens[at - 1].text not in ("<", ">", "!"))
        for at, token in top_level(tokens)
        if at > where
    )
