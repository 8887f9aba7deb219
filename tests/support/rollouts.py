"""Rollouts as a replica writes them, without one that decides: their releases, and nodes that they start."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from control.storage.announcements import Changed
from control.sync import own_targets
from tests.support.replica import Replica, TestNode


class OpenRollout(NamedTuple):
    """A rollout, and the number of its release."""

    id: str
    number: int
    group_id: str

    async def start(self, replica: Replica, nodes: Collection[TestNode], step: int = 1) -> int:
        """Start nodes; return their generation."""

        async def work(conn: Any) -> int:
            now = replica.services.clock.now()
            generation = await own_targets.set_own(conn, self.id, [node.id for node in nodes], step, now)
            await Changed(nodes={node.id for node in nodes}).announce(conn)
            return generation

        return await _written(replica, work)

    async def give_back(self, replica: Replica, state: str = "aborted") -> list[str]:
        """End it before all nodes were started; return the ids of those that go back to their group's release."""

        async def work(conn: Any) -> list[str]:
            await conn.execute("UPDATE rollouts SET state = $2 WHERE release_id = $1::text::uuid", self.id, state)
            back = await own_targets.give_back(conn, self.id)
            await Changed(nodes=set(back), groups={self.group_id}).announce(conn)
            return back

        return await _written(replica, work)

    async def finish(self, replica: Replica) -> int:
        """Give its release to the group; return the generation."""

        async def work(conn: Any) -> int:
            await conn.execute("UPDATE rollouts SET state = 'done' WHERE release_id = $1::text::uuid", self.id)
            generation = await own_targets.finish(conn, self.id, self.group_id)
            await Changed(groups={self.group_id}).announce(conn)
            return generation

        return await _written(replica, work)

    async def at(self, replica: Replica, *, state: str = "running", step: int = 1, attempt: int = 1) -> None:
        """Have it stand elsewhere."""

        async def work(conn: Any) -> None:
            text = "UPDATE rollouts SET state = $2, step = $3, attempt = $4 WHERE release_id = $1::text::uuid"
            await conn.execute(text, self.id, state, step, attempt)
            await Changed(groups={self.group_id}).announce(conn)

        await _written(replica, work)

    async def started(self, replica: Replica) -> dict[str, int]:
        """Return the ids of the nodes that it has started, with their generations."""
        text = "SELECT node_id::text, generation FROM rollout_nodes WHERE release_id = $1::text::uuid"
        return dict(await replica.services.db.read(lambda conn: conn.fetch(text, self.id)))


async def open_rollout(
    replica: Replica, group: str = "default", *, functions: Mapping[str, int], schema_floor: int = 0, step: int = 1
) -> OpenRollout:
    """Make a release that goes out in steps, the first of which has begun; 0 is its rehearsal."""
    release_id = str(uuid4())

    async def work(conn: Any) -> OpenRollout:
        now = replica.services.clock.now()
        (found,) = await conn.fetch(
            "SELECT g.id::text AS id, coalesce(max(r.number), 0) + 1 AS number FROM groups AS g"
            " LEFT JOIN releases AS r ON r.group_id = g.id WHERE g.name = $1 GROUP BY g.id",
            group,
        )
        generation = await conn.fetchval("UPDATE generations SET generation = generation + 1 RETURNING generation")
        await conn.execute(
            "INSERT INTO releases (id, group_id, number, generation, schema_floor, reason, created_by, created_at)"
            " VALUES ($1, $2, $3, $4, $5, '', 'test', $6)",
            release_id,
            found["id"],
            found["number"],
            generation,
            schema_floor,
            now,
        )
        for name, version in functions.items():
            await conn.execute(
                "INSERT INTO release_functions (release_id, name, version, sha256)"
                " SELECT $1, name, version, sha256 FROM function_versions WHERE name = $2 AND version = $3",
                release_id,
                name,
                version,
            )
        await conn.execute(
            "UPDATE rollouts SET state = 'superseded'"
            " WHERE group_id = $1::text::uuid AND state IN ('running', 'paused')",
            found["id"],
        )
        await conn.execute(
            "INSERT INTO rollouts (release_id, group_id, policy, state, step, step_since, waits_since, measured_from,"
            " made_at) VALUES ($1, $2, '{}', 'running', $3, $4, $4, $4, $4)",
            release_id,
            found["id"],
            step,
            now,
        )
        await Changed(groups={found["id"]}).announce(conn)
        return OpenRollout(release_id, found["number"], found["id"])

    return await _written(replica, work)


async def _written(replica: Replica, work: Any) -> Any:
    made = await replica.services.db.transaction(work)
    await replica.services.fleet.announced()
    return made
