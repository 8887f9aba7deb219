"""A schema change: how it is split into statements, what it may contain (both pure), and how it is run.

It runs inside a transaction of the applier's, so it contains no statement that begins or ends a transaction, or can't
run in one. It reaches neither the runtime's tables nor anything outside the database, by any spelling: SQL has no
computed names, so its tokens show every name.
"""

from collections.abc import Callable, Iterable, Set
from typing import Final, NamedTuple

import apsw

from control.protocol.counts import counted
from edge_runtime.errors import CodedError
from edge_runtime.sql.access import FUNCTIONS, INTERNAL, MODULES, AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import is_panic
from edge_runtime.sql.queries import DefinitionRow, ReferenceRow, ViolationRow, load
from edge_runtime.sql.shortages import code_of_shortage
from edge_runtime.sql.tokenizer import SqlToken, TokenKind, name, quoted, tokenize, word
from edge_runtime.sql.values import Row

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
"""Virtual tables that keep their content in tables of the database (shadow tables)."""


_SCHEMA: Final = load("schema")
_FOREIGN_KEYS: Final = load("foreign_keys")
_TEMPORARY: Final = load("temporary")
_OWN_QUERIES: Final = ("own_schema", "all_meta", "all_changes", "all_release", "all_functions", "all_steps")
_OWN: Final = tuple(load(name) for name in _OWN_QUERIES)


class SchemaChangeRefused(CodedError):
    """A schema change can't be accepted. `statement` is the one that is refused, empty where it is none."""

    def __init__(self, code: str, message: str, statement: str = "") -> None:
        super().__init__(code, message)
        self.statement = statement


class SchemaStatement(NamedTuple):
    sql: str
    tokens: list[SqlToken]


def split(sql: str) -> list[SchemaStatement]:
    """Return the statements of a schema change; the statements inside a trigger stay in it.

    Raises: SchemaChangeRefused, when there is no statement, or one that is incomplete: nothing is ever dropped.
    """
    if "\0" in sql:
        raise SchemaChangeRefused("schema_invalid", "The schema change has a NUL in its text.")
    tokens = tokenize(sql)
    statements: list[SchemaStatement] = []
    first = 0
    for at, token in enumerate(tokens):
        if token.kind is not TokenKind.SEMICOLON:
            continue
        text = sql[tokens[first].start : token.end]
        if at == first:
            # An empty statement.
            first = at + 1
        elif not _is_trigger(tokens[first : first + 4]) or apsw.complete(text):
            statements.append(SchemaStatement(text, tokens[first:at]))
            first = at + 1
    if first < len(tokens):
        text = sql[tokens[first].start : tokens[-1].end]
        # On a new line, because the text may end with a comment.
        if _is_trigger(tokens[first : first + 4]) and not apsw.complete(text + "\n;"):
            raise SchemaChangeRefused(
                "schema_invalid", "The last statement is incomplete: its trigger has no END.", text
            )
        statements.append(SchemaStatement(text, tokens[first:]))
    if not statements:
        raise SchemaChangeRefused("schema_invalid", "There is no statement in the schema change.")
    return statements


def _is_trigger(tokens: list[SqlToken]) -> bool:
    """Return whether it is a CREATE TRIGGER, by the rules of SQLite's own sqlite3_complete: no other statement has
    semicolons inside."""
    words = [word(token) for token in tokens]
    return words[:2] == ["create", "trigger"] or (
        words[:1] == ["create"] and words[1:2] in (["temp"], ["temporary"]) and words[2:3] == ["trigger"]
    )


def check(statement: SchemaStatement, closed_functions: Set[str], closed_modules: Set[str]) -> None:
    """Check that a schema change may have this statement. The closed names are libsql's own, in lower case (see
    `access.AccessRules`).

    Raises: SchemaChangeRefused, when it may not.
    """
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
                "schema_invalid", f"It has a parameter ({token.text[:40]}), for which there is no value.", sql
            )
        # Not after USING: a virtual table's module with its arguments looks like a call of a function.
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


def _check_name(token: SqlToken, call: bool, closed_functions: Set[str], closed_modules: Set[str], sql: str) -> None:
    named = name(token)
    if not named:
        return
    # Anywhere inside a name: a virtual table parses its arguments itself, as in content='_skerry_…'.
    if RUNTIME_PREFIX in named:
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]}: names with {RUNTIME_PREFIX} are the runtime's own.", sql
        )
    if token.kind is TokenKind.STRING:
        # SQLite takes a string for a name where it can be nothing else. Only a string that is such a name as a whole
        # counts.
        closed = named in closed_modules or (named.startswith(INTERNAL) and named.isidentifier())
    else:
        closed = (named.startswith(INTERNAL) and named not in FUNCTIONS) or named in closed_modules
    if closed or (named.startswith("pragma_") and named not in MODULES):
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]} is SQLite's own, and closed to schema changes.", sql
        )
    if token.kind is not TokenKind.STRING and call and named in closed_functions:
        raise SchemaChangeRefused("schema_closed", f"The function {named}() is closed to schema changes.", sql)


