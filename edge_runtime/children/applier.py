"""The applier: a process that applies a release to the libsql file, in one transaction.

`prepare` does everything but the COMMIT, which waits until the front asks for it. Whatever fails or kills the process
before leaves the old release. Foreign keys aren't enforced meanwhile (rebuilding a parent table would empty its
children), but are checked at the end.
"""

import errno
import functools
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from control import faults, wire
from edge_runtime.children.worker_services import Ungranted
from edge_runtime.disk_space import DISK_RESERVE, fits
from edge_runtime.errors import SyncFailed
from edge_runtime.guests import guest
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, row_counts, schema_change, schema_record, shortages
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.call_sql import ProbeSql, SqlLimits
from edge_runtime.sql.database import DatabaseOpenError, LibsqlDatabase
from edge_runtime.sql.queries import load
from edge_runtime.sql.rows import ChangeRow, NumberRow, ReleaseRow
from edge_runtime.sql.session import Session, code_of, failed_commit
from edge_runtime.wasmedge import Damaged, WasmEdgeError

HEAP_BYTES: Final = 48 * 1024 * 1024
"""Bytes of SQLite's memory in an applier. With what else it has it takes 64 MB at most, however large a table is: what
doesn't fit goes to temporary files."""
NONE: Final[Mapping[str, Mapping[str, str]]] = {}
NO_HTTP: Final = Ungranted("HTTP in a probe: a release's transaction can't wait for other servers")
_SHOWN: Final = 300
"""Characters of a statement or an answer that an error message shows."""

_READ_RELEASE: Final = load("read_release")
_READ_CHANGES: Final = load("read_changes")
_INSERT_CHANGE: Final = load("insert_change")
_DELETE_FUNCTIONS: Final = load("delete_functions")
_INSERT_FUNCTION: Final = load("insert_function")
_WRITE_RELEASE: Final = load("write_release")

_decode_apply: Final = msgspec.json.Decoder(frames.Apply).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, settings: frames.ChildSettings) -> None:
    """Do what the front asks for until it closes the socket; what isn't committed then is undone."""
    try:
        # A release must be on disk once it is applied, whatever the setting for calls is.
        opened = database.connect_until_exit(Path(settings.state) / database.FILE, "FULL", foreign_keys=False)
    except (DatabaseOpenError, OSError) as error:
        frames.send_json(sock, 0, frames.FAILED, frames.ChildFailure("database_unfit", str(error)))
        return
    opened.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    fence.limit_files(fence.FILE_BYTES)
    opened.file_limit_was_hit = fence.file_limit_was_hit
    fence.seal("applier", opened.lock.fileno())
    reader = frames.Reader(sock)
    while (frame := reader.next()) is not None:
        try:
            match frame.kind:
                case frames.APPLY:
                    order = _decode_apply(frame.body)
                    tell = functools.partial(_tell, sock, frame.request)
                    prepared = prepare(opened, order.plan, order.functions, order.secrets, tell, afresh=order.afresh)
                    frames.send_json(sock, frame.request, frames.PREPARED, prepared)
                case frames.COMMIT:
                    commit(opened)
                    frames.send(sock, frame.request, frames.COMMITTED)
                case frames.COUNT:
                    frames.send_json(sock, frame.request, frames.COUNTED, row_counts.count(opened))
                case frames.ABORT:
                    opened.rollback()
                    frames.send(sock, frame.request, frames.ABORTED)
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no applier knows")
        except SyncFailed as failed:
            frames.send_json(sock, frame.request, frames.FAILED, frames.ChildFailure(failed.code, failed.message))


def _tell(sock: socket.socket, request: int, doing: str) -> None:
    """Tell the front what is about to be done, which it says if that takes too long."""
    frames.send(sock, request, frames.APPLYING, b"", doing.encode())


def _tell_statement(tell: Callable[[str], None], of: str, statement: str) -> None:
    tell(f"{of}, statement: {_shown(statement)}")


def _no_one(_: str) -> None:
    """Nobody asks what is being done."""


