"""Runs a schema change: its statements, its steps in batches, or the whole change in one transaction.

A step in batches has one transaction per batch, which also records the step's progress. So a process that is killed at
any point continues where it was, and no row is changed twice. Writers alternate with the batches: the writer lock is
held for a few milliseconds, then released for as long.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from control.protocol import faults
from edge_runtime import wal
from edge_runtime.sql import schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import is_panic
from edge_runtime.sql.queries import ColumnRow, NameRow, StepRow, load
from edge_runtime.sql.schema_change import ROWIDS, ChangeStep, ChangeSteps, SchemaChangeRefused, SchemaStatement, Stage
from edge_runtime.sql.session import code_of_error, failed_commit
from edge_runtime.sql.tokenizer import quoted, tokenize

SHORTAGES: Final = {
    "disk_full": "disk_full",
    "disk_failed": "disk_failed",
    "sql_disk_limit": "apply_disk_limit",
    "sql_out_of_memory": "apply_out_of_memory",
}
"""The codes for a release that ran out of something, by the code of the statement's error."""
HELD: Final = 0.005
"""Seconds for which a batch should hold the writer lock: the duration of the last batch decides how many rows the next
one has. The next writer's COMMIT has to sync what a batch wrote."""
MOST: Final = 20_000
"""Rows of the largest batch. The first batch is one row: nobody knows how large rows are."""
LEAST: Final = 10
BRIEF: Final = 0.05
"""A batch of `LEAST` rows isn't made smaller while it takes less than this many seconds: the COMMIT or a busy machine
may be the cause, and batches of one row would take hours."""
REST: Final = 0.002
"""Least seconds between two batches; usually as long as the last one held the lock. Without a pause writers would
starve: the kernel doesn't hand the lock to waiting processes in turn."""
TOLD: Final = 0.2
"""Seconds between two progress messages of a step."""
LOG_BYTES: Final = 32 * 1024 * 1024
LOG_WAIT: Final = 5.0
"""When the write-ahead log has more than this many bytes, a batch waits for the log to restart, for at most this many
seconds."""
FULL_WAIT: Final = 30.0
"""Seconds that a step waits while the log is at half of its limit or more; then it fails."""

_TEMPORARY: Final = load("temporary")
_START: Final = load("start_step")
_MOVE: Final = load("move_step")
_END: Final = load("end_step")
_KEYS: Final = load("integer_keys")
_COLUMNS: Final = load("columns")


