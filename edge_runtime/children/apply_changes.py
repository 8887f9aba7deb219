"""Apply a plan's schema changes to the node's file, for the applier.

It finds the changes that the file lacks, runs their steps before and after the flip and the flip itself, and explains a
failed change.

Steps before the flip run under the serving release. The file records finished steps (`_skerry_steps`), each in its own
transaction. Only the first change that the file lacks can have steps run ahead: later changes depend on its flip. What
hasn't run ahead runs entirely in the flip, as on a node that was offline or is new.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from control.protocol import faults, wire
from edge_runtime import wal
from edge_runtime.children import probe_call
from edge_runtime.errors import SyncFailed
from edge_runtime.files import free_bytes
from edge_runtime.ipc import frames
from edge_runtime.sandbox import fence
from edge_runtime.sql import run_change, schema, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import ChangeRow, NameRow, NumberRow, ReleaseRow, StepRow, load
from edge_runtime.sql.schema_change import ChangeStep, ChangeSteps, SchemaChangeRefused
from edge_runtime.sql.session import code_of, failed_commit
from edge_runtime.sql.tokenizer import name, tokenize

Tell = Callable[[str], None]
"""Called with what is about to be done, for people."""
Around = Callable[[int], contextlib.AbstractContextManager[object]]
"""Called with a schema change's number before each part of it runs; what it returns is entered around that part."""

HEAP_BYTES: Final = 48 * 1024 * 1024
"""Bytes of SQLite's memory in an applier. The whole process takes at most 64 MB, however large a table is: what doesn't
fit goes to temporary files."""
_SHOWN: Final = 300
"""Characters of a statement that an error message shows."""

_READ_RELEASE: Final = load("read_release")
_READ_CHANGES: Final = load("read_changes")
_MAKE_STEPS: Final = load("make_steps")
_HAS_STEPS: Final = load("has_steps")
_READ_STEPS: Final = load("read_steps")
_INSERT_STEP: Final = load("insert_step")
_END_STEP: Final = load("end_step")
_DELETE_STEPS: Final = load("delete_steps")
_DELETE_STEPS_BEFORE: Final = load("delete_steps_before")
_SCHEMA_MOVED: Final = load("schema_moved")
_TABLE_NAMES: Final = load("table_names")
_TABLE_BYTES: Final = load("table_bytes")


def around_nothing(_: int) -> contextlib.AbstractContextManager[object]:
    """Do nothing around the parts of schema changes."""
    return contextlib.nullcontext()


def applied_changes(opened: LibsqlDatabase) -> dict[int, tuple[int, str]]:
    """Return the revision and checksum of each schema change that the file has."""
    return {number: (revision, checksum) for number, revision, checksum in opened.read(ChangeRow, _READ_CHANGES)}


def to_apply(opened: LibsqlDatabase, plan: wire.Plan, afresh: bool) -> list[wire.PlannedChange]:
    """Return the plan's schema changes that the file lacks.

    Those that it already has, because the answer to an earlier COMMIT was lost, must be the same. `afresh` is as in
    `frames.Apply`.

    Raises: SyncFailed, when the plan doesn't continue from what the file has.
    """
    release = opened.read(ReleaseRow, _READ_RELEASE)
    if release and not afresh and plan.generation < release[0].generation:
        raise SyncFailed(
            "generation_lower",
            f"The plan is of generation {plan.generation}, and the file is at {release[0].generation} already; was "
            "control's metadata restored from a backup? Then `skerry recover --yes`, and make a new release.",
        )
    has = applied_changes(opened)
    version = start = max(has, default=0)
    lacking = []
    for change in plan.schema_changes:
        label = label_of(change)
        if wire.schema_checksum(change.sql) != change.checksum:
            raise SyncFailed("schema_checksum_mismatch", f"The text of {label} is not what its checksum says.")
        if change.number > plan.schema_floor:
            raise SyncFailed(
                "plan_invalid", f"The plan has {label}, and its release ends at change {plan.schema_floor}."
            )
        if change.number in has:
            revision, checksum = has[change.number]
            # A later revision leads to the same schema: the change was amended after this node had applied it.
            if checksum != change.checksum and change.revision <= revision:
                raise SyncFailed(
                    "schema_history_mismatch",
                    f"The file has another text of {label} than the plan: is it another node's, or was control's "
                    "metadata restored from a backup?",
                )
        elif change.number != version + 1:
            raise SyncFailed(
                "schema_history_mismatch",
                f"The file is at schema version {start}, so the plan must go on with change {version + 1}; it has "
                f"{label}. Has the file been exchanged?",
            )
        else:
            version = change.number
            lacking.append(change)
    if version < plan.schema_floor:
        raise SyncFailed(
            "schema_history_mismatch",
            f"The file would be at schema version {version} after the plan's changes, and the release needs "
            f"{plan.schema_floor}. Has the file been exchanged?",
        )
    return lacking


