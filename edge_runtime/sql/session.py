"""Guests' statements: which of them may run, and what a worker keeps of each for the next call."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import orjson

from edge_runtime.errors import CodedError
from edge_runtime.ipc.frames import COMMIT_UNKNOWN
from edge_runtime.sql.access import AccessDenied, AccessRules, examine
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import Column
from edge_runtime.sql.tokenizer import SqlToken, TokenKind, tokenize, word

VERBS: Final = frozenset({"select", "insert", "update", "delete", "replace", "with", "values", "explain"})
_MAIN_VERBS: Final = VERBS - {"with", "explain"}
_CACHED: Final = 256
_CACHED_CHARACTERS: Final = 32_768


class SqlError(CodedError):
    """An error that the guest gets as its answer."""


_CODES: Final = (
    ("UNIQUE constraint failed", "constraint_unique"),
    ("CHECK constraint failed", "constraint_check"),
    ("NOT NULL constraint failed", "constraint_not_null"),
    ("FOREIGN KEY constraint failed", "constraint_foreign_key"),
    ("database is locked", "database_held"),
    ("database table is locked", "database_busy"),
    ("database or disk is full", "disk_full"),
    ("disk I/O error", "disk_failed"),
    ("out of memory", "sql_out_of_memory"),
    ("attempt to write a readonly database", "not_granted"),
)


def code_of(message: str, otherwise: str) -> str:
    return next((code for start, code in _CODES if message.startswith(start)), otherwise)


def code_of_error(database: LibsqlDatabase, error: ValueError, otherwise: str) -> str:
    """Return the code for an error of this process's connection."""
    code = code_of(str(error), otherwise)
    if database.file_limit_was_hit() and code == "disk_failed":
        code = "sql_disk_limit"
    return code


def failed_commit(database: LibsqlDatabase, error: ValueError) -> tuple[str, str]:
    """Undo a transaction whose COMMIT failed, before the writer lock is released. Return the code and the text of the
    error."""
    code = code_of_error(database, error, "commit_failed")
    if code.startswith("constraint_"):
        # Checked by SQLite before it writes anything.
        return code, f"COMMIT failed: {error}."
    try:
        database.drop_uncommitted()
    except (ValueError, OSError) as second:
        text = f"COMMIT failed ({error}), and it isn't known whether its changes are kept, as undoing failed: {second}."
        return COMMIT_UNKNOWN, text
    return code, f"COMMIT failed: {error}. Nothing was changed."


@dataclass(eq=False)
class PreparedStatement:
    """A statement that was checked and may be run with this schema."""

    sql: str
    parameters: tuple[tuple[int, int, int], ...]
    """Start, end and number of each parameter in the text."""
    count: int
    """The number of values that the statement takes."""
    writes: bool
    inserts: bool
    """Whether the statement sets the last rowid."""
    columns: list[str] | None = None
    """Names of the columns, known after the first run; empty if the statement returns no rows."""
    before_rows: bytes = b'{"columns":[],"rows":'
    """The beginning of the answer, up to the rows."""

    def text(self, wide: tuple[int, ...]) -> str:
        """Return the text to run if the parameters `wide` are 64-bit integers bound as text. Each gets a CAST, preceded
        by a plus that removes the CAST's affinity: otherwise a TEXT column would compare as a number."""
        pieces: list[str] = []
        after = 0
        for start, end, number in self.parameters:
            if number in wide:
                pieces += (self.sql[after:start], _CAST[0], self.sql[start:end], _CAST[1])
                after = end
        return "".join(pieces) + self.sql[after:]

    def name_columns(self, description: Iterable[Column]) -> None:
        """Note the names of the columns. A column without a name has its expression's text as name, without any CAST
        that `text` added."""
        self.columns = [_CASTED.sub(r"\1", column[0]) for column in description]
        self.before_rows = b'{"columns":%b,"rows":' % orjson.dumps(self.columns)


_CAST: Final = ("+CAST(", " AS INTEGER)")
_CASTED: Final = re.compile(r"\+CAST\((\?[0-9]*) AS INTEGER\)")


