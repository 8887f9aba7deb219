"""The alerts about rollouts: one that fails, one whose gate can't say, and one that was rolled back."""

import asyncio
from typing import Any

import pytest

from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.watched import BAD, LIMIT, Watched, repeating

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def roll_out(watched: Watched, wasm: bytes, **gate: Any) -> str:
    """Release another version of `BAD` in one step that has this gate; return the path of its rollout."""
    number = await watched.cluster.push(BAD, wasm)
    policy = {"steps": ["100%"], "bake": "0s", "rehearse": False, "gate": [{"metric": "error_ratio", **gate}]}
    made = await watched.cluster.call("POST", "/v1/releases", {"functions": {BAD: number}, "rollout": policy})
    return f"/v1/rollouts/{made['group']}/{made['number']}"


async def stands(watched: Watched, path: str, **fields: str) -> None:
    """Wait until the rollout is so."""
    seen: Any = None

    async def there() -> bool:
        nonlocal seen
        seen = await watched.cluster.call("GET", path)
        return all(seen[name] == value for name, value in fields.items())

    await watched.cluster.until(f"the rollout has {fields}", there, lambda: seen, scaled(LIMIT))


async def test_a_gate_can_not_say(watched: Watched) -> None:
    path = await roll_out(watched, guest("echo"), at_most="5%", at_least_calls=10**9)
    await watched.fires("SkerryRolloutUnknown")
    await watched.cluster.call("POST", f"{path}/promote", {})
    await stands(watched, path, state="done")
    await watched.ends("SkerryRolloutUnknown")


async def test_a_rollout_fails_and_is_rolled_back(watched: Watched) -> None:
    await watched.serve(guest("echo"))
    async with repeating(lambda: watched.call(BAD)):
        path = await roll_out(watched, guest("trap"), at_most="5%", at_least_calls=1)
        await stands(watched, path, waits_for="failed")
        await watched.fires("SkerryRolloutFailed")
        told = asyncio.create_task(watched.fires("SkerryRolloutRolledBack"))
        await watched.cluster.call("POST", f"{path}/rollback", {})
        await told
        await watched.ends("SkerryRolloutFailed", "SkerryRolloutRolledBack")
