"""What a schema change is: its statements, what it may not contain (both pure), and how it is run.

It runs inside a transaction of the applier's, so nothing that begins, ends or can't be in one; and it reaches neither
the runtime's tables nor out of the database, by any spelling: SQL has no computed names, so the tokens show it.
"""

import sqlite3
from collections.abc import Set
from typing import Any, Final, NamedTuple

from edge_runtime.errors import CodedError
from edge_runtime.sql.access import FUNCTIONS, INTERNAL, MODULES, AccessRules
from edge_runtime.sql.database import Database, is_panic
from edge_runtime.sql.queries import load
from edge_runtime.sql.tokenizer import Token, TokenKind, name, tokenize, word

VERBS: Final = frozenset(
    {"create", "alter", "drop", "insert", "update", "delete", "replace", "with", "select", "values", "reindex"}
    | {"analyze"}
)
_WHY: Final = {
    "pragma": "PRAGMA can't be relied on inside a transaction",
    "vacuum": "VACUUM can't run inside a transaction",
    "attach": "a schema change stays in its own database",
    "detach": "a schema change stays in its own database",
    "explain": "EXPLAIN changes nothing",
}
_TRANSACTION: Final = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"})
_MADE: Final = frozenset({"table", "index", "unique", "trigger", "view", "virtual"})
RUNTIME_PREFIX: Final = "_skerry_"
_MADE_OF: Final = MODULES & {"fts3", "fts4", "fts4aux", "fts5", "fts5vocab", "rtree", "rtree_i32", "geopoly"}
"""Virtual tables that keep what they have in tables of the database."""


_TEMPORARY: Final = load("temporary")
_OWN: Final = tuple(load(name) for name in ("own_schema", "all_meta", "all_changes", "all_release", "all_functions"))


class SchemaChangeRefused(CodedError):
    """A schema change can't be accepted: `statement` is the one that it is about, or empty."""

    def __init__(self, code: str, message: str, statement: str = "") -> None:
        super().__init__(code, message)
        self.statement = statement


class SchemaStatement(NamedTuple):
    sql: str
    tokens: list[Token]


def split(sql: str) -> list[SchemaStatement]:
    """Return the statements of a schema change; the statements inside a trigger stay in it.

    Raises: SchemaChangeRefused, when there is no statement, or one that is incomplete: nothing is ever dropped.
    """
    if "\0" in sql:
        raise SchemaChangeRefused("schema_invalid", "The schema change has a NUL in its text.")
    tokens = tokenize(sql)
    found: list[SchemaStatement] = []
    first = 0
    for at, token in enumerate(tokens):
        if token.kind is not TokenKind.SEMICOLON:
            continue
        text = sql[tokens[first].start : token.end]
        if at == first:
            # An empty statement.
            first = at + 1
        elif not _is_trigger(tokens[first : first + 4]) or sqlite3.complete_statement(text):
            found.append(SchemaStatement(text, tokens[first:at]))
            first = at + 1
    if first < len(tokens):
        text = sql[tokens[first].start : tokens[-1].end]
        # A new line, since a comment may be what comes last.
        if _is_trigger(tokens[first : first + 4]) and not sqlite3.complete_statement(text + "\n;"):
            raise SchemaChangeRefused(
                "schema_invalid", "The last statement is incomplete: its trigger has no END.", text
            )
        found.append(SchemaStatement(text, tokens[first:]))
    if not found:
        raise SchemaChangeRefused("schema_invalid", "There is no statement in the schema change.")
    return found


def _is_trigger(tokens: list[Token]) -> bool:
    """As SQLite's own complete_statement sees it: only a CREATE TRIGGER has semicolons inside."""
    words = [word(token) for token in tokens]
    return words[:2] == ["create", "trigger"] or (
        words[:1] == ["create"] and words[1:2] in (["temp"], ["temporary"]) and words[2:3] == ["trigger"]
    )


def check(statement: SchemaStatement, closed_functions: Set[str], closed_modules: Set[str]) -> None:
    """Is this a statement that a schema change may have? The closed names are libsql's own, in lower case (see
    `access.AccessRules`). Error: SchemaChangeRefused."""
    sql, tokens = statement
    verb = word(tokens[0])
    if verb not in VERBS:
        why = _WHY.get(verb)
        if verb in _TRANSACTION:
            why = "a schema change runs inside one transaction, which it neither begins nor ends"
        why = why or "it is no statement of SQL that a schema change may have"
        raise SchemaChangeRefused("schema_not_allowed", f"{tokens[0].text[:40].upper()} is refused: {why}.", sql)
    if verb in ("create", "drop"):
        _check_made(verb, word(tokens[1]) if len(tokens) > 1 else "", sql)
    for at, token in enumerate(tokens):
        if token.kind is TokenKind.PARAMETER:
            raise SchemaChangeRefused(
                "schema_invalid", f"It has a parameter ({token.text[:40]}), which nothing gives a value.", sql
            )
        # A module's arguments look like a call of a function.
        call = at + 1 < len(tokens) and tokens[at + 1].text == "(" and word(tokens[at - 1]) != "using"
        _check_name(token, call, closed_functions, closed_modules, sql)
    if [word(token) for token in tokens[:3]] == ["create", "virtual", "table"]:
        _check_module(tokens, sql)