class Session:
    """A worker's connection, with the checked statements. They are dropped when a release is applied, because the
    schema changes then."""

    def __init__(self, database: LibsqlDatabase) -> None:
        self.database = database
        self._access_rules: AccessRules | None = None
        self.applied = -1
        """The file's count of applied releases for which `statements` were checked."""
        self.statements: dict[str, PreparedStatement] = {}

    def at(self, applied: int) -> None:
        """Note the file's count of applied releases, as the open transaction sees it."""
        if applied != self.applied:
            self.forget()
            self.applied = applied

    def forget(self) -> None:
        self.statements.clear()
        self._access_rules = None
        self.applied = -1

    def statement(self, sql: str) -> PreparedStatement:
        """Return the checked statement for a text, from the cache if it is there.

        Raises: SqlError, when a guest may not run it.
        """
        statement = self.statements.get(sql)
        if statement is None:
            statement = self._examine(sql)
            if len(sql) <= _CACHED_CHARACTERS:
                if len(self.statements) >= _CACHED:
                    del self.statements[next(iter(self.statements))]
                self.statements[sql] = statement
        return statement

    def _examine(self, sql: str) -> PreparedStatement:
        if "\0" in sql:
            raise SqlError("sql_invalid", "The statement has a NUL in its text.")
        tokens = _one(tokenize(sql))
        parameters = _parameters(tokens)
        explains = word(tokens[0]) == "explain"
        plan = explains and [word(token) for token in tokens[1:3]] == ["query", "plan"]
        body = tokens[3:] if plan else tokens[1:] if explains else tokens
        verb = word(body[0]) if body else ""
        if verb not in VERBS or (explains and verb == "explain"):
            raise SqlError(
                "sql_not_allowed",
                "SELECT, INSERT, UPDATE, DELETE, REPLACE, WITH, VALUES and EXPLAIN may be run here, and not "
                f"{body[0].text[:40] if body else 'nothing'}.",
            )
        if self._access_rules is None:
            self._access_rules = AccessRules.read(self.database)
        try:
            effects = examine(self.database, self._access_rules, _compilable(sql, body), tokens)
        except AccessDenied as closed:
            raise SqlError("sql_closed", f"The statement is refused. {closed}") from None
        except ValueError as error:
            raise SqlError(code_of(str(error), "sql_invalid"), str(error)) from None
        if explains and not plan and effects.virtual:
            # Its EXPLAIN would reveal addresses in this process.
            raise SqlError("sql_closed", "EXPLAIN of a virtual table is closed; use EXPLAIN QUERY PLAN.")
        return PreparedStatement(
            sql,
            tuple(parameters),
            max((number for _, _, number in parameters), default=0),
            writes=effects.writes and not explains,
            inserts=effects.sets_last_id and not explains and _main_verb(body) in ("insert", "replace"),
        )


def _one(tokens: list[SqlToken]) -> list[SqlToken]:
    """Return the tokens of the only statement, without its semicolon.

    Raises: SqlError, when there is none or more than one.
    """
    end = next((at for at, token in enumerate(tokens) if token.kind is TokenKind.SEMICOLON), len(tokens))
    if any(token.kind is not TokenKind.SEMICOLON for token in tokens[end:]):
        raise SqlError("sql_not_allowed", "There is more after the first statement; run one statement at a time.")
    if not end:
        raise SqlError("sql_invalid", "There is no statement.")
    return tokens[:end]


def _compilable(sql: str, body: list[SqlToken]) -> str:
    """Return the statement with all its BLOBs emptied: EXPLAIN would return their bytes as text, on which libsql
    panics."""
    pieces: list[str] = []
    after = body[0].start
    for token in body:
        if token.kind is TokenKind.BLOB:
            pieces += (sql[after : token.start], "x''")
            after = token.end
    return "".join(pieces) + sql[after:]


def _parameters(tokens: list[SqlToken]) -> list[tuple[int, int, int]]:
    """Return start, end and number of each parameter, numbered as SQLite does: a bare `?` is the largest number so far
    plus one.

    Raises: SqlError, when a parameter has a name.
    """
    parameters = []
    largest = 0
    for token in tokens:
        if token.kind is TokenKind.PARAMETER:
            digits = token.text[1:]
            if token.text[0] != "?":
                raise SqlError(
                    "sql_not_allowed", f"Named parameters ({token.text[:40]}) are not supported; write ? or ?1, ?2 …"
                )
            number = int(digits[:9]) if digits else largest + 1
            largest = max(largest, number)
            parameters.append((token.start, token.end, number))
    return parameters


def _main_verb(tokens: list[SqlToken]) -> str:
    """Return the statement's own verb, which may come after a WITH and its common tables."""
    depth = 0
    for token in tokens:
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif not depth and word(token) in _MAIN_VERBS:
            return word(token)
    return ""
