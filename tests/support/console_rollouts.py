"""Rollouts in each of their states, for the console's pages: written straight into the metadata database, as nobody
carries them on."""

from dataclasses import dataclass
from typing import Any

from tests.support import deploy, seeds
from tests.support.console import MARKUP
from tests.support.replica import Replica

POLICY: dict[str, Any] = {
    "steps": ["1", "10%", {"until": "50%", "pause": "approval", "role": "admin"}, "100%"],
    "max_failed": "5%",
    "window": "Mon-Fri 22:00-05:00 Europe/Lisbon",
    "spread_by": "site",
    "gate": [
        {"metric": "error_ratio", "than_before": "1.2x", "at_most": "0.5%", "at_least_calls": 200},
        {"metric": "p99", "function": "orders", "at_most": "50ms"},
        {"webhook": "https://checks.example.org/a/long/address/of/what/is/asked?with=a&query=of-its-own"},
    ],
}
NODES = 40
"""Of each group."""
ADD_NODES = """
INSERT INTO nodes (id, name, labels, capabilities, protocol, group_id, state, state_since, joined_at,
    confirmed_generation, generation, synced_at)
SELECT gen_random_uuid(), g.name || '-' || lpad(i::text, 2, '0'), jsonb_build_object('site', 's' || (i % 5)), '{}', 3,
    g.id, CASE WHEN i = $2 THEN 'offline' ELSE 'online' END, now(), now(), g.generation, 0, now()
FROM generate_series(1, $2::int8) AS i JOIN groups AS g ON g.name = $1
"""
SEEN = """
INSERT INTO node_presence (node_id, last_seen_at, confirmed_at)
SELECT n.id, now(), now() FROM nodes AS n JOIN groups AS g ON g.id = n.group_id WHERE g.name = $1 ON CONFLICT DO NOTHING
"""
# The first nodes by name are started: as many fail, and are on their way, as given; the others are at their target.
START = """
WITH started AS (
    UPDATE nodes AS n SET release_id = r.id, generation = g.generation + 1,
        confirmed_generation =
            CASE WHEN w.at > $3::int8 + $4::int8 THEN g.generation + 1 ELSE n.confirmed_generation END,
        error_code = CASE WHEN w.at <= $3::int8 THEN 'schema_change_failed' ELSE '' END,
        error_message = CASE WHEN w.at <= $3::int8 THEN $5::text ELSE '' END, error_at = now() + interval '1 second'
    FROM (
        SELECT m.id, row_number() OVER (ORDER BY m.name) AS at FROM nodes AS m JOIN groups AS h ON h.id = m.group_id
        WHERE h.name = $1
    ) AS w, groups AS g, releases AS r
    WHERE w.id = n.id AND w.at <= $2::int8 AND g.name = $1 AND r.group_id = g.id AND r.number = 2
    RETURNING n.id AS node_id, n.release_id, n.generation, w.at
)
INSERT INTO rollout_nodes (release_id, node_id, step, generation, started_at)
SELECT release_id, node_id, CASE WHEN at = $2 THEN 1 ELSE least($6::int8, 2) END, generation, now() FROM started
ON CONFLICT DO NOTHING
"""
PLACE = """
UPDATE rollouts SET state = $2, step = $3, waits_for = $4, reason = $5, ended_at = CASE WHEN $6::bool THEN now() END
WHERE release_id =
    (SELECT r.id FROM releases AS r JOIN groups AS g ON g.id = r.group_id WHERE g.name = $1 AND r.number = 2)
"""
REHEARSED = """
INSERT INTO rehearsals (release_id, node_id, attempt, outcome, code, message, report, told_at)
SELECT r.id, n.id, 1, CASE WHEN w.at <= $2::int8 THEN 'failed' ELSE 'passed' END,
    CASE WHEN w.at <= $2::int8 THEN 'schema_change_failed' ELSE '' END,
    CASE WHEN w.at <= $2::int8 THEN $3::text ELSE '' END,
    CASE WHEN w.at <= $2::int8 THEN jsonb_set($4::jsonb, '{row}', to_jsonb('orders id=' || w.at)) ELSE $5::jsonb END,
    now()
FROM (
    SELECT m.id, row_number() OVER (ORDER BY m.name) AS at FROM nodes AS m JOIN groups AS h ON h.id = m.group_id
    WHERE h.name = $1
) AS w JOIN nodes AS n ON n.id = w.id JOIN groups AS g ON g.id = n.group_id
    JOIN releases AS r ON r.group_id = g.id AND r.number = 2
WHERE n.state <> 'offline'
"""
MEASURED = """
INSERT INTO rollout_gates (release_id, step, gate, outcome, measured, allowed, before, calls, why, measured_at)
SELECT r.id, $2::int8, $3::int8, $4, $5::float8, $6::float8, $7::float8, $8::int8, $9, now()
FROM releases AS r JOIN groups AS g ON g.id = r.group_id WHERE g.name = $1 AND r.number = 2
"""
FINISH = """
UPDATE groups SET release_id = r.id, generation = groups.generation + 1 FROM releases AS r
WHERE groups.name = $1 AND r.group_id = groups.id AND r.number = 2
"""
FINISHED = """
UPDATE nodes SET confirmed_generation = g.generation, release_id = NULL FROM groups AS g
WHERE g.id = nodes.group_id AND g.name = $1
"""
PASSED_REPORT: dict[str, Any] = {
    "row": "",
    # As reports are stored: without what is 0.
    "changes": [
        {"number": 1, "name": "totals", "rows": 1234, "seconds": 0.8, "stall": 0.04},
        {"number": 2, "name": "n"},
    ],
    "schema_digest": "c0ffee" * 10 + "cafe",
    "seconds": 1.8,
    "database": 412_000_000,
}
FAILED_REPORT: dict[str, Any] = {"row": "", "changes": [], "schema_digest": "", "seconds": 0.4, "database": 412_000_000}


