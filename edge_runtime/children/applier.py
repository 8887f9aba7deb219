"""The applier: a process that applies a release to the libsql file, in one transaction.

`prepare` does everything but the COMMIT, which waits until the front asks for it. Whatever fails or kills the process
before leaves the old release. Foreign keys aren't enforced meanwhile (rebuilding a parent table would empty its
children), but are checked at the end.
"""

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import faults, wire
from edge_runtime.children import change_failures, probe_call, stepwise
from edge_runtime.children.plan_history import label_of, to_apply
from edge_runtime.children.transactions import drop_uncommitted
from edge_runtime.disk_space import DISK_RESERVE, fits
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, row_counts, schema_change, schema_record
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import DatabaseOpenError, LibsqlDatabase
from edge_runtime.sql.queries import NumberRow, load
from edge_runtime.sql.session import failed_commit

NONE: Final[Mapping[str, Mapping[str, str]]] = {}
_INSERT_CHANGE: Final = load("insert_change")
_DELETE_FUNCTIONS: Final = load("delete_functions")
_INSERT_FUNCTION: Final = load("insert_function")
_WRITE_RELEASE: Final = load("write_release")

_decode_apply: Final = msgspec.json.Decoder(frames.Apply).decode
_decode_try: Final = msgspec.json.Decoder(frames.Try).decode
_decode_advance: Final = msgspec.json.Decoder(frames.Advance).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, settings: frames.ChildSettings) -> None:
    """Do what the front asks for until it closes the socket; what isn't committed then is undone."""
    try:
        # A release must be on disk once it is applied, whatever the setting for calls is.
        opened = database.connect_until_exit(Path(settings.state) / database.FILE, "FULL", foreign_keys=False)
    except (DatabaseOpenError, OSError) as error:
        code = error.code if isinstance(error, DatabaseOpenError) else "database_unfit"
        frames.send_json(sock, 0, frames.FAILED, frames.ChildFailure(code, f"{error}."))
        return
    opened.rows(f"PRAGMA hard_heap_limit = {change_failures.HEAP_BYTES}")
    opened.wal_limit = settings.wal_limit
    fence.limit_files(fence.FILE_BYTES)
    opened.file_limit_was_hit = fence.file_limit_was_hit
    fence.seal("applier", opened.lock.fileno())
    reader, tried = FrameReader(sock), probe_call.TriedFunctions()
    while (frame := reader.next()) is not None:
        try:
            match frame.kind:
                case frames.REHEARSE:
                    _rehearse(opened)
                case frames.TRY:
                    _try(sock, _decode_try(frame.body), tried)
                case frames.APPLY:
                    order = _decode_apply(frame.body)
                    tell = functools.partial(_tell, sock, frame.request)
                    prepared = prepare(
                        opened, order.plan, order.functions, order.secrets, tell, tried, afresh=order.afresh
                    )
                    frames.send_json(sock, frame.request, frames.PREPARED, prepared)
                case frames.ADVANCE:
                    stepwise.advance(opened, _decode_advance(frame.body), functools.partial(_tell, sock, frame.request))
                    frames.send(sock, frame.request, frames.DONE)
                case frames.FINISH:
                    stepwise.finish(opened, functools.partial(_tell, sock, frame.request))
                    frames.send(sock, frame.request, frames.DONE)
                case frames.COMMIT:
                    commit(opened)
                    frames.send(sock, frame.request, frames.COMMITTED)
                case frames.COUNT:
                    counts = row_counts.count(opened)
                    counted = frames.Counted(counts, row_counts.estimates(opened, counts))
                    frames.send_json(sock, frame.request, frames.COUNTED, counted)
                case frames.ABORT:
                    opened.rollback()
                    frames.send(sock, frame.request, frames.ABORTED)
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no applier knows")
        except SyncFailed as failed:
            frames.send_json(sock, frame.request, frames.FAILED, frames.ChildFailure(failed.code, failed.message))


def _rehearse(opened: LibsqlDatabase) -> None:
    """Read what `prepare` reads of any release, so that it finds the schema read and the statements' code mapped."""
    with contextlib.suppress(ValueError):
        # Whatever fails here fails the release, too, which then says so.
        schema_change.definitions(opened)
        schema_record.is_recorded(opened)
        stepwise.stored(opened)
        AccessRules.read(opened)
        database.inventory(opened)


def _try(sock: socket.socket, order: frames.Try, tried: probe_call.TriedFunctions) -> None:
    """Load one function after the other, and tell the memory that each takes. Raises: SyncFailed, at the first that
    can't be loaded."""
    for local in order.functions:
        tried.load(
            local,
            order.secrets.get(local.name, {}),
            lambda need: frames.send_json(sock, 0, frames.TRIED, frames.Tried(need)),
        )


