"""What a guest's statement may touch. SQLite compiles the statement, and EXPLAIN then shows every table that it opens
(by root page, through views and triggers too) and every function that it calls.

libsql's SQLite has no authorizer, so functions and virtual tables are allowed by name (`allowed_names`). sqlite_schema
may be read: it has the definitions of tables, the runtime's included, and no data.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from edge_runtime.sql.allowed_names import FUNCTIONS, INTERNAL, MODULES
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import is_panic
from edge_runtime.sql.queries import NameRow, NumberRow, RootPageRow, load
from edge_runtime.sql.tokenizer import SqlToken, TokenKind, name

_ROOT_IN_P2: Final = frozenset({"OpenRead", "OpenWrite", "ReopenIdx"})
_ROOT_IN_P1: Final = frozenset({"Clear", "Destroy"})
_WRITES: Final = frozenset({"OpenWrite", "Clear", "Destroy"})
_P2_IS_REGISTER: Final = 0x10
_SETS_LAST_ID: Final = 0x20
_CALL: Final = re.compile(r"(.+)\(-?[0-9]+\)", re.DOTALL)
_CALLS: Final = frozenset({"Function", "PureFunc", "AggStep", "AggStep1", "AggFinal", "AggInverse", "AggValue"})
_REFUSED: Final = frozenset(
    {"ParseSchema", "CreateBtree", "SetCookie", "Vacuum", "IncrVacuum", "JournalMode", "Checkpoint", "AutoCommit"}
    | {"Savepoint", "DropTable", "DropIndex", "DropTrigger", "SqlExec", "VCreate", "VDestroy", "VRename", "Destroy"}
)
"""Opcodes that no guest statement has, since `session` refuses the verbs that need them; checked again here."""
_BEFORE_TARGET: Final = frozenset({"into", "from", "update", "rollback", "abort", "replace", "fail", "ignore", "."})
_SCHEMA_PAGE: Final = 1

_OWN_PAGES: Final = load("own_pages")
_SHADOW_PAGES: Final = load("shadow_pages")
_FUNCTION_LIST: Final = load("functions")
_MODULE_LIST: Final = load("modules")


class _ExplainRow(NamedTuple):
    """An instruction of SQLite's virtual machine (https://sqlite.org/opcode.html)."""

    addr: int
    opcode: str
    p1: int
    p2: int
    p3: int
    p4: str | int | None
    p5: int
    comment: str | None


class AccessDenied(Exception):
    """The statement touches something that it may not; the message says what."""


@dataclass(frozen=True)
class StatementEffects:
    """What a statement does to the database."""

    writes: bool
    sets_last_id: bool
    virtual: bool
    """The statement uses a virtual table."""


@dataclass(frozen=True)
class AccessRules:
    """What guests may not touch in this file, according to its current schema."""

    own: frozenset[int]
    """Root pages of the runtime's own tables and indices."""
    sqlite: frozenset[int]
    """Root pages of SQLite's own tables, which only SQLite may write."""
    shadow: frozenset[int]
    """Root pages of virtual tables' shadow tables, which only the virtual tables may write: their code trusts what it
    reads there."""
    functions: frozenset[str]
    modules: frozenset[str]

    @classmethod
    def read(cls, database: LibsqlDatabase) -> "AccessRules":
        pages = database.read(RootPageRow, _OWN_PAGES)
        return cls(
            own=frozenset(page for page, is_runtimes in pages if is_runtimes),
            sqlite=frozenset(page for page, is_runtimes in pages if not is_runtimes) | {_SCHEMA_PAGE},
            shadow=frozenset(page.value for page in database.read(NumberRow, _SHADOW_PAGES)),
            functions=frozenset(row.name for row in database.read(NameRow, _FUNCTION_LIST)) - FUNCTIONS,
            modules=frozenset(row.name for row in database.read(NameRow, _MODULE_LIST)) - MODULES,
        )

    def closed_module(self, module: str) -> bool:
        return module in self.modules or (module.startswith("pragma_") and module not in MODULES)


