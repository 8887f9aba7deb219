"""Access changes (ADR 55): recorded for the next access list, and applied again from one after a restore.

A change is recorded in the transaction that makes it and written to the bucket later (`access_journal`), so a bucket
that doesn't answer neither delays a revocation nor makes it fail.

Applying a change again, or to metadata that already have it, changes nothing.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from control.storage import queries
from control.storage.access_list import AccessChange, Kind
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.tokens import Token

SQL = queries.load("access_lists")
ADD_NODE = SQL.optional("add_node", str)
RENAME = SQL.optional("rename_node", str)
ADD_CREDENTIAL = SQL.optional("add_credential", str)
REVOKE_UNUSED = SQL.value("revoke_unused", str)
USE = SQL.optional("use", str)
REVOKE_REPLACED = SQL.value("revoke_replaced", str)
REVOKE_BEFORE = SQL.value("revoke_before", str)
SET_REVOKED = SQL.optional("set_revoked", str)
END_REVOKED = SQL.optional("end_revoked", str)
HAS_NODE = SQL.value("has_node", bool)
REVOKE_OPERATOR = SQL.optional("revoke_operator", str)
ADD_REVOKED = SQL.optional("add_revoked", str)
CHANGE_OPERATOR = SQL.optional("change_operator", str)
ADD_OPERATOR = SQL.optional("add_operator", str)
RENEW_OPERATOR = SQL.optional("renew_operator", str)
ROTATE_OPERATOR = SQL.optional("rotate_operator", str)
END_JOIN_TOKEN = SQL.optional("end_join_token", str)
END_SESSION = SQL.optional("end_session", str)
NODES, OPERATORS = queries.load("nodes"), queries.load("operators")

log = logging.getLogger("skerry.recovery")


async def record(
    conn: Connection, now: datetime, kind: Kind, subject: UUID | str, details: Mapping[str, Any] | None = None
) -> None:
    """Record one change. `details` may have hashes of secrets, but no secrets."""
    await conn.execute(SQL["record"], uuid4(), now, kind, subject, dict(details or {}))


async def record_credential(
    conn: Connection, now: datetime, credential: Token, node_id: UUID | str, replaces: str | None = None
) -> None:
    """Record a node's new credential: without it, a node that got it after the backup would have to join again."""
    told = {"node": str(node_id), "hash": credential.secret_hash, "replaces": replaces}
    await record(conn, now, "credential-made", credential.id, told)


async def record_all(conn: Connection, now: datetime, kind: Kind, subjects: Collection[str]) -> None:
    """Record the same kind of change for several subjects."""
    if subjects:
        await conn.execute(SQL["record_all"], [str(uuid4()) for _ in subjects], sorted(subjects), now, kind)


async def apply(conn: Connection, changed: Changed, changes: Iterable[AccessChange]) -> Counter[str]:
    """Apply the changes in order; return how many of each kind changed something."""
    done: Counter[str] = Counter()
    for change in changes:
        work = _WORK.get(change.kind)
        if work is None:
            log.warning("an access list has a change %s, which this version of control doesn't know", change.kind)
        elif await work(conn, changed, change):
            done[change.kind] += 1
    return done