def _tell(sock: socket.socket, request: int, doing: str) -> None:
    """Tell the front what is about to be done, which it says if that takes too long."""
    frames.send(sock, request, frames.APPLYING, b"", doing.encode())


def _no_one(_: str) -> None:
    """Nobody asks what is being done."""


def prepare(
    opened: LibsqlDatabase,
    plan: wire.Plan,
    functions: list[LocalFunction],
    secrets: Mapping[str, Mapping[str, str]] = NONE,
    tell: Callable[[str], None] = _no_one,
    tried: probe_call.TriedFunctions | None = None,
    *,
    afresh: bool = False,
) -> wire.Inventory:
    """Bring the file to the plan's release, all but the COMMIT; return the inventory that the node then has.

    `secrets` and `afresh` are as in `frames.Apply`; `opened` has foreign_keys OFF; `tell` is called with what is about
    to be done, for people; `tried` has functions that are loaded already. The writer lock is held until `commit` or
    `rollback`.

    Raises: SyncFailed, when the release can't be applied; everything is undone then.
    """
    faults.reach("edge.apply.before")
    try:
        opened.lock.acquire()
        drop_uncommitted(opened)
        opened.rows("BEGIN IMMEDIATE")
        changes = to_apply(opened, plan, afresh)
        _check_functions(plan, functions)
        texts = [change.sql for change in changes] + [row.sql for row in stepwise.stored(opened)]
        before = schema_change.definitions(opened)
        stepwise.give_up(opened, plan)
        _apply(opened, changes, tell)
        _record(opened, plan, changes, functions)
        if changes:
            tell("the check of foreign keys")
            _check_foreign_keys(opened, schema_change.touched(texts, [*before, *schema_change.definitions(opened)]))
        for function in functions:
            if function.manifest.probe is not None:
                tell(f"the probe of the function {function.name}")
                given = secrets.get(function.name, {})
                probe_call.run(opened, plan.generation, function, function.manifest.probe, given, tried)
        inventory = database.inventory(opened)
    except BaseException as error:
        opened.rollback()
        if isinstance(error, ValueError):
            # Those of schema changes and probes are handled where they are run.
            raise change_failures.of_libsql(opened, "The release can't be applied", error) from None
        raise
    faults.reach("edge.apply.after")
    return inventory


def commit(opened: LibsqlDatabase) -> None:
    """Commit the prepared release.

    Raises: SyncFailed, when that fails; everything is undone then, unless the code is `frames.COMMIT_UNKNOWN`.
    """
    if not opened.in_transaction:
        raise SyncFailed("apply_failed", "There is no prepared release to commit.")
    faults.reach("edge.commit.before")
    try:
        opened.rows("COMMIT")
    except ValueError as error:
        code, text = failed_commit(opened, error)
        opened.rollback()
        raise SyncFailed(code, f"The release's {text}") from None
    opened.lock.release()
    faults.reach("edge.commit.after")


def _check_functions(plan: wire.Plan, functions: list[LocalFunction]) -> None:
    planned = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in plan.functions)
    given = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in functions)
    if planned != given:
        raise SyncFailed("plan_invalid", "The functions that were made ready are not those of the plan.")


def _apply(opened: LibsqlDatabase, changes: list[wire.PlannedChange], tell: Callable[[str], None]) -> None:
    if not changes:
        return
    access_rules = AccessRules.read(opened)
    stepwise.complete(opened, access_rules)
    for change in changes:
        stepwise.flip(opened, access_rules, change, tell)
        _check_room(opened, change)


def _check_foreign_keys(opened: LibsqlDatabase, names: Set[str]) -> None:
    """Check the rows that the change of tables with these names can have left without a parent; other tables aren't
    read, as writers wait meanwhile."""
    if orphans := schema_change.orphans(opened, schema_change.references(opened, names)):
        raise SyncFailed("foreign_key_violation", f"After the schema changes, {orphans} Amend the change.")


def _check_room(opened: LibsqlDatabase, change: wire.PlannedChange) -> None:
    """Check that the disk has room for a change in the database file, too: it is only in the log so far, and a
    checkpoint must be able to move it."""
    if opened.path is None:
        return
    pages = opened.read(NumberRow, "PRAGMA page_count")[0].value
    page_bytes = opened.read(NumberRow, "PRAGMA page_size")[0].value
    needed = pages * page_bytes - opened.path.stat().st_size
    disk = os.statvfs(opened.path.parent)
    free = disk.f_bavail * disk.f_frsize
    if not fits(needed, free):
        raise SyncFailed(
            "disk_full",
            f"After {label_of(change)} the database needs {needed >> 20} MiB more, and a reserve of "
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
    if changes or not schema_record.is_recorded(opened):
        schema_record.record(opened)
    # As text: libsql would bind a generation above 31 bits as a REAL.
    opened.rows(_WRITE_RELEASE, (plan.release_id, plan.release_number, str(plan.generation), now))