def examine(
    database: LibsqlDatabase, access_rules: AccessRules, sql: str, tokens: Iterable[SqlToken]
) -> StatementEffects:
    """Compile `sql`, and return what it does.

    Raises: AccessDenied, when it touches something that it may not; ValueError, when SQLite can't compile it.
    """
    writes = sets_last_id = virtual = False
    written: set[int] = set()
    for _, opcode, p1, p2, p3, p4, p5, _ in _explain(database, sql):
        if opcode in _ROOT_IN_P2:
            page, schema = p2, p3
            if p5 & _P2_IS_REGISTER:
                raise AccessDenied("It opens a table that it makes itself.")
        elif opcode in _ROOT_IN_P1:
            page, schema = p1, p2
        else:
            if opcode == "Transaction":
                writes = writes or p2 > 0
            elif opcode in _CALLS:
                _check_call(p4)
            elif opcode in _REFUSED:
                raise AccessDenied(f"It does what SQL may not do here ({opcode}).")
            elif opcode == "Insert":
                sets_last_id = sets_last_id or bool(p5 & _SETS_LAST_ID)
            elif opcode == "VUpdate":
                writes = sets_last_id = True
            if isinstance(p4, str) and p4.startswith("vtab:"):
                virtual = True
            continue
        if schema > 1:
            raise AccessDenied("It opens another database.")
        if schema == 0:
            if page in access_rules.own:
                raise AccessDenied("It touches the runtime's own tables (_skerry_…), which are closed.")
            if opcode in _WRITES:
                if page in access_rules.shadow:
                    raise AccessDenied("It writes what a virtual table keeps, which that table alone writes.")
                written.add(page)
    if virtual or not access_rules.sqlite.isdisjoint(written):
        _check_names(access_rules, tokens, virtual, written)
    return StatementEffects(writes, sets_last_id, virtual)


def _explain(database: LibsqlDatabase, sql: str) -> Iterator[_ExplainRow]:
    """Yield the rows of EXPLAIN. libsql panics on text that isn't UTF-8, which here can only be a BLOB constant (a
    column's default): such a row opens and calls nothing, so it is skipped."""
    cursor = database.connection.execute("EXPLAIN " + sql)
    while True:
        try:
            row = cursor.fetchone()
        except BaseException as panic:
            if not is_panic(panic):
                raise
            continue
        if row is None:
            return
        yield _ExplainRow._make(row)


def _check_call(p4: str | int | None) -> None:
    match = _CALL.fullmatch(str(p4))
    function = match[1].lower() if match else str(p4)
    if function not in FUNCTIONS:
        raise AccessDenied(f"It calls {function}(), which is closed.")


def _check_names(access_rules: AccessRules, tokens: Iterable[SqlToken], virtual: bool, written: set[int]) -> None:
    """Check the names in a statement that uses a virtual table or writes a table of SQLite's own: EXPLAIN shows neither
    which virtual table it is, nor whether it is SQLite that writes sqlite_sequence. Names inside views and triggers
    were checked when a schema change created these (`schema_change`).

    Raises: AccessDenied, when a name isn't allowed.
    """
    if _SCHEMA_PAGE in written:
        raise AccessDenied("It writes sqlite_schema.")
    before = ""
    for token in tokens:
        named = name(token)
        if virtual and access_rules.closed_module(named):
            raise AccessDenied(f"It uses {named}, which is closed.")
        # A string can be a table's name only where a statement names the table that it writes.
        is_name = token.kind is not TokenKind.STRING or before in _BEFORE_TARGET
        if is_name and named.startswith(INTERNAL) and not access_rules.sqlite.isdisjoint(written):
            raise AccessDenied(f"It writes {named}, which is SQLite's own.")
        before = token.text.lower()