def label_of(change: wire.PlannedChange) -> str:
    """Return what messages call a schema change."""
    revision = f", revision {change.revision}" if change.revision > 1 else ""
    return f"schema change {change.number} ({change.name}{revision})"


def stored_steps(opened: LibsqlDatabase) -> list[StepRow]:
    """Return the steps of all changes that the file stores, with the progress of each."""
    return opened.read(StepRow, _READ_STEPS) if opened.read(NumberRow, _HAS_STEPS)[0].value else []


@contextlib.contextmanager
def _failing_as_sync(opened: LibsqlDatabase) -> Iterator[None]:
    """Turn an unhandled error of libsql in the block into a SyncFailed, and roll back.

    Raises: SyncFailed, for such an error.
    """
    try:
        yield
    except ValueError as error:
        raise failure_of_libsql(opened, "The steps of schema changes can't be run", error) from None


def advance(opened: LibsqlDatabase, order: frames.Advance, tell: Tell, around: Around = around_nothing) -> None:
    """Run the steps before the flip of the plan's first change, after the rest of the steps after earlier flips.

    Raises: SyncFailed, when one fails. Earlier work stays, and the next attempt continues from there.
    """
    finish(opened, tell, around)
    with _failing_as_sync(opened):
        with transaction(opened):
            lacking = to_apply(opened, order.plan, afresh=False)
            undo_given_up(opened, order.plan)
            if not lacking or (steps := _steps_of(opened, lacking[0])) is None:
                return
            change = lacking[0]
            if all(row.number != change.number for row in stored_steps(opened)):
                _store_steps(opened, change, steps)
        for row in stored_steps(opened):
            if row.number == change.number and row.stage == "before" and not row.done:
                with around(row.number):
                    _run_step(opened, row, f"{label_of(change)}, {steps.title(row.step)}", tell, order)


def finish(opened: LibsqlDatabase, tell: Tell, around: Around = around_nothing) -> None:
    """Run the steps after the flips of the changes that the file has. Raises: SyncFailed, when one fails."""
    with _failing_as_sync(opened):
        opened.lock.acquire()
        try:
            drop_uncommitted(opened)
        finally:
            opened.lock.release()
        applied = applied_changes(opened)
        for row in stored_steps(opened):
            if row.stage == "after" and not row.done and row.number in applied:
                with around(row.number):
                    _run_step(opened, row, f"schema change {row.number} ({row.name}), step {row.step}", tell)
        _check_foreign_keys(opened, applied, tell)
        _forget_done(opened, applied)


def finish_at_once(opened: LibsqlDatabase, access_rules: AccessRules) -> None:
    """Run the rest of the steps after earlier flips, all at once, in the open transaction.

    Raises: SyncFailed, when one fails.
    """
    applied = applied_changes(opened)
    for row in stored_steps(opened):
        if row.stage == "after" and row.number in applied:
            if not row.done:
                _run_step_at_once(
                    opened, access_rules, row, f"schema change {row.number} ({row.name}), step {row.step}"
                )
            opened.rows(_DELETE_STEPS, (row.number,))