async def _join(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    told = change.details
    row = change.subject, told["name"], told["labels"], told["protocol"], told["group"], change.at
    if await conn.fetchval(ADD_NODE, *row) is None:
        return False
    await conn.execute(SQL["add_presence"], change.subject, change.at)
    changed.nodes.add(change.subject)
    return True


async def _rename(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    if await conn.fetchval(RENAME, change.subject, change.details["name"]) is None:
        return False
    changed.nodes.add(change.subject)
    return True


async def _remove(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    if not await conn.fetchval(HAS_NODE, change.subject):
        return False
    await _revoke_node(conn, changed, change)
    await conn.execute(NODES["end_syncs"], change.subject, change.at)
    await conn.execute(NODES["clear_warnings"], change.subject, change.at)
    await conn.execute(NODES["remove"], change.subject, change.at)
    changed.nodes.add(change.subject)
    return True


async def _revoke_node(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    revoked = await conn.column(REVOKE_BEFORE, change.subject, change.at)
    changed.credentials.update(revoked)
    if await conn.fetchval(SET_REVOKED, change.subject, change.at) is not None:
        await conn.execute(NODES["end_syncs"], change.subject, change.at)
        await conn.execute(NODES["clear_warnings"], change.subject, change.at)
        changed.nodes.add(change.subject)
    return bool(revoked)


async def _make_credential(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    """Store a credential that was made after the backup, and end those that it supersedes.

    A node gets a successor by using the credential that it replaces. So the one before that, and other successors that
    were never used, have ended.
    """
    node, replaces = change.details["node"], change.details.get("replaces")
    row = change.subject, node, change.details["hash"], change.at, replaces
    if await conn.fetchval(ADD_CREDENTIAL, *row) is None:
        return False
    changed.credentials.add(change.subject)
    if await conn.fetchval(END_REVOKED, node, change.at) is not None:
        changed.nodes.add(node)
    if replaces is not None:
        await conn.fetchval(USE, replaces, change.at)
        changed.credentials.add(replaces)
        changed.credentials.update(await conn.column(REVOKE_REPLACED, replaces, change.at))
        changed.credentials.update(await conn.column(REVOKE_UNUSED, node, change.subject, change.at, replaces))
    return True


async def _revoke_operator(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    told = change.details
    found = await conn.fetchval(REVOKE_OPERATOR, change.subject, change.at)
    if found is None and told.get("issuer") is not None:
        row = change.subject, told["name"], change.at, told["issuer"], told["subject"]
        found = await conn.fetchval(ADD_REVOKED, *row)
    if found is not None:
        changed.operators.add(change.subject)
    return found is not None


async def _make_operator(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    told = change.details
    row = change.subject, told["name"], told["role"], told["grants"], _end(told), told["hash"], change.at
    # An operator who was revoked earlier may have had this name.
    await conn.execute(OPERATORS["free_name"], told["name"])
    if await conn.fetchval(ADD_OPERATOR, *row) is None:
        return False
    changed.operators.add(change.subject)
    return True


async def _change_operator(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    told = change.details
    if await conn.fetchval(CHANGE_OPERATOR, change.subject, told["role"], told["grants"], _end(told)) is None:
        return False
    changed.operators.add(change.subject)
    return True


async def _renew_operator(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    told = change.details
    if "old_ends_at" in told:
        ends_at = datetime.fromisoformat(told["old_ends_at"])
        await conn.execute(OPERATORS["end_older_sessions"], change.subject, change.at)
        found = await conn.fetchval(ROTATE_OPERATOR, change.subject, told["hash"], change.at, ends_at)
    else:
        found = await conn.fetchval(RENEW_OPERATOR, change.subject, told["hash"], change.at)
    if found is None:
        return False
    changed.operators.add(change.subject)
    return True


async def _end_join_token(conn: Connection, _changed: Changed, change: AccessChange) -> bool:
    return await conn.fetchval(END_JOIN_TOKEN, change.subject, change.at) is not None


async def _end_session(conn: Connection, changed: Changed, change: AccessChange) -> bool:
    operator = await conn.fetchval(END_SESSION, change.subject, change.at)
    if operator is not None:
        changed.operators.add(operator)
    return operator is not None


def _end(told: Mapping[str, Any]) -> datetime | None:
    return None if told["expires_at"] is None else datetime.fromisoformat(told["expires_at"])


_WORK: dict[str, Callable[[Connection, Changed, AccessChange], Awaitable[bool]]] = {
    "node-joined": _join,
    "node-renamed": _rename,
    "node-removed": _remove,
    "node-revoked": _revoke_node,
    "credential-made": _make_credential,
    "operator-made": _make_operator,
    "operator-revoked": _revoke_operator,
    "operator-changed": _change_operator,
    "operator-renewed": _renew_operator,
    "join-token-ended": _end_join_token,
    "session-ended": _end_session,
}
