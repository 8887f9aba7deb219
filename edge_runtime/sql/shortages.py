"""What a schema change lacked that couldn't be applied for want of room on the disk or of memory, as text for a person.

The size of a table doesn't decide how much memory a statement takes: what doesn't fit goes to temporary files. So a
shortage of memory comes of single rows or values, and one of room of the whole table.
"""

import os
from typing import Final

from edge_runtime import wal
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import NameRow, NumberRow, load
from edge_runtime.sql.session import code_of_error
from edge_runtime.sql.tokenizer import name, tokenize

CODES: Final = {
    "disk_full": "disk_full",
    "disk_failed": "disk_failed",
    "sql_disk_limit": "apply_disk_limit",
    "sql_out_of_memory": "apply_out_of_memory",
}
"""The codes of a release that lacked something, by those of the statement's error."""
_TABLES: Final = load("table_names")
_BYTES: Final = load("table_bytes")


def code_of_shortage(opened: LibsqlDatabase, error: ValueError) -> str:
    """Return the code if an error of SQLite means that room or memory was lacking, or that the disk fails; an empty
    string for any other error."""
    return CODES.get(code_of_error(opened, error, ""), "")


def written(opened: LibsqlDatabase) -> int:
    """Return the bytes of the open transaction that are in the write-ahead log's file already, where that is known."""
    try:
        return 0 if opened.path is None else wal.uncommitted(opened.path)
    except OSError:
        return 0


def told(opened: LibsqlDatabase, code: str, statement: str, log_bytes: int, heap_bytes: int, file_bytes: int) -> str:
    """Return what was lacking, how much there is, and what to do. The transaction has been undone.

    `log_bytes` as `written` said before that; `heap_bytes` and `file_bytes` are the limits of memory and of a file.
    """
    table, size = _largest(opened, statement)
    has = f" The table {table} has {_mib(size)}." if table else ""
    if code == "apply_out_of_memory":
        return (
            f"SQLite needed more than {_mib(heap_bytes)} of memory for this statement, as for rows or values of many "
            f"MiB.{has} Have the change take less at a time: fewer or shorter values in one statement."
        )
    if opened.path is None:
        return f"The database has no room for this statement.{has}"
    disk = os.statvfs(opened.path.parent)
    room = f"{_mib(disk.f_bavail * disk.f_frsize)} are free on the disk of {opened.path.parent}"
    wrote = f"the change had written {_mib(log_bytes)} to the write-ahead log, beside temporary files"
    if code == "disk_full":
        return (
            f"The disk had no room for this statement: when it ended, {wrote}; now that all is undone, {room}.{has} An "
            "index, or a change of all rows, can take three times the table's size for a while. Free some space, then "
            "`skerry node retry` or wait for the next attempt."
        )
    if code == "apply_disk_limit":
        return (
            f"This statement needs a file of more than {_mib(file_bytes)}, which no process of the node may write: "
            f"when it ended, {wrote}.{has} Split the change, or change the table in batches."
        )
    return f"The disk failed this statement: when it ended, {wrote}; {room}.{has} Look at the disk (`dmesg`)."


def _largest(opened: LibsqlDatabase, statement: str) -> tuple[str, int]:
    """Return the largest of the tables that a statement names, and its bytes; an empty name where there is none."""
    try:
        words = {name(token) for token in tokenize(statement)}
        named = [row.name for row in opened.read(NameRow, _TABLES) if row.name.lower() in words]
        sizes = [(opened.read(NumberRow, _BYTES, (table,))[0].value, table) for table in named]
    except ValueError:
        # The disk may fail this, too.
        return "", 0
    size, table = max(sizes, default=(0, ""))
    return table, size


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