def undo_given_up(opened: LibsqlDatabase, plan: wire.Plan) -> None:
    """Undo the steps of unapplied changes that the plan no longer has, or has with another text.

    This happens in the open transaction. Raises: SyncFailed, when that fails.
    """
    applied = applied_changes(opened)
    planned = {(change.number, change.checksum) for change in plan.schema_changes}
    for row in stored_steps(opened):
        if row.step == 0 and row.number not in applied and (row.number, row.checksum) not in planned:
            mine = [other for other in stored_steps(opened) if other.number == row.number]
            begun = any(other.done or other.after is not None for other in mine)
            if begun and tokenize(row.sql):
                label = f"schema change {row.number} ({row.name}), undone as it was amended or given up"
                _run_statements(opened, AccessRules.read(opened), row.sql, label)
                schema.record(opened)
                opened.rows(_SCHEMA_MOVED)
            opened.rows(_DELETE_STEPS, (row.number,))


def flip(opened: LibsqlDatabase, access_rules: AccessRules, change: wire.PlannedChange, tell: Tell) -> None:
    """Run the rest of a change in the release's open transaction.

    It is the whole change if it has no steps, or none was run ahead. Raises: SyncFailed, when a statement fails.
    """
    label = label_of(change)
    steps = _steps_of(opened, change)
    if steps is None:
        _run_statements(opened, access_rules, change.sql, label, tell)
        return
    rows = {row.step: row for row in stored_steps(opened) if row.number == change.number}
    for number, step in steps.of("before"):
        row = rows.get(number) or _row(change, number, step)
        if not row.done:
            tell(f"{label}, {steps.title(number)}")
            _run_step_at_once(opened, access_rules, row, f"{label}, {steps.title(number)}")
    if tokenize(steps.flip):
        with run_change.exchanging_tables(opened):
            _run_statements(opened, access_rules, steps.flip, label, tell)
    if not rows:
        _store_steps(opened, change, steps)
    opened.rows(_DELETE_STEPS_BEFORE, (change.number,))


def _steps_of(opened: LibsqlDatabase, change: wire.PlannedChange) -> ChangeSteps | None:
    """Return the steps of a change; None if it has none. Raises: SyncFailed, when they are malformed."""
    try:
        return schema_change.steps_of(change.sql)
    except SchemaChangeRefused as refused:
        raise failure_of_change(opened, label_of(change), refused) from None


def _row(change: wire.PlannedChange, number: int, step: ChangeStep) -> StepRow:
    return StepRow(
        change.number,
        number,
        change.name,
        change.checksum,
        step.stage,
        step.table,
        step.key,
        step.sql,
        None,
        None,
        None,
        0,
    )


def _store_steps(opened: LibsqlDatabase, change: wire.PlannedChange, steps: ChangeSteps) -> None:
    """Write a change's steps to the file, none of them done."""
    opened.rows(_MAKE_STEPS)
    undo = StepRow(change.number, 0, change.name, change.checksum, "undo", "", "", steps.undo, None, None, None, 0)
    for row in [undo, *(_row(change, number, step) for number, step in enumerate(steps.steps, 1))]:
        opened.rows(_INSERT_STEP, row[:8])
    # The table is closed to guests once workers look at the schema again.
    opened.rows(_SCHEMA_MOVED)


def _run_step(
    opened: LibsqlDatabase, row: StepRow, label: str, tell: Tell, order: frames.Advance | None = None
) -> None:
    """Run the rest of a step, in its own transactions.

    If it has a single one and there is an `order`, the probes of the serving release must pass in it.

    Raises: SyncFailed, when the step or a probe fails.
    """
    access_rules = AccessRules.read(opened)
    try:
        run_change.spare_the_log(opened, label, tell)
        if row.target:
            # A power loss may undo the last batches, with their progress.
            opened.rows("PRAGMA synchronous = NORMAL")
            try:
                run_change.run_in_batches(opened, access_rules, row, tell)
            finally:
                opened.rows("PRAGMA synchronous = FULL")
            return
        with transaction(opened):
            _run_statements(opened, access_rules, row.sql, label, tell)
            if order is not None:
                _probe_serving(opened, label, order, tell)
            schema.record(opened)
            opened.rows(_SCHEMA_MOVED)
            opened.rows(_END_STEP, (row.number, row.step))
            faults.reach("edge.step.before")
        faults.reach("edge.step.after")
    except SchemaChangeRefused as refused:
        raise failure_of_change(opened, label, refused) from None
    except ValueError as error:
        raise SyncFailed(code_of(str(error), "apply_failed"), f"In {label}: {error}.") from None


