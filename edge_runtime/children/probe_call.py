"""Functions that are loaded on trial, and their probes: calls in the applier's transaction that are then undone."""

import sys
from collections.abc import Callable, Mapping
from typing import Final

from control.protocol.manifest import Manifest, sql_grant
from edge_runtime.children.function_cache import allocated, unloadable
from edge_runtime.children.worker_services import Ungranted
from edge_runtime.errors import SyncFailed
from edge_runtime.guests import guest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.log_lines import shown
from edge_runtime.sql.call_sql import CallSql, SqlLimits
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import PreparedStatement, Session
from edge_runtime.wasmedge import Damaged, WasmEdgeError

NO_HTTP: Final = Ungranted("HTTP in a probe: a release's transaction can't wait for other servers")
KEPT_BYTES: Final = 8 * 1024**2
"""Bytes of memory for all functions that stay loaded from their trial to their probe."""
_SHOWN: Final = 300
"""Characters of an answer that an error message shows."""


class TriedFunctions:
    """Functions that were loaded on trial. Those with a probe stay loaded for it, as far as there is room."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[LocalFunction, Mapping[str, str], guest.LoadedFunction]] = {}
        self._room = KEPT_BYTES

    def load(self, local: LocalFunction, secrets: Mapping[str, str], tell: Callable[[int], None]) -> None:
        """Load a function, and call `tell` with the bytes of memory that it takes while it runs.

        Raises: SyncFailed, when it can't be loaded.
        """
        before = allocated()
        try:
            function = guest.LoadedFunction.load(local, secrets)
        except (Damaged, WasmEdgeError, OSError) as error:
            failure = unloadable(local, error)
            raise SyncFailed(failure.code, failure.message) from None
        # An instance on the interpreter has its own copy of the code.
        need = (allocated() - before) * (1 if local.aot else 2)
        # Before it is unloaded, which nobody needs to wait for.
        tell(need)
        if local.manifest.probe is None or need > self._room:
            function.close()
        else:
            self._room -= need
            self._kept[local.name] = local, secrets, function

    def kept(self, local: LocalFunction, secrets: Mapping[str, str]) -> guest.LoadedFunction | None:
        """Return the function, if it is loaded with this code and these secrets."""
        function = self._kept.get(local.name)
        return function[2] if function is not None and function[:2] == (local, secrets) else None


class ProbeSql(CallSql):
    """The SQL of a call inside a transaction that somebody else began and will end."""

    def _begin(self) -> None:
        self._begun, self._writes = True, self._grant == "write"
        self._session.forget()

    def _undo(self, statement: PreparedStatement, why: str) -> None:
        if statement.writes:
            self._ended = why

    def commit(self, *, done: bool = True) -> None:
        raise RuntimeError("a probe is never kept")

    def rollback(self) -> None:
        self._begun = False


def call(opened: LibsqlDatabase, generation: int, function: guest.LoadedFunction, manifest: Manifest) -> guest.Response:
    """Make a function's probe call in the open transaction, and undo what it wrote; return the answer.

    Raises: GuestFault, when the call ends without an answer.
    """
    probe = manifest.probe
    assert probe is not None  # noqa: S101
    below, _, query = probe.path.partition("?")
    sql = None
    grant = sql_grant(manifest, probe.method)
    if grant != "none":
        limits = SqlLimits(answer_bytes=manifest.sql_bytes, rows=manifest.sql_rows)
        read_only = "" if grant == manifest.sql else probe.method
        sql = ProbeSql(Session(opened), grant, generation, limits=limits, method=read_only)
    services = guest.CallServices(sql, None if manifest.http is None else NO_HTTP)
    opened.rows("SAVEPOINT probe")
    try:
        return function.call(guest.Request(probe.method, below, query, (), probe.body.encode()), services)
    finally:
        # An OR ROLLBACK has ended the transaction.
        if opened.in_transaction:
            opened.rows("ROLLBACK TO probe")
            opened.rows("RELEASE probe")


def check(
    opened: LibsqlDatabase,
    generation: int,
    local: LocalFunction,
    secrets: Mapping[str, str],
    tried: TriedFunctions | None = None,
) -> None:
    """Check that a function's probe answers as its manifest says, in the open transaction.

    `tried` are the functions that are already loaded.

    Raises: SyncFailed, when the function can't be loaded, or answers differently.
    """
    manifest, probe = local.manifest, local.manifest.probe
    assert probe is not None  # noqa: S101
    what = f"The probe of the function {local.name}, version {local.version}, failed:"
    kept = None if tried is None else tried.kept(local, secrets)
    try:
        function = kept or guest.LoadedFunction.load(local, secrets)
    except (Damaged, WasmEdgeError, OSError) as error:
        raise SyncFailed("probe_failed", f"{what} it can't be loaded: {error}.") from None
    try:
        answer = call(opened, generation, function, manifest)
    except guest.GuestFault as fault:
        _tell_log(local, fault.log)
        failed = SyncFailed("probe_failed", f"{what} {fault} ({fault.code})")
        failed.brief = f"{what} it ended with {fault.code}."
        raise failed from None
    finally:
        if function is not kept:
            function.close()
    if not opened.in_transaction:
        raise SyncFailed("probe_failed", f"{what} its SQL ended the transaction; a probe must not use OR ROLLBACK.")
    if answer.status != probe.status:
        _tell_log(local, answer.log)
        shown = answer.body[:_SHOWN].decode("utf-8", "replace")
        brief = f"{what} {probe.method} {probe.path} answered {answer.status} and should have answered {probe.status}."
        failed = SyncFailed("probe_failed", f"{brief} Body: {shown.strip()}")
        failed.brief = brief
        raise failed


def _tell_log(local: LocalFunction, text: bytes) -> None:
    """Print what a probe logged to the node's log. It isn't in the sync's error: a function's log stays on the node."""
    for line in shown(text.decode(errors="replace")).splitlines():
        print(f"{local.name} {local.version}, in its probe: {line}", file=sys.stderr, flush=True)
