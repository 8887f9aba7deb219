"""libsql's connection: how a file is opened, what a panic is, and the types that its package doesn't declare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import libsql_experimental as libsql

from edge_runtime.sql.values import Row, Value

Column = tuple[str, None, None, None, None, None, None]
"""A column of an answer: its name, and the DB-API's other fields, which libsql leaves empty."""

_OPEN_FAILED: Final = {
    "7": "out of memory",
    "10": "disk I/O error",
    "14": "unable to open database file",
}
"""SQLite's messages for result codes of a failed open (https://sqlite.org/rescode.html)."""


class LibsqlCursor(Protocol):
    """The answer of one statement. Its rows are computed as they are fetched."""

    @property
    def description(self) -> tuple[Column, ...] | None: ...

    @property
    def rowcount(self) -> int: ...
    @property
    def lastrowid(self) -> int | None: ...
    def fetchone(self) -> Row | None: ...
    def fetchmany(self, size: int) -> list[Row]: ...
    def fetchall(self) -> list[Row]: ...


class LibsqlConnection(Protocol):
    """A connection in autocommit mode. It raises only ValueError, and panics (`is_panic`)."""

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, parameters: Sequence[Value] = (), /) -> LibsqlCursor: ...
    def close(self) -> None: ...


def is_panic(error: BaseException) -> bool:
    """Return whether `error` is a panic of libsql's Rust code, for instance on text that isn't UTF-8. A panic isn't an
    Exception, and the connection can be used afterwards."""
    return type(error).__name__ == "PanicException"


def open_file(path: Path) -> LibsqlConnection:
    """Open a connection to a file, in autocommit mode, with SQLite's own VFS. libsql's default VFS, made for
    encryption, treats a failed read as zeros (docs/adr/0025).

    Raises: ValueError, when SQLite can't open the file.
    """
    try:
        connection: LibsqlConnection = libsql.connect(f"{path.absolute().as_uri()}?vfs=unix", isolation_level=None)
        return connection
    except ValueError as error:
        # libsql's message ends with SQLite's code, without the text.
        code = str(error).strip("`").rpartition(": ")[2]
        raise ValueError(_OPEN_FAILED.get(code, str(error))) from None


def open_in_memory() -> LibsqlConnection:
    """Open a new database that disappears with the process."""
    connection: LibsqlConnection = libsql.connect(":memory:", isolation_level=None)
    return connection
