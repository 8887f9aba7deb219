"""Runs the steps of a schema change that aren't part of a release's transaction (`sql.change_steps`).

Those before the flip run under the release that serves; a file keeps which of them are done, each in the transaction
that did it. Only the first change that a file lacks can go ahead so: later ones build on what the flip will bring. What
hasn't run ahead runs in the flip, wholly, as on a node that was offline or is new.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from control.protocol import faults, wire
from edge_runtime.children import change_failures, plan_history, probe_call
from edge_runtime.children.transactions import drop_uncommitted, transaction
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.sql import batches, schema_change, schema_record, unrolled_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.change_steps import ChangeStep, ChangeSteps
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import NumberRow, StepRow, load
from edge_runtime.sql.schema_change import SchemaChangeRefused
from edge_runtime.sql.session import code_of
from edge_runtime.sql.tokenizer import tokenize

Tell = Callable[[str], None]

_MAKE: Final = load("make_steps")
_HAS: Final = load("has_steps")
_READ: Final = load("read_steps")
_INSERT: Final = load("insert_step")
_END: Final = load("end_step")
_DELETE: Final = load("delete_steps")
_DELETE_BEFORE: Final = load("delete_steps_before")
_SCHEMA_MOVED: Final = load("schema_moved")


def stored(opened: LibsqlDatabase) -> list[StepRow]:
    """Return the steps that the file keeps, of all changes."""
    return opened.read(StepRow, _READ) if opened.read(NumberRow, _HAS)[0].value else []


@contextlib.contextmanager
def _judged(opened: LibsqlDatabase) -> Iterator[None]:
    """Undo what is open at an error of libsql that nothing in the block has judged. Raises: SyncFailed, for it."""
    try:
        yield
    except ValueError as error:
        raise change_failures.of_libsql(opened, "The steps of schema changes can't be run", error) from None


def advance(opened: LibsqlDatabase, order: frames.Advance, tell: Tell) -> None:
    """Run the steps that come before the flip of the plan's first change, and those after the flips of earlier ones.

    Raises: SyncFailed, when one fails; what was done before it stays, and is gone on from.
    """
    finish(opened, tell)
    with _judged(opened):
        with transaction(opened):
            lacking = plan_history.to_apply(opened, order.plan, afresh=False)
            give_up(opened, order.plan)
            if not lacking or (steps := parse(opened, lacking[0])) is None:
                return
            change = lacking[0]
            if all(row.number != change.number for row in stored(opened)):
                _keep(opened, change, steps)
        for row in stored(opened):
            if row.number == change.number and row.stage == "before" and not row.done:
                _run(opened, row, f"{plan_history.label_of(change)}, {steps.title(row.step)}", tell, order)


def finish(opened: LibsqlDatabase, tell: Tell) -> None:
    """Run the steps that come after the flips of changes that the file has. Raises: SyncFailed, when one fails."""
    with _judged(opened):
        opened.lock.acquire()
        try:
            drop_uncommitted(opened)
        finally:
            opened.lock.release()
        applied = plan_history.applied(opened)
        for row in stored(opened):
            if row.stage == "after" and not row.done and row.number in applied:
                _run(opened, row, f"schema change {row.number} ({row.name}), step {row.step}", tell)
        _check_foreign_keys(opened, applied, tell)
        _forget_done(opened, applied)


def complete(opened: LibsqlDatabase, access_rules: AccessRules) -> None:
    """Run the steps after earlier flips that are left, at once, in the transaction that is open.

    Raises: SyncFailed, when one fails.
    """
    applied = plan_history.applied(opened)
    for row in stored(opened):
        if row.stage == "after" and row.number in applied:
            if not row.done:
                _whole(opened, access_rules, row, f"schema change {row.number} ({row.name}), step {row.step}")
            opened.rows(_DELETE, (row.number,))


def give_up(opened: LibsqlDatabase, plan: wire.Plan) -> None:
    """Take back the steps of changes that the file lacks and the plan has no more, or with another text, in the
    transaction that is open. Raises: SyncFailed, when that fails."""
    applied = plan_history.applied(opened)
    planned = {(change.number, change.checksum) for change in plan.schema_changes}
    for row in stored(opened):
        if row.step == 0 and row.number not in applied and (row.number, row.checksum) not in planned:
            mine = [other for other in stored(opened) if other.number == row.number]
            begun = any(other.done or other.after is not None for other in mine)
            if begun and tokenize(row.sql):
                label = f"schema change {row.number} ({row.name}), undone as it was amended or given up"
                _plain(opened, AccessRules.read(opened), row.sql, label)
                schema_record.record(opened)
                opened.rows(_SCHEMA_MOVED)
            opened.rows(_DELETE, (row.number,))


def flip(opened: LibsqlDatabase, access_rules: AccessRules, change: wire.PlannedChange, tell: Tell) -> None:
    """Run what is left of a change for the release's transaction, which is open: all of it where it has no steps, or
    none was run ahead. Raises: SyncFailed, when a statement fails."""
    label = plan_history.label_of(change)
    steps = parse(opened, change)
    if steps is None:
        _plain(opened, access_rules, change.sql, label, tell)
        return
    rows = {row.step: row for row in stored(opened) if row.number == change.number}
    for number, step in steps.of("before"):
        row = rows.get(number) or _row(change, number, step)
        if not row.done:
            tell(f"{label}, {steps.title(number)}")
            _whole(opened, access_rules, row, f"{label}, {steps.title(number)}")
    if tokenize(steps.flip):
        with unrolled_change.renaming_alone(opened):
            _plain(opened, access_rules, steps.flip, label, tell)
    if not rows:
        _keep(opened, change, steps)
    opened.rows(_DELETE_BEFORE, (change.number,))


def parse(opened: LibsqlDatabase, change: wire.PlannedChange) -> ChangeSteps | None:
    """Return the steps of a change. Raises: SyncFailed, when its text has none that can be."""
    try:
        return unrolled_change.steps_of(change.sql)
    except SchemaChangeRefused as refused:
        raise change_failures.of_change(opened, plan_history.label_of(change), refused) from None


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


def _keep(opened: LibsqlDatabase, change: wire.PlannedChange, steps: ChangeSteps) -> None:
    """Keep a change's steps in the file, none of them done."""
    opened.rows(_MAKE)
    undo = StepRow(change.number, 0, change.name, change.checksum, "undo", "", "", steps.undo, None, None, None, 0)
    for row in [undo, *(_row(change, number, step) for number, step in enumerate(steps.steps, 1))]:
        opened.rows(_INSERT, row[:8])
    # The table is closed to guests once workers look at the schema again.
    opened.rows(_SCHEMA_MOVED)


