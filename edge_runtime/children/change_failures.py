"""What a sync says of a schema change that couldn't be applied."""

from typing import Final

from edge_runtime.errors import SyncFailed
from edge_runtime.sandbox import fence
from edge_runtime.sql import shortages
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.schema_change import SchemaChangeRefused
from edge_runtime.sql.session import code_of

HEAP_BYTES: Final = 48 * 1024 * 1024
"""Bytes of SQLite's memory in an applier. With what else it has it takes 64 MB at most, however large a table is: what
doesn't fit goes to temporary files."""
_SHOWN: Final = 300
"""Characters of a statement that an error message shows."""


def of_change(opened: LibsqlDatabase, label: str, refused: SchemaChangeRefused) -> SyncFailed:
    """Undo everything, and return the error of a change. `label` says which change, or which step of it."""
    statement = refused.statement
    at = f" Statement: {shown(statement)}" if statement else ""
    more = ""
    if refused.code in shortages.CODES.values():
        log_bytes = shortages.written(opened)
        opened.rollback()
        more = f" {shortages.told(opened, refused.code, statement, log_bytes, HEAP_BYTES, fence.FILE_BYTES)}"
    opened.rollback()
    code = "schema_change_failed" if refused.code == "schema_invalid" else refused.code
    return SyncFailed(code, f"In {label}: {refused}{more}{at}")


def of_libsql(opened: LibsqlDatabase, what: str, error: ValueError) -> SyncFailed:
    """Undo everything, and return the error of something else than a change's statement: `what`, and why."""
    opened.rollback()
    code = shortages.code_of_shortage(opened, error) or code_of(str(error), "apply_failed")
    return SyncFailed(code, f"{what}: {error}.")


def shown(statement: str) -> str:
    """Return a statement as messages show it."""
    return statement if len(statement) <= _SHOWN else statement[:_SHOWN] + " …"
