"""A release's one transaction in the libsql file: it is prepared, then committed.

If anything fails before that, such as a function's probe, it is undone, and the old release keeps serving. Foreign keys
aren't enforced meanwhile (rebuilding a parent table would empty its children), but are checked at the end.
"""

from collections.abc import Mapping, Set
from typing import Final

from control.protocol import faults, wire
from edge_runtime.children import apply_changes, probe_call
from edge_runtime.children.apply_changes import Around, Tell
from edge_runtime.disk_space import DISK_RESERVE, fits
from edge_runtime.errors import SyncFailed
from edge_runtime.files import free_bytes
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sql import database, schema, ticks
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import FunctionRow, NumberRow, load
from edge_runtime.sql.session import failed_commit

NONE: Final[Mapping[str, Mapping[str, str]]] = {}
_INSERT_CHANGE: Final = load("insert_change")
_DELETE_FUNCTIONS: Final = load("delete_functions")
_READ_FUNCTIONS: Final = load("read_functions")
_INSERT_FUNCTION: Final = load("insert_function")
_WRITE_RELEASE: Final = load("write_release")


def _no_one(_: str) -> None:
    """Tell nobody what is being done."""


def prepare(
    opened: LibsqlDatabase,
    plan: wire.Plan,
    functions: list[LocalFunction],
    secrets: Mapping[str, Mapping[str, str]] = NONE,
    tell: Tell = _no_one,
    tried: probe_call.TriedFunctions | None = None,
    *,
    afresh: bool = False,
    around: Around = apply_changes.around_nothing,
    at: float = 0.0,
) -> wire.Inventory:
    """Bring the file to the plan's release, except for the COMMIT; return the inventory that the node then has.

    `secrets`, `afresh` and `at` are as in `frames.Apply`; `opened` has foreign_keys OFF; `tell` is called with what is
    about to be done, for people; `tried` has functions that are already loaded; `around` is entered around each change.
    The writer lock is held until `commit` or `undo`.

    Raises: SyncFailed, when the release can't be applied; everything is then undone.
    """
    faults.reach("edge.apply.before")
    try:
        opened.lock.acquire()
        apply_changes.drop_uncommitted(opened)
        opened.rows("BEGIN IMMEDIATE")
        changes = apply_changes.to_apply(opened, plan, afresh)
        _check_functions(plan, functions)
        texts = [change.sql for change in changes] + [row.sql for row in apply_changes.stored_steps(opened)]
        before = schema.definitions(opened)
        apply_changes.undo_given_up(opened, plan)
        _apply(opened, changes, tell, around)
        versions = {row.name: row.version for row in opened.read(FunctionRow, _READ_FUNCTIONS)}
        ticks.follow(opened, functions, versions, at)
        _record(opened, plan, changes, functions)
        if changes:
            tell("the check of foreign keys")
            _check_foreign_keys(opened, schema.touched(texts, [*before, *schema.definitions(opened)]))
        for function in functions:
            if function.manifest.probe is not None:
                tell(f"the probe of the function {function.name}")
                probe_call.check(opened, plan.generation, function, secrets.get(function.name, {}), tried)
        inventory = database.inventory(opened)
    except BaseException as error:
        # A failed probe ends here too.
        undo(opened)
        if isinstance(error, ValueError):
            # Errors of schema changes and probes are handled where these are run.
            raise apply_changes.failure_of_libsql(opened, "The release can't be applied", error) from None
        raise
    faults.reach("edge.apply.after")
    return inventory


def commit(opened: LibsqlDatabase) -> None:
    """Commit the prepared release.

    Raises: SyncFailed, when that fails; everything is then undone, unless the code is `frames.COMMIT_UNKNOWN`.
    """
    if not opened.in_transaction:
        raise SyncFailed("apply_failed", "There is no prepared release to commit.")
    faults.reach("edge.commit.before")
    try:
        opened.rows("COMMIT")
    except ValueError as error:
        code, text = failed_commit(opened, error)
        undo(opened)
        raise SyncFailed(code, f"The release's {text}") from None
    opened.lock.release()
    faults.reach("edge.commit.after")


def undo(opened: LibsqlDatabase) -> None:
    """Undo everything that was prepared of the release, and release the writer lock."""
    opened.rollback()


def _check_functions(plan: wire.Plan, functions: list[LocalFunction]) -> None:
    planned = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in plan.functions)
    given = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in functions)
    if planned != given:
        raise SyncFailed("plan_invalid", "The functions that were made ready are not those of the plan.")


def _apply(opened: LibsqlDatabase, changes: list[wire.PlannedChange], tell: Tell, around: Around) -> None:
    if not changes:
        return
    access_rules = AccessRules.read(opened)
    apply_changes.finish_at_once(opened, access_rules)
    for change in changes:
        with around(change.number):
            apply_changes.flip(opened, access_rules, change, tell)
        _check_room(opened, change)


def _check_foreign_keys(opened: LibsqlDatabase, names: Set[str]) -> None:
    """Check the rows that changing the tables with these names may have left without a parent.

    Other tables aren't read, since writers wait meanwhile.
    """
    if orphans := schema.orphans(opened, schema.references(opened, names)):
        raise SyncFailed("foreign_key_violation", f"After the schema changes, {orphans} Amend the change.")


def _check_room(opened: LibsqlDatabase, change: wire.PlannedChange) -> None:
    """Check that the disk also has room for a change in the database file.

    So far it is only in the log, and a checkpoint must be able to move it.
    """
    if opened.path is None:
        return
    pages = opened.read(NumberRow, "PRAGMA page_count")[0].value
    page_bytes = opened.read(NumberRow, "PRAGMA page_size")[0].value
    needed = pages * page_bytes - opened.path.stat().st_size
    free = free_bytes(opened.path.parent)
    if not fits(needed, free):
        raise SyncFailed(
            "disk_full",
            f"After {apply_changes.label_of(change)} the database needs {needed >> 20} MiB more, and a reserve of "
            f"{DISK_RESERVE >> 20} MiB, but its disk has only {free >> 20} MiB free; free some space, then "
            "`skerry node retry` or wait for the next attempt.",
        )


def _record(
    opened: LibsqlDatabase, plan: wire.Plan, changes: list[wire.PlannedChange], functions: list[LocalFunction]
) -> None:
    now = database.now()
    for change in changes:
        opened.rows(_INSERT_CHANGE, (change.number, change.revision, change.name, change.checksum, now))
    opened.rows(_DELETE_FUNCTIONS)
    for function in functions:
        manifest = wire.canonical(function.manifest).decode()
        opened.rows(
            _INSERT_FUNCTION, (function.name, function.version, function.sha256, manifest, function.manifest_digest)
        )
    if changes or not schema.is_recorded(opened):
        schema.record(opened)
    # As text: libsql would bind a generation above 31 bits as a REAL.
    opened.rows(_WRITE_RELEASE, (plan.release_id, plan.release_number, str(plan.generation), now))