def _run(opened: LibsqlDatabase, row: StepRow, label: str, tell: Tell, order: frames.Advance | None = None) -> None:
    """Run what is left of a step; after one in a single transaction the probes of the release that serves must pass.

    Raises: SyncFailed, when it fails.
    """
    access_rules = AccessRules.read(opened)
    try:
        batches.spare_the_log(opened, label, tell)
        if row.target:
            # A loss of power may undo the last batches, with their progress.
            opened.rows("PRAGMA synchronous = NORMAL")
            try:
                batches.run(opened, access_rules, row, tell)
            finally:
                opened.rows("PRAGMA synchronous = FULL")
            return
        with transaction(opened):
            _plain(opened, access_rules, row.sql, label, tell)
            if order is not None:
                _probe_serving(opened, label, order, tell)
            schema_record.record(opened)
            opened.rows(_SCHEMA_MOVED)
            opened.rows(_END, (row.number, row.step))
            faults.reach("edge.step.before")
        faults.reach("edge.step.after")
    except SchemaChangeRefused as refused:
        raise change_failures.of_change(opened, label, refused) from None
    except ValueError as error:
        raise SyncFailed(code_of(str(error), "apply_failed"), f"In {label}: {error}.") from None


def _whole(opened: LibsqlDatabase, access_rules: AccessRules, row: StepRow, label: str) -> None:
    """Run what is left of a step at once, in the transaction that is open. Raises: SyncFailed."""
    if not row.target:
        _plain(opened, access_rules, row.sql, label)
        return
    try:
        step = ChangeStep("before", row.sql, row.target, row.key)
        batches.whole(opened, access_rules, step, (row.after, row.bound))
    except SchemaChangeRefused as refused:
        raise change_failures.of_change(opened, label, refused) from None


def _plain(
    opened: LibsqlDatabase, access_rules: AccessRules, sql: str, label: str, tell: Tell = lambda _: None
) -> None:
    """Run statements in the transaction that is open. Raises: SyncFailed, when one fails or may not be run."""
    before = schema_change.own(opened)
    try:
        schema_change.run(
            opened, access_rules, sql, lambda statement: tell(f"{label}, statement: {change_failures.shown(statement)}")
        )
    except SchemaChangeRefused as refused:
        raise change_failures.of_change(opened, label, refused) from None
    if schema_change.own(opened) != before:
        raise SyncFailed("schema_closed", f"{label} touches the runtime's own tables; amend it.")


def _probe_serving(opened: LibsqlDatabase, label: str, order: frames.Advance, tell: Tell) -> None:
    """Check that the release that serves goes on with what a step did. Raises: SyncFailed, when it doesn't."""
    for function in order.serving:
        probe = function.manifest.probe
        if probe is not None:
            tell(f"the probe of the function {function.name}")
            try:
                probe_call.run(opened, order.generation, function, probe, order.secrets.get(function.name, {}))
            except SyncFailed as failed:
                text = f"After {label}, under the release that serves until the flip: {failed.message}"
                raise SyncFailed(failed.code, text) from None


def _check_foreign_keys(opened: LibsqlDatabase, applied: Mapping[int, object], tell: Tell) -> None:
    """Check the rows that the steps after a flip can have left without a parent, once all of them are done: what the
    flip could leave was checked there. Raises: SyncFailed, also at each later attempt until the rows are mended."""
    done = [row for row in stored(opened) if row.number in applied and row.stage == "after"]
    for number in sorted({row.number for row in done}):
        mine = [row for row in done if row.number == number]
        label = f"schema change {number} ({mine[0].name})"
        tell(f"{label}, the check of foreign keys")
        names = schema_change.touched([row.sql for row in mine], schema_change.definitions(opened))
        if orphans := schema_change.orphans(opened, schema_change.references(opened, names)):
            raise SyncFailed(
                "foreign_key_violation",
                f"After the steps of {label}, {orphans} Mend the rows (`skerry-edge sql --write`), or register a "
                "change that does.",
            )


def _forget_done(opened: LibsqlDatabase, applied: Mapping[int, object]) -> None:
    """Delete the steps of changes of which nothing is left to be done."""
    rows = [row for row in stored(opened) if row.number in applied]
    numbers = {row.number for row in rows} - {row.number for row in rows if row.stage == "after" and not row.done}
    if numbers:
        with transaction(opened):
            for number in numbers:
                opened.rows(_DELETE, (number,))
