"""What a statement of a schema change does to which table, by its tokens. Pure.

It reads statements that libsql has run or will run: for text that isn't SQL the answer is worth nothing.
"""

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from edge_runtime.sql.tokenizer import SqlToken, TokenKind, name, word

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
_ROWS: Final = frozenset({"insert", "replace", "update", "delete"})
_KINDS: Final = frozenset({"table", "index", "view", "trigger"})


class StatementParts(NamedTuple):
    """A statement's action, and the names in it, in lower case; empty where it has none."""

    action: Action
    kind: str = ""
    """What is created or dropped: `table` (virtual ones too), `index`, `view` or `trigger`."""
    table: str = ""
    """The table whose rows or columns it changes; of `create` and `drop`, what is created or dropped."""
    column: str = ""
    renamed: str = ""
    """The new name."""
    replaces: bool = False
    """It deletes rows that are in the way: REPLACE, INSERT OR REPLACE, UPDATE OR REPLACE."""
    ignores: bool = False
    """It leaves out rows that can't be: INSERT OR IGNORE, UPDATE OR IGNORE."""
    after: int = 0
    """Where the tokens behind the table's name begin."""


def parts(tokens: list[SqlToken]) -> StatementParts:
    """Return what the statement with these tokens does."""
    verb = word(tokens[0])
    if verb in ("create", "drop"):
        return _made(verb, tokens)
    if verb == "alter":
        return _altered(tokens)
    at = _main_verb(tokens) if verb == "with" else 0
    return _rows(tokens, at) if word(tokens[at]) in _ROWS else StatementParts("other")


def within_trigger(tokens: list[SqlToken]) -> Iterator[list[SqlToken]]:
    """Yield the statements in the body of a CREATE TRIGGER."""
    begin = next((at for at, token in enumerate(tokens) if word(token) == "begin"), len(tokens))
    statement: list[SqlToken] = []
    for token in tokens[begin + 1 :]:
        if token.kind is not TokenKind.SEMICOLON:
            statement.append(token)
        elif statement:
            yield statement
            statement = []


def assigned(tokens: list[SqlToken], after: int) -> list[str]:
    """Return the columns that an UPDATE sets, in lower case. `after`: where the tokens behind its table begin."""
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
    """Yield the tokens outside of parentheses, each with its place."""
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
    """Return where the verb behind the common tables of a WITH is."""
    return next((at for at, token in top_level(tokens) if word(token) in (*_ROWS, "select", "values")), 0)


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
    """Return the name at this place, without its schema, and where the tokens behind it begin."""
    if at + 2 < len(tokens) and tokens[at + 1].text == ".":
        at += 2
    return _name(tokens, at), at + 1


def _word(tokens: list[SqlToken], at: int) -> str:
    return word(tokens[at]) if at < len(tokens) else ""


def _name(tokens: list[SqlToken], at: int) -> str:
    return name(tokens[at]) if at < len(tokens) else ""
