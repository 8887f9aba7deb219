"""What metrics say of backups: of each group that is backed up, the worst node and how many have a fault."""

from datetime import timedelta
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from control.backups import backup_metrics
from tests.support.control import Control

NONE = dict.fromkeys(
    (
        *("nodes", "missing_nodes", "failing_nodes", "lag_seconds", "pending_bytes", "store_bytes", "unproven_seconds"),
        *("unproven_nodes", "failed_drills", "late_nodes"),
    ),
    0.0,
)


async def scraped(control: Control) -> dict[str, dict[str, float]]:
    """Values by group and metric, as a new replica would read them."""
    made = backup_metrics.BackupMetrics(control.services.databases.lists, control.clock)
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(await made.text()):
        for sample in family.samples:
            assert set(sample.labels) == {"group"}
            found.setdefault(sample.labels["group"], {})[sample.name.removeprefix("skerry_backup_")] = sample.value
    return found


async def test_backups_in_metrics(control: Control) -> None:
    async def execute(text: str, *given: Any) -> None:
        await control.services.db.transaction(lambda conn: conn.execute(text, *given))

    assert b"skerry_backup" not in (await control.call("GET", "/metrics")).body
    await control.ok("POST", "/v1/groups", {"name": "other"})
    nodes = [await control.join(name) for name in ("one", "two", "three", "gone")]
    await control.join("elsewhere", "other")
    assert await scraped(control) == {}
    await control.ok("PUT", "/v1/groups/default/backup", {"interval": 10})
    assert await scraped(control) == {"default": {**NONE, "missing_nodes": 4}}
    await control.ok("DELETE", "/v1/nodes/gone")
    begun = control.clock.now() - timedelta(days=10)
    for at, node in enumerate(nodes[:2]):
        now = control.clock.now()
        told, reached = now - timedelta(days=at), now - timedelta(days=at, seconds=30 * (at + 1))
        await execute(
            "INSERT INTO backups (node_id, lineage, begun_at, told_at, reached_at, reached, pending, error, at_store, "
            "proven, proven_at, drill_error) "
            "VALUES ($1::text::uuid, repeat('a', 32), $2, $3, $4, 5, $5, $6, 1000, 1, $7, $8)",
            *(node.id, begun, told, reached, 10 * at, "no room" * at, now - timedelta(days=at * 4), "damaged" * at),
        )
        # One that has ended counts no more.
        await execute(
            "INSERT INTO backups (node_id, lineage, begun_at, ended_at, told_at, error) "
            "VALUES ($1::text::uuid, repeat('b', 32), $2, $2, $2, 'old')",
            *(node.id, begun - timedelta(days=90)),
        )
    found = (await scraped(control))["default"]
    assert 4 * 86_400 <= found.pop("unproven_seconds") < 4 * 86_400 + 60
    assert found == {
        "nodes": 2,
        "missing_nodes": 1,
        "failing_nodes": 1,
        "lag_seconds": 60,
        "pending_bytes": 10,
        "store_bytes": 2000,
        "unproven_nodes": 1,
        "failed_drills": 1,
        "late_nodes": 0,
    }
    await execute("UPDATE backups SET reached_at = NULL, proven_at = NULL WHERE ended_at IS NULL")
    found = (await scraped(control))["default"]
    assert found["lag_seconds"] >= 9 * 86_400
    assert found["unproven_nodes"] == 2
    assert found["late_nodes"] == 2
