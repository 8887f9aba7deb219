"""A new database in memory, as a node's is after a project's schema changes: of a call that `skerry test` makes."""

from collections.abc import Iterator
from contextlib import contextmanager

from edge_runtime.errors import CodedError
from edge_runtime.oneshot.call_messages import ProjectChange
from edge_runtime.oneshot.sql_command import shown_value
from edge_runtime.sandbox import fence
from edge_runtime.sql import run_change, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase, in_memory
from edge_runtime.sql.schema_change import SchemaChangeRefused


class PartFailed(CodedError):
    """Something round the call failed: `part` is as in `FreshCallDone`."""

    def __init__(self, code: str, message: str, part: str) -> None:
        super().__init__(code, message)
        self.part = part


@contextmanager
def opened(schema: list[ProjectChange], before: str) -> Iterator[LibsqlDatabase]:
    """Seal the process, and open a new database in memory as a node's is after these schema changes.

    Raises: PartFailed.
    """
    with in_memory() as database:
        fence.seal("worker", database.lock.fileno())
        database.rows("PRAGMA temp_store = MEMORY")
        access_rules = AccessRules.read(database)
        database.rows("BEGIN")
        for change in schema:
            try:
                run_change.run(database, access_rules, change.sql)
            except SchemaChangeRefused as refused:
                raise PartFailed(refused.code, f"{change.name}: {refused}", "schema") from None
        database.rows("COMMIT")
        database.rows("PRAGMA foreign_keys = ON")
        if before.strip():
            database.rows("BEGIN")
            _run_before(database, before)
        yield database


def _run_before(database: LibsqlDatabase, before: str) -> None:
    try:
        for statement in schema_change.split(before):
            database.rows(statement.sql)
        database.rows("COMMIT")
    except SchemaChangeRefused as refused:
        raise PartFailed("sql_invalid", str(refused), "before") from None
    except ValueError as error:
        raise PartFailed("sql_invalid", f"{error}.", "before") from None


def rows(database: LibsqlDatabase, statement: str) -> list[list[object]]:
    """Return the rows of a statement. Raises: PartFailed."""
    try:
        return [[shown_value(value) for value in row] for row in database.rows(statement)]
    except ValueError as error:
        raise PartFailed("sql_invalid", f"{statement}: {error}.", "after") from None
