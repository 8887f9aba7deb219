"""Which rows and values a schema change can lose that a node has before it. Pure.

It goes by the tokens of the statements and by the columns before and after the change. Rows of tables that the change
itself makes don't count, and neither do values of columns that it adds. An UPDATE keeps all rows, and what it sets is
what its author has written: it counts only as UPDATE OR REPLACE.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edge_runtime.sql.change_steps import PARAMETERS, ROWIDS
from edge_runtime.sql.schema_change import SchemaStatement
from edge_runtime.sql.statement_parts import StatementParts, parts, top_level, within_trigger
from edge_runtime.sql.tokenizer import SqlToken, name, word

Columns = Mapping[str, Mapping[str, str]]
"""By table and column, in lower case: the declared type."""

NO_KEYS: Final[Mapping[str, str]] = {}

_KEEPING: Final = frozenset({"coalesce", "ifnull"})
"""Functions that leave every value as it is that isn't NULL."""
_NUMERIC: Final = ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "BOOL", "DATE")
_TEXTS: Final = ("CHAR", "CLOB", "TEXT")


class FoundLoss(NamedTuple):
    """What a statement can lose of a table that nodes have before the change."""

    statement: str
    table: str
    """In lower case."""
    message: str


@dataclass(slots=True)
class _Copy:
    """How a new table is filled from one that was there."""

    source: str
    statement: str
    partial: bool = False
    """Some rows may be left out."""
    kept: dict[str, str] = field(default_factory=dict)
    """Columns of the source whose values are copied as they are, and where to."""


def find(
    statements: list[SchemaStatement], before: Columns, after: Columns, keys: Mapping[str, str] = NO_KEYS
) -> list[FoundLoss]:
    """Return what the statements can lose, in their order; `before` and `after` are the schemas around them, and `keys`
    the key by which batches go, by table, in lower case."""
    return _Finder(before, after, keys).find(statements)


class _Finder:
    def __init__(self, before: Columns, after: Columns, keys: Mapping[str, str]) -> None:
        self._before = before
        self._after = after
        self._keys = keys
        self._origin = {table: table for table in before}
        """Of the tables that were there before, by the name that each has now: the name that it had."""
        self._added: set[tuple[str, str]] = set()
        """Columns that the change has added so far, by the present name of their table."""
        self._copies: dict[str, _Copy] = {}
        """By the present name of the new table."""
        self._lenient: set[str] = set()
        """New tables of which a constraint leaves out rows, or deletes others, without an error."""
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
                # What is left of a table that was made anew: it counts as dropped.
                self._dropped.setdefault(origin, statement.sql)
            case "delete" if origin is not None:
                yield origin, f"rows of {origin} are deleted"
            case "insert" | "update" if found.replaces and origin is not None:
                yield origin, f"rows of {origin} that are in the way are deleted"
            case "insert" if origin is None:
                self._copied(statement, found)

    def _replaced(self, origin: str) -> bool:
        """Return whether the name of a table is by now that of another one, which was filled from it."""
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
        """Remember how a new table is filled from one that was there."""
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
        # Behind the table's name only ORDER BY keeps all rows, not with a LIMIT behind it; and all batches together.
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
        """Return whether what follows a table's name in a SELECT takes the rows of one batch, and all of these but
        those whose key the new table has already."""
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
        # A column of the new table isn't known where the statement names none: then it may have the same name.
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
    """Return whether a CREATE TABLE has a constraint that leaves rows out, or deletes others, without an error."""
    words = [word(token) for token in tokens]
    return any(pair in (("conflict", "ignore"), ("conflict", "replace")) for pair in itertools.pairwise(words))


def _items(tokens: list[SqlToken]) -> Iterator[list[SqlToken]]:
    """Split what a SELECT selects at its commas."""
    commas = [place for place, token in top_level(tokens) if token.text == ","]
    for first, last in zip([-1, *commas], [*commas, len(tokens)], strict=True):
        yield tokens[first + 1 : last]


def _plain(item: list[SqlToken]) -> str:
    """Return the column whose values an item of a SELECT has as they are, or ''."""
    if len(item) == 3 and item[1].text == ".":
        return name(item[2])
    if len(item) == 1:
        return name(item[0])
    if len(item) > 3 and word(item[0]) in _KEEPING and item[1].text == "(":
        end = next((at for at, token in enumerate(item) if token.text == ","), len(item))
        return _plain(item[2:end])
    return ""