def _check_made(verb: str, what: str, sql: str) -> None:
    if what in ("temp", "temporary"):
        raise SchemaChangeRefused(
            "schema_not_allowed", "Temporary tables, views and triggers are refused: none would stay.", sql
        )
    if what not in _MADE:
        raise SchemaChangeRefused(
            "schema_not_allowed", f"A schema change can't {verb.upper()} a {what.upper() or '?'}.", sql
        )


def _check_name(token: Token, call: bool, closed_functions: Set[str], closed_modules: Set[str], sql: str) -> None:
    found = name(token)
    if not found:
        return
    # Anywhere inside: a virtual table's arguments are parsed by itself, as content='_skerry_…'.
    if RUNTIME_PREFIX in found:
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]}: names with {RUNTIME_PREFIX} are the runtime's own.", sql
        )
    if token.kind is TokenKind.STRING:
        # SQLite takes a string for a name where it can be nothing else; only one that is such a name as a whole.
        closed = found in closed_modules or (found.startswith(INTERNAL) and found.isidentifier())
    else:
        closed = (found.startswith(INTERNAL) and found not in FUNCTIONS) or found in closed_modules
    if closed or (found.startswith("pragma_") and found not in MODULES):
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]} is SQLite's own, and closed to schema changes.", sql
        )
    if token.kind is not TokenKind.STRING and call and found in closed_functions:
        raise SchemaChangeRefused("schema_closed", f"The function {found}() is closed to schema changes.", sql)


def _check_module(tokens: list[Token], sql: str) -> None:
    using = next((at for at, token in enumerate(tokens) if word(token) == "using"), len(tokens))
    module = name(tokens[using + 1]) if using + 1 < len(tokens) else ""
    if module not in _MADE_OF:
        known = ", ".join(sorted(_MADE_OF))
        raise SchemaChangeRefused(
            "schema_closed", f"A virtual table can be made of {known}, and not of {module or '?'}.", sql
        )


def normal(sql: str | None) -> tuple[str, ...]:
    """A definition as sqlite_schema keeps it, without what doesn't matter: spaces, comments, case, quotes of names."""
    if sql is None:
        return ()
    return tuple(
        token.text if token.kind is TokenKind.STRING else name(token) or token.text.lower() for token in tokenize(sql)
    )


def run(opened: Database, access_rules: AccessRules, sql: str) -> None:
    """Run a schema change's statements in the transaction that is open. Error: SchemaChangeRefused; the transaction may
    have ended then."""
    statements = split(sql)
    for statement in statements:
        check(statement, access_rules.functions, access_rules.modules)
    for statement in statements:
        try:
            cursor = opened.connection.execute(statement.sql)
            while cursor.fetchmany(64):
                pass
        except ValueError as error:
            raise SchemaChangeRefused("schema_invalid", f"{error}.", statement.sql) from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise SchemaChangeRefused(
                "schema_invalid", "It selects a TEXT that is not valid UTF-8.", statement.sql
            ) from None
        if opened.rows(_TEMPORARY):
            raise SchemaChangeRefused(
                "schema_not_allowed",
                "Temporary tables, views and triggers are refused: none would stay.",
                statement.sql,
            )


def own(opened: Database) -> list[list[tuple[Any, ...]] | None]:
    """Everything of the runtime's in the file, to see whether a change touched it."""
    found: list[list[tuple[Any, ...]] | None] = []
    for query in _OWN:
        try:
            found.append(opened.rows(query))
        except ValueError:
            # The table is gone.
            found.append(None)
    return found


def orphans(opened: Database) -> str:
    """What the foreign keys find amiss, as a sentence; empty where they hold."""
    try:
        found = opened.rows("PRAGMA foreign_key_check")
    except ValueError as error:
        return f"the foreign keys can't be checked: {error}."
    if not found:
        return ""
    table, rowid, parent, _ = found[0]
    return f"{len(found)} rows have no parent; the first is row {rowid} of {table}, which refers to {parent}."
