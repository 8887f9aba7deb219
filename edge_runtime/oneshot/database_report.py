"""Checks a whole libsql file: pages, foreign keys, the schema and the record of the release."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from edge_runtime.errors import CodedError
from edge_runtime.ipc.frames import Stored
from edge_runtime.oneshot.forked import forked_lines
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sql import database, schema
from edge_runtime.sql.database import BUSY_MS, FORMAT, HEAP_BYTES, LibsqlDatabase
from edge_runtime.sql.libsql_connection import open_file
from edge_runtime.sql.queries import MetaRow, NumberRow, SizeRow, load
from edge_runtime.sql.writer_lock import WriterLock

LIMIT: Final = 3600.0
"""Seconds that checking a file may take."""
SHOWN: Final = 20
"""The most faults of the file that are reported."""
_BEGUN: Final = b"begun"
"""The line that the process writes once its transaction has begun."""

_HAS_META: Final = load("has_meta")
_READ_META: Final = load("read_meta")
_SIZES: Final = load("sizes")


class DatabaseReport(Struct, frozen=True):
    """What a file holds, and what is wrong with it."""

    stored: Stored
    faults: list[str]
    """Findings of PRAGMA integrity_check, `SHOWN` at most."""
    orphans: str
    """How rows violate foreign keys, as a sentence; empty if none does."""
    changed: list[str]
    """Definitions that aren't as the last release left them, as `table orders`."""
    missing: list[str]
    added: list[str]
    schema_digest: str
    page_bytes: int
    pages: int
    free_pages: int
    """Unused pages; new rows go there before the file grows."""
    recorded: bool
    """Whether the file records what its schema should be; a file from an earlier version does after its next
    release."""
    tables: list[tuple[str, int]]
    """Tables and indexes with their bytes, the largest first; empty unless asked for."""
    rows: dict[str, int]
    """How many rows tables have, as `schema.row_counts` says; empty unless asked for."""

    def findings(self) -> list[str]:
        """Return what is wrong, one sentence each; empty if the file is intact."""
        found = [f"Its pages are damaged: {fault}" for fault in self.faults]
        if self.orphans:
            found.append(f"Foreign keys are violated: {self.orphans}")
        found += [f"The {name} isn't as the last release left it." for name in self.changed]
        found += [f"The {name} is missing." for name in self.missing]
        return found


class DatabaseUnread(CodedError):
    """The file can't be checked."""


def report(
    path: Path,
    called: Path,
    begun: Callable[[], None] = lambda: None,
    *,
    sizes: bool = False,
    rows: bool = False,
) -> DatabaseReport:
    """Check a file as it is at one moment, in a separate process behind the fence; others may use the file meanwhile.
    `begun` is called once that moment is past. The caller must have only one thread, and ensure that the file's log was
    recovered. Errors name the file `called`.

    Raises: DatabaseUnread, when the file isn't a node's, or is too damaged for SQLite.
    """

    def work(out: BinaryIO) -> None:
        fence.enclose([(path.parent, WRITE), RANDOM])

        def tell(line: bytes) -> None:
            out.write(line + b"\n")
            out.flush()

        try:
            tell(msgspec.json.encode(_report(path, called, sizes, rows, lambda: tell(_BEGUN))))
        except DatabaseUnread as unread:
            tell(msgspec.json.encode([unread.code, unread.message]))
        except ValueError as error:
            tell(msgspec.json.encode(["database_damaged", f"{called} can't be read: {error}."]))

    until, answer = time.monotonic() + LIMIT, b""
    try:
        for line in forked_lines(work, lambda: max(0.0, until - time.monotonic())):
            if line == _BEGUN:
                begun()
            else:
                answer = line
    except TimeoutError:
        raise DatabaseUnread("database_damaged", f"{called} wasn't looked through after {LIMIT:g} s.") from None
    if not answer:
        raise DatabaseUnread("database_damaged", f"The process that looked {called} through ended before it was done.")
    found = msgspec.json.decode(answer, type=DatabaseReport | list[str])
    if isinstance(found, list):
        raise DatabaseUnread(*found)
    return found


def _report(path: Path, called: Path, sizes: bool, rows: bool, begun: Callable[[], None]) -> DatabaseReport:
    """Check the file in this process. Raises: DatabaseUnread; ValueError, when SQLite can't read the file."""
    opened = LibsqlDatabase(open_file(path), WriterLock(os.memfd_create("writer.lock")), path)
    fence.seal("worker")
    opened.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
    opened.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    opened.rows("PRAGMA temp_store = MEMORY")
    opened.rows("PRAGMA wal_autocheckpoint = 0")
    opened.rows("PRAGMA query_only = ON")
    opened.rows("BEGIN")
    if opened.rows(_HAS_META) == [(0,)]:
        text = f"{called} is no node's database: the runtime's own tables aren't there."
        raise DatabaseUnread("database_unknown", text)
    version = opened.read(MetaRow, _READ_META)[0].format
    if version != FORMAT:
        text = f"{called} has format {version} of the runtime's tables, and this version knows {FORMAT}: upgrade first."
        raise DatabaseUnread("database_unknown", text)
    begun()
    faults = [str(row[0]) for row in opened.rows(f"PRAGMA integrity_check({SHOWN})")]
    differences = schema.differences(opened)
    return DatabaseReport(
        stored=database.stored(opened),
        faults=[] if faults == ["ok"] else faults,
        orphans=schema.orphans(opened),
        changed=differences.changed,
        missing=differences.missing,
        added=differences.added,
        recorded=schema.is_recorded(opened),
        tables=[(row.name, row.bytes) for row in opened.read(SizeRow, _SIZES)] if sizes else [],
        rows=schema.row_counts(opened, None) if rows else {},
        schema_digest=schema.digest(schema.digests(opened)),
        page_bytes=opened.read(NumberRow, "PRAGMA page_size")[0].value,
        pages=opened.read(NumberRow, "PRAGMA page_count")[0].value,
        free_pages=opened.read(NumberRow, "PRAGMA freelist_count")[0].value,
    )
