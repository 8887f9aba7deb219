"""Backups of nodes in a test's store, as nodes put them there and tell of them."""

import io
from collections.abc import Mapping
from datetime import datetime
from uuid import uuid4

from control.backups import objects
from control.backups.objects import BackupFile
from control.protocol import wire
from tests.support import numbers
from tests.support.replica import Replica, TestNode


async def ship(replica: Replica, node: TestNode, files: Mapping[BackupFile, bytes], lineage: str = "") -> str:
    """Put files of a history of a node at the store, which goes on from now on; return the history's id."""
    lineage = lineage or uuid4().hex
    await replica.services.grants.check(node.id, lineage)
    for file, data in files.items():
        await replica.services.store.put_new(objects.key(node.id, lineage, file), io.BytesIO(data))
    return lineage


async def tell(
    node: TestNode, lineage: str, reached: int, at: datetime | int, *, sequence: int = 1, error: str = ""
) -> None:
    """Have a node tell how far its backup is, at a time or Unix second, and control write it."""
    replica = node.replica
    reached_at = at if isinstance(at, int) else int(at.timestamp())
    state = wire.BackupState(lineage, reached, reached_at, 0, error)
    told = numbers.message([], sequence=sequence, node=wire.NodeNumbers(backup=state))
    assert (await numbers.tell(node, told)).status in (200, 204)
    await replica.services.numbers.nodes.write()


async def release_id(replica: Replica, number: int, group: str = "default") -> str:
    """The id of a group's release, as a database records it; '' for 0."""
    if not number:
        return ""
    found = await replica.services.db.read(
        lambda conn: conn.fetch(  # type: ignore[arg-type]
            "SELECT r.id FROM releases AS r JOIN groups AS g ON g.id = r.group_id WHERE g.name = $1 AND r.number = $2",
            *(group, number),
        )
    )
    return str(found[0]["id"])
