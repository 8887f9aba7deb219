"""The alerts about backups of nodes' databases: as nodes tell of them, and as control's drills leave them."""

import asyncpg
import pytest

from tests.support.watched import Watched

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A node that tells of its backup would write over these; this one hasn't got its order yet.
WRONG = """
INSERT INTO backups (node_id, lineage, begun_at, reached, reached_at, told_at, error, proven, proven_at, drilled_at,
    drill_error)
SELECT id, repeat('0', 32), now() - interval '9 days', 1, now() - interval '1 hour', now(), 'the disk is full', 1,
    now() - interval '4 days', now(), 'Its pages are damaged'
FROM nodes WHERE removed_at IS NULL
"""
RIGHT = """
UPDATE backups SET reached_at = now(), told_at = now(), error = '', proven_at = now(), drilled_at = now(),
    drill_error = ''
"""


async def test_backups_that_are_missing_late_failing_and_not_proven(watched: Watched) -> None:
    conn = await asyncpg.connect(watched.cluster.services.metadata_url)
    backup = '{"interval": 10, "retention": 86400}'
    try:
        # As the group has it; the fleet cache isn't told, so that no node begins.
        await conn.execute("UPDATE groups SET backup = $1", backup)
        await watched.fires("SkerryBackupMissing")
        await conn.execute(WRONG)
        await watched.fires("SkerryBackupLate", "SkerryBackupFails", "SkerryBackupUnproven", "SkerryDrillFailed")
        await watched.ends("SkerryBackupMissing")
        await conn.execute(RIGHT)
        await watched.ends("SkerryBackupLate", "SkerryBackupFails", "SkerryBackupUnproven", "SkerryDrillFailed")
    finally:
        await conn.execute("UPDATE groups SET backup = NULL")
        await conn.execute("DELETE FROM backups")
        await conn.close()
