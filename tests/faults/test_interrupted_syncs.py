"""Syncs that nobody ends, reports that nobody hears, a front that dies: one cluster, one story after the other."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.support.cluster import LOOP, VERSION, WRITE, Cluster, cluster

LEASE = 9
"""Seconds of a sync's lease, where its end is waited for: long enough to look at the sync before that."""
FAILS = "CREATE UNIQUE INDEX only ON twins (n)"


@pytest.mark.timeout(600)
async def test_syncs_that_were_interrupted() -> None:
    async with cluster(functions=(VERSION, WRITE, LOOP), SKERRY_SYNC_LEASE=str(LEASE)) as made:
        await made.seed(range(2, 3))
        await _a_sync_whose_node_is_gone_expires(made, 2, _prepare_the_others)
        # The other stories take their time; their syncs have the usual lease.
        made.control.environment.pop("SKERRY_SYNC_LEASE")
        made.control.kill()
        await _a_success_that_control_could_not_hear_is_told_later(made, 3)
        await _a_failure_that_control_could_not_hear_is_told_before_it_is_tried_again(made, 4)
        await _a_front_that_dies_while_a_worker_loops_is_back_at_once(made)
        made.check_ends()


async def _prepare_the_others(made: Cluster) -> None:
    await made.seed(range(3, 4), lambda _: "UPDATE generation SET number = 3; CREATE TABLE twins (n INTEGER)")
    await made.seed(range(4, 5), lambda _: f"UPDATE generation SET number = 4; {FAILS}")


async def _a_sync_whose_node_is_gone_expires(
    made: Cluster, number: int, meanwhile: Callable[[Cluster], Awaitable[None]]
) -> None:
    made.doing = "the front is gone, and stays away, in the middle of a sync"
    failures = (await made.node())["failures"]
    made.arm("edge.apply.after", "hold")
    await made.release(number)
    await made.reached("edge.apply.after")
    made.front.wanted.clear()
    made.front.kill()
    made.disarm()
    node = await made.node()
    made.check(node["state"] == "syncing", str(node))
    sync = node["sync"]["id"]
    await meanwhile(made)

    async def expired() -> bool:
        # It takes seconds.
        await asyncio.sleep(0.3)
        return (await _sync(made, sync))["status"] == "expired"

    await made.until("the sync has expired", expired)
    node = await made.node()
    made.check(node["state"] != "syncing", str(node))
    assert node["sync"] is None
    assert node["failures"] == failures + 1
    assert node["error"]["code"] == "sync_expired"
    made.front.wanted.set()
    node = await made.converged(number)
    assert node["error"] is None


async def _a_success_that_control_could_not_hear_is_told_later(made: Cluster, number: int) -> None:
    made.doing = "control is gone, and stays away, before a success is reported; then the front is killed too"
    made.arm("edge.sync.report.before", "hold")
    await made.release(number)
    await made.reached("edge.sync.report.before")
    sync = (await made.node())["sync"]["id"]
    made.control.wanted.clear()
    made.control.kill()
    made.disarm()
    await _report_waits(made)
    await _front_again(made)
    status, _, body = await made.ask(f"/functions/{VERSION}")
    assert (status, body[:13]) == (200, b'{"version":%d,' % number), body
    made.control.wanted.set()
    await made.converged(number)
    assert (await _sync(made, sync))["status"] == "succeeded"


async def _a_failure_that_control_could_not_hear_is_told_before_it_is_tried_again(made: Cluster, number: int) -> None:
    made.doing = "control is gone before a failure is reported; then the front is killed too"
    status, _, body = await made.ask(f"/functions/{WRITE}", b'{"sql": "INSERT INTO twins VALUES (1), (1)"}')
    assert status == 200, body
    failures = (await made.node())["failures"]
    made.arm("edge.sync.report.before", "hold")
    await made.release(number)
    await made.reached("edge.sync.report.before")
    sync = (await made.node())["sync"]["id"]
    made.control.wanted.clear()
    made.control.kill()
    made.disarm()
    await _report_waits(made)
    # Who comes here now tries again before he has told.
    made.arm("edge.sync.fetch.before", "hold")
    await _front_again(made)
    made.control.wanted.set()

    async def told() -> bool:
        return (await _sync(made, sync))["status"] == "failed"

    await made.until("control knows of the failure", told)
    made.disarm()
    node = await made.node()
    # It may have tried again by now.
    made.check(node["failures"] > failures, str(node))
    assert node["error"]["code"] == "schema_change_failed"
    status, _, body = await made.ask(f"/functions/{VERSION}")
    assert (status, body[:13]) == (200, b'{"version":%d,' % (number - 1)), body
    amended = f"UPDATE generation SET number = {number}; DELETE FROM twins; {FAILS}"
    await made.call("POST", f"/v1/schema-changes/{number}/revisions", {"sql": amended, "allow_loss": True})
    await made.call("POST", "/v1/nodes/edge-1/retry")
    await made.converged(number)


async def _a_front_that_dies_while_a_worker_loops_is_back_at_once(made: Cluster) -> None:
    made.doing = "the front is killed while a worker loops"
    loop = asyncio.ensure_future(made.ask(f"/functions/{LOOP}"))

    async def runs() -> bool:
        status = await made.status()
        return bool(status and status["calls"]["running"])

    await made.until("the loop runs", runs)
    looping = made.born()
    began = time.monotonic()
    made.front.kill()
    with pytest.raises(aiohttp.ClientConnectionError):
        await loop
    await made.until("the front answers again", lambda: _answers(made), limit=45)
    print(f"the front was back after {time.monotonic() - began:.2f} s")
    # They held the state directory's lock as long as they lived.
    assert not set(looping) & set(made.born())


async def _front_again(made: Cluster) -> None:
    starts = made.front.starts
    made.front.kill()

    async def there() -> bool:
        return made.front.starts > starts and await _answers(made)

    await made.until("the front is back", there)


async def _answers(made: Cluster) -> bool:
    try:
        status, _, _ = await made.ask(f"/functions/{VERSION}")
    except (aiohttp.ClientError, OSError):
        return False
    return status == 200


async def _report_waits(made: Cluster) -> None:
    async def kept() -> bool:
        status = await made.status()
        return bool(status and status["report_waits"])

    await made.until("the report waits on the node's disk", kept)


async def _sync(made: Cluster, sync: str) -> Any:
    return next(item for item in await made.items("/v1/syncs?node=edge-1") if item["id"] == sync)