@dataclass(frozen=True)
class WrittenState:
    """Where a rollout is to stand."""

    state: str
    step: int
    waits_for: str = ""
    reason: str = ""
    started: int = 0
    failing: int = 0
    syncing: int = 0
    would_fail: int = 0
    """Nodes whose rehearsal failed."""
    gates: tuple[tuple[str, float | None, float | None, float | None, int, str], ...] = ()
    """What each gate of the step said: outcome, measured, allowed, before, calls, why."""


MEASURED_GATES = (
    ("passed", 0.0002, 0.005, 0.00019, 12_904, ""),
    ("passed", 0.0147, 0.05, 0.0139, 8_120, ""),
    ("passed", None, None, None, 0, ""),
)
GATE_FAILED = (
    ("failed", 0.058, 0.005, 0.0002, 1_204, "5.80 % of the calls failed, and 0.50 % may"),
    ("unknown", None, 0.05, None, 7, "7 calls, and it takes 100"),
    ("unknown", None, None, None, 0, f"it answered with 503: {MARKUP}"),
)
STATES = {
    "baking": WrittenState("running", 2, "baking", "it bakes until 2026-12-02T02:30:00Z", 4, gates=MEASURED_GATES),
    "gated": WrittenState("paused", 2, "failed", "gate 1 failed", 4, 1, 1, gates=GATE_FAILED),
    "rehearsed": WrittenState("paused", 0, "failed", "the rehearsal failed on 2 nodes of 40", would_fail=2),
    "stopped": WrittenState("aborted", 2, "", f"an operator has aborted it: {MARKUP}", 4, gates=GATE_FAILED),
    "finished": WrittenState("done", 4, started=40, gates=MEASURED_GATES),
}
"""Groups whose release 2 goes out in steps, each in another state."""


async def fill(replica: Replica) -> None:
    """Make a group of 40 nodes for each of `STATES`, with a rollout in that state."""
    await deploy.schema(replica, "CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER)", "totals")
    version = await seeds.function(replica, "orders")
    for group, wanted in STATES.items():
        await deploy.ok(replica, "POST", "/v1/groups", {"name": group})
        await seeds.release(replica, group, functions={"orders": version}, schema=0)
        await _write(replica, (ADD_NODES, group, NODES), (SEEN, group))
        await deploy.release(replica, group, functions={"orders": version}, schema=1, rollout=POLICY, reason=MARKUP)
        await place(replica, group, wanted.state, wanted.step, wanted.waits_for, wanted.reason)
        writes: list[tuple[Any, ...]] = [
            (REHEARSED, group, wanted.would_fail, MARKUP, FAILED_REPORT, PASSED_REPORT),
        ]
        if wanted.started:
            writes.append((START, group, wanted.started, wanted.failing, wanted.syncing, MARKUP, wanted.step))
        writes += [(MEASURED, group, wanted.step, at, *gate) for at, gate in enumerate(wanted.gates)]
        if wanted.state == "done":
            writes += [(FINISH, group), (FINISHED, group)]
        await _write(replica, *writes)


async def place(replica: Replica, group: str, state: str, step: int, waits_for: str, reason: str = "") -> None:
    """Have the rollout of a group stand elsewhere."""
    await _write(replica, (PLACE, group, state, step, waits_for, reason, state not in ("running", "paused")))


async def start_more(replica: Replica, group: str, started: int) -> None:
    """Have so many nodes of a group started, with those that were; all of them are at their target."""
    await _write(replica, (START, group, started, 0, 0, "", 2))


async def _write(replica: Replica, *statements: tuple[Any, ...]) -> None:
    async def work(conn: Any) -> None:
        for text, *values in statements:
            await conn.execute(text, *values)

    await replica.services.db.transaction(work)