def run(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> None:
    """Run a whole change, with its steps, in the transaction that is open.

    Raises: SchemaChangeRefused, when a statement is refused or fails; the transaction may have ended then.
    """
    steps = schema_change.steps_of(sql)
    if steps is None:
        run_statements(opened, access_rules, sql)
        return
    _run_stage(opened, access_rules, steps, "before")
    with exchanging_tables(opened):
        _run_text(opened, access_rules, steps.flip)
    _run_stage(opened, access_rules, steps, "after")


def run_and_undo(opened: LibsqlDatabase, access_rules: AccessRules, steps: ChangeSteps) -> None:
    """Run the steps before the flip, and what undoes them, in the transaction that is open.

    Raises: SchemaChangeRefused, when a statement is refused or fails.
    """
    _run_stage(opened, access_rules, steps, "before")
    _run_text(opened, access_rules, steps.undo)


@contextlib.contextmanager
def exchanging_tables(opened: LibsqlDatabase) -> Iterator[None]:
    """Within the block, let a table take another table's name without changing what refers to that name: this is how a
    change with steps exchanges tables."""
    opened.rows("PRAGMA legacy_alter_table = ON")
    try:
        yield
    finally:
        opened.rows("PRAGMA legacy_alter_table = OFF")


def run_statements(
    opened: LibsqlDatabase, access_rules: AccessRules, sql: str, begins: Callable[[str], None] = lambda _: None
) -> None:
    """Run statements of a schema change in the transaction that is open. `begins` is called with each before it runs.

    Raises: SchemaChangeRefused, when one is refused or fails; the transaction may have ended then. If it ran out of
    disk space or memory, the code is one of `SHORTAGES`.
    """
    statements = schema_change.split(sql)
    for statement in statements:
        schema_change.check(statement, access_rules.functions, access_rules.modules)
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


def code_of_shortage(opened: LibsqlDatabase, error: ValueError) -> str:
    """Return the code if an SQLite error means that disk space or memory ran out, or that the disk fails; an empty
    string for any other error."""
    return SHORTAGES.get(code_of_error(opened, error, ""), "")


def run_step_at_once(
    opened: LibsqlDatabase,
    access_rules: AccessRules,
    step: ChangeStep,
    left: tuple[int | None, int | None] = (None, None),
) -> None:
    """Run a step in batches at once, in the transaction that is open. `left`: the keys of the remaining rows, above the
    first, up to the second. Raises: SchemaChangeRefused, when a statement is refused or fails."""
    check_key(opened, step.table, step.key)
    after, upto = left
    if after is None or upto is None:
        after, upto = _bounds(opened, step.table, step.key)
    statements = _statements(access_rules, step.sql)
    # Even if there are no rows: a statement that can't run must fail here.
    for statement in statements:
        _execute(opened, schema_change.bind(statement.sql, after, upto), statement.sql)


def run_in_batches(
    opened: LibsqlDatabase, access_rules: AccessRules, row: StepRow, tell: Callable[[str], None]
) -> None:
    """Run the rest of a step in batches. `tell` is called from time to time with its progress, in words.

    Raises: SchemaChangeRefused, when a statement is refused or fails; what was done before stays. ValueError, when
    SQLite or the disk fails otherwise.
    """
    check_key(opened, row.target, row.key)
    statements = _statements(access_rules, row.sql)
    if row.after is not None and row.start is not None and row.bound is not None:
        after, start, bound = row.after, row.start, row.bound
    else:
        after, bound = _bounds(opened, row.target, row.key)
        start = after
        _begin(opened)
        opened.rows(_START, (str(after), str(start), str(bound), row.number, row.step))
        _commit(opened)
    size, told = 1, 0.0
    while True:
        if time.monotonic() - told > TOLD:
            told = time.monotonic()
            tell(f"{row.target[:40]}: {100 * (after - start) // max(1, bound - start)} %")
        # Before the lock is taken: rows added meanwhile are in this batch or in a later one.
        upto = _edge(opened, row, after, bound, size)
        began = _begin(opened)
        try:
            if upto is None:
                opened.rows(_END, (row.number, row.step))
            else:
                for statement in statements:
                    _execute(opened, schema_change.bind(statement.sql, after, upto), statement.sql)
                opened.rows(_MOVE, (str(upto), row.number, row.step, str(after)))
                if opened.rows("SELECT changes()") != [(1,)]:
                    raise ValueError("the step's progress isn't what it was: does another applier run?")
            faults.reach("edge.batch.before")
        except BaseException:
            opened.rollback()
            raise
        _commit(opened)
        held = time.monotonic() - began
        faults.reach("edge.batch.after")
        if upto is None:
            return
        after = upto
        size = next_size(size, held)
        time.sleep(max(REST, held))
        spare_the_log(opened, row.target[:40], tell)


def next_size(size: int, held: float) -> int:
    """Return how many rows the next batch has, after one of `size` rows that held the lock for `held` seconds: at most
    twice as many."""
    least = LEAST if held < BRIEF else 1
    return min(MOST, 2 * size, max(least, int(size * HELD / max(held, 1e-6))))


def check_key(opened: LibsqlDatabase, table: str, key: str) -> None:
    """Check that a table can be divided by a key: its INTEGER PRIMARY KEY, or its rowid if it has none.

    Raises: SchemaChangeRefused, when it can't.
    """
    found = opened.read(NameRow, _KEYS, (table,))
    if not found:
        raise SchemaChangeRefused(
            "schema_invalid", f"Batches of {table} can't be made: there is no such table, or it has no rowids."
        )
    name = found[0].name
    if key.lower() == name.lower():
        return
    taken = {column.name.lower() for column in opened.read(ColumnRow, _COLUMNS, (table,))}
    # In SQL the name then means a column of that name, which may have any values.
    free = [rowid for rowid in ROWIDS if rowid not in taken]
    if key.lower() not in free:
        right = f"its INTEGER PRIMARY KEY {name}" if name else f"{free[0]}, as it has no INTEGER PRIMARY KEY"
        raise SchemaChangeRefused("schema_invalid", f"Batches of {table} must go by {right}, and not by {key}.")


def _statements(access_rules: AccessRules, sql: str) -> list[SchemaStatement]:
    """Return the statements of a step in batches. Raises: SchemaChangeRefused, when a schema change may not have
    one."""
    statements = schema_change.split(sql)
    for statement in statements:
        text = schema_change.bind(statement.sql, 0, 0)
        schema_change.check(SchemaStatement(text, tokenize(text)), access_rules.functions, access_rules.modules)
    return statements


def _bounds(opened: LibsqlDatabase, target: str, column: str) -> tuple[int, int]:
    """Return the key before the first row's, and the key of the last row."""
    key, table = quoted(column), quoted(target)
    # Two queries: the least and the largest in one would be a scan of the table.
    least = opened.rows(f"SELECT min({key}) FROM {table}")[0][0]  # noqa: S608
    most = opened.rows(f"SELECT max({key}) FROM {table}")[0][0]  # noqa: S608
    if not isinstance(least, int) or not isinstance(most, int):
        return 0, 0
    if least == -(2**63):
        raise SchemaChangeRefused(
            "schema_change_failed",
            f"Batches of {target} can't be made: a row has the least {column} that there can be.",
        )
    return least - 1, most


def _edge(opened: LibsqlDatabase, row: StepRow, after: int, bound: int, size: int) -> int | None:
    """Return the last key of the next batch; None if no row is left."""
    key, table = quoted(row.key), quoted(row.target)
    found = opened.rows(
        f"SELECT max(k) FROM (SELECT {key} AS k FROM {table} "  # noqa: S608
        f"WHERE {key} > ({after}) AND {key} <= ({bound}) ORDER BY {key} LIMIT {size})"
    )[0][0]
    return found if isinstance(found, int) else None


def _begin(opened: LibsqlDatabase) -> float:
    """Take the writer lock and begin a transaction; return the time at which the lock was taken."""
    opened.lock.acquire()
    began = time.monotonic()
    try:
        opened.rows("BEGIN IMMEDIATE")
    except BaseException:
        opened.rollback()
        raise
    return began


def _commit(opened: LibsqlDatabase) -> None:
    """Commit, and release the writer lock. Raises: ValueError, when that fails."""
    try:
        opened.rows("COMMIT")
    except ValueError as error:
        _, text = failed_commit(opened, error)
        opened.rollback()
        # It begins with SQLite's message, which identifies the error.
        raise ValueError(f"{error}. {text}") from None
    opened.lock.release()


def _execute(opened: LibsqlDatabase, sql: str, shown: str) -> None:
    try:
        opened.rows(sql)
    except ValueError as error:
        raise SchemaChangeRefused(code_of_shortage(opened, error) or "schema_invalid", f"{error}.", shown) from None


def spare_the_log(opened: LibsqlDatabase, label: str, tell: Callable[[str], None]) -> None:
    """Wait while the log is long, since writers would have to wait for its checkpoint or be refused. The second half of
    its limit is reserved for calls.

    Raises: SchemaChangeRefused, when it stays that long.
    """
    if opened.path is None:
        return
    half = opened.wal_limit // 2
    began, told = time.monotonic(), False
    while (size := wal.committed(opened.path)) > min(LOG_BYTES, half):
        waited = time.monotonic() - began
        if size < half:
            if waited > LOG_WAIT:
                return
        elif waited > FULL_WAIT:
            text = (
                f"The write-ahead log has {size >> 20} MiB of {opened.wal_limit >> 20}, and can't begin anew: a reader "
                "doesn't end, or the disk is slow. What was done before stays, and is gone on from."
            )
            raise SchemaChangeRefused("wal_full", text)
        elif not told:
            told = True
            tell(f"{label}: waits, as the write-ahead log is long")
        time.sleep(0.02)


def _run_stage(opened: LibsqlDatabase, access_rules: AccessRules, steps: ChangeSteps, stage: Stage) -> None:
    for _, step in steps.of(stage):
        if step.table:
            run_step_at_once(opened, access_rules, step)
        else:
            run_statements(opened, access_rules, step.sql)


def _run_text(opened: LibsqlDatabase, access_rules: AccessRules, sql: str) -> None:
    if tokenize(sql):
        run_statements(opened, access_rules, sql)