def _check_module(tokens: list[SqlToken], sql: str) -> None:
    using = next((at for at, token in enumerate(tokens) if word(token) == "using"), len(tokens))
    module = name(tokens[using + 1]) if using + 1 < len(tokens) else ""
    if module not in _MADE_OF:
        known = ", ".join(sorted(_MADE_OF))
        raise SchemaChangeRefused(
            "schema_closed", f"A virtual table can be made of {known}, and not of {module or '?'}.", sql
        )


def normal(sql: str | None) -> tuple[str, ...]:
    """Return a definition, as sqlite_schema keeps it, without what doesn't matter: spaces, comments, case, and quotes
    of names."""
    if sql is None:
        return ()
    return tuple(
        token.text if token.kind is TokenKind.STRING else name(token) or token.text.lower() for token in tokenize(sql)
    )


def run(
    opened: LibsqlDatabase, access_rules: AccessRules, sql: str, begins: Callable[[str], None] = lambda _: None
) -> None:
    """Run the statements of a schema change in the transaction that is open. `begins` is called with each of them.

    Raises: SchemaChangeRefused, when one is refused or fails; the transaction may have ended then. Where it lacked room
    or memory, the code is one of `shortages.CODES`.
    """
    statements = split(sql)
    for statement in statements:
        check(statement, access_rules.functions, access_rules.modules)
    for statement in statements:
        begins(statement.sql)
        try:
            cursor = opened.connection.execute(statement.sql)
            while cursor.fetchmany(64):
                pass
        except ValueError as error:
            code = code_of_shortage(opened, error) or "schema_invalid"
            raise SchemaChangeRefused(code, f"{error}.", statement.sql) from None
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


def own(opened: LibsqlDatabase) -> list[list[Row] | None]:
    """Return all of the runtime's own rows and definitions, to compare them before and after a change. None stands for
    a table that is gone."""
    content: list[list[Row] | None] = []
    for query in _OWN:
        try:
            content.append(opened.rows(query))
        except ValueError:
            # The table is gone.
            content.append(None)
    return content


def definitions(opened: LibsqlDatabase) -> list[DefinitionRow]:
    """Return all that the schema has, but for what is SQLite's and the runtime's own."""
    return opened.read(DefinitionRow, _SCHEMA)


def touched(texts: Iterable[str], schema: Iterable[DefinitionRow]) -> set[str]:
    """Return the names of all tables whose rows or definitions the texts can change, in lower case, and other names.

    A statement names what it changes, or fires a trigger that does. `schema`: the definitions before and after them.
    """
    names = {name(token) for text in texts for token in tokenize(text)}
    fired = [(row.name.lower(), row.tbl_name.lower(), row.sql if row.type == "trigger" else "") for row in schema]
    while True:
        # An index counts as its table.
        reached = [item for item in fired if names & {item[0], item[1]}]
        if not reached:
            return names
        fired = [item for item in fired if item not in reached]
        names |= {table for _, table, _ in reached}
        names |= {name(token) for _, _, sql in reached for token in tokenize(sql or "")}


def references(opened: LibsqlDatabase, names: Set[str]) -> dict[str, int]:
    """Return the tables whose rows can violate a foreign key, once the tables of these names were changed: those
    themselves, and those that refer to them; of each the number of its foreign keys."""
    keys = opened.read(ReferenceRow, _FOREIGN_KEYS)
    children = {key.child for key in keys if names & {key.child.lower(), key.parent.lower()}}
    return {child: sum(key.child == child for key in keys) for child in sorted(children)}


def orphans(opened: LibsqlDatabase, tables: Iterable[str] | None = None) -> str:
    """Return how the rows of these tables, or of all, violate foreign keys, as a sentence; empty where they don't."""
    first: ViolationRow | None = None
    count = 0
    checks = [""] if tables is None else [f"({quoted(table)})" for table in tables]
    try:
        for of in checks:
            cursor = opened.connection.execute(f"PRAGMA foreign_key_check{of}")
            # A few at a time: there may be as many as rows.
            while rows := cursor.fetchmany(64):
                first = first or ViolationRow._make(rows[0])
                count += len(rows)
    except ValueError as error:
        return f"the foreign keys can't be checked: {error}."
    if first is None:
        return ""
    lack = counted(count, "row has no parent", "rows have no parent")
    return f"{lack}; the first is row {first.rowid} of {first.table}, which refers to {first.parent}."