def _run_step_at_once(opened: LibsqlDatabase, access_rules: AccessRules, row: StepRow, label: str) -> None:
    """Run the rest of a step at once, in the open transaction. Raises: SyncFailed."""
    if not row.target:
        _run_statements(opened, access_rules, row.sql, label)
        return
    try:
        step = ChangeStep("before", row.sql, row.target, row.key)
        run_change.run_step_at_once(opened, access_rules, step, (row.after, row.bound))
    except SchemaChangeRefused as refused:
        raise failure_of_change(opened, label, refused) from None


def _run_statements(
    opened: LibsqlDatabase, access_rules: AccessRules, sql: str, label: str, tell: Tell = lambda _: None
) -> None:
    """Run statements in the open transaction. Raises: SyncFailed, when one fails or isn't allowed."""
    before = schema.own(opened)
    try:
        run_change.run_statements(
            opened, access_rules, sql, lambda statement: tell(f"{label}, statement: {_shown(statement)}")
        )
    except SchemaChangeRefused as refused:
        raise failure_of_change(opened, label, refused) from None
    if schema.own(opened) != before:
        raise SyncFailed("schema_closed", f"{label} touches the runtime's own tables; amend it.")


def _probe_serving(opened: LibsqlDatabase, label: str, order: frames.Advance, tell: Tell) -> None:
    """Check that the serving release works after a step. Raises: SyncFailed, when one of its probes fails."""
    for function in order.serving:
        if function.manifest.probe is not None:
            tell(f"the probe of the function {function.name}")
            try:
                probe_call.check(opened, order.generation, function, order.secrets.get(function.name, {}))
            except SyncFailed as failed:
                after = f"After {label}, under the release that serves until the flip:"
                again = SyncFailed(failed.code, f"{after} {failed.message}")
                again.brief = failed.brief and f"{after} {failed.brief}"
                raise again from None


def _check_foreign_keys(opened: LibsqlDatabase, applied: Mapping[int, object], tell: Tell) -> None:
    """Check the rows that the steps after a flip may have left without a parent, once all these steps are done.

    The flip itself checks the rows that it may have left. Raises: SyncFailed, at each attempt until the rows are fixed.
    """
    done = [row for row in stored_steps(opened) if row.number in applied and row.stage == "after"]
    for number in sorted({row.number for row in done}):
        mine = [row for row in done if row.number == number]
        label = f"schema change {number} ({mine[0].name})"
        tell(f"{label}, the check of foreign keys")
        names = schema.touched([row.sql for row in mine], schema.definitions(opened))
        if orphans := schema.orphans(opened, schema.references(opened, names)):
            raise SyncFailed(
                "foreign_key_violation",
                f"After the steps of {label}, {orphans} Mend the rows (`skerry-edge sql --write`), or register a "
                "change that does.",
            )


def _forget_done(opened: LibsqlDatabase, applied: Mapping[int, object]) -> None:
    """Delete the steps of finished changes."""
    rows = [row for row in stored_steps(opened) if row.number in applied]
    numbers = {row.number for row in rows} - {row.number for row in rows if row.stage == "after" and not row.done}
    if numbers:
        with transaction(opened):
            for number in numbers:
                opened.rows(_DELETE_STEPS, (number,))


def drop_uncommitted(opened: LibsqlDatabase) -> None:
    """Make sure that a power loss leaves the file's current state, or the next commit, and never an earlier attempt.

    The caller holds the writer lock. Raises: SyncFailed, when the log can't be written.
    """
    try:
        opened.drop_uncommitted()
    except OSError as error:
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
        raise SyncFailed(code, f"The write-ahead log can't be written: {error}. Look at the disk.") from None


