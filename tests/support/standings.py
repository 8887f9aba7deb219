"""Groups and nodes as rows of the metadata, in whatever way they stand; no node of them asks control."""

from typing import Any
from uuid import uuid4

from tests.support.replica import Replica


async def group(replica: Replica, name: str, releases: int, own: int = 0) -> None:
    """A group with so many releases, of the generations 10, 20 and so on; and `own` ones that nodes alone may have."""

    async def work(conn: Any) -> None:
        now = replica.services.clock.now()
        await conn.execute("INSERT INTO groups (name, created_at) VALUES ($1, $2)", name, now)
        for number in range(1, releases + own + 1):
            await conn.execute(
                "INSERT INTO releases (group_id, number, generation, schema_floor, reason, created_by, created_at)"
                " SELECT id, $2, $3, 0, '', 'test', $4 FROM groups WHERE name = $1",
                *(name, number, number * 10, now),
            )
        await conn.execute(
            "UPDATE groups SET generation = $2, release_id ="
            " (SELECT r.id FROM releases AS r WHERE r.group_id = groups.id AND r.number = $3) WHERE name = $1",
            *(name, releases * 10, releases),
        )

    await replica.services.db.transaction(work)


async def node(replica: Replica, name: str, group: str, **columns: Any) -> None:
    """A node with these columns, and the label `site`; `own` is the number of its own release."""
    now = replica.services.clock.now()
    state, confirmed = columns.get("state", "online"), columns.get("confirmed", 0)
    code, overdue = columns.get("code", ""), columns.get("overdue", False)

    async def work(conn: Any) -> None:
        await conn.execute(
            "INSERT INTO nodes (name, group_id, labels, generation, state, state_since, joined_at,"
            " confirmed_generation, error_code, error_message, error_at, removed_at, release_id, moved_generation,"
            " restore_id)"
            " SELECT $1, id, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10,"
            " (SELECT r.id FROM releases AS r WHERE r.group_id = g.id AND r.number = $12),"
            " CASE WHEN $12::int8 IS NOT NULL THEN 0 END, $13 FROM groups AS g WHERE g.name = $11",
            *(name, {"site": columns.get("site", "")}, columns.get("generation", 0), state, now, confirmed),
            *(code, f"{name} failed" if code else "", now if code else None),
            *(now if columns.get("removed") else None, group, columns.get("own")),
            uuid4() if columns.get("held") else None,
        )
        await conn.execute(
            "INSERT INTO node_presence (node_id, last_seen_at, confirmed_at, overdue)"
            " SELECT id, $2, $2, $3 FROM nodes WHERE name = $1",
            *(name, now, overdue),
        )

    await replica.services.db.transaction(work)
