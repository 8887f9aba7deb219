"""The statements of guests: which are fit to be run, and what is known of each, kept by a worker for the next call."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from edge_runtime.errors import CodedError
from edge_runtime.ipc.frames import COMMIT_UNKNOWN
from edge_runtime.sql.access import AccessDenied, AccessRules, examine
from edge_runtime.sql.database import Database
from edge_runtime.sql.tokenizer import Token, TokenKind, tokenize, word

VERBS: Final = frozenset({"select", "insert", "update", "delete", "replace", "with", "values", "explain"})
_MAIN_VERBS: Final = VERBS - {"with", "explain"}
_CACHED: Final = 256
_CACHED_CHARACTERS: Final = 32_768


class SqlError(CodedError):
    """An error that the guest is told."""


_CODES: Final = (
    ("UNIQUE constraint failed", "constraint_unique"),
    ("CHECK constraint failed", "constraint_check"),
    ("NOT NULL constraint failed", "constraint_not_null"),
    ("FOREIGN KEY constraint failed", "constraint_foreign_key"),
    ("database is locked", "database_busy"),
    ("database table is locked", "database_busy"),
    ("database or disk is full", "disk_full"),
    ("disk I/O error", "disk_failed"),
    ("out of memory", "sql_out_of_memory"),
    ("attempt to write a readonly database", "not_granted"),
)


def code_of(message: str, otherwise: str) -> str:
    return next((code for start, code in _CODES if message.startswith(start)), otherwise)


def code_of_error(database: Database, error: ValueError, otherwise: str) -> str:
    """The code of an error of this process's connection."""
    code = code_of(str(error), otherwise)
    if database.came_to_file_limit() and code == "disk_failed":
        code = "sql_disk_limit"
    return code


def failed_commit(database: Database, error: ValueError) -> tuple[str, str]:
    """Undo a transaction whose COMMIT failed, before the writer lock is let go: code and text of what is so then."""
    code = code_of_error(database, error, "commit_failed")
    if code.startswith("constraint_"):
        # Found out before anything was written.
        return code, f"COMMIT failed: {error}."
    try:
        database.drop_uncommitted()
    except (ValueError, OSError) as second:
        text = f"COMMIT failed ({error}), and it isn't known whether its changes are kept, as undoing failed: {second}."
        return COMMIT_UNKNOWN, text
    return code, f"COMMIT failed: {error}. Nothing was changed."


@dataclass(eq=False)
class PreparedStatement:
    """A statement that was found fit to be run in this schema."""

    sql: str
    parameters: tuple[tuple[int, int, int], ...]
    """Start, end and number of each in the text."""
    count: int
    """Of the values that it takes."""
    writes: bool
    inserts: bool
    """It sets the last rowid."""
    columns: list[str] | None = None
    """Known after its first run; empty where it gives no rows."""
    columns_json: bytes = b"[]"

    def text(self, wide: tuple[int, ...]) -> str:
        """The text to run where the parameters `wide` are integers bound as text. The plus takes the CAST's affinity
        away: a TEXT column would compare as a number."""
        pieces: list[str] = []
        after = 0
        for start, end, number in self.parameters:
            if number in wide:
                pieces += (self.sql[after:start], _CAST[0], self.sql[start:end], _CAST[1])
                after = end
        return "".join(pieces) + self.sql[after:]

    def name_columns(self, description: Iterable[tuple[Any, ...]]) -> None:
        """A column without a name has its expression's text, where a CAST of ours may have got into."""
        self.columns = [_CASTED.sub(r"\1", column[0]) for column in description]
        self.columns_json = orjson.dumps(self.columns)


_CAST: Final = ("+CAST(", " AS INTEGER)")
_CASTED: Final = re.compile(r"\+CAST\((\?[0-9]*) AS INTEGER\)")


class Session:
    """A worker's connection, with the statements that were found fit. They are forgotten when a release is applied,
    which is when the schema changes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._access_rules: AccessRules | None = None
        self.applied = -1
        """The file's count of applied releases that `statements` belong to."""
        self.statements: dict[str, PreparedStatement] = {}

    def at(self, applied: int) -> None:
        """The file's count of applied releases, as the transaction that is open sees it."""
        if applied != self.applied:
            self.forget()
            self.applied = applied

    def forget(self) -> None:
        self.statements.clear()
        self._access_rules = None
        self.applied = -1

    def statement(self, sql: str) -> PreparedStatement:
        """Errors: SqlError."""
        found = self.statements.get(sql)
        if found is None:
            found = self._examine(sql)
            if len(sql) <= _CACHED_CHARACTERS:
                if len(self.statements) >= _CACHED:
                    del self.statements[next(iter(self.statements))]
                self.statements[sql] = found
        return found

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
                f"A function may run SELECT, INSERT, UPDATE, DELETE, REPLACE, WITH, VALUES and EXPLAIN, and not "
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
            # It would show addresses of this process.
            raise SqlError("sql_closed", "EXPLAIN of a virtual table is closed to functions; use EXPLAIN QUERY PLAN.")
        return PreparedStatement(
            sql,
            tuple(parameters),
            max((number for _, _, number in parameters), default=0),
            writes=effects.writes and not explains,
            inserts=effects.sets_last_id and not explains and _main_verb(body) in ("insert", "replace"),
        )


def _one(tokens: list[Token]) -> list[Token]:
    """The tokens of the one statement, without what ends it."""
    end = next((at for at, token in enumerate(tokens) if token.kind is TokenKind.SEMICOLON), len(tokens))
    if any(token.kind is not TokenKind.SEMICOLON for token in tokens[end:]):
        raise SqlError("sql_not_allowed", "There is more after the first statement; run one statement at a time.")
    if not end:
        raise SqlError("sql_invalid", "There is no statement.")
    return tokens[:end]


def _compilable(sql: str, body: list[Token]) -> str:
    """The statement with empty BLOBs: EXPLAIN would give their bytes as text, at which libsql panics."""
    pieces: list[str] = []
    after = body[0].start
    for token in body:
        if token.kind is TokenKind.BLOB:
            pieces += (sql[after : token.start], "x''")
            after = token.end
    return "".join(pieces) + sql[after:]


def _parameters(tokens: list[Token]) -> list[tuple[int, int, int]]:
    """As SQLite numbers them: a bare one is the largest number so far plus one."""
    found = []
    largest = 0
    for token in tokens:
        if token.kind is TokenKind.PARAMETER:
            digits = token.text[1:]
            if token.text[0] != "?":
                raise SqlError(
                    "sql_not_allowed", f"Named parameters ({token.text[:40]}) are not known here; write ? or ?1, ?2 …"
                )
            number = int(digits[:9]) if digits else largest + 1
            largest = max(largest, number)
            found.append((token.start, token.end, number))
    return found


def _main_verb(tokens: list[Token]) -> str:
    """The statement's own verb, behind a WITH and its common tables."""
    depth = 0
    for token in tokens:
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif not depth and word(token) in _MAIN_VERBS:
            return word(token)
    return ""