def prepare(
    opened: LibsqlDatabase,
    plan: wire.Plan,
    functions: list[LocalFunction],
    secrets: Mapping[str, Mapping[str, str]] = NONE,
    tell: Callable[[str], None] = _no_one,
    *,
    afresh: bool = False,
) -> wire.Inventory:
    """Bring the file to the plan's release, all but the COMMIT; return the inventory that the node then has.

    `secrets` and `afresh` are as in `frames.Apply`; `opened` has foreign_keys OFF; `tell` is called with what is about
    to be done, for people. The writer lock is held until `commit` or `rollback`.

    Raises: SyncFailed, when the release can't be applied; everything is undone then.
    """
    faults.reach("edge.apply.before")
    try:
        opened.lock.acquire()
        _drop_uncommitted(opened)
        opened.rows("BEGIN IMMEDIATE")
        changes = _to_apply(opened, plan, afresh)
        _check_functions(plan, functions)
        _apply(opened, changes, tell)
        _record(opened, plan, changes, functions)
        if changes:
            tell("the check of foreign keys")
        if changes and (orphans := schema_change.orphans(opened)):
            raise SyncFailed("foreign_key_violation", f"After the schema changes, {orphans} Amend the change.")
        for function in functions:
            if function.manifest.probe is not None:
                tell(f"the probe of the function {function.name}")
                _probe(opened, plan.generation, function, function.manifest.probe, secrets.get(function.name, {}))
        inventory = database.inventory(opened)
    except BaseException as error:
        opened.rollback()
        if isinstance(error, ValueError):
            # An error of libsql; those of schema changes and probes are handled where they are run.
            code = shortages.code_of_shortage(opened, error) or code_of(str(error), "apply_failed")
            raise SyncFailed(code, f"The release can't be applied: {error}.") from None
        raise
    faults.reach("edge.apply.after")
    return inventory


def _drop_uncommitted(opened: LibsqlDatabase) -> None:
    """Make sure that a loss of power leaves what the file says now, or this release, but no earlier attempt."""
    try:
        opened.drop_uncommitted()
    except OSError as error:
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
        raise SyncFailed(code, f"The write-ahead log can't be written: {error}. Look at the disk.") from None


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


def _to_apply(opened: LibsqlDatabase, plan: wire.Plan, afresh: bool) -> list[wire.PlannedChange]:
    """Return the plan's schema changes that the file lacks. Those that it has must be the same ones.

    (It has them if the answer to an earlier COMMIT was lost.)
    """
    release = opened.read(ReleaseRow, _READ_RELEASE)
    if release and not afresh and plan.generation < release[0].generation:
        raise SyncFailed(
            "generation_lower",
            f"The plan is of generation {plan.generation}, and the file is at {release[0].generation} already; was "
            "control's metadata restored from a backup? Make a new release.",
        )
    applied = {number: (revision, checksum) for number, revision, checksum in opened.read(ChangeRow, _READ_CHANGES)}
    version = start = max(applied, default=0)
    lacking = []
    for change in plan.schema_changes:
        label = _label(change)
        if wire.schema_checksum(change.sql) != change.checksum:
            raise SyncFailed("schema_checksum_mismatch", f"The text of {label} is not what its checksum says.")
        if change.number > plan.schema_floor:
            raise SyncFailed(
                "plan_invalid", f"The plan has {label}, and its release ends at change {plan.schema_floor}."
            )
        if change.number in applied:
            revision, checksum = applied[change.number]
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


def _label(change: wire.PlannedChange) -> str:
    revision = f", revision {change.revision}" if change.revision > 1 else ""
    return f"schema change {change.number} ({change.name}{revision})"


def _check_functions(plan: wire.Plan, functions: list[LocalFunction]) -> None:
    planned = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in plan.functions)
    given = sorted((f.name, f.version, f.sha256, f.manifest_digest) for f in functions)
    if planned != given:
        raise SyncFailed("plan_invalid", "The functions that were made ready are not those of the plan.")


