"""A probe: a trial call of a function, in the applier's transaction."""

import sys
from collections.abc import Mapping
from typing import Final

from control.manifest_fields import Probe, sql_grant
from edge_runtime.children.probe_sql import ProbeSql
from edge_runtime.children.worker_services import Ungranted
from edge_runtime.errors import SyncFailed
from edge_runtime.guests import guest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.log_levels import shown
from edge_runtime.sql.call_sql import SqlLimits
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import Session
from edge_runtime.wasmedge import Damaged, WasmEdgeError

NO_HTTP: Final = Ungranted("HTTP in a probe: a release's transaction can't wait for other servers")
_SHOWN: Final = 300
"""Characters of an answer that an error message shows."""


def run(
    opened: LibsqlDatabase, generation: int, local: LocalFunction, probe: Probe, secrets: Mapping[str, str]
) -> None:
    """Make the function's probe call in this transaction, and undo what it wrote.

    Raises: SyncFailed, when the function can't be loaded, or doesn't answer as its manifest says.
    """
    manifest = local.manifest
    what = f"The probe of the function {local.name}, version {local.version}, failed:"
    try:
        function = guest.LoadedFunction.load(local, secrets)
    except (Damaged, WasmEdgeError, OSError) as error:
        raise SyncFailed("probe_failed", f"{what} it can't be loaded: {error}.") from None
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
            f"Body: {shown.strip()}",
        )


def _tell_log(local: LocalFunction, text: bytes) -> None:
    """Print what a probe logged to the node's log. It isn't in the sync's error: a function's log stays on the node."""
    for line in shown(text.decode(errors="replace")).splitlines():
        print(f"{local.name} {local.version}, in its probe: {line}", file=sys.stderr, flush=True)
