"""A fleet of any size, written by the database itself."""

from datetime import datetime
from typing import Any

_NODES = """
INSERT INTO nodes (name, group_id, state, state_since, joined_at, synced_at, digest, capabilities_digest)
SELECT 'n' || i, g.id, 'online', $1, $1, $1, 'd', 'c'
FROM generate_series(1, $2::int) AS i, groups AS g WHERE g.name = 'default'
"""
_PRESENCE = """
INSERT INTO node_presence (node_id, last_seen_at, last_sync_at, confirmed_at)
SELECT id, $1::timestamptz - i * interval '25 s' / $2::int, $1, $1::timestamptz - i * interval '25 s' / $2::int
FROM (SELECT id, row_number() OVER () AS i FROM nodes) AS n
"""
_FUNCTIONS = """
INSERT INTO node_functions (node_id, name, version, sha256, manifest_digest) SELECT id, 'f', 1, 's', 'm' FROM nodes
"""
_CREDENTIALS = """
INSERT INTO credentials (node_id, secret_hash, created_at, first_used_at, revoked_at)
SELECT n.id, 'h', $1, $1, CASE WHEN i = 1 THEN NULL ELSE $1::timestamptz END
FROM nodes AS n, generate_series(1, 2) AS i
"""


async def add(connection: Any, now: datetime, nodes: int) -> None:
    """Add so many nodes to the group `default`, all of them online and at their target at `now`: each with a function,
    a credential and one that has ended. `connection` is asyncpg's own."""
    # The rows are right by themselves.
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(_NODES, now, nodes)
    await connection.execute(_PRESENCE, now, nodes)
    await connection.execute(_FUNCTIONS)
    await connection.execute(_CREDENTIALS, now)
    await connection.execute("RESET session_replication_role")
    for table in ("nodes", "node_presence", "node_functions", "credentials"):
        await connection.execute(f"VACUUM ANALYZE {table}")