def _apply(opened: LibsqlDatabase, changes: list[wire.PlannedChange], tell: Callable[[str], None]) -> None:
    if not changes:
        return
    access_rules = AccessRules.read(opened)
    before = schema_change.own(opened)
    for change in changes:
        try:
            schema_change.run(
                opened, access_rules, change.sql, functools.partial(_tell_statement, tell, _label(change))
            )
        except schema_change.SchemaChangeRefused as refused:
            statement = refused.statement
            if refused.code in shortages.CODES.values():
                raise _lacking(opened, change, refused) from None
            at = f" Statement: {_shown(statement)}" if statement else ""
            code = "schema_change_failed" if refused.code == "schema_invalid" else refused.code
            raise SyncFailed(code, f"In {_label(change)}: {refused}{at}") from None
        if schema_change.own(opened) != before:
            raise SyncFailed("schema_closed", f"{_label(change)} touches the runtime's own tables; amend it.")
        _check_room(opened, change)


def _lacking(
    opened: LibsqlDatabase, change: wire.PlannedChange, refused: schema_change.SchemaChangeRefused
) -> SyncFailed:
    """Undo everything, and return the error of a change that lacked room or memory."""
    log_bytes = shortages.written(opened)
    opened.rollback()
    text = shortages.told(opened, refused.code, refused.statement, log_bytes, HEAP_BYTES, fence.FILE_BYTES)
    return SyncFailed(refused.code, f"In {_label(change)}: {refused} {text} Statement: {_shown(refused.statement)}")


def _shown(statement: str) -> str:
    return statement if len(statement) <= _SHOWN else statement[:_SHOWN] + " …"


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
            f"After {_label(change)} the database needs {needed >> 20} MiB more, and a reserve of "
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


def _probe(
    opened: LibsqlDatabase, generation: int, local: LocalFunction, probe: wire.Probe, secrets: Mapping[str, str]
) -> None:
    """Make the function's probe call in this transaction, and undo what it wrote."""
    manifest = local.manifest
    what = f"The probe of the function {local.name}, version {local.version}, failed:"
    try:
        function = guest.LoadedFunction.load(local, secrets)
    except (Damaged, WasmEdgeError, OSError) as error:
        raise SyncFailed("probe_failed", f"{what} it can't be loaded: {error}.") from None
    below, _, query = probe.path.partition("?")
    sql = None
    grant = wire.sql_grant(manifest, probe.method)
    if grant != "none":
        limits = SqlLimits(answer_bytes=manifest.sql_bytes, rows=manifest.sql_rows)
        read_only = "" if grant == manifest.sql else probe.method
        sql = ProbeSql(Session(opened), grant, generation, limits=limits, method=read_only)
    services = guest.CallServices(sql, None if manifest.http is None else NO_HTTP)
    opened.rows("SAVEPOINT probe")
    try:
        answer = function.call(guest.Request(probe.method, below, query, (), probe.body.encode()), services)
    except guest.GuestFault as fault:
        _tell_log(local, fault.log)
        raise SyncFailed("probe_failed", f"{what} {fault} ({fault.code})") from None
    finally:
        function.close()
    if not opened.in_transaction:
        raise SyncFailed("probe_failed", f"{what} its SQL ended the transaction; a probe must not use OR ROLLBACK.")
    opened.rows("ROLLBACK TO probe")
    opened.rows("RELEASE probe")
    if answer.status != probe.status:
        _tell_log(local, answer.log)
        shown = answer.body[:_SHOWN].decode("utf-8", "replace")
        raise SyncFailed(
            "probe_failed",
            f"{what} {probe.method} {probe.path} answered {answer.status} and should have answered {probe.status}. "
            f"Body: {shown}",
        )


def _tell_log(local: LocalFunction, text: bytes) -> None:
    """Print what a probe logged to the node's log. It isn't in the sync's error: a function's log stays on the node."""
    for line in text.decode(errors="replace").splitlines():
        print(f"{local.name} {local.version}, in its probe: {line}", file=sys.stderr, flush=True)