@contextlib.contextmanager
def transaction(opened: LibsqlDatabase) -> Iterator[None]:
    """Run the block under the writer lock in a transaction, which is committed at its end.

    Raises: SyncFailed, when the COMMIT fails.
    """
    opened.lock.acquire()
    try:
        opened.rows("BEGIN IMMEDIATE")
        yield
        try:
            opened.rows("COMMIT")
        except ValueError as error:
            code, text = failed_commit(opened, error)
            raise SyncFailed("disk_failed" if code == frames.COMMIT_UNKNOWN else code, text) from None
    finally:
        opened.rollback()


def failure_of_change(opened: LibsqlDatabase, label: str, refused: SchemaChangeRefused) -> SyncFailed:
    """Roll back, and return the sync's failure for a refused change. `label` names the change or the step."""
    statement = refused.statement
    at = f" Statement: {_shown(statement)}" if statement else ""
    more = ""
    if refused.code in run_change.SHORTAGES.values():
        log_bytes = _written(opened)
        opened.rollback()
        more = f" {_shortage(opened, refused.code, statement, log_bytes)}"
    opened.rollback()
    code = "schema_change_failed" if refused.code == "schema_invalid" else refused.code
    return SyncFailed(code, f"In {label}: {refused}{more}{at}")


def failure_of_libsql(opened: LibsqlDatabase, what: str, error: ValueError) -> SyncFailed:
    """Roll back, and return the sync's failure for an error of libsql outside a change's statements.

    `what` is what can't be done.
    """
    opened.rollback()
    code = run_change.code_of_shortage(opened, error) or code_of(str(error), "apply_failed")
    return SyncFailed(code, f"{what}: {error}.")


def _shown(statement: str) -> str:
    """Return a statement as messages show it: its first characters."""
    return statement if len(statement) <= _SHOWN else statement[:_SHOWN] + " …"


def _written(opened: LibsqlDatabase) -> int:
    """Return the bytes of the open transaction that are already in the write-ahead log's file; 0 if unknown."""
    try:
        return 0 if opened.path is None else wal.uncommitted(opened.path)
    except OSError:
        return 0


def _shortage(opened: LibsqlDatabase, code: str, statement: str, log_bytes: int) -> str:
    """Return what ran out, how much there is, and what to do.

    The transaction has been rolled back; `log_bytes` is what `_written` returned before that.

    The size of a table doesn't decide how much memory a statement takes: what doesn't fit goes to temporary files. So
    single rows or values can exhaust the memory, and whole tables the disk.
    """
    table, size = _largest(opened, statement)
    has = f" The table {table} has {_mib(size)}." if table else ""
    if code == "apply_out_of_memory":
        return (
            f"SQLite needed more than {_mib(HEAP_BYTES)} of memory for this statement, as for rows or values of many "
            f"MiB.{has} Have the change take less at a time: fewer or shorter values in one statement."
        )
    if opened.path is None:
        return f"The database has no room for this statement.{has}"
    room = f"{_mib(free_bytes(opened.path.parent))} are free on the disk of {opened.path.parent}"
    wrote = f"the change had written {_mib(log_bytes)} to the write-ahead log, beside temporary files"
    if code == "disk_full":
        return (
            f"The disk had no room for this statement: when it ended, {wrote}; now that all is undone, {room}.{has} An "
            "index, or a change of all rows, can take three times the table's size for a while. Free some space, then "
            "`skerry node retry` or wait for the next attempt."
        )
    if code == "apply_disk_limit":
        return (
            f"This statement needs a file of more than {_mib(fence.FILE_BYTES)}, which no process of the node may "
            f"write: when it ended, {wrote}.{has} Split the change, or change the table in batches."
        )
    return f"The disk failed this statement: when it ended, {wrote}; {room}.{has} Look at the disk (`dmesg`)."


def _largest(opened: LibsqlDatabase, statement: str) -> tuple[str, int]:
    """Return the largest of the tables that a statement names, and its bytes; an empty name if there is none."""
    try:
        words = {name(token) for token in tokenize(statement)}
        named = [row.name for row in opened.read(NameRow, _TABLE_NAMES) if row.name.lower() in words]
        sizes = [(opened.read(NumberRow, _TABLE_BYTES, (table,))[0].value, table) for table in named]
    except ValueError:
        # The disk may fail here too.
        return "", 0
    size, table = max(sizes, default=(0, ""))
    return table, size


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
