"""The audit log: a row for each change of what control keeps, in the transaction that makes the change."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from control.storage import events, queries
from control.storage.connection import Connection, log_at_commit

RECORD = queries.load("audit")["record"]


@dataclass(frozen=True)
class Actor:
    """Who makes a change."""

    kind: Literal["operator", "node", "control"]
    """`control`: control by itself, or a command that has the database's URL and no operator's token."""
    name: str
    """The operator's or the node's name, or the part of control."""
    address: str = ""
    """The client's IP address; '' where nothing was asked for over the network."""
    call_id: str = ""
    """The id of the request, which its answer has in the header X-Request-Id; '' where there was none."""


async def record(
    conn: Connection,
    now: datetime,
    actor: Actor,
    action: str,
    target: str,
    details: Mapping[str, Any] | None = None,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record a change of `target`, in the transaction that makes it; an operator's is an event, too. Once the change is
    made, control's log says so.

    `before` and `after` are values by name; of these, the row has those that differ. `details` are circumstances, such
    as a reason. None of them may be a secret, or the hash of one.
    """
    old, new = before or {}, after or {}
    await conn.execute(
        RECORD,
        uuid4(),
        now,
        actor.kind,
        actor.name,
        actor.address,
        actor.call_id,
        action,
        target,
        dict(details or {}),
        {name: value for name, value in old.items() if name not in new or new[name] != value},
        {name: value for name, value in new.items() if name not in old or old[name] != value},
    )
    call = f" (request {actor.call_id})" if actor.call_id else ""
    log_at_commit(f"{actor.kind} {actor.name}: {action} {target}{call}")
    if actor.kind == "operator":
        act = {"operator": actor.name, "action": action, "target": target, "call_id": actor.call_id}
        await events.record(conn, now, "operator.acted", [act])
