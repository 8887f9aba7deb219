"""Both replicas are killed before or after the COMMIT of a rollback with data, and the node at a step of going back.

Whatever is killed, there is one release of the rollback and one restore of each node, the node has the rows, schema and
functions of before, and the same bad release can come and go again, beside nodes that had to stay. SKERRY_TEST_KILLS
says how many rounds, SKERRY_TEST_SEED repeats a run's moments.
"""

import asyncio
import os
import random
from typing import Any

import pytest

from tests.faults.test_rollout_kills import LIMIT, answered, seed
from tests.integration.edge_runtime.sync.test_restores import POINTS
from tests.support.fleet import Fleet, fleet

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "4"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
STAY = 3
"""Simulated nodes, which aren't backed up."""
POLICY = {"steps": ["100%"], "bake": "1h", "rehearse": False}


@pytest.mark.timeout(300 + KILLS * 60)
async def test_a_release_is_undone_once_whatever_is_killed() -> None:
    print(f"SKERRY_TEST_KILLS={KILLS} SKERRY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    async with fleet(edges=1) as made:
        await seed(made, 2)
        await made.add_simulated([f"sim-{number}" for number in range(STAY)])
        await made.call("PUT", "/v1/groups/default/backup", {"interval": 1.0})
        await made.at_release(await made.release({"version": 1}, schema=1, now=True), nodes=STAY + 1)
        moments = ["before", "after"] * (KILLS // 2 + 1)
        for number, moment in enumerate(moments[:KILLS]):
            print(f"{number:4} {moment}")
            await undone(made, moment, chance if number % 4 > 1 else None)


async def backed_up(made: Fleet) -> None:
    """Wait until the store has all that the node has: it can't go back to when it had no backup."""
    (edge,) = made.edges.values()
    seen: list[Any] = [None]

    async def there() -> bool:
        async with made.session.get(f"{edge.url}/_skerry/status") as answer:
            seen[0] = backup = (await answer.json())["backup"]
        return bool(backup and backup["reached"] and backup["lag_seconds"] == 0)

    await made.until("the node has a backup", there, lambda: seen[0], limit=LIMIT)


async def undone(made: Fleet, moment: str, chance: random.Random | None) -> None:
    """Release version 2 with schema change 2, and undo it; with `chance`, the node is killed too."""
    (edge,) = made.edges.values()
    await backed_up(made)
    bad = await made.release({"version": 2}, schema=2, rollout=POLICY)
    where = f"/v1/rollouts/default/{bad}"
    seen: list[Any] = [None]

    async def can_go_back() -> bool:
        """All nodes run it, and the state before it is at the store."""
        rollout, undo = await made.call("GET", where), await made.call("GET", f"{where}/undo")
        seen[0] = rollout["counts"], undo
        return rollout["counts"]["at_target"] == STAY + 1 and (undo["back"], undo["left"]) == (1, STAY)

    await made.until("the node can go back", can_go_back, lambda: seen[0], limit=LIMIT)
    assert await answered(made, f"{edge.url}/functions/version") == (2, 2)
    made.arm(point := f"control.rollout.act.{moment}", "kill")
    asking = asyncio.create_task(made.call("POST", f"{where}/rollback", {"data": True}))
    try:
        await made.reached(point)
    finally:
        made.disarm()
    step = chance.choice((*POINTS, "")) if chance is not None else ""
    if step:
        made.arm(step, "kill")
    for replica in made.replicas:
        replica.kill()
    shown = await asking
    if step:
        print(f"     the node at {step}")
        await made.reached(step)
    elif chance is not None:
        await asyncio.sleep(chance.uniform(0, 1))
        edge.program.kill()
    assert shown["state"] == "rolled_back"
    release = shown["undo"]["release"]
    assert release == bad + 1, shown

    async def went_back() -> bool:
        seen[0] = undo = (await made.call("GET", f"/v1/releases/default/{release}"))["undo"]
        return bool(undo["done"] == 1 and undo["left"] == STAY)

    await made.until("the node has gone back", went_back, lambda: seen[0], limit=LIMIT)
    await made.at_release(release, nodes=STAY + 1, limit=LIMIT)
    assert await answered(made, f"{edge.url}/functions/version") == (1, 1)
    node = await made.call("GET", f"/v1/nodes/{edge.name}")
    assert (node["schema_version"], node["held"]) == (1, False)
    stayed = [node for node in await made.items("/v1/nodes") if node["name"] != edge.name]
    assert [node["schema_version"] for node in stayed] == [2] * STAY
    restores = await made.items(f"/v1/releases/default/{release}/restores")
    assert sorted(each["node"] for each in restores) == sorted(node["name"] for node in (*stayed, {"name": edge.name}))
    acts = await made.items(f"/v1/audit?target=default/{bad}")
    assert [each["action"] for each in acts].count("rollout.rollback") == 1
    assert (await made.call("GET", "/v1/releases?group=default&limit=1"))["items"][0]["number"] == release
