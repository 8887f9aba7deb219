"""What the metadata DB has about nodes: read, changed as values, and written back in the same transaction."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
import orjson

from control import wire
from control.storage import queries

SQL = queries.load("syncs")

TURN = 10
"""Nodes, of which each may run a thousand functions, that are looked at before others have their turn."""
FAR = timedelta(days=365)
"""No time that a node tells is further away than this."""
ROWS = 2000
"""Functions that are written in one statement, or read into inventories before others have their turn."""


@dataclass(slots=True)
class NodeRow:
    """A node as its row has it, with its target; `save` writes all but the target and the epoch."""

    id: str
    removed: bool
    state: str
    state_since: datetime
    schema_version: int
    schema_changes: str
    """As JSON."""
    database_id: str
    digest: str
    confirmed_generation: int
    failures: int
    failed_generation: int
    retry_at: datetime | None
    error_code: str
    error_message: str
    error_at: datetime | None
    synced_at: datetime | None
    capabilities_digest: str
    protocol: int
    syncs_folded: int
    epoch: int
    release_id: str | None
    target_generation: int
    reported: wire.Inventory | None = None
    """Set by `report`: what is to be stored."""
    capabilities: dict[str, Any] | None = None
    """Set by `tell`, as well."""

    def report(self, inventory: wire.Inventory, digest: str) -> None:
        """The node runs `inventory`, whose digest is `digest`."""
        if digest == self.digest:
            return
        self.reported = inventory
        self.schema_version = inventory.schema_version
        self.database_id = clean(inventory.database_id)
        self.digest = digest
        # It was at its target with what it ran before.
        self.confirmed_generation = 0

    def tell(self, capabilities: dict[str, Any], digest: str, protocol: int) -> None:
        """The node can run what `capabilities` say, which its polls call by `digest`."""
        self.capabilities = capabilities
        self.capabilities_digest = digest
        self.protocol = protocol

    def enter(self, state: str, now: datetime) -> None:
        """Be in `state`, since now unless it was."""
        if self.state != state:
            self.state = state
            self.state_since = now

    def confirm(self, generation: int) -> None:
        """The node is at the target that `generation` decided."""
        self.confirmed_generation = max(self.confirmed_generation, generation)
        if generation < self.failed_generation:
            return  # late news: what failed since is still wrong
        self.failed_generation = 0
        self.retry_at = None
        self.error_code = self.error_message = ""
        self.error_at = None

    def fail(self, code: str, message: str, now: datetime) -> None:
        """One more sync failed (R 5.3)."""
        self.failures += 1
        self.error_code = clean(code)
        self.error_message = clean(message)
        self.error_at = now


def clean(text: str) -> str:
    """`text` as a database can keep it."""
    return text.replace("\0", "\ufffd")


def told(time: datetime | None, now: datetime) -> datetime | None:
    """`time` as a node tells it, in UTC, which it means where it names no zone; within `FAR` of `now`.

    Some times that can be written are out of the range of those that the database, or asyncpg, can have.
    """
    if time is None:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return now + min(max(time - now, -FAR), FAR)


async def load(conn: Any, node_ids: Iterable[str]) -> dict[str, NodeRow]:
    """The rows of these nodes, by id."""
    return {row["id"]: NodeRow(**row) for row in await conn.fetch(SQL["nodes"], sorted(node_ids))}


async def lock_free(conn: Any, node_ids: Iterable[str]) -> set[str]:
    """Lock these nodes, each with its open sync, but for those that another transaction has locked; return which."""
    free = {row["id"] for row in await conn.fetch(SQL["lock_free_nodes"], sorted(node_ids))}
    unlocked = {row["id"] for row in await conn.fetch(SQL["lock_free_syncs"], sorted(free))}
    for sync in await conn.fetch(SQL["open_syncs"], sorted(free)):
        if sync["id"] not in unlocked:
            free.discard(sync["node_id"])
    return free


async def stored_inventories(conn: Any, rows: Sequence[NodeRow]) -> dict[str, wire.Inventory]:
    """What these nodes last reported, by id."""
    found = {
        row.id: wire.Inventory(
            schema_version=row.schema_version,
            schema_changes=_changes(row.schema_changes),
            database_id=row.database_id,
        )
        for row in rows
    }
    if found:
        for index, function in enumerate(await conn.fetch(SQL["node_functions"], sorted(found))):
            if index % ROWS == ROWS - 1:
                await asyncio.sleep(0)
            node_id, *values = function.values()
            found[node_id].functions.append(wire.RunningFunction(*values))
    return found


async def save(conn: Any, rows: Iterable[NodeRow]) -> None:
    """Write these rows, and the inventories that were reported."""
    rows = sorted(rows, key=lambda row: row.id)
    if not rows:
        return
    columns = zip(*(_texts(row) for row in rows), strict=True)
    await conn.execute(SQL["save_nodes"], *(list(column) for column in columns))
    reported = [(row.id, row.reported) for row in rows if row.reported is not None]
    if not reported:
        return
    await conn.execute(SQL["delete_functions"], [node_id for node_id, _ in reported])
    functions = [
        (node_id, f.name, str(f.version), f.sha256, f.manifest_digest)
        for node_id, inventory in reported
        for f in inventory.functions
    ]
    for start in range(0, len(functions), ROWS):
        part = zip(*functions[start : start + ROWS], strict=True)
        await conn.execute(SQL["insert_functions"], *(list(column) for column in part))


@lru_cache(maxsize=64)
def _changes(text: str) -> list[wire.AppliedChange]:
    """What nodes applied, from its JSON: most nodes have applied the same. Nobody changes the list."""
    return msgspec.json.decode(text, type=list[wire.AppliedChange])


def _texts(row: NodeRow) -> tuple[str, ...]:
    changes = "" if row.reported is None else orjson.dumps(msgspec.to_builtins(row.reported.schema_changes)).decode()
    return (
        row.id,
        row.state,
        row.state_since.isoformat(),
        str(row.schema_version),
        changes,
        row.database_id,
        row.digest,
        str(row.confirmed_generation),
        str(row.failures),
        str(row.failed_generation),
        _time(row.retry_at),
        row.error_code,
        row.error_message,
        _time(row.error_at),
        _time(row.synced_at),
        "" if row.capabilities is None else orjson.dumps(row.capabilities).decode(),
        row.capabilities_digest,
        str(row.protocol),
        str(row.syncs_folded),
    )


def _time(time: datetime | None) -> str:
    return "" if time is None else time.isoformat()
